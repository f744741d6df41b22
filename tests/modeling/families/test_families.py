import re

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from optimum_ffp import FFPConfig, FFPModelForCausalLM, FFPPruner
from optimum_ffp.errors import FFPError
from optimum_ffp.modeling.auto import pruned_model_class
from optimum_ffp.modeling.families import FAMILIES, find_family, find_units
from optimum_ffp.modeling.families.units import quantizable_multiple
from tests.helpers import CONFIGS, MIXTURES, SETTINGS, make_tiny_model, make_tokenizer, plan_of


@pytest.mark.parametrize("name", CONFIGS)
def test_units_cover_all_projections_of_blocks(name):
    model = make_tiny_model(name)
    family = find_family(model.config)
    units = find_units(model, family)
    layers = model.base_model.get_submodule(family.layers)
    expected = sum(
        parameter.numel()
        for name, parameter in layers.named_parameters()
        if not re.match(r"conv|.*norm|ln_\d", name.split(".", 1)[1].rpartition(".")[0])
    )
    assert sum(unit.unit.parameters for unit in units) == expected
    kinds = [("ffn",) if hasattr(layer, "conv") else ("attention", "ffn") for layer in layers.children()]
    assert [unit.unit.kind for unit in units] == [kind for layer in kinds for kind in layer]


def test_every_family_has_tiny_model_and_modeling_code():
    assert {model_type for model_type, _ in (CONFIGS | MIXTURES).values()} == set(FAMILIES)
    for family in FAMILIES.values():
        # Mixtures keep the dense model's class.
        if not family.classes:
            continue
        model_class = pruned_model_class(family)
        assert model_class.config_class.model_type == family.model_type
        # What pipelines go by.
        assert model_class.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def test_layer_overrides_contain_only_differences():
    family = FAMILIES["llama"]
    config = AutoConfig.for_model("llama", num_attention_heads=8, num_key_value_heads=4, intermediate_size=48)
    assert family.layer_overrides(config, {"kv_group": 4, "channel": 48}) == {}
    assert family.layer_overrides(config, {"kv_group": 3, "channel": 48}) == {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    }
    assert family.layer_overrides(config, {"query_head": 2, "channel": 48}) == {}
    assert family.layer_overrides(config, {"query_head": 1, "channel": 40}) == {
        "num_attention_heads": 4,
        "intermediate_size": 40,
    }


@pytest.mark.slow
def test_attention_with_norm_across_heads_is_not_pruned(data_folder, windows, caplog, tmp_path):
    config = FFPConfig(dataset=str(data_folder), sparsity=0.3, attention="query-heads", **SETTINGS)
    pruner = FFPPruner(make_tiny_model("olmo2"), make_tokenizer(), config)
    assert "is not pruned" in caplog.text
    result = pruner.prune()
    sizes = [(unit.group, unit.groups, size) for unit, size in zip(result.policy.units, result.policy.sizes)]
    assert sizes[::2] == 3 * [("all_heads", 1, 1)] and result.policy.sparsity == pytest.approx(0.3, abs=0.01)
    layers = result.model.config.to_dict()["per_layer_config"]
    assert layers and all(entry.keys() == {"intermediate_size"} for entry in layers.values())
    pruner.save_pretrained(tmp_path / "out")
    assert FFPModelForCausalLM.from_pretrained(tmp_path / "out")(windows).logits.equal(result.model(windows).logits)
    with pytest.raises(FFPError, match="the maximum is"):
        pruner.prune(sparsity=0.6)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "FFN channels are removed" in card and "Attention heads" not in card and "(`all_heads`)" in card


def test_max_retention_does_not_apply_to_unprunable_attention():
    plan = plan_of(make_tiny_model("olmo2"), sparsity=0.3, max_retention=0.95, preset="paper")
    assert plan.budget.largest.tolist()[::2] == 3 * [1]


@pytest.mark.parametrize("width, multiple", [(11008, 256), (4864, 32), (1536, 32), (48, 1), (8960, 256), (3000, 1)])
def test_ffn_width_multiple_keeps_wide_models_quantizable(width, multiple):
    assert quantizable_multiple(width) == multiple
