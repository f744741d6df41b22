from optimum_ffp.planning.placement import Memory, StageMemory


def test_the_largest_parts_are_named():
    stage = StageMemory({"weights": 3 * 2**30, "logits": 2**29, "none": 0}, {"process": 2**30}, "search")
    assert stage.largest() == "weights 3.00, process 1.00, logits 0.50"


def test_memory_is_joined_by_place():
    weights, states = Memory({"weights": 3}), Memory({"activations": 1}, {"hidden states": 5})
    joined = weights | states
    assert joined.device == {"weights": 3, "activations": 1} and joined.host == {"hidden states": 5}
    assert joined.total == 9 and weights.total == 3
