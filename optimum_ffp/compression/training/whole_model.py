"""Training of the whole pruned model on the calibration windows."""

import copy
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ...config.plan import Plan
from ...config.training import ADAPTER_RATE, TRAINED_RATE, WEIGHT_RATE, TrainingOptions
from ...data import DataSplits
from ...utils import processes
from ...utils.precision import compute_dtype, computes_in_bfloat16, convert
from ..calibrations.model import Options
from .batch import Batch
from .end_to_end import Training, TrainingOutput, default_rate
from .layer import STEP_TOKENS, split_windows


# Number of evaluations on the held-out windows.
EVALUATIONS = 4


def train_model(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: DataSplits,
    plan: Plan,
    options: Options,
    checkpoints: Path | None = None,
) -> TrainingOutput:
    """Train a model on the calibration windows in a random order, resuming from `checkpoints`. It keeps its dtype."""
    bf16 = trains_in_bfloat16(teacher.device, teacher.dtype, plan.search_dtype)
    computed = torch.bfloat16 if bf16 else compute_dtype(teacher.device, teacher.dtype)
    windows = split_windows(data.calibration, options.parts(plan.seq_len))
    generator = torch.Generator().manual_seed(plan.seed)
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(options.model_passes)])
    relative_rate = TRAINED_RATE if options.distillation_passes else WEIGHT_RATE
    adapter_rate = ADAPTER_RATE if options.lora else None
    training = Training(
        student=student,
        teacher=teacher if teacher.dtype == computed else convert(copy.deepcopy(teacher), computed),
        dtype=student.dtype,
        options=training_options(plan, options),
        learning_rate=options.model_rate or adapter_rate or default_rate(student, relative_rate),
        batch=training_batch(plan, options, teacher.config, tokens=order.numel() * windows.shape[1]),
        bf16=bf16,
    )
    return training.run(windows[order], data.held_out.tokens, checkpoints)


def trains_in_bfloat16(device: torch.device, dtype: torch.dtype, search_dtype: str) -> bool:
    """Return whether a model of a dtype is trained in bfloat16, as layers are."""
    in_float32 = dtype == torch.float32 and search_dtype == "model"
    return computes_in_bfloat16(device, False if in_float32 else None)


def training_options(plan: Plan, options: Options) -> TrainingOptions:
    """Return the options of the training."""
    return TrainingOptions(lora=options.lora or 0, evaluations=EVALUATIONS, seed=plan.seed)


def training_batch(plan: Plan, options: Options, model_config: PretrainedConfig, tokens: int) -> Batch:
    """Return the sizes of the training on a number of tokens by the processes of this run."""
    return Batch.of(
        model_config,
        seq_len=plan.seq_len // options.parts(plan.seq_len),
        max_tokens=tokens,
        batch_tokens=STEP_TOKENS * processes.count(),
        batch_size=1,
        count=processes.count(),
    )
