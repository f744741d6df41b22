import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.modeling.auto import is_homogeneous, is_pruned
from tests.helpers import apply_policy, make_sorted_model, make_tiny_model, prune_to_sizes


def test_checkpoint_loads_with_saved_class_and_given_config(tiny_model, windows, tmp_path):
    pruned, _ = prune_to_sizes(tiny_model)
    pruned.save_pretrained(tmp_path)
    loaded = FFPModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(pruned) and torch.equal(loaded(windows).logits, pruned(windows).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    # The dense model's config is left alone, and so are the global sizes of the pruned one.
    assert not is_pruned(tiny_model.config) and is_pruned(config)
    assert config.num_attention_heads == tiny_model.config.num_attention_heads == 8
    config.use_cache = False
    assert not FFPModelForCausalLM.from_pretrained(tmp_path, config=config).config.use_cache


def homogeneous_policy(units, heads=1, channels=3):
    """The policy that removes the same numbers of groups from every layer."""
    removed = {"attention": heads, "ffn": channels}
    return PruningPolicy(units, tuple(max(1, unit.groups - removed[unit.kind]) for unit in units))


# Models whose class takes any number of heads. Others derive the head dimension from it and the hidden size, which is
# 32, or want it to be a divisor.
ANY_HEADS = {"mistral", "phi3"}


@pytest.mark.parametrize("heads", [0, 1, 2])
@pytest.mark.parametrize("name", ["llama", "mistral", "phi3", "gpt2", "opt", "gemma3"])
def test_homogeneous_policy_gives_dense_class_checkpoint(name, heads, windows, tmp_path):
    model = make_tiny_model(name)
    # Either kind of group where there are two.
    groups = ("query_head",) if heads == 1 and name not in ("gpt2", "opt") else (None,)
    sorted_model, _ = make_sorted_model(model, windows, groups)
    policy = homogeneous_policy(sorted_model.units, heads)
    with apply_policy(sorted_model, policy) as changed_model, torch.no_grad():
        expected = changed_model(windows).logits
    is_plain = is_homogeneous(sorted_model.model, policy)
    pruned = sorted_model.slice(policy, homogeneous=is_plain)
    assert is_plain == (type(pruned) is type(model))
    whole = all(size == unit.groups for unit, size in zip(policy.units[::2], policy.sizes[::2]))
    # Of eight or four heads with two queries each, without two, 32 is a multiple.
    assert is_plain or not (whole or name in ANY_HEADS)
    if is_plain:
        pruned.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert type(loaded) is type(model) and torch.equal(loaded(windows).logits, expected)
        assert not list(tmp_path.glob("*.py")) and not is_pruned(loaded.config)
        assert loaded.num_parameters() < model.num_parameters()
        rope = getattr(model.config, "rope_parameters", None)
        assert getattr(loaded.config, "rope_parameters", None) == rope
        # As transformers before 5 reads and writes it.
        config = json.loads((tmp_path / "config.json").read_text())
        assert ("rope_theta" in config) == bool(config.pop("rope_parameters", None)) == bool(rope)
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(windows).logits, expected)


def test_heterogeneous_dense_config_is_not_pruned_model():
    config = pytest.importorskip("transformers.models.gemma4").Gemma4TextConfig()
    assert config.is_heterogeneous and not is_pruned(config)
