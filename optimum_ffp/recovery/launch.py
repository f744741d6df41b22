"""Launches that a training can't use, found before anything is loaded."""

import os

import torch

from ..config import RecoveryConfig
from ..errors import FFPError
from ..modeling.loading import LoadOptions
from ..utils import processes


def check_launch(config: RecoveryConfig, options: LoadOptions, work_folder: str | os.PathLike | None) -> None:
    """Check that models can be trained as they are loaded, by the processes of this run.

    Args:
        config: Options of the recovery.
        options: How the models are loaded.
        work_folder: Folder for finished work, if there is one.

    Raises:
        FFPError: If the models are to be kept elsewhere than on a device, or several processes have no common folder
            for the best weights.
    """
    if options.offload != "none":
        raise FFPError(
            "a recovery has its models on one device of each process; leave out offload, and divide "
            "models that are too large by FSDP 2"
        )
    if work_folder is None and processes.count() > 1:
        raise FFPError("several processes need a work_folder, where all of them find the best weights")


def check_device(device: torch.device) -> None:
    """Check that `Trainer` would train on a device.

    Raises:
        FFPError: If it is another than the first visible one, where one process trains.
    """
    if processes.count() == 1 and (device.index or 0) > 0:
        raise FFPError(
            f"training is on the first visible device, found {device}; leave out device, and set "
            f"CUDA_VISIBLE_DEVICES={device.index}"
        )
