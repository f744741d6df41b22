"""What a stage holds, against sizes that are counted by hand or on a real model."""

from functools import partial

import pytest
import torch

from optimum_ffp import FFPConfig
from optimum_ffp.modeling.families import find_units, get_family
from optimum_ffp.planning.memory import MemoryModel
from optimum_ffp.planning.placement import Placement
from tests.helpers import make_sorted_model, make_tiny_model, random_policy


def stages(placement=None, sparsity=0.2, **options):
    model, family = make_tiny_model(), get_family("llama")
    config = FFPConfig(seq_len=24, **options)
    memory = MemoryModel(model, find_units(model, family), family, config, sparsity, placement or Placement(4, 4))
    return {stage.name: stage for stage in memory.stages()}, memory


# Three layers: 4 KV groups of two heads of 4, and 48 channels, on a hidden size of 32 and 128 tokens.
BLOCKS = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
OTHERS = 2 * 128 * 32 + 3 * 2 * 32 + 32
# In float32; the frequencies of the rotary embedding are two buffers of two numbers.
WEIGHTS = 4 * (BLOCKS + OTHERS + 2 * 2)
MATRICES = 3 * (32**2 + 48**2)
# Powers of two from 4 * 32² and 4 * 48² on.
PINNED = 3 * (2**12 + 2**14)


def test_weights_and_matrices_by_hand():
    found, memory = stages()
    assert memory.weights == WEIGHTS
    assert memory.factors == 3 * memory.grams == 4 * MATRICES and memory.fishers == 4 * 6 * 32**2
    # Sums of chunks along a tree of four levels.
    assert found["statistics"].device["Gram matrices"] == 4 * 4 * MATRICES / 3
    for name in ("statistics", "search", "calibration"):
        assert found[name].device["weights"] == WEIGHTS
        assert found[name].device["factors"] == 4 * MATRICES


def test_the_pruned_model_is_as_large_as_it_will_be(windows):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    policy = random_policy(sorted_model, 0)
    _, memory = stages(sparsity=policy.sparsity)
    assert memory.pruned == pytest.approx(sorted_model.materialise(policy).get_memory_footprint(), rel=1e-6)


def test_stages_are_those_that_the_options_ask_for():
    assert "fisher" in stages()[0]
    bare = {"criterion": "wanda", "mapping": "greedy", "method": "uniform"}
    bare |= {"calibration": "none", "reward": "pruned"}
    found, memory = stages(**bare)
    assert "factorisation" not in found and memory.factors == 0
    assert not found["search"].device.get("compensated weights")


def test_longer_windows_cost_activations_and_more_of_them_hidden_states():
    before, _ = stages()
    model, family = make_tiny_model(), get_family("llama")
    longer = MemoryModel(model, find_units(model, family), family, FFPConfig(seq_len=48), 0.2, Placement(4, 4))
    after = {stage.name: stage for stage in longer.stages()}
    assert after["statistics"].device["activations"] == 2 * before["statistics"].device["activations"]
    assert after["statistics"].host["hidden states"] == 2 * before["statistics"].host["hidden states"]
    more = stages(num_samples=500)[0]["statistics"]
    assert more.device == before["statistics"].device and more.host["hidden states"] == 500 * 24 * 32 * 4


def test_what_has_no_room_on_a_card_is_in_host_memory():
    beside, apart = (
        stages(Placement(4, 4, accelerator=True, matrices_beside=there, pins_memory=True))[0]["search"]
        for there in (True, False)
    )
    # In pinned memory, each takes the next power of two.
    assert (beside.device["factors"], apart.host["factors"]) == (4 * MATRICES, PINNED)
    assert "factors" not in apart.device and "factors" not in beside.host
    # Units borrow the card one after another.
    assert apart.device["one unit's matrix"] == 4 * 48**2


def test_hidden_states_are_on_a_card_with_room_for_many_of_them():
    size = 114 * 24 * 32 * 4
    for room, there in ((9 * size, True), (8 * size, False)):
        found, _ = stages(Placement(4, 4, accelerator=True, room=room), num_samples=114)
        assert found["statistics"].device.get("hidden states", 0) == size * there
        assert found["statistics"].host.get("hidden states", 0) == size * (not there)


def test_processes_share_hidden_states_and_fisher_matrices():
    (one, _), (two, _) = stages(), stages(Placement(4, 4, processes=2))
    assert two["statistics"].host["hidden states"] == one["statistics"].host["hidden states"] / 2
    assert two["statistics"].host["Fisher matrices"] == one["statistics"].host["Fisher matrices"] / 2
    # Half of the chunks are one level of the tree less.
    assert two["statistics"].device["Gram matrices"] == 3 / 4 * one["statistics"].device["Gram matrices"]
    assert two["search"].device["factors"] == one["search"].device["factors"]


def test_layers_that_are_computed_in_another_dtype_are_there_twice():
    model, family, config = make_tiny_model().to(torch.bfloat16), get_family("llama"), FFPConfig(seq_len=24)
    units = find_units(model, family)
    memory = MemoryModel(model, units, family, config, 0.2, Placement(4, 4))
    weights = next(memory.stages()).device
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in model.model.layers]
    assert weights["weights of layers"] == 2 * sum(layers)
    assert weights["loaded layers"] == 3 * 4 * max(layers) > 2 * weights["embeddings and head"]
    assert weights["embeddings and head"] == 2 * (2 * 128 * 32 + 32 + 2 * 2)
    # What is saved is in 16 bits.
    assert memory.pruned < memory.weights == model.get_memory_footprint()


def test_sums_of_fisher_matrices_are_in_memory_wherever_the_matrices_are():
    for room, at_once in ((0, False), (2**40, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("optimum_ffp.planning.memory.kept_bytes", lambda *_, size=room: size)
            card = partial(Placement, 4, 4, accelerator=True, on_cpu=False)
            found, memory = stages(card(offload="disk", matrices_beside=False))
            beside, _ = stages(card())
        # Those of a layer, and of all where windows take turns; finished ones are files.
        sums = memory.layer_fishers if at_once else memory.fishers
        assert found["fisher"].host["sums of Fisher matrices"] == sums
        assert "Fisher matrices" not in found["fisher"].host
        # A card with room for factors has them instead.
        assert beside["fisher"].device["sums of Fisher matrices"] == sums
        assert beside["fisher"].host["Fisher matrices"] == memory.fishers


def test_an_earlier_pruned_model_is_on_a_card_that_has_room_for_it():
    for room, offload, there in (
        (10 * WEIGHTS, "none", True),
        (WEIGHTS // 2, "none", False),
        (WEIGHTS, "host", False),
    ):
        place = Placement(4, 4, accelerator=True, several=True, room=room, offload=offload)
        found, memory = stages(place)
        for name in ("search", "calibration", "evaluation", "slicing", "save"):
            on_card, in_host = (part.get("pruned model before", 0) for part in (found[name].device, found[name].host))
            assert (on_card, in_host) == ((memory.pruned, 0) if there else (0, memory.pruned))


def test_all_layers_are_loaded_while_the_model_writes():
    place = Placement(4, 4, offload="disk")
    assert stages(place, dataset="self")[0]["data"].device["loaded layers"] == 4 * (BLOCKS + 3 * 2 * 32)
