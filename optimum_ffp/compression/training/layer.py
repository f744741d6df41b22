"""Training of one layer after another to reproduce the outputs of the dense layers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from ...config import FFPConfig
from ...data import DataSplits, with_first_tokens
from ...engine import Arguments, LayerRunner, LayerwiseModel
from ...utils import processes
from ...utils.precision import autocast_dtype


# Minimum number of tokens per step of the optimizer.
STEP_TOKENS = 512
# Added to the squared norm of a token's target.
EPSILON = 1e-6
# Smallest mean square of a channel that its error is divided by, relative to the mean of all channels.
MIN_SHARE = 1e-3
# Number of steps over which the learning rate rises; then it falls to 0 along a cosine.
WARM_UP_STEPS = 5
BETAS = (0.9, 0.95)
# Factor on the learning rate for a second attempt if training did not reduce the error.
BACK_OFF = 0.25

# Maps weights by name, and the index of one of this process's windows, to the error on it, averaged over its tokens.
Loss = Callable[[Mapping[str, torch.Tensor], int], torch.Tensor]


@dataclass(frozen=True)
class Fit:
    """Result of training.

    Attributes:
        weights: The weights by their name in the model, in host memory: those of all layers are as large as the pruned
            model.
        before: Mean error of the tokens of held-out windows before training.
        after: The same with these weights.
    """

    weights: dict[str, torch.Tensor]
    before: float
    after: float

    @property
    def errors(self) -> dict[str, float]:
        """The errors, for the record."""
        return {"before": self.before, "error": self.after}

    def pack(self) -> dict[str, torch.Tensor]:
        """Return the fit as named tensors."""
        return self.weights | {"": torch.tensor([self.before, self.after], dtype=torch.float64)}

    @classmethod
    def unpack(cls, tensors: dict[str, torch.Tensor]) -> "Fit":
        """Return the fit from the tensors of `pack`."""
        weights = {name: tensor.cpu() for name, tensor in tensors.items() if name}
        return cls(weights, *tensors[""].tolist())


class Trainer:
    """Trains weights with Adam, in float32, and keeps those of the best pass over the windows.

    Every step reads one window of each of several parts of the text. Processes share the windows, and all of them take
    every step with the summed gradients.

    Args:
        loss: Error of a window. This process's training windows come first, then those that are held out.
        start: The weights before training by name, in the dtype that trained ones are rounded to.
        prefix: Prefix of their names in the model.
        windows: Number of training windows of all processes.
        held_out: Number of held-out windows of all processes.
        per_step: Number of windows per step.
        scale: Factor on the error when it is differentiated. Adam's steps don't depend on it, but gradients must fit
            into the dtype that they are computed in.
    """

    def __init__(
        self,
        loss: Loss,
        start: dict[str, torch.Tensor],
        prefix: str,
        windows: int,
        held_out: int,
        per_step: int,
        scale: float,
    ):
        self.loss, self.start, self.prefix, self.scale = loss, start, prefix, scale
        self.share = range(windows)[processes.share(windows)]
        self.held_out = range(held_out)[processes.share(held_out)]
        self.parts = torch.arange(windows).tensor_split(min(windows, per_step))

    def fit(self, passes: int, learning_rate: float, seed: int) -> dict[str, torch.Tensor]:
        """Train, and return the fit of the best pass, packed.

        If no pass reduces the error, training starts again at a quarter of the learning rate; if that doesn't help
        either, the weights are unchanged.

        Args:
            passes: Number of passes over the windows.
            learning_rate: Largest learning rate, relative to the size of every tensor's entries: a step of Adam
                changes entries by about the learning rate, and their size differs by model.
            seed: Random seed for the order of the windows.
        """
        before = self._held_out_error(self.start)
        best, best_weights = before, self.start
        for rate in (learning_rate, BACK_OFF * learning_rate):
            for error, weights in self._passes(passes, rate, seed):
                # False for an error that is not finite.
                if error < best:
                    best, best_weights = error, weights
            if best < before:
                break
        weights = {self.prefix + name: weight for name, weight in best_weights.items()}
        return Fit(weights, before, best).pack()

    def _passes(self, passes: int, learning_rate: float, seed: int) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
        """Yield the held-out error and the weights after every pass."""
        generator = torch.Generator().manual_seed(seed)
        masters = {name: weight.to(torch.float32, copy=True).requires_grad_() for name, weight in self.start.items()}
        steps = max(map(len, self.parts))
        groups = [{"params": [weight], "lr": learning_rate * _size(weight.detach())} for weight in masters.values()]
        optimizer = Adam(groups, betas=BETAS, fused=True)
        schedule = LambdaLR(optimizer, lambda step: _rate(step, passes * steps))
        for _ in range(passes):
            orders = [part[torch.randperm(len(part), generator=generator)].tolist() for part in self.parts]
            for chosen in zip_longest(*orders):
                self._differentiate(masters, [window for window in chosen if window is not None])
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            rounded = {name: weight.detach().to(self.start[name], copy=True) for name, weight in masters.items()}
            yield self._held_out_error(rounded), rounded

    @torch.enable_grad()
    def _differentiate(self, masters: dict[str, torch.Tensor], chosen: list[int]) -> None:
        """Set the gradients of the mean error of the chosen windows."""
        for window in chosen:
            if window in self.share:
                error = self.loss(masters, window - self.share.start) * self.scale
                (error / len(chosen)).backward()
        for weight in masters.values():
            weight.grad = processes.sum_(torch.zeros_like(weight) if weight.grad is None else weight.grad)

    def _held_out_error(self, weights: dict[str, torch.Tensor]) -> float:
        errors = [self.loss(weights, len(self.share) + window) for window in range(len(self.held_out))]
        errors = torch.stack(errors).cpu().double() if errors else torch.zeros(0, dtype=torch.float64)
        errors = processes.gather(errors).tolist()
        return sum(errors) / len(errors)


def _size(weight: torch.Tensor) -> float:
    """Return the root mean square of the entries of a normal distribution with the same median of absolute values.

    The median is robust to the few entries of norms that are hundreds of times as large as the others. Zeros are
    skipped, since most entries of a sparse matrix are.
    """
    sizes = weight[weight != 0].abs()
    return float(sizes.median()) / 0.6745 if len(sizes) else 0.0


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2


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


class LayerwiseTraining:
    """Trains one layer after another to reproduce the outputs of the dense layers.

    The input of a layer is the output of the trained layers before it, and its target the output of the layer in the
    dense model, so that a layer also compensates for those before it. The error of a token is `‖a - b‖² / ‖b‖²` of
    the output `a` and the target `b`, with every channel divided by its root mean square over all targets, so that
    neither a few tokens nor a few channels with massive activations outweigh all others.

    First tokens (`with_first_tokens`) count like any others.

    Every step of Adam reads `distillation_batch` windows, or more if those have fewer than `STEP_TOKENS` tokens. The
    learning rate is multiplied by the root of `distillation_batch`.

    For every layer in turn, call `run_dense`, `fit_layer` and, with the fitted weights, `run_trained`.

    Args:
        layerwise: The dense model.
        data: Calibration windows, on which layers are trained, and held-out windows, by which a pass is chosen.
        start_token: Whether every text begins with a start token.
        config: Options.
    """

    def __init__(self, layerwise: LayerwiseModel, data: DataSplits, start_token: bool, config: FFPConfig):
        windows, held_out = (
            split_windows(part.tokens, config.distillation_parts, start_token)
            for part in (data.calibration, data.held_out)
        )
        self.layerwise, self.config, self.windows, self.held_out = layerwise, config, len(windows), len(held_out)
        self.per_step = max(config.distillation_batch, math.ceil(STEP_TOKENS / windows.shape[1]))
        self.dtype = autocast_dtype(layerwise.model, config.search_dtype)
        self.window_indices = [
            *range(self.windows)[processes.share(self.windows)],
            *range(self.windows, self.windows + self.held_out)[processes.share(self.held_out)],
        ]
        share = torch.cat([windows, held_out])[self.window_indices]
        sequences = with_first_tokens(share, config.first_tokens, start_token)
        self.sequences = [_Sequences.of(layerwise, one, self.dtype) for one in sequences]

    def run_dense(self, layer: nn.Module, index: int) -> None:
        """Run a layer of the dense model, whose weights are loaded, on the states of the dense model."""
        for runner, one in self._runs(layer, index):
            runner.advance(one.dense, one.per_window)

    def run_trained(self, layer: nn.Module, index: int) -> None:
        """Run a layer with its fitted weights on the states of the trained layers."""
        for runner, one in self._runs(layer, index):
            runner.advance(one.trained, one.per_window)

    def fit_layer(
        self, layer: nn.Module, index: int, prefix: str = "", removed: tuple[str, ...] = ()
    ) -> dict[str, torch.Tensor]:
        """Train the parameters of a layer, which is not changed, and return the packed `Fit`.

        Args:
            layer: The layer, with the weights to start from.
            index: Its index.
            prefix: Prefix of the names of its parameters in the model.
            removed: Prefixes of the names of parameters in the layer that are not trained.
        """
        parameters = [pair for pair in layer.named_parameters() if not pair[0].startswith(removed)]
        start = {name: one.detach().to(self.layerwise.stored_dtype) for name, one in parameters}
        loss = _LayerLoss(self._runs(layer, index), self.windows)
        return self.fit(loss, start, loss.scale, prefix)

    def fit(
        self, loss: Loss, start: dict[str, torch.Tensor], scale: float, prefix: str = ""
    ) -> dict[str, torch.Tensor]:
        """Train any weights on the windows, and return the packed `Fit`; arguments are those of `Trainer`."""
        trainer = Trainer(
            loss=loss,
            start=start,
            prefix=prefix,
            windows=self.windows,
            held_out=self.held_out,
            per_step=self.per_step,
            scale=scale,
        )
        rate = self.config.distillation_rate * math.sqrt(min(self.config.distillation_batch, self.windows))
        return trainer.fit(passes=self.config.layer_passes, learning_rate=rate, seed=self.config.seed)

    def _runs(self, layer: nn.Module, index: int) -> list[tuple[LayerRunner, "_Sequences"]]:
        return [(self.layerwise.runner(layer, one.arguments[index], self.dtype), one) for one in self.sequences]


@dataclass(frozen=True)
class _Sequences:
    """Hidden states of this process's sequences, all of one length, and what else each layer gets."""

    # After the current layer of the dense model, and before it in the trained one, `[sequences, length, size]`.
    dense: torch.Tensor
    trained: torch.Tensor
    arguments: list[Arguments]
    per_window: int

    @classmethod
    def of(cls, layerwise: LayerwiseModel, tokens: torch.Tensor, dtype: torch.dtype | None) -> "_Sequences":
        """Return the states before the first layer, of tokens of shape `[windows, sequences per window, length]`."""
        per_window = tokens.shape[1]
        dense, arguments = layerwise.embed(tokens.flatten(0, 1), dtype, copies=2, batch_size=per_window)
        return cls(dense, dense.clone(), arguments, per_window)

    def window(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of the trained and of the dense model of one window."""
        sequences = slice(index * self.per_window, (index + 1) * self.per_window)
        return self.trained[sequences], self.dense[sequences]


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
