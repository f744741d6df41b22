"""Checks of the launch before anything is loaded."""

import os

import torch

from ..errors import FFPError
from ..utils import processes


def check_launch(device: torch.device, offload: str, work_folder: str | os.PathLike | None) -> None:
    """Check that the processes of this run can train with these options.

    Args:
        device: Device of the models.
        offload: Offloading of layers.
        work_folder: Work folder, if any.

    Raises:
        FFPError: If they can't.
    """
    if offload != "none":
        raise FFPError("a recovery can't offload layers; leave out offload, and shard large models with FSDP 2")
    if processes.count() > 1 and work_folder is None:
        raise FFPError("with several processes a work_folder is needed, from which all of them load the best weights")
    if processes.count() == 1 and (device.index or 0) > 0:
        # `Trainer` uses the first one.
        raise FFPError(f"training uses the first visible device; set CUDA_VISIBLE_DEVICES={device.index}")
