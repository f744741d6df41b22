"""Block-local distillation: every pruned layer is trained to give the output of the dense layer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from ..allocation.policy import PruningPolicy
from ..engine import Arguments, LayerRunner, LayerwiseModel
from ..options import GRADIENT_COST
from ..utils import processes
from ..utils.heap import return_free_memory
from ..utils.processes import Shares
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from ..utils.window_sum import WindowSum
from .sorted_model import SortedModel


# Least tokens per step of the optimiser.
STEP_TOKENS = 512
# One of so many tokens of a window without a start token is also read as a first token.
FIRST_TOKENS = 8
# Number of steps over which the learning rate rises; then it falls to 0 along a cosine.
WARM_UP_STEPS = 5
BETAS = (0.9, 0.95)
# Added to the squared norm of a token's target.
EPSILON = 1e-6
# Smallest mean square of a channel that its error is divided by, relative to the mean of all channels.
LEAST_SHARE = 1e-3
# Factor to the learning rate of a layer when training has gained nothing, for one more attempt.
BACK_OFF = 0.25


@dataclass(frozen=True)
class LayerFit:
    """Result of the distillation of one layer.

    Attributes:
        weights: All parameters of the layer, by their name in the model. They are in host memory: those of all layers
            are as large as the pruned model.
        before: Error on held-out windows before training, after ridge regression: mean of all tokens that are read.
        after: Error on held-out windows with these weights.
        passes: Number of passes over the windows that the layer was trained for.
    """

    weights: dict[str, torch.Tensor]
    before: float
    after: float
    passes: int

    def pack(self) -> dict[str, torch.Tensor]:
        """Return the fit as named tensors."""
        return self.weights | {"": torch.tensor([self.before, self.after, self.passes], dtype=torch.float64)}

    @classmethod
    def unpack(cls, tensors: dict[str, torch.Tensor]) -> "LayerFit":
        """Return the fit from the tensors of `pack`."""
        weights = {name: tensor.cpu() for name, tensor in tensors.items() if name}
        before, after, passes = tensors[""].tolist()
        return cls(weights, before, after, int(passes))


def tokens_per_window(length: int, start_token: bool = False, parts: int = 1) -> int:
    """Return the tokens that `distil` reads of a window of `length` tokens: those that are first tokens too, twice.

    Args:
        length: Window length.
        start_token: Whether every text begins with a start token.
        parts: Number of parts that the window is split into (`split_windows`).
    """
    length //= parts
    return parts * (length + (0 if start_token else math.ceil(length / FIRST_TOKENS)))


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


def distillation_tokens(windows: int, held_out: int, passes: float) -> int:
    """Return the tokens of `distil` in forward passes of the model.

    Args:
        windows: Number of tokens to train on, in `tokens_per_window`.
        held_out: Number of held-out tokens, likewise.
        passes: Number of passes over the windows, the mean over layers.
    """
    # Dense and pruned states are advanced once; the error is measured before training and after every pass.
    return round(2 * (windows + held_out) + passes * GRADIENT_COST * windows + (1 + passes) * held_out)


@torch.no_grad()
def distil(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    windows: torch.Tensor,
    held_out: torch.Tensor,
    passes: int = 2,
    learning_rate: float = 0.01,
    batch: int = 1,
    seed: int = 0,
    start_token: bool = False,
    dtype: torch.dtype | None = None,
    journal: Journal | None = None,
) -> list[LayerFit]:
    """Train all parameters of every pruned layer, layer by layer, to give the output of the dense layer.

    The input of a pruned layer is what the pruned layers before it produce, its target what the dense layer gives in
    the dense model, so that a layer also compensates for those before it. The error of a token is `‖a - b‖² / ‖b‖²` of
    the output `a` and the target `b`, with every channel divided by its root mean square over all targets, so that
    neither a few tokens nor a few channels with massive activations outweigh all others.

    Many models give the first token of a text, whichever it is, a massive activation that attention rests on; where it
    is lost, all that follows is predicted badly. Windows without a start token begin with any token, and have one
    example each, so that one of `FIRST_TOKENS` of their tokens is also read as a sequence of its own. Its error counts
    like that of any other token.

    Every step of Adam has a window of each of `windows_per_step` parts of the text, which processes share; if it
    has one part only, one process trains. The learning rate is multiplied by the root of `batch`.

    Training starts from prefix ridge regression. After every pass the error is measured on held-out windows; the
    weights of the best pass are kept. If no pass is better than before, training starts again at a quarter of the
    learning rate, and if that gains nothing either, the layer stays as it was.

    Args:
        sorted_model: The sorted model, with its ridge factors. It is not changed.
        policy: Number of groups to keep per unit.
        windows: Windows to train on, token ids of shape `[windows, window length]`.
        held_out: Windows of the same length that no layer is trained on.
        passes: Number of passes over the windows.
        learning_rate: Largest learning rate of Adam, relative to the size of every parameter's entries: a step of Adam
            changes entries by the learning rate, whatever their gradient, and their size differs by model.
        batch: Windows per step; more if that is fewer than `STEP_TOKENS`.
        seed: Random seed for the order of the windows.
        start_token: Whether every text begins with a start token.
        dtype: Autocast dtype of the layers; `None` for the model's own. Weights are trained in float32.
        journal: Saves the fits.

    Returns:
        The fit of every layer.
    """
    journal, fits = journal or Journal(), []
    layerwise, compensated = sorted_model.layerwise, sorted_model.change(policy, compensated=True)
    parts = Shares(len(windows), windows_per_step(batch, windows.shape[1]))
    learning_rate *= math.sqrt(min(batch, len(windows)))
    shares = parts, Shares(len(held_out))
    own = torch.cat([windows[parts.own], held_out[shares[1].own]])
    kinds = [_Sequences.of(layerwise, own[:, None], dtype)]
    if not start_token:
        kinds.append(_Sequences.of(layerwise, own[:, ::FIRST_TOKENS, None], dtype))
    with progress_bar(len(layerwise.layers), "Distillation", "layer") as bar:
        for index, layer in layerwise.walk():
            runs = [(LayerRunner(layer, sequences.arguments[index], dtype), sequences) for sequences in kinds]
            for runner, sequences in runs:
                runner.advance(sequences.dense, sequences.per_window)
            with compensated(index):
                trainer = _Trainer(runs, sorted_model.prefixes[index], layerwise.stored_dtype, shares)
                train = partial(trainer.fit, passes, learning_rate, seed)
                fits.append(LayerFit.unpack(journal.tensors(f"layer-{index}", train)))
                # They have weights of the layer.
                del trainer, train
            with sorted_model.change(policy, fits[-1].weights)(index):
                for runner, sequences in runs:
                    runner.advance(sequences.pruned, sequences.per_window)
            return_free_memory()
            bar.update()
    return fits


def windows_per_step(batch: int, length: int) -> int:
    """Return the number of windows per step: `batch`, or more if those have fewer than `STEP_TOKENS` tokens."""
    return max(batch, math.ceil(STEP_TOKENS / length))


class _Sequences(NamedTuple):
    """Hidden states of sequences of one length, of this process's windows.

    Attributes:
        dense: Those of the dense model, after the layer that is trained. Shape `[sequences, length, hidden size]`.
        pruned: Those of the pruned model before it, of the same shape.
        arguments: Other arguments of every layer.
        per_window: Sequences per window.
    """

    dense: torch.Tensor
    pruned: torch.Tensor
    arguments: list[Arguments]
    per_window: int

    @classmethod
    def of(cls, layerwise: LayerwiseModel, tokens: torch.Tensor, dtype: torch.dtype | None) -> "_Sequences":
        """Return the states before the first layer, of tokens of shape `[windows, sequences per window, length]`."""
        per_window = tokens.shape[1]
        dense, arguments = layerwise.enter(tokens.flatten(0, 1), dtype, copies=2, batch_size=per_window)
        return cls(dense, dense.clone(), arguments, per_window)

    def window(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of the pruned and of the dense model of one window."""
        own = slice(index * self.per_window, (index + 1) * self.per_window)
        return self.pruned[own], self.dense[own]


class _Trainer:
    """Trains one layer.

    Args:
        runs: Runs the layer, with its weights before training, on sequences: whole windows, and maybe first tokens.
        prefix: Prefix of the names of its parameters in the model.
        stored_dtype: Dtype that trained weights are rounded to.
        shares: Shares of the processes in the windows to train on, and in those that are held out.
    """

    def __init__(
        self,
        runs: list[tuple[LayerRunner, _Sequences]],
        prefix: str,
        stored_dtype: torch.dtype,
        shares: tuple[Shares, Shares],
    ):
        self.runs, self.prefix = runs, prefix
        runner, whole = runs[0]
        self.device, self.windows, targets = runner.device, len(whole.dense), whole.dense
        self.parts, self.held_out = shares
        # Whether the first process has all windows to train on.
        self.alone = len(self.parts.chunks) == 1
        self.start = {name: parameter.detach().to(stored_dtype) for name, parameter in runner.layer.named_parameters()}
        # Gradients of this size fit into float16; Adam's steps don't depend on it.
        self.scale = targets.shape[1] * processes.on_main(lambda: float(targets[0].float().square().sum(-1).mean()))
        sizes = WindowSum(self.parts, partial(torch.zeros, targets.shape[-1], device=self.device))
        for _, windows in self.parts.own_chunks:
            sizes.start()
            for target in targets[windows].split(1):
                sizes.current.add_(_shares(target).to(self.device))
        found = sizes.finish()
        self.channels = (found / found.mean()).clamp_min(LEAST_SHARE)

    def fit(self, passes: int, learning_rate: float, seed: int) -> dict[str, torch.Tensor]:
        """Return the fit of the best pass, packed."""
        before = self._held_out_error(self.start)
        best, kept, trained = before, self.start, 0
        for rate in (learning_rate, BACK_OFF * learning_rate):
            trained += passes
            for error, weights in self._passes(passes, rate, seed):
                # An error that is not finite is not smaller.
                if error < best:
                    best, kept = error, weights
            if best < before:
                break
        weights = {self.prefix + name: weight for name, weight in kept.items()}
        return processes.broadcast(LayerFit(weights, before, best, trained).pack(), 0)

    def _passes(self, passes: int, learning_rate: float, seed: int) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
        """Yield the held-out error and the weights after every pass."""
        generator = torch.Generator().manual_seed(seed)
        masters = {name: weight.float().clone().requires_grad_() for name, weight in self.start.items()}
        steps = max(map(len, self.parts.chunks))
        groups = [{"params": [weight], "lr": learning_rate * _size(weight.detach())} for weight in masters.values()]
        # On a GPU one kernel reads and writes everything once.
        optimiser = Adam(groups, betas=BETAS, fused=True if self.device.type == "cuda" else None)
        schedule = LambdaLR(optimiser, lambda step: _rate(step, passes * steps))
        for _ in range(passes):
            orders = [torch.randperm(len(part), generator=generator).tolist() for part in self.parts.chunks]
            for step in range(steps if self.parts.own_chunks or not self.alone else 0):
                self._differentiate(masters, [order[step] if step < len(order) else None for order in orders])
                optimiser.step()
                # Before the next ones are added up.
                optimiser.zero_grad()
                schedule.step()
            rounded = {name: weight.detach().to(self.start[name], copy=True) for name, weight in masters.items()}
            if self.alone:
                for weight in rounded.values():
                    processes.broadcast_tensor(weight, 0)
            yield self._held_out_error(rounded), rounded

    def _differentiate(self, masters: dict[str, torch.Tensor], chosen: list[int | None]) -> None:
        """Set the gradients of the mean error of the chosen window of every part, if it has one."""
        if len(chosen) == 1:
            for weight, gradient in zip(masters.values(), self._gradients(masters, chosen[0])):
                weight.grad = gradient
            return
        sizes = [weight.numel() for weight in masters.values()]
        total = WindowSum(Shares(len(chosen)), partial(torch.zeros, sum(sizes), device=self.device))
        for index, windows in self.parts.own_chunks:
            total.start()
            if chosen[index] is not None:
                gradients = self._gradients(masters, windows.start + chosen[index])
                for part, gradient in zip(total.current.split(sizes), gradients):
                    part.add_(gradient.flatten())
                del gradients, gradient
        mean = total.finish(0 if self.alone else None).div_(sum(window is not None for window in chosen))
        for weight, gradient in zip(masters.values(), mean.split(sizes)):
            weight.grad = gradient.view_as(weight)

    def _gradients(self, masters: dict[str, torch.Tensor], window: int) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            loss = self._error(masters, window) * self.scale
        return torch.autograd.grad(loss, list(masters.values()))

    def _error(self, weights: dict[str, torch.Tensor], window: int) -> torch.Tensor:
        """Return the error of one window, averaged over its tokens."""
        errors = []
        for runner, sequences in self.runs:
            before, target = sequences.window(window)
            output = runner.output(before, weights).float()
            target = target.to(output)
            squares = ((output - target).square() / self.channels).sum(-1)
            errors.append((squares / (target.square().sum(-1) + EPSILON)).flatten())
        return torch.cat(errors).mean()

    def _held_out_error(self, weights: dict[str, torch.Tensor]) -> float:
        first = self.windows - len(self.held_out.of(processes.rank()))
        errors = [self._error(weights, window) for window in range(first, self.windows)]
        own = torch.stack(errors).cpu().double() if errors else torch.zeros(0, dtype=torch.float64)
        found = processes.gather(own, self.held_out)
        return sum(found.tolist()) / len(found)


def _shares(target: torch.Tensor) -> torch.Tensor:
    """Return the share of every channel in the squared norm of a token, summed over the tokens of a window."""
    squares = target[0].float().square()
    return (squares / (squares.sum(-1, keepdim=True) + EPSILON)).sum(0)


def _size(weight: torch.Tensor) -> float:
    """Return the root mean square of the entries of a normal distribution with the same median of absolute values.

    A few entries of norms are hundreds of times as large as the others. Zeros don't count: most entries of a sparse
    matrix are.
    """
    sizes = weight[weight != 0].abs()
    return float(sizes.median()) / 0.6745 if len(sizes) else 0.0


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
