"""Training of a few weights on windows, with early stopping by held-out windows."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from ..utils import processes
from ..utils.processes import Shares
from ..utils.window_sum import WindowSum


# Number of steps over which the learning rate rises; then it falls to 0 along a cosine.
WARM_UP_STEPS = 5
BETAS = (0.9, 0.95)
# Factor to the learning rate when training has gained nothing, for one more attempt.
BACK_OFF = 0.25

# Maps weights by name, and the index of one of this process's windows, to the error on it, averaged over its tokens.
Loss = Callable[[Mapping[str, torch.Tensor], int], torch.Tensor]


@dataclass(frozen=True)
class Fit:
    """Result of training.

    Attributes:
        weights: The weights, by their name in the model. They are in host memory: those of all layers are as large as
            the pruned model.
        before: Error on held-out windows before training: mean of all tokens that are read.
        after: Error on held-out windows with these weights.
        passes: Number of passes over the windows that they were trained for.
    """

    weights: dict[str, torch.Tensor]
    before: float
    after: float
    passes: int

    @property
    def errors(self) -> dict[str, float]:
        """The errors, for the record."""
        return {"before": self.before, "error": self.after}

    def pack(self) -> dict[str, torch.Tensor]:
        """Return the fit as named tensors."""
        return self.weights | {"": torch.tensor([self.before, self.after, self.passes], dtype=torch.float64)}

    @classmethod
    def unpack(cls, tensors: dict[str, torch.Tensor]) -> "Fit":
        """Return the fit from the tensors of `pack`."""
        weights = {name: tensor.cpu() for name, tensor in tensors.items() if name}
        before, after, passes = tensors[""].tolist()
        return cls(weights, before, after, int(passes))


class Trainer:
    """Trains weights by Adam, in float32, and keeps those of the best pass over the windows.

    Every step has a window of each of several parts of the text, which processes share; if it has one part only, one
    process trains.

    Args:
        loss: Error of a window. This process's windows to train on come first, then those that are held out.
        start: The weights before training by name, in the dtype that trained ones are rounded to.
        prefix: Prefix of their names in the model.
        shares: Shares of the processes in the windows to train on, and in those that are held out.
        scale: Factor to the error when it is differentiated. Adam's steps don't depend on it, but gradients must fit
            into the dtype that they are computed in.
    """

    def __init__(
        self,
        loss: Loss,
        start: dict[str, torch.Tensor],
        prefix: str,
        shares: tuple[Shares, Shares],
        scale: float,
    ):
        self.loss, self.start, self.prefix, self.scale = loss, start, prefix, scale
        self.parts, self.held_out = shares
        self.device = next(iter(start.values())).device
        # Whether the first process has all windows to train on.
        self.alone = len(self.parts.chunks) == 1

    def fit(self, passes: int, learning_rate: float, seed: int) -> dict[str, torch.Tensor]:
        """Return the fit of the best pass, packed.

        If no pass is better than before, training starts again at a quarter of the learning rate, and if that gains
        nothing either, the weights stay as they were.

        Args:
            passes: Number of passes over the windows.
            learning_rate: Largest learning rate, relative to the size of every tensor's entries: a step of Adam
                changes entries by the learning rate, whatever their gradient, and their size differs by model.
            seed: Random seed for the order of the windows.
        """
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
        return processes.broadcast(Fit(weights, before, best, trained).pack(), 0)

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
            error = self.loss(masters, window) * self.scale
        return torch.autograd.grad(error, list(masters.values()))

    def _held_out_error(self, weights: dict[str, torch.Tensor]) -> float:
        first = len(self.parts.of(processes.rank()))
        held_out = range(first, first + len(self.held_out.of(processes.rank())))
        errors = [self.loss(weights, window) for window in held_out]
        own = torch.stack(errors).cpu().double() if errors else torch.zeros(0, dtype=torch.float64)
        found = processes.gather(own, self.held_out)
        return sum(found.tolist()) / len(found)


def _size(weight: torch.Tensor) -> float:
    """Return the root mean square of the entries of a normal distribution with the same median of absolute values.

    A few entries of norms are hundreds of times as large as the others. Zeros don't count: most entries of a sparse
    matrix are.
    """
    sizes = weight[weight != 0].abs()
    return float(sizes.median()) / 0.6745 if len(sizes) else 0.0


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
