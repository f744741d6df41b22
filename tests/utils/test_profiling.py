import gc
import time
from types import SimpleNamespace

import pytest
import torch

from optimum_ffp.utils.host_memory import return_free_memory
from optimum_ffp.utils.profiling import StageMeter


@pytest.mark.slow
def test_repeated_stage_sums_time_and_keeps_peak_memory():
    # What earlier tests have left must not be released in between.
    gc.collect()
    return_free_memory()
    meter = StageMeter()
    with meter.stage("large"):
        held = torch.ones(64 * 2**20)
        time.sleep(0.2)
    del held
    # A heap with a large enough gap gives that out, and keeps it when it is released.
    return_free_memory()
    for name in ("small", "large"):
        with meter.stage(name):
            time.sleep(0.1)
    assert meter.seconds["large"] >= 0.3 and meter.seconds["small"] >= 0.1
    assert meter.peak_bytes["large"] - meter.peak_bytes["small"] > 200 * 2**20


def test_mapped_file_pages_do_not_count_as_stage_memory(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(64 * 2**20))
    meter = StageMeter()
    with meter.stage("before"):
        time.sleep(0.1)
    with meter.stage("reading"):
        mapped = torch.from_file(str(tmp_path / "weights"), size=64 * 2**20, dtype=torch.uint8)
        assert not mapped.any()
        time.sleep(0.1)
    assert meter.peak_bytes["reading"] - meter.peak_bytes["before"] < 16 * 2**20


def test_error_carries_name_of_innermost_stage():
    meter = StageMeter()
    with pytest.raises(ValueError) as raised, meter.stage("outer"), meter.stage("inner"):
        raise ValueError
    assert raised.value.stage == "inner"


def test_tokens_of_stages_and_meters_are_summed():
    counter = SimpleNamespace(tokens=5)
    first, second = StageMeter(counter=counter), StageMeter(counter=counter)
    for meter, stage in ((first, "search"), (second, "search"), (second, "calibration"), (first, "search")):
        with meter.stage(stage):
            counter.tokens += 3
    assert StageMeter(first, second).tokens == {"search": 9, "calibration": 3}
    assert first.tokens == {"search": 6}
