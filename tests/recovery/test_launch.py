"""Launches that a training can't use."""

import pytest
import torch

from optimum_ffp import FFPError, FFPRecovery
from optimum_ffp.compression.training.end_to_end import check_launch
from optimum_ffp.utils import processes


CPU = torch.device("cpu")


def test_recovery_with_offload_is_rejected_before_loading(monkeypatch):
    monkeypatch.setattr("optimum_ffp.recovery.recovery.load_pruned", lambda *_: pytest.fail("loaded"))
    with pytest.raises(FFPError, match="offload"):
        FFPRecovery.from_pretrained("out", device="cpu", offload="disk")


def test_several_processes_require_work_folder(monkeypatch):
    check_launch(CPU, "none", False)
    monkeypatch.setattr(processes, "count", lambda: 2)
    check_launch(CPU, "none", True)
    with pytest.raises(FFPError, match="work_folder"):
        check_launch(CPU, "none", False)


def test_prune_with_fsdp_is_rejected(monkeypatch):
    monkeypatch.setattr(processes, "shards_models", lambda: True)
    check_launch(CPU, "none", True)
    with pytest.raises(FFPError, match="FSDP"):
        check_launch(CPU, "none", True, can_shard=False)
