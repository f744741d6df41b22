"""Launches that a training can't use."""

import pytest
import torch

from optimum_ffp import FFPError, FFPRecovery
from optimum_ffp.compression.training.end_to_end import check_launch
from optimum_ffp.utils import processes


CPU = torch.device("cpu")


def test_nothing_is_loaded_that_cannot_be_trained(monkeypatch):
    monkeypatch.setattr("optimum_ffp.recovery.recovery.load_pruned", lambda *_: pytest.fail("loaded"))
    with pytest.raises(FFPError, match="offload"):
        FFPRecovery.from_pretrained("out", device="cpu", offload="disk")


def test_several_processes_find_the_best_weights_in_one_folder(monkeypatch):
    check_launch(CPU, "none", False)
    monkeypatch.setattr(processes, "count", lambda: 2)
    check_launch(CPU, "none", True)
    with pytest.raises(FFPError, match="work_folder"):
        check_launch(CPU, "none", False)


def test_a_card_that_trainer_would_not_train_on():
    check_launch(torch.device("cuda", 0), "none", False)
    with pytest.raises(FFPError, match="CUDA_VISIBLE_DEVICES=1"):
        check_launch(torch.device("cuda", 1), "none", False)


def test_a_prune_is_not_sharded(monkeypatch):
    monkeypatch.setattr(processes, "shards_models", lambda: True)
    check_launch(CPU, "none", True)
    with pytest.raises(FFPError, match="FSDP"):
        check_launch(CPU, "none", True, can_shard=False)
