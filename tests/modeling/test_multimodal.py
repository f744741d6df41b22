"""Tiny models that also take images, of which the language model is pruned."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner
from optimum_ffp.data.rows import render
from optimum_ffp.evaluation.size import weight_bytes
from optimum_ffp.modeling.families import MULTIMODAL, find_family
from optimum_ffp.modeling.loading import LoadOptions, load_any, load_dense, shape_of
from tests.helpers import CONFIGS, SETTINGS, fill_with_noise, make_tokenizer, save_with_tokenizer


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SIZES | {"image_size": 16, "patch_size": 8}
# Their language models, by the names of tiny models.
LANGUAGE = {
    "gemma3": "gemma3",
    "idefics3": "llama",
    "internvl": "qwen3",
    "llava": "llama",
    "llava_next": "mistral",
    "mistral3": "mistral",
    "smolvlm": "llama",
}
CPU = LoadOptions("cpu")


def save_tiny(folder, name, **changes):
    """A random model that takes images, with heads of its own where the family has them."""
    model_type, sizes = CONFIGS[LANGUAGE[name]]
    config_class = CONFIG_MAPPING[name]
    vision = type(config_class().vision_config)(**VISION)
    text = AutoConfig.for_model(model_type, **sizes)
    config = config_class(text_config=text.to_dict(), vision_config=vision.to_dict(), **changes)
    torch.manual_seed(0)
    model = fill_with_noise(AutoModelForImageTextToText.from_config(config))
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = True
    save_with_tokenizer(model, folder)
    return model


@pytest.mark.parametrize(("name", "tied"), [*((one, True) for one in MULTIMODAL), ("gemma3", False), ("llava", False)])
def test_extracted_language_model_gives_same_logits(name, tied, windows, tmp_path, caplog):
    whole = save_tiny(tmp_path, name, tie_word_embeddings=tied)
    whole_is_tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    model, _ = load_dense(str(tmp_path), CPU)
    assert "vision-language" in caplog.text
    model_type = CONFIGS[LANGUAGE[name]][0]
    assert model.config.model_type == shape_of(str(tmp_path), CPU).config.model_type == model_type
    assert model.config.tie_word_embeddings == whole_is_tied
    assert torch.equal(model(windows).logits, whole(windows).logits)
    assert not [key for key in model.state_dict() if "vision" in key or "projector" in key]
    assert model.generation_config.temperature == 0.5
    assert model.name_or_path == model.config._name_or_path == str(tmp_path)


@pytest.mark.slow
def test_multimodal_model_is_pruned_and_saved_as_text_model(data_folder, windows, tmp_path):
    save_tiny(tmp_path / "dense", "gemma3")
    config = FFPConfig(dataset=str(data_folder), sparsity=0.3, **SETTINGS)
    pruner = FFPPruner.from_pretrained(tmp_path / "dense", config, tmp_path / "work", device="cpu", offload="disk")
    result = pruner.prune()
    assert result.policy.sparsity == pytest.approx(0.3, abs=0.01)
    pruner.save_pretrained(tmp_path / "pruned")
    saved = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert saved["model_type"] == "gemma3_text" and "vision_config" not in saved
    assert saved["language_model_of"] == "gemma3"
    assert "text-only language model of dense" in (tmp_path / "pruned" / "README.md").read_text()
    found = FFPModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(found(windows).logits, result.model(windows).logits)
    # The baseline of `ffp evaluate`, and the teacher of `ffp recover`.
    dense, _ = load_any(str(tmp_path / "dense"), CPU)
    assert dense.num_parameters() > found.num_parameters()
    # Not those of the files, which have a tower for images too.
    assert weight_bytes(dense, tmp_path / "dense") == 4 * dense.num_parameters()


def test_position_ids_of_old_vision_towers_are_ignored(windows, tmp_path):
    whole = save_tiny(tmp_path, "llava")
    weights = load_file(tmp_path / "model.safetensors")
    tower = next(name for name in weights if "position_embedding" in name).partition("embeddings")[0]
    weights[f"{tower}embeddings.position_ids"] = torch.arange(5)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_dense(str(tmp_path), CPU)[0](windows).logits, whole(windows).logits)


def test_chat_template_with_content_parts_is_rendered(tmp_path):
    save_tiny(tmp_path, "smolvlm")
    # The characters of a text have no type.
    template = (
        "{% for message in messages %}w5 {% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %} w6 {% endfor %}"
    )
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    _, tokenizer = load_dense(str(tmp_path), CPU)
    conversation = [{"role": "user", "content": "w10 w11"}, {"role": "assistant", "content": "w12"}]
    assert render(conversation, tokenizer, "text") == "w5 w10 w11 w6 w5 w12 w6 "


def test_invalid_use_of_multimodal_models_is_rejected(tmp_path):
    whole = save_tiny(tmp_path, "gemma3")
    with pytest.raises(FFPError, match="vision-language"):
        FFPPruner(whole, make_tokenizer(), FFPConfig())
    with pytest.raises(FFPError, match="vision-language"):
        find_family(AutoConfig.for_model("llava"))
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(FFPError, match="quanti"):
        shape_of(str(tmp_path), CPU)
