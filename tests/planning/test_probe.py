import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_ffp.modeling.loading import empty_model
from optimum_ffp.planning.probe import seconds_per_token
from tests.helpers import EVERY_MODEL, make_tiny_model, prune_to_sizes


CPU = torch.device("cpu")
HEADLESS = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "vocab_size": 64}


@torch.no_grad()
def real_seconds_per_token(model, length):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model(torch.zeros(1, length, dtype=torch.long))
        times.append(time.perf_counter() - start)
    return min(times) / length


def test_probe_of_one_layer_predicts_time_of_whole_model():
    model = LlamaForCausalLM(LlamaConfig(**HEADLESS, num_hidden_layers=12))
    probed = min(seconds_per_token(empty_model(model.config), CPU, 256) for _ in range(3))
    # Other processes may compute too.
    assert 0.4 < probed / real_seconds_per_token(model, 256) < 2.5


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_probe_runs_every_family_dense_and_pruned(name):
    dense = make_tiny_model(name)
    for model in (dense, prune_to_sizes(dense)[0]):
        shape = empty_model(model.config)
        assert seconds_per_token(shape, CPU, 24) > 0
        # The shape is still that of the whole model.
        assert shape.num_parameters() == model.num_parameters()


def test_probe_of_large_layers_takes_seconds():
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    model = empty_model(LlamaConfig(**sizes, num_hidden_layers=32, vocab_size=128256))
    start = time.perf_counter()
    seconds = seconds_per_token(model, CPU, 4096)
    # A whole window would take this long in a single layer.
    assert time.perf_counter() - start < 4096 * seconds / 32 / 2
