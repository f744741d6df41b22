"""Ridge regression, training of every layer, then of all of them to reproduce the dense model's predictions."""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ...config import FFPConfig, RecoveryConfig
from ...config.prune import TRAINED_RATE, WEIGHT_RATE
from ...data import DataSplits
from ...modeling.padding import weights_of
from ...utils import processes
from ...utils.precision import compute_dtype, computes_in_bfloat16, convert
from ..calibration import Calibration, CalibrationTask
from ..training.batch import Batch
from ..training.end_to_end import Training, TrainingOutput, default_rate
from ..training.layer import STEP_TOKENS, split_windows
from . import layers, ridge


# Number of evaluations on the held-out windows.
EVALUATIONS = 4


def calibrate(task: CalibrationTask) -> Calibration:
    """Train all layers together on the calibration windows, which is kept if it lowers the held-out perplexity.

    The loss is the divergence of the pruned model's predictions from the dense model's (`DistillationLoss`). Several
    processes need a journal in a folder, for the checkpoints of the training.
    """
    sorted_model, config, journal = task.sorted_model, task.config, task.journal
    layerwise, teacher = sorted_model.layerwise, sorted_model.layerwise.dense.model
    before = (layers if config.layer_passes else ridge).calibrate(task)
    # A training of more processes takes fewer steps.
    training = journal.part(processes.count())

    def train() -> dict[str, torch.Tensor]:
        student = sorted_model.materialize(task.policy, before.weights)
        trained = train_model(student, teacher, task.data, config, training.checkpoints)
        layerwise.counter.add(trained.tokens // processes.count())
        return weights_of(trained.model, sorted_model.model, task.policy)

    weights = layerwise.counter.tensors(journal, "model", train)
    training.remove_checkpoints()
    return task.conclude("model", before, weights)


def train_model(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: DataSplits,
    config: FFPConfig,
    checkpoints: Path | None = None,
) -> TrainingOutput:
    """Train a model on the calibration windows in a random order, resuming from `checkpoints`. It keeps its dtype."""
    bf16 = trains_in_bfloat16(teacher.device, teacher.dtype, config)
    computed = torch.bfloat16 if bf16 else compute_dtype(teacher.device, teacher.dtype)
    windows = split_windows(data.calibration, config.distillation_parts)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(config.model_passes)])
    options = training_options(config, len(order) * windows.shape[1], processes.count())
    relative_rate = TRAINED_RATE if config.layer_passes else WEIGHT_RATE
    options.learning_rate = options.learning_rate or default_rate(student, relative_rate)
    training = Training(
        student=student,
        teacher=teacher if teacher.dtype == computed else convert(copy.deepcopy(teacher), computed),
        dtype=student.dtype,
        config=options,
        batch=Batch.for_model(options, teacher.config),
        bf16=bf16,
    )
    return training.run(windows[order], data.held_out.tokens, checkpoints)


def trains_in_bfloat16(device: torch.device, dtype: torch.dtype, config: FFPConfig) -> bool:
    """Return whether a model of a dtype is trained in bfloat16, as layers are."""
    in_float32 = dtype == torch.float32 and config.search_dtype == "model"
    return computes_in_bfloat16(device, False if in_float32 else None)


def training_options(config: FFPConfig, tokens: int, count: int) -> RecoveryConfig:
    """Return the options of the training on a number of tokens by several processes, for a config with `seq_len`."""
    return RecoveryConfig(
        max_tokens=tokens,
        batch_tokens=STEP_TOKENS * count,
        seq_len=config.seq_len // config.distillation_parts,
        learning_rate=config.model_rate,
        lora=config.lora or 0,
        evaluations=EVALUATIONS,
        seed=config.seed,
    ).resolve()
