"""Ridge regression, training of every layer, then of all of them to reproduce the dense model's predictions."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...config.fields import option
from ...config.prune import GRADIENT_COST
from ...config.training import ADAPTER_RATE, LORA_RANK, TRAINED_RATE, WEIGHT_RATE, TrainingOptions, check_lora
from . import layers


if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from ..calibration import Calibration, CalibrationTask
    from ..training.end_to_end import TrainingOutput


# Number of evaluations on the held-out windows.
EVALUATIONS = 4


@dataclass(frozen=True, kw_only=True)
class Options(layers.Options):
    """Options of the training of the whole model, and of its layers before."""

    distillation_passes: int = option(
        1,
        "Number of passes over the calibration windows to train the layers; 0 trains the whole model alone.",
        fast=0,
        best=2,
        stage="calibration",
        default_text="1, or 2 with calibration layers",
    )
    model_passes: int = option(
        1,
        "Number of passes over the calibration windows to train the whole model.",
        low=1,
        best=2,
        stage="calibration",
    )
    model_rate: float | None = option(
        None,
        "Peak learning rate for training the whole model.",
        default_text=f"{WEIGHT_RATE:g} × RMS of the weights, {TRAINED_RATE:g} × after layers, "
        f"{ADAPTER_RATE:g} with lora",
        stage="calibration",
    )
    lora: int | None = option(
        None,
        "Train the whole model with LoRA adapters of this rank (32 if no number is given) and merge them; needs peft. "
        "0 trains the weights themselves.",
        "Calibration",
        default_text=f"0, or {LORA_RANK} if only that fits into memory",
        cli={"nargs": "?", "const": LORA_RANK},
        stage="calibration",
    )

    def check(self) -> None:
        """Check that peft is installed if adapters are to be trained."""
        check_lora(self.lora)

    def windows(self, num_samples: int, held_out: int) -> int:
        """Return an upper bound of the windows that training reads, in forward passes of the model."""
        trained = (1 + GRADIENT_COST) * self.model_passes * num_samples
        return super().windows(num_samples, held_out) + trained + (2 * EVALUATIONS + 5) * held_out


def calibrate(task: "CalibrationTask", options: Options) -> "Calibration":
    """Train all layers together on the calibration windows, which is kept if it lowers the held-out divergence.

    The loss is the divergence of the pruned model's predictions from the dense model's (`DistillationLoss`). Several
    processes need a journal in a folder, for the checkpoints of the training.
    """
    from ...modeling.padding import weights_of
    from ...utils import processes
    from ...utils.lm_head import token_parameters
    from . import ridge

    sorted_model, journal = task.sorted_model, task.journal
    before = layers.calibrate(task, options) if options.distillation_passes else ridge.calibrate(task)
    # A training of more processes takes fewer steps.
    training = journal.part(processes.count())

    def train() -> "dict[str, torch.Tensor]":
        trained = _train(task.slice(before.weights), task, options, training.checkpoints)
        sorted_model.layerwise.counter.add(trained.tokens // processes.count())
        weights = weights_of(trained.model, sorted_model.model, task.policy)
        return weights | (token_parameters(trained.model) if task.vocabulary else {})

    weights = journal.tensors("calibration-model", train)
    training.remove_checkpoints()
    return task.conclude("model", before, weights)


def _train(
    student: "PreTrainedModel", task: "CalibrationTask", options: Options, checkpoints: "Path | None"
) -> "TrainingOutput":
    """Train the pruned model, which keeps its dtype, on the calibration windows in a random order."""
    import torch

    from ...utils.precision import compute_dtype, convert
    from ..training.end_to_end import Training, default_rate
    from ..training.layer import split_windows
    from ..training.whole_model import training_batch, trains_in_bfloat16

    teacher, plan = task.sorted_model.layerwise.dense.model, task.plan
    bf16 = trains_in_bfloat16(teacher.device, teacher.dtype, plan.search_dtype)
    computed = torch.bfloat16 if bf16 else compute_dtype(teacher.device, teacher.dtype)
    adapter_rate = ADAPTER_RATE if options.lora else None
    relative_rate = TRAINED_RATE if options.distillation_passes else WEIGHT_RATE
    windows = split_windows(task.data.calibration, options.parts(plan.seq_len))
    generator = torch.Generator().manual_seed(plan.seed)
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(options.model_passes)])
    training = Training(
        student=student,
        teacher=teacher if teacher.dtype == computed else convert(copy.deepcopy(teacher), computed),
        dtype=student.dtype,
        options=TrainingOptions(lora=options.lora or 0, evaluations=EVALUATIONS, seed=plan.seed),
        learning_rate=options.model_rate or adapter_rate or default_rate(student, relative_rate),
        batch=training_batch(teacher.config, length=windows.shape[1], tokens=order.numel() * windows.shape[1]),
        bf16=bf16,
        vocabulary=task.vocabulary,
    )
    return training.run(windows[order], task.data.held_out.tokens, checkpoints)
