"""Models that are whole, and can't be used all the same."""

import pytest

from optimum_ffp import FFPConfig, FFPError, FFPPruner
from optimum_ffp.modeling.loading import load_any
from tests.helpers import SETTINGS, make_tokenizer
from tests.modeling.test_loading import CPU, assert_both_loaders_refuse, edit_config, edit_weights, load_to_prune


def test_overflow_in_float16_is_rejected(save_tiny_model, data_folder):
    base, config = save_tiny_model(), FFPConfig(dataset=str(data_folder), **SETTINGS | {"method": "no-search"})
    edit_weights(base, lambda w: w["model.norm.weight"].fill_(1e5))
    FFPPruner.from_pretrained(base, config, device="cpu").search()
    with pytest.raises(FFPError, match="float16"):
        FFPPruner.from_pretrained(base, config, device="cpu", dtype="float16").search()


def test_tokenizer_larger_than_embedding_is_rejected(save_tiny_model):
    base, tokenizer = save_tiny_model(), make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(base)
    load_to_prune(str(base), CPU)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(base)
    assert_both_loaders_refuse(base, "has token ids up to 129, but the model's embedding has 128 rows")


def test_custom_code_for_builtin_classes_is_ignored(save_tiny_model):
    base = save_tiny_model("phi3")
    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    edit_config(base, auto_map=code | {"AutoTokenizer": "Xenova/gpt-4o"})
    load_to_prune(str(base), CPU)
    edit_config(base, auto_map=code | {"AutoModelForCausalLM": "modeling_phi3.MyForCausalLM"})
    with pytest.raises(FFPError, match="custom code"):
        load_to_prune(str(base), CPU)


def test_gemma2_is_loaded_with_eager_attention(save_tiny_model):
    base = str(save_tiny_model("gemma2"))
    for load in (load_to_prune, load_any):
        assert load(base, CPU)[0].config._attn_implementation == "eager"


def test_model_with_infinite_logits_is_rejected(save_tiny_model):
    base = save_tiny_model()
    edit_weights(base, lambda w: [w[name].mul_(1e30) for name in ("model.norm.weight", "lm_head.weight")])
    load_any(str(base), CPU)
    with pytest.raises(FFPError, match=r"infinite.*float32"):
        FFPPruner.from_pretrained(base, device="cpu").prune()
