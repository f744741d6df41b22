import pytest
import torch

from optimum_ffp.errors import FFPError
from optimum_ffp.planning.machine import device_name, measure_machine


def test_free_memory_is_that_of_the_card(monkeypatch):
    free = {0: 10, 1: 300, 2: 7000}
    monkeypatch.setattr("optimum_ffp.planning.machine.resolve_device", lambda device: torch.device("cuda", 1))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free[getattr(device, "index", device)], 10**6))
    assert measure_machine().device_free == 300
    assert measure_machine().host_free > 2**20


def test_cards_of_other_makers_have_a_memory_of_their_own(monkeypatch):
    monkeypatch.setattr("optimum_ffp.planning.machine.resolve_device", lambda device: torch.device("xpu", 0))
    monkeypatch.setattr("torch.xpu.mem_get_info", lambda device: (20, 100))
    assert measure_machine().device_free == 20


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(FFPError, match="device 'warp' can't be used here"):
        measure_machine("warp")


def test_two_cards_of_one_kind_have_one_name(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"NVIDIA {'AB'[device.index // 2]}100")
    names = [device_name(torch.device("cuda", index)) for index in range(4)]
    assert names == ["NVIDIA A100", "NVIDIA A100", "NVIDIA B100", "NVIDIA B100"]
    assert device_name(torch.device("cpu")) == "cpu"
