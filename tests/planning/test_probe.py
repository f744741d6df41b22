import pytest
import torch
from transformers import LlamaConfig

from optimum_ffp.modeling.loading import empty_model
from optimum_ffp.planning.probe import seconds_per_token
from tests.helpers import EVERY_MODEL, make_tiny_model, prune_to_sizes


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_probe_runs_every_family_dense_and_pruned(name):
    dense = make_tiny_model(name)
    for model in (dense, prune_to_sizes(dense)[0]):
        shape = empty_model(model.config)
        assert seconds_per_token(shape, CPU, 24) > 0
        # The shape is still that of the whole model.
        assert shape.num_parameters() == model.num_parameters()


@pytest.mark.parametrize(("hidden_size", "is_shortened"), [(64, False), (4096, True)])
def test_time_of_one_layer_is_scaled_to_all_and_large_layers_read_fewer_tokens(hidden_size, is_shortened, monkeypatch):
    lengths = []

    def timed(run, **_) -> list[float]:
        run()
        return [7.0, 6.0]

    def decode(model, window, device):
        lengths.append(window.numel())
        return model.get_decoder()(window.to(device), use_cache=False)

    monkeypatch.setattr("optimum_ffp.planning.probe.repeat", timed)
    monkeypatch.setattr("optimum_ffp.planning.probe.decode", decode)
    config = LlamaConfig(hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=12)
    assert seconds_per_token(empty_model(config), CPU, 1024) == pytest.approx(12 * 6 / lengths[0])
    assert (lengths[0] < 1024) is is_shortened
