import pytest
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Cache

from optimum_ffp.evaluation.record import size_record
from optimum_ffp.evaluation.size import kv_cache_bytes, projection_parameters, weight_bytes
from tests.helpers import DIVERSE_MODELS, make_tiny_model, prune_to_sizes


def test_projection_parameters_of_llama():
    # Query and output, key and value of 4 of 8 heads, and gate, up and down, in three layers.
    assert projection_parameters(make_tiny_model()) == 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)


def test_size_counts_unpacked_4_bit_parameters(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = make_tiny_model(hidden_size=64, intermediate_size=128)
    model.save_pretrained(tmp_path)
    options = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True), "device_map": "cpu"}
    assert size_record(AutoModelForCausalLM.from_pretrained(tmp_path, **options)) == size_record(model)


def test_unsupported_family_has_no_projection_count():
    model = make_tiny_model()
    model.config.model_type = "unheard-of"
    assert projection_parameters(model) is None


@pytest.mark.parametrize("name", DIVERSE_MODELS)
def test_kv_cache_size_equals_cache_filled_by_forward_pass(name, windows):
    model, _ = prune_to_sizes(make_tiny_model(name))
    (cache,) = [value for value in model(windows[:, :5], use_cache=True).values() if isinstance(value, Cache)]
    total = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert total == kv_cache_bytes(model) * 6 * 5


def test_pruning_query_heads_keeps_kv_cache_size():
    model = make_tiny_model("phi3", num_key_value_heads=2)
    pruned, policy = prune_to_sizes(model, groups=("query_head",))
    assert kv_cache_bytes(pruned) == kv_cache_bytes(model)
    assert projection_parameters(pruned) == policy.kept_parameters < projection_parameters(model)


def test_weight_bytes_of_whole_and_sharded_checkpoints(tmp_path):
    model = make_tiny_model()
    model.save_pretrained(tmp_path / "whole")
    assert weight_bytes(model, tmp_path / "whole") == (tmp_path / "whole" / "model.safetensors").stat().st_size
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    (tmp_path / "sharded" / "agent.safetensors").write_bytes(b"not a weight")
    shards = sorted((tmp_path / "sharded").glob("model-*"))
    measured = weight_bytes(model, tmp_path / "sharded")
    assert len(shards) > 1 and measured == sum(path.stat().st_size for path in shards)
