import torch

from optimum_ffp.utils.device_memory import free_device_memory


def test_free_device_memory_includes_cached_blocks(monkeypatch):
    card = torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (100, 1000) if device == card else (0, 0))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 70)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 30)
    assert free_device_memory(card) == 140 and free_device_memory(card, used=True) == 170


def test_cpu_and_mps_have_no_separate_device_memory():
    assert free_device_memory(torch.device("cpu")) is free_device_memory(torch.device("mps")) is None
