"""Training of a few weights on windows, which keeps the pass with the lowest error on held-out windows."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from ...utils import processes


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
