"""Launches that a training can't use."""

import pytest
import torch

from optimum_ffp import FFPError, FFPRecovery, RecoveryConfig
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.recovery.launch import check_device, check_launch
from optimum_ffp.utils import processes


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("optimum_ffp.recovery.recovery.load_pruned", lambda *_: pytest.fail("loaded"))


def test_models_that_are_elsewhere_than_on_a_device():
    with pytest.raises(FFPError, match="offload"):
        FFPRecovery.from_pretrained("out", device="cpu", offload="disk")


@pytest.mark.parametrize("name", processes.OTHER_DIVISIONS)
def test_models_that_are_divided_in_another_way(name, monkeypatch):
    monkeypatch.setenv(processes.OTHER_DIVISIONS[name], "true")
    with pytest.raises(FFPError, match=f"{name} can't be used; launch FSDP 2, or one process for each GPU"):
        FFPRecovery.from_pretrained("out", device="cpu")


def test_several_processes_find_the_best_weights_in_one_folder(monkeypatch):
    config, options = RecoveryConfig(patience=2), LoadOptions()
    check_launch(config, options, None)
    monkeypatch.setattr(processes, "count", lambda: 2)
    check_launch(config, options, "work")
    with pytest.raises(FFPError, match="patience with several processes needs a work_folder"):
        check_launch(config, options, None)


def test_layers_run_again_by_one_of_two_ways(monkeypatch):
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    config = RecoveryConfig(gradient_checkpointing=True)
    check_launch(config, LoadOptions(), None)
    monkeypatch.setattr(processes, "divide_models", lambda: True)
    with pytest.raises(FFPError, match="gradient_checkpointing is asked for twice, also as fsdp_activation_check"):
        check_launch(config, LoadOptions(), None)


def test_a_card_that_trainer_would_not_train_on(monkeypatch):
    check_device(torch.device("cuda", 0))
    monkeypatch.setattr("optimum_ffp.recovery.recovery.resolve_device", lambda device: torch.device("cuda", 1))
    with pytest.raises(FFPError, match="found cuda:1; leave out device, and set CUDA_VISIBLE_DEVICES=1"):
        FFPRecovery.from_pretrained("out", device="cuda:1")
    monkeypatch.setattr(processes, "count", lambda: 2)
    check_device(torch.device("cuda", 1))
