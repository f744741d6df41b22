"""Training of every pruned layer to reproduce the output of the dense layer."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from ..data import with_first_tokens
from ..engine import HiddenStates
from ..utils.host_memory import return_free_memory
from ..utils.precision import autocast_dtype
from ..utils.progress import progress_bar
from .calibration import CalibrationTask
from .last_norm import PredictionLoss, last_norm_parameters
from .sorted_model import SortedModel
from .training.layer import STEP_TOKENS, Fit, LayerLoss, Run, WeightTrainer, split_windows


class Distilled(NamedTuple):
    """The fits of all layers that aren't removed, and of the norm after the last layer; `None` without such a norm."""

    layers: list[Fit]
    last_norm: Fit | None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """All trained weights, by their name in the model."""
        fits = [*self.layers, *([self.last_norm] if self.last_norm else [])]
        return {name: weight for fit in fits for name, weight in fit.weights.items()}


@torch.no_grad()
def distill(
    task: CalibrationTask, weights: Mapping[str, torch.Tensor], passes: int, learning_rate: float, parts: int
) -> Distilled:
    """Train all parameters of every pruned layer, layer by layer, to reproduce the output of the dense layer.

    The input of a layer is the output of the trained layers before it, and its target the output of the layer in the
    dense model, so that a layer also compensates for those before it. If training doesn't reduce the error of a layer
    (`LayerLoss`), the layer is unchanged. First tokens (`with_first_tokens`) count like any others.

    Even hidden states close to those of the dense model yield overconfident predictions. So finally the norm after the
    last layer is trained in the same way to match the dense model's predictions (`PredictionLoss`).

    Args:
        task: The sorted model, which is not changed, the policy, windows and options. Its journal saves the fits.
        weights: Weights to start from, by name.
        passes: Number of passes over the calibration windows.
        learning_rate: Learning rate, relative to the size of the weights.
        parts: Number of training windows per calibration window.
    """
    sorted_model, layerwise, data, plan = task.sorted_model, task.sorted_model.layerwise, task.data, task.plan
    windows, held_out = (split_windows(part, parts) for part in (data.calibration, data.held_out))
    trainer = WeightTrainer(
        windows=len(windows),
        held_out=len(held_out),
        per_step=math.ceil(STEP_TOKENS / windows.shape[1]),
        passes=passes,
        learning_rate=learning_rate,
        seed=plan.seed,
    )
    share = torch.cat([windows, held_out])[trainer.windows]
    sequences = with_first_tokens(share, plan.first_tokens, data.calibration.start_token)
    dtype = autocast_dtype(layerwise.model, plan.search_dtype)
    dense, trained = (HiddenStates(layerwise, sequences, dtype, dtype=dtype, copies=2) for _ in range(2))

    def saved(name: str, fit: Callable[[], Fit]) -> Fit:
        return Fit.unpack(task.journal.tensors(f"calibration-{name}", lambda: fit().pack()))

    start, removed_layers, fits = sorted_model.change(task.policy, weights), task.policy.removed_layers, []
    has_last_norm = bool(last_norm_parameters(layerwise))
    with progress_bar(len(layerwise.layers) + has_last_norm, "Distillation", "layer") as bar:
        for index, layer in layerwise.iter_layers():
            dense.advance(layer, index)
            if index not in removed_layers:
                with start(index):
                    runs = [*zip(trained.runners(layer, index), trained.states, dense.states)]
                    fits.append(saved(f"layer-{index}", partial(_fit_layer, trainer, task, index, layer, runs)))
                with sorted_model.change(task.policy, fits[-1].weights)(index):
                    trained.advance(layer, index)
                return_free_memory()
            bar.update()
        last_norm = None
        if has_last_norm:
            pruned, target = (each.states[0].flatten(0, 1) for each in (trained, dense))
            loss = PredictionLoss(layerwise, pruned, target, trainer.windows, dtype)
            last_norm = saved("last-norm", partial(_fit_last_norm, trainer, sorted_model, loss))
            bar.update()
    return Distilled(fits, last_norm)


def _fit_layer(trainer: WeightTrainer, task: CalibrationTask, index: int, layer: nn.Module, runs: list[Run]) -> Fit:
    sorted_model, dtype = task.sorted_model, task.sorted_model.layerwise.stored_dtype
    removed = sorted_model.removed_modules(task.policy, index)
    parameters = {name: one for name, one in layer.named_parameters() if not name.startswith(removed)}
    start = {name: parameter.detach().to(dtype) for name, parameter in parameters.items()}
    loss = LayerLoss(runs, len(trainer.share))
    fit = trainer.fit(loss, start, loss.scale)
    return replace(fit, weights={sorted_model.prefixes[index] + name: one for name, one in fit.weights.items()})


def _fit_last_norm(trainer: WeightTrainer, sorted_model: SortedModel, loss: PredictionLoss) -> Fit:
    with loss.ready():
        norms = last_norm_parameters(sorted_model.layerwise)
        start = {name: one.to(sorted_model.stored_dtypes[name]) for name, one in norms.items()}
        return trainer.fit(loss, start, loss.scale)
