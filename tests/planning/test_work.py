"""Operations of a stage against those that torch counts, and the time that the plan names."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from optimum_ffp import FFPConfig
from optimum_ffp.modeling.families import find_family, find_units
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.planning import plan
from optimum_ffp.planning.plan import make_plan
from optimum_ffp.planning.work import describe_duration, measure_copy_speed, measure_speed, stage_operations
from tests.helpers import ON_CPU, count_operations, make_tiny_model


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "gpt-neox", "gpt2"])
def test_operations_are_those_that_torch_counts(name, windows):
    model = make_tiny_model(name)
    model.set_attn_implementation("eager")
    family = find_family(model.config)
    units, config = find_units(model, family), FFPConfig(seq_len=windows.shape[1])
    tokens = {"statistics": windows.numel(), "search": windows.numel(), "evaluation": None}
    found = stage_operations(model, units, config, tokens)
    assert "evaluation" not in found
    of_all = count_operations(lambda: model(windows, use_cache=False))
    assert found["search"] == pytest.approx(of_all, rel=0.01)
    with FlopCounterMode(display=False) as counter:
        for unit in units:
            inputs = torch.ones(windows.numel(), unit.output.module.in_features)
            _ = inputs.T @ inputs
    gram = counter.get_total_flops()
    # Statistics end with the last layer.
    of_layers = count_operations(lambda: model.base_model(windows, use_cache=False))
    assert found["statistics"] - gram == pytest.approx(of_layers, rel=0.01)


def test_the_plan_names_a_time(monkeypatch):
    monkeypatch.setattr(plan, "measure_speed", lambda device, dtype: 1e9)
    monkeypatch.setattr("optimum_ffp.compression.distillation.STEP_TOKENS", 24)
    config = FFPConfig(seq_len=24, eval_samples=4)
    one, two = (make_plan(make_tiny_model().config, config, options=ON_CPU, processes=count) for count in (1, 2))
    operations = sum(one.operations.values()) + one.operations["evaluation"]
    assert f"about {describe_duration(operations / 0.7e9)}: " in one.describe()
    # They share the cores, and one waits while the other calibrates.
    operations += one.operations["calibration"]
    assert f"about {describe_duration(operations / 0.7e9)}: " in two.describe()
    # A step of several windows is shared.
    monkeypatch.setattr("optimum_ffp.compression.distillation.STEP_TOKENS", 48)
    shared = make_plan(make_tiny_model().config, config, options=ON_CPU, processes=2)
    assert shared.calibrated_by == 2 and two.calibrated_by == 1
    without = make_plan(make_tiny_model().config, FFPConfig(seq_len=24, dataset="me/text"), options=ON_CPU).describe()
    assert "and the evaluation: " in without


def test_the_time_is_that_of_bringing_weights_where_it_takes_longer(monkeypatch):
    monkeypatch.setattr(plan, "measure_speed", lambda device, dtype: 1e30)
    monkeypatch.setattr(plan, "measure_copy_speed", lambda device, pinned: 2.0**20)
    config, shape = FFPConfig(seq_len=24, eval_samples=4), make_tiny_model().config
    one = make_plan(shape, config, options=LoadOptions("cpu", offload="disk"))
    brought = sum(one.brought_bytes.values())
    times = brought // one.layer_bytes
    assert f"about {describe_duration(brought / 2**20 + one.layer_bytes / 2**30)}: " in one.describe()
    assert (
        f"all layers {times} times, at 0.00 GiB/s; {one.layer_bytes / 2**30:.2f} GiB of them from disk"
        in one.describe()
    )
    # Files that memory can't keep are read again and again.
    full = replace(one, machine=replace(one.machine, host_free=0))
    assert full.read_bytes == full.brought_bytes and [*one.read_bytes.values()] == [one.layer_bytes]
    resident = make_plan(shape, config, options=ON_CPU)
    assert resident.brought_bytes == {} and "weights brought" not in resident.describe()
    assert resident.read_bytes == {} and measure_copy_speed(torch.device("cpu"), pinned=False) > 1e6


def test_durations_have_two_digits():
    texts = [describe_duration(seconds) for seconds in (0.123, 75, 5400, 2e5, 2e7)]
    assert texts == ["0.12 seconds", "1.2 minutes", "1.5 hours", "2.3 days", "230 days"]
    assert measure_speed(torch.device("cpu"), torch.float32) > 1e6


def test_several_machines_share_the_work(monkeypatch):
    monkeypatch.setattr(plan, "measure_speed", lambda device, dtype: 1e9)
    monkeypatch.setattr("optimum_ffp.compression.distillation.STEP_TOKENS", 24)
    config = FFPConfig(seq_len=24, eval_samples=4)
    plans = [
        make_plan(make_tiny_model().config, config, options=ON_CPU, processes=2, machines=machines)
        for machines in (1, 2)
    ]
    alone, both = plans
    assert "on each of 2 machines, memory is that of all" in both.describe() and "machines" not in alone.describe()
    # A process has half as many windows, and a machine the same factors.
    states = [next(one for one in found.memory if one.name == "statistics").host["hidden states"] for found in plans]
    assert states[1] == states[0] / 2 and both.walks["statistics"] == alone.walks["statistics"]
    # One of four calibrates, with a quarter of what computes.
    operations = sum(both.operations.values()) + both.operations["evaluation"] + 3 * both.operations["calibration"]
    assert f"about {describe_duration(operations / 2 / 0.7e9)}: " in both.describe()
