"""Launches that a training can't use."""

import pytest
import torch

from optimum_ffp import FFPError, RecoveryConfig
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.recovery.launch import check_device, check_launch
from optimum_ffp.utils import processes


def test_models_that_are_elsewhere_than_on_a_device():
    with pytest.raises(FFPError, match="FSDP"):
        check_launch(RecoveryConfig(), LoadOptions(offload="disk"), None)


def test_several_processes_find_the_best_weights_in_one_folder(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    check_launch(RecoveryConfig(), LoadOptions(), "work")
    with pytest.raises(FFPError, match="work_folder"):
        check_launch(RecoveryConfig(), LoadOptions(), None)


def test_a_card_that_trainer_would_not_train_on():
    check_device(torch.device("cuda", 0))
    with pytest.raises(FFPError, match="CUDA_VISIBLE_DEVICES=1"):
        check_device(torch.device("cuda", 1))
