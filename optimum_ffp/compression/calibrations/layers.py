"""Ridge regression, then training of every pruned layer to reproduce the output of the dense layer."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from ...allocation.policy import PruningPolicy
from ...engine import Arguments, LayerRunner, LayerwiseModel
from ...utils import processes
from ...utils.host_memory import return_free_memory
from ...utils.precision import autocast_dtype
from ...utils.progress import progress_bar
from ...utils.resume import Journal
from ..calibration import Calibration, CalibrationTask
from ..last_norm import PredictionLoss, last_norm_parameters
from ..sorted_model import SortedModel
from ..training.layer import Fit, Trainer
from . import ridge


# Minimum number of tokens per step of the optimizer.
STEP_TOKENS = 512
# Without a start token, every n-th token of a window is also read as a first token.
FIRST_TOKENS = 8
# Added to the squared norm of a token's target.
EPSILON = 1e-6
# Smallest mean square of a channel that its error is divided by, relative to the mean of all channels.
MIN_SHARE = 1e-3


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


def calibrate(task: CalibrationTask) -> Calibration:
    """Train every layer on the calibration windows (`distill`), which is kept if it lowers the held-out perplexity."""
    config, policy, before = task.config, task.policy, ridge.calibrate(task)
    distilled = distill(
        task.sorted_model,
        policy,
        split_windows(task.data.calibration.tokens, config.distillation_parts, task.start_token),
        split_windows(task.data.held_out.tokens, config.distillation_parts, task.start_token),
        before.weights,
        passes=config.layer_passes,
        learning_rate=config.distillation_rate,
        batch=config.distillation_batch,
        seed=config.seed,
        start_token=task.start_token,
        dtype=autocast_dtype(task.sorted_model.model, config.search_dtype),
        journal=task.journal,
    )
    kept = policy.kept_layers(len(task.sorted_model.prefixes))
    errors = {"layers": [{"layer": index} | fit.errors for index, fit in zip(kept, distilled.layers)]}
    if distilled.last_norm is not None:
        errors["last_norm"] = distilled.last_norm.errors
    return task.conclude("layers", replace(before, record=before.record | errors), distilled.weights)


def split_windows(windows: torch.Tensor, parts: int, start_token: bool = False) -> torch.Tensor:
    """Split windows into parts of equal length; a few last tokens may be left out.

    Args:
        windows: Token ids, shape `[windows, window length]`.
        parts: Number of parts per window.
        start_token: Whether windows begin with the start token. It takes the place of the first token of every part.

    Returns:
        Shape `[parts * windows, window length // parts]`.
    """
    length = windows.shape[1] // parts
    split = windows[:, : parts * length].reshape(-1, length)
    return torch.cat([windows[:, :1].repeat_interleave(parts, 0), split[:, 1:]], 1) if start_token else split


@torch.no_grad()
def distill(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    windows: torch.Tensor,
    held_out: torch.Tensor,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    passes: int = 2,
    learning_rate: float = 0.01,
    batch: int = 1,
    seed: int = 0,
    start_token: bool = False,
    dtype: torch.dtype | None = None,
    journal: Journal | None = None,
) -> Distilled:
    """Train all parameters of every pruned layer, layer by layer, to reproduce the output of the dense layer.

    The input of a pruned layer is the output of the pruned layers before it, and its target the output of the layer in
    the dense model, so that a layer also compensates for those before it. The error of a token is `‖a - b‖² / ‖b‖²` of
    the output `a` and the target `b`, with every channel divided by its root mean square over all targets, so that
    neither a few tokens nor a few channels with massive activations outweigh all others.

    Many models give the first token of a text, whichever it is, a massive activation (an attention sink); if it is
    lost, all following tokens are predicted badly. Windows without a start token begin with an arbitrary token, one
    example each, so every `FIRST_TOKENS`-th token is also read as a sequence of its own. Its error counts like that of
    any other token.

    Every step of Adam reads one window of each of `windows_per_step` parts of the text. The learning rate is
    multiplied by the root of `batch`.

    Training starts from prefix ridge regression. The error is measured on held-out windows after every pass, and the
    weights of the best pass are kept. If no pass reduces the error, training starts again at a quarter of the learning
    rate; if that doesn't help either, the layer is unchanged.

    Even hidden states close to those of the dense model yield overconfident predictions. So finally the norm after the
    last layer is trained in the same way to match the dense model's predictions (`PredictionLoss`).

    Args:
        sorted_model: The sorted model, with its ridge factors. It is not changed.
        policy: Number of groups to keep per unit.
        windows: Training windows, token ids of shape `[windows, window length]`.
        held_out: Held-out windows of the same length.
        weights: Weights to start from, by name; those after prefix ridge regression if `None`.
        passes: Number of passes over the windows.
        learning_rate: Largest learning rate of Adam, relative to the size of every parameter's entries (`Trainer`).
        batch: Windows per step; more if that is fewer than `STEP_TOKENS`.
        seed: Random seed for the order of the windows.
        start_token: Whether every text begins with a start token.
        dtype: Autocast dtype of the layers; `None` for the model's own. Weights are trained in float32.
        journal: Saves the fits.

    Returns:
        The fits of all layers and of the last norm.
    """
    journal, fits, removed_layers = journal or Journal(), [], policy.removed_layers
    layerwise, compensated = sorted_model.layerwise, sorted_model.change(policy, weights, compensated=weights is None)
    learning_rate *= math.sqrt(min(batch, len(windows)))
    new_trainer = partial(
        Trainer,
        windows=len(windows),
        held_out=len(held_out),
        per_step=windows_per_step(batch, windows.shape[1]),
    )
    window_indices = [
        *range(len(windows))[processes.share(len(windows))],
        *range(len(windows), len(windows) + len(held_out))[processes.share(len(held_out))],
    ]
    share = torch.cat([windows, held_out])[window_indices]
    inputs = [_Sequences.of(layerwise, share[:, None], dtype)]
    if not start_token:
        inputs.append(_Sequences.of(layerwise, share[:, ::FIRST_TOKENS, None], dtype))
    has_last_norm = bool(last_norm_parameters(layerwise))
    with progress_bar(len(layerwise.layers) + has_last_norm, "Distillation", "layer") as bar:
        for index, layer in layerwise.iter_layers():
            runs = [(layerwise.runner(layer, one.arguments[index], dtype), one) for one in inputs]
            for runner, sequences in runs:
                runner.advance(sequences.dense, sequences.per_window)
            if index in removed_layers:
                bar.update()
                continue
            with compensated(index):
                loss, removed = _LayerLoss(runs, len(windows)), sorted_model.removed_modules(policy, index)
                start = {
                    name: one.detach().to(layerwise.stored_dtype)
                    for name, one in layer.named_parameters()
                    if not name.startswith(removed)
                }
                trainer = new_trainer(loss, start, sorted_model.prefixes[index], scale=loss.scale)
                train = partial(trainer.fit, passes, learning_rate, seed)
                fits.append(Fit.unpack(layerwise.counter.tensors(journal, f"layer-{index}", train)))
                # They refer to the weights of the layer.
                del loss, start, trainer, train
            with sorted_model.change(policy, fits[-1].weights)(index):
                for runner, sequences in runs:
                    runner.advance(sequences.pruned, sequences.per_window)
            return_free_memory()
            bar.update()
        if not has_last_norm:
            return Distilled(fits, None)
        loss = PredictionLoss(layerwise, inputs[0].pruned, inputs[0].dense, window_indices=window_indices, dtype=dtype)
        with loss.ready():
            norms = last_norm_parameters(layerwise)
            start = {name: one.to(sorted_model.stored_dtype(one)) for name, one in norms.items()}
            train = partial(new_trainer(loss, start, "", scale=loss.scale).fit, passes, learning_rate, seed)
            last_norm = Fit.unpack(layerwise.counter.tensors(journal, "last-norm", train))
        bar.update()
    return Distilled(fits, last_norm)


def windows_per_step(batch: int, length: int) -> int:
    """Return the number of windows per step: `batch`, or more if those have fewer than `STEP_TOKENS` tokens."""
    return max(batch, math.ceil(STEP_TOKENS / length))


class _Sequences(NamedTuple):
    """Hidden states of this process's sequences, all of one length, and what else each layer gets."""

    # After the layer that is trained in the dense model, and before it in the pruned one, `[sequences, length, size]`.
    dense: torch.Tensor
    pruned: torch.Tensor
    arguments: list[Arguments]
    per_window: int

    @classmethod
    def of(cls, layerwise: LayerwiseModel, tokens: torch.Tensor, dtype: torch.dtype | None) -> "_Sequences":
        """Return the states before the first layer, of tokens of shape `[windows, sequences per window, length]`."""
        per_window = tokens.shape[1]
        dense, arguments = layerwise.embed(tokens.flatten(0, 1), dtype, copies=2, batch_size=per_window)
        return cls(dense, dense.clone(), arguments, per_window)

    def window(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of the pruned and of the dense model of one window."""
        sequences = slice(index * self.per_window, (index + 1) * self.per_window)
        return self.pruned[sequences], self.dense[sequences]


class _LayerLoss:
    """Error of a layer's output with given weights, a `Loss`. Scaled by `scale`, gradients fit into float16."""

    def __init__(self, runs: list[tuple[LayerRunner, _Sequences]], windows: int):
        self.runs = runs
        runner, whole = runs[0]
        targets = whole.dense
        self.scale = targets.shape[1] * processes.on_main(lambda: float(targets[0].float().square().sum(-1).mean()))
        sizes = torch.zeros(targets.shape[-1], device=runner.device)
        for target in targets[: len(range(windows)[processes.share(windows)])]:
            squares = target.float().square()
            # The share of every channel in the squared norm of a token, summed over the tokens of a window.
            sizes += (squares / (squares.sum(-1, keepdim=True) + EPSILON)).sum(0).to(runner.device)
        processes.sum_(sizes)
        self.channels = (sizes / sizes.mean()).clamp_min(MIN_SHARE)

    def __call__(self, weights: Mapping[str, torch.Tensor], window: int) -> torch.Tensor:
        errors = []
        for runner, sequences in self.runs:
            before, target = sequences.window(window)
            output = runner.output(before, weights).float()
            target = target.to(output)
            squares = ((output - target).square() / self.channels).sum(-1)
            errors.append((squares / (target.square().sum(-1) + EPSILON)).flatten())
        return torch.cat(errors).mean()
