"""Training of every pruned layer to reproduce the output of the dense layer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch

from ..utils.host_memory import return_free_memory
from ..utils.progress import progress_bar
from .calibration import CalibrationTask
from .last_norm import PredictionLoss, last_norm_parameters
from .sorted_model import SortedModel
from .training.layer import Fit, LayerwiseTraining


class Distilled(NamedTuple):
    """Result of distillation.

    Attributes:
        layers: The fit of every layer that isn't removed.
        last_norm: The fit of the norm after the last layer; `None` if the model has none.
    """

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

    See `LayerwiseTraining`. If training doesn't reduce the error of a layer, the layer is unchanged.

    Even hidden states close to those of the dense model yield overconfident predictions. So finally the norm after the
    last layer is trained in the same way to match the dense model's predictions (`PredictionLoss`).

    Args:
        task: The sorted model, which is not changed, the policy, windows and options. Its journal saves the fits.
        weights: Weights to start from, by name.
        passes: Number of passes over the calibration windows.
        learning_rate: Learning rate, relative to the size of the weights.
        parts: Number of training windows per calibration window.

    Returns:
        The fits of all layers and of the last norm.
    """
    sorted_model, policy, layerwise, fits = task.sorted_model, task.policy, task.sorted_model.layerwise, []
    training = LayerwiseTraining(
        layerwise, task.data, task.plan, passes=passes, learning_rate=learning_rate, parts=parts
    )

    def saved(name: str, fit: Callable[[], Fit]) -> Fit:
        return Fit.unpack(layerwise.counter.tensors(task.journal, name, lambda: fit().pack()))

    start, removed_layers = sorted_model.change(policy, weights), policy.removed_layers
    has_last_norm = bool(last_norm_parameters(layerwise))
    with progress_bar(len(layerwise.layers) + has_last_norm, "Distillation", "layer") as bar:
        for index, layer in layerwise.iter_layers():
            training.dense.advance(layer, index)
            if index not in removed_layers:
                prefix, removed = sorted_model.prefixes[index], sorted_model.removed_modules(policy, index)
                with start(index):
                    fits.append(saved(f"layer-{index}", partial(training.fit_layer, layer, index, prefix, removed)))
                with sorted_model.change(policy, fits[-1].weights)(index):
                    training.trained.advance(layer, index)
                return_free_memory()
            bar.update()
        last_norm = saved("last-norm", partial(_fit_last_norm, sorted_model, training)) if has_last_norm else None
        bar.update(has_last_norm)
    return Distilled(fits, last_norm)


def _fit_last_norm(sorted_model: SortedModel, training: LayerwiseTraining) -> Fit:
    trained, dense = (one.states[0].flatten(0, 1) for one in (training.trained, training.dense))
    loss = PredictionLoss(training.layerwise, trained, dense, training.trainer.windows, training.dtype)
    with loss.ready():
        norms = last_norm_parameters(training.layerwise)
        start = {name: one.to(sorted_model.stored_dtype(name)) for name, one in norms.items()}
        return training.trainer.fit(loss, start)
