"""Training of the whole pruned model on the calibration windows."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ...config.training import TrainingOptions
from ...data import DataSplits
from ...plan import Plan
from ...utils import processes
from ...utils.precision import compute_dtype, computes_in_bfloat16, convert
from .batch import Batch
from .end_to_end import Training, TrainingOutput
from .layer import STEP_TOKENS, split_windows


def train_model(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: DataSplits,
    plan: Plan,
    options: TrainingOptions,
    passes: int,
    parts: int,
    learning_rate: Callable[[PreTrainedModel], float],
    checkpoints: Path | None = None,
) -> TrainingOutput:
    """Train a model on the calibration windows in a random order. It keeps its dtype.

    Args:
        student: The pruned model. It is changed.
        teacher: The dense model.
        data: Calibration and held-out windows.
        plan: Compute dtype and seed.
        options: Options of the training.
        passes: Number of passes over the windows.
        parts: Number of training windows per calibration window.
        learning_rate: Returns the peak learning rate for the model.
        checkpoints: Folder of checkpoints to resume from.
    """
    bf16 = trains_in_bfloat16(teacher.device, teacher.dtype, plan.search_dtype)
    computed = torch.bfloat16 if bf16 else compute_dtype(teacher.device, teacher.dtype)
    windows = split_windows(data.calibration, parts)
    generator = torch.Generator().manual_seed(plan.seed)
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(passes)])
    training = Training(
        student=student,
        teacher=teacher if teacher.dtype == computed else convert(copy.deepcopy(teacher), computed),
        dtype=student.dtype,
        options=options,
        learning_rate=learning_rate(student),
        batch=training_batch(teacher.config, length=windows.shape[1], tokens=order.numel() * windows.shape[1]),
        bf16=bf16,
    )
    return training.run(windows[order], data.held_out.tokens, checkpoints)


def trains_in_bfloat16(device: torch.device, dtype: torch.dtype, search_dtype: str) -> bool:
    """Return whether a model of a dtype is trained in bfloat16, as layers are."""
    in_float32 = dtype == torch.float32 and search_dtype == "model"
    return computes_in_bfloat16(device, False if in_float32 else None)


def training_batch(model_config: PretrainedConfig, length: int, tokens: int) -> Batch:
    """Return the sizes of the training on a number of tokens, in windows of `length`, by the processes of this run."""
    return Batch.of(
        model_config,
        seq_len=length,
        max_tokens=tokens,
        batch_tokens=STEP_TOKENS * processes.count(),
        batch_size=1,
        count=processes.count(),
    )
