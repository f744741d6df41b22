"""Training of the whole pruned model on the calibration windows."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ...utils import processes
from ...utils.precision import compute_dtype, computes_in_bfloat16, convert
from ..calibration import CalibrationTask
from .batch import Batch
from .end_to_end import Training, TrainingOutput
from .layer import STEP_TOKENS, split_windows


if TYPE_CHECKING:
    from ..calibrations.model import Options


def train_model(
    student: PreTrainedModel, task: CalibrationTask, options: "Options", checkpoints: Path | None
) -> TrainingOutput:
    """Train a pruned model, which keeps its dtype, on the calibration windows of a task in a random order.

    `checkpoints` is the folder of checkpoints to resume from.
    """
    teacher, plan = task.sorted_model.layerwise.dense.model, task.plan
    bf16 = trains_in_bfloat16(teacher.device, teacher.dtype, plan.search_dtype)
    computed = torch.bfloat16 if bf16 else compute_dtype(teacher.device, teacher.dtype)
    windows = split_windows(task.data.calibration, options.parts(plan.seq_len))
    generator = torch.Generator().manual_seed(plan.seed)
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(options.model_passes)])
    training = Training(
        student=student,
        teacher=teacher if teacher.dtype == computed else convert(copy.deepcopy(teacher), computed),
        dtype=student.dtype,
        options=options.training(plan.seed),
        learning_rate=options.learning_rate(student),
        batch=training_batch(teacher.config, length=windows.shape[1], tokens=order.numel() * windows.shape[1]),
        bf16=bf16,
    )
    return training.run(windows[order], task.data.held_out.tokens, checkpoints)


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
