"""Launches that a training can't use, found before anything is loaded."""

import os

import torch

from ..errors import FFPError
from ..utils import processes


def check_launch(device: torch.device, offload: str, work_folder: str | os.PathLike | None) -> None:
    """Check that models can be trained as they are loaded, by the processes of this run.

    Args:
        device: Device of the models.
        offload: Where their layers are while they don't run.
        work_folder: Folder for finished work, if there is one.

    Raises:
        FFPError: If they can't.
    """
    if offload != "none":
        raise FFPError("a recovery can't offload layers; leave out offload, and divide large models by FSDP 2")
    if processes.count() > 1 and work_folder is None:
        raise FFPError("several processes need a work_folder, where all of them find the best weights")
    if processes.count() == 1 and (device.index or 0) > 0:
        # `Trainer` takes the first one.
        raise FFPError(f"training is on the first visible device; set CUDA_VISIBLE_DEVICES={device.index}")
