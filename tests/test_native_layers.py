"""When transformers builds layers from their own config (its pull request 45332), folders load without our code."""

import pytest
from transformers import AutoModelForCausalLM

from tests.helpers import GROUPINGS, make_sorted_model, make_tiny_model, random_policy


pytestmark = pytest.mark.slow


# OPT, GPT-NeoX and GPT-2 take their head dimension from the number of heads, which that alone doesn't change.
NATIVE = ("llama", "phi3", "gemma2", "gemma3", "olmo2")


@pytest.mark.parametrize(
    ("name", "sizes", "groups"),
    [(name, {}, (None,)) for name in NATIVE]
    + [(name, *GROUPINGS["both groups"]) for name in ("llama", "phi3", "gemma3")],
)
def test_checkpoint_loads_with_native_per_layer_config(name, sizes, groups, windows, tmp_path, monkeypatch):
    sorted_model, _ = make_sorted_model(make_tiny_model(name, **sizes), windows, groups)
    pruned = sorted_model.slice(random_policy(sorted_model, 1))
    pruned.save_pretrained(tmp_path)
    layer_class = type(pruned.base_model.layers[0])
    build = layer_class.__init__

    def build_from_its_own_config(self, config, layer_idx):
        build(self, config.per_layer_config[layer_idx], layer_idx)

    monkeypatch.setattr(layer_class, "__init__", build_from_its_own_config)
    native = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(native) is type(pruned).__mro__[1]
    assert native(windows).logits.equal(pruned(windows).logits)
