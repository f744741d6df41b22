import gc
import time

import pytest
import torch

from optimum_ffp.utils.heap import return_free_memory
from optimum_ffp.utils.profiling import StageMeter


def test_a_stage_that_comes_again_adds_to_its_time_and_keeps_its_peak():
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
    with meter.stage("small"):
        time.sleep(0.1)
    with meter.stage("large"):
        time.sleep(0.1)
    assert meter.seconds["large"] >= 0.3 and meter.seconds["small"] >= 0.1
    assert meter.peak_bytes["large"] - meter.peak_bytes["small"] > 200 * 2**20
    after = StageMeter(meter)
    with after.stage("other"):
        pass
    assert after.seconds["large"] == meter.seconds["large"] and "other" not in meter.seconds


def test_a_stage_that_fails_is_measured_all_the_same():
    meter = StageMeter()
    with pytest.raises(ValueError), meter.stage("broken"):
        raise ValueError
    assert "broken" in meter.seconds


def test_tokens_of_stages_and_of_meters_add_up():
    first, second = StageMeter(), StageMeter()
    with first.stage("search", 3), first.stage("slicing"):
        pass
    first.count("search", 4)
    second.count("search", 5)
    second.count("calibration", 6)
    assert StageMeter(first, second).tokens == {"search": 12, "calibration": 6}
    assert first.tokens == {"search": 7}
