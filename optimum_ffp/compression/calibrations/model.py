"""Ridge regression, training of every layer, then of all of them to reproduce the dense model's predictions."""

import copy
from functools import partial

import torch

from ...allocation.policy import PruningPolicy
from ...config import FFPConfig, RecoveryConfig
from ...data import DataSplits
from ...errors import FFPError
from ...utils import processes
from ...utils.precision import autocast_dtype, compute_dtype, computes_in_bfloat16, convert
from ...utils.resume import Journal
from ..calibration import Calibration
from ..held_out import held_out_figures
from ..sorted_model import SortedModel
from ..training.batch import Batch
from ..training.end_to_end import Training
from . import layers, ridge
from .layers import STEP_TOKENS, split_windows


# Number of evaluations on the held-out windows.
EVALUATIONS = 4


def calibrate(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    data: DataSplits,
    start_token: bool,
    config: FFPConfig,
    journal: Journal,
) -> Calibration:
    """Train all layers together on the calibration windows, which is kept if it lowers the held-out perplexity.

    The loss is the divergence of the pruned model's predictions from the dense model's (`DistillationLoss`).

    Raises:
        FFPError: If several processes have no work folder for the checkpoints of the training.
    """
    if processes.count() > 1 and journal.folder is None:
        raise FFPError("calibration 'model' of several processes needs a work_folder; or choose calibration 'layers'")
    stage_before, held_out = layers if config.layer_passes else ridge, data.held_out
    before = stage_before.calibrate(sorted_model, policy, data, start_token, config, journal)
    train = partial(_train, sorted_model, policy, before, data.calibration.tokens, held_out.tokens, start_token)
    trained = sorted_model.layerwise.counter.tensors(journal, "model", partial(train, config, journal))
    journal.remove_checkpoints()
    figures = held_out_figures(
        sorted_model,
        policy,
        [before.weights, trained],
        held_out.tokens,
        autocast_dtype(sorted_model.model, config.search_dtype),
        journal.part("model"),
    )
    return before.followed_by("model", trained, *figures, held_out.describe())


def _train(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    before: Calibration,
    windows: torch.Tensor,
    held_out: torch.Tensor,
    start_token: bool,
    config: FFPConfig,
    journal: Journal,
) -> dict[str, torch.Tensor]:
    """Return the weights of the pass with the lowest perplexity on the held-out windows, by name."""
    model, student = sorted_model.model, sorted_model.materialize(policy, before.weights)
    in_float32 = model.dtype == torch.float32 and config.search_dtype == "model"
    bf16 = computes_in_bfloat16(model.device, False if in_float32 else None)
    dtype = torch.bfloat16 if bf16 else compute_dtype(model.device, model.dtype)
    options = training_options(config, processes.count())
    split = split_windows(windows, config.distillation_parts, start_token)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.cat([torch.randperm(len(split), generator=generator) for _ in range(config.model_passes)])
    training = Training(
        student=student,
        teacher=model if model.dtype == dtype else convert(copy.deepcopy(model), dtype),
        dtype=sorted_model.layerwise.stored_dtype,
        config=options,
        batch=Batch.for_model(options, student.config),
        bf16=bf16,
    )
    trained = training.run(split[order], held_out, journal.checkpoints)
    sorted_model.layerwise.counter.add(trained.tokens // processes.count())
    return sorted_model.weights_of(trained.model)


def training_options(config: FFPConfig, count: int) -> RecoveryConfig:
    """Return the options of the training, for a config with `seq_len` and a number of processes."""
    return RecoveryConfig(
        max_tokens=config.model_passes * config.num_samples * config.seq_len,
        batch_tokens=STEP_TOKENS * count,
        seq_len=config.seq_len // config.distillation_parts,
        learning_rate=config.peak_rate,
        lora=config.lora or 0,
        evaluations=EVALUATIONS,
        seed=config.seed,
    ).resolve()
