import pytest
from transformers import AutoConfig

from optimum_ffp.errors import FFPError
from optimum_ffp.families import FAMILIES, find_units, get_family
from optimum_ffp.modeling import pruned_model_class
from tests.conftest import CONFIGS


def test_units_cover_all_projections_of_the_blocks(picomodel):
    family = get_family(picomodel.config.model_type)
    units = find_units(picomodel, family)
    layers = picomodel.base_model.get_submodule(family.layers)
    expected = sum(
        parameter.numel() for name, parameter in layers.named_parameters() if "norm" not in name.split(".")[-2]
    )
    assert sum(unit.unit.parameters for unit in units) == expected
    assert [unit.unit.kind for unit in units] == ["attention", "ffn"] * 3


def test_every_family_has_a_picomodel_and_code_for_its_checkpoints():
    assert {model_type for model_type, _ in CONFIGS.values()} == set(FAMILIES)
    for family in FAMILIES.values():
        assert pruned_model_class(family).config_class.model_type == family.model_type


def test_layer_overrides_name_only_what_differs():
    family = get_family("llama")
    config = AutoConfig.for_model("llama", num_attention_heads=8, num_key_value_heads=4, intermediate_size=48)
    assert family.layer_overrides(config, {"attention": 4, "ffn": 48}) == {}
    assert family.layer_overrides(config, {"attention": 3, "ffn": 48}) == {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    }


def test_unsupported_family_lists_the_supported():
    with pytest.raises(FFPError, match="'bert' is not supported; supported are llama, mistral, opt, qwen2, qwen3"):
        get_family("bert")
