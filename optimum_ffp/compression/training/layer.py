"""Training of the weights of a layer, by their error on windows of hidden states."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from ...data import Windows
from ...engine import LayerRunner
from ...utils import processes


# Minimum number of tokens per step of the optimizer.
STEP_TOKENS = 512
# Added to the squared norm of a token's target.
EPSILON = 1e-6
# Smallest mean square of a channel that its error is divided by, relative to the mean of all channels.
MIN_SHARE = 1e-3
# Number of steps over which the learning rate rises; then it falls to 0 along a cosine.
WARM_UP_STEPS = 5
BETAS = (0.9, 0.95)

# A runner of a layer for sequences of one length, the states before the layer and the targets, both of shape
# `[windows, sequences per window, length, hidden size]`.
Run = tuple[LayerRunner, torch.Tensor, torch.Tensor]
# Maps weights by name and one of this process's windows (`WeightTrainer.windows`) to the mean error of its tokens.
Loss = Callable[[Mapping[str, torch.Tensor], int], torch.Tensor]


@dataclass(frozen=True)
class Fit:
    """Weights by name, and the mean error of the tokens of held-out windows before training and with these weights."""

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
        """Return the fit from the tensors of `pack`, in host memory: all layers are as large as the pruned model."""
        weights = {name: tensor.cpu() for name, tensor in tensors.items() if name}
        return cls(weights, *tensors[""].tolist())


class WeightTrainer:
    """Trains weights with Adam, in float32, and keeps those of the best pass over the windows.

    Processes share the windows, whose numbers are those of all processes, and take every step together with the summed
    gradients. The largest learning rate is relative to the size of every tensor's entries (`_size`): a step of Adam
    changes entries by about the learning rate, and their size differs by model. The seed sets the windows' order.

    Attributes:
        windows: Indices of this process's windows among those of all processes: training windows, then held-out ones,
            which come after all training windows.
        share: Those of the training windows.
    """

    def __init__(self, windows: int, held_out: int, per_step: int, passes: int, learning_rate: float, seed: int):
        self.per_step, self.passes, self.learning_rate, self.seed = per_step, passes, learning_rate, seed
        self.count, self.share = windows, range(windows)[processes.share(windows)]
        self.windows = [*self.share, *range(windows, windows + held_out)[processes.share(held_out)]]

    def fit(self, loss: Loss, start: dict[str, torch.Tensor], scale: float) -> Fit:
        """Train weights by name and return the fit of the best pass, or the start if no pass reduces the error.

        Trained weights are rounded to the dtypes of `start`. Errors are scaled so that their gradients fit into the
        dtype they are computed in; Adam's steps don't depend on it.
        """
        before = best = self._held_out_error(loss, start)
        best_weights = start
        generator = torch.Generator().manual_seed(self.seed)
        masters = {name: weight.to(torch.float32, copy=True).requires_grad_() for name, weight in start.items()}
        rates = [self.learning_rate * _size(weight.detach()) for weight in masters.values()]
        groups = [{"params": [weight], "lr": rate} for weight, rate in zip(masters.values(), rates)]
        optimizer = Adam(groups, betas=BETAS, fused=True)
        steps = self.passes * math.ceil(self.count / self.per_step)
        schedule = LambdaLR(optimizer, lambda step: _rate(step, steps))
        for _ in range(self.passes):
            for chosen in torch.randperm(self.count, generator=generator).split(self.per_step):
                self._differentiate(loss, masters, chosen.tolist(), scale)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            weights = {name: weight.detach().to(start[name], copy=True) for name, weight in masters.items()}
            error = self._held_out_error(loss, weights)
            # False for an error that is not finite.
            if error < best:
                best, best_weights = error, weights
        return Fit(best_weights, before, best)

    @torch.enable_grad()
    def _differentiate(self, loss: Loss, masters: dict[str, torch.Tensor], chosen: list[int], scale: float) -> None:
        """Set the gradients of the mean error of the chosen windows."""
        for window in chosen:
            if window in self.share:
                error = loss(masters, window - self.share.start) * scale
                (error / len(chosen)).backward()
        for weight in masters.values():
            weight.grad = processes.sum_(torch.zeros_like(weight) if weight.grad is None else weight.grad)

    def _held_out_error(self, loss: Loss, weights: dict[str, torch.Tensor]) -> float:
        errors = [loss(weights, window) for window in range(len(self.share), len(self.windows))]
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


def training_bytes(parameters: int) -> int:
    """Return the bytes that training a layer takes, besides activations.

    These are weights, gradients and the moments of Adam in float32, and in the model's dtype the weights before
    training, after a pass and after the best one.
    """
    return 28 * parameters


def split_windows(windows: Windows, parts: int) -> torch.Tensor:
    """Split windows into parts of equal length, shape `[parts * windows, window length // parts]`.

    A few last tokens may be left out. A start token takes the place of the first token of every part.
    """
    length = windows.length // parts
    split = windows.tokens[:, : parts * length].reshape(-1, length)
    if not windows.start_token:
        return split
    return torch.cat([windows.tokens[:, :1].repeat_interleave(parts, 0), split[:, 1:]], 1)


class LayerLoss:
    """Error of a layer's output with given weights, a `Loss`.

    The error of a token is `‖a - b‖² / ‖b‖²` of the output `a` and the target `b`, with every channel divided by its
    root mean square over all targets, so that neither a few tokens nor a few channels with massive activations
    outweigh all others.

    The first windows of the runs, which differ in the length of their sequences, are those to train on.
    """

    def __init__(self, runs: list[Run], windows: int):
        self.runs = runs
        runner, _, targets = runs[0]
        targets = targets[:, 0]
        self.scale = targets.shape[1] * processes.on_main(lambda: float(targets[0].float().square().sum(-1).mean()))
        sizes = torch.zeros(targets.shape[-1], device=runner.device)
        for target in targets[:windows]:
            squares = target.float().square()
            # The share of every channel in the squared norm of a token, summed over the tokens of a window.
            sizes += (squares / (squares.sum(-1, keepdim=True) + EPSILON)).sum(0).to(runner.device)
        processes.sum_(sizes)
        self.channels = (sizes / sizes.mean()).clamp_min(MIN_SHARE)

    def __call__(self, weights: Mapping[str, torch.Tensor], window: int) -> torch.Tensor:
        """Return the mean error of the tokens of a window."""
        errors = []
        for runner, inputs, targets in self.runs:
            output = runner.output(inputs[window], weights).float()
            target = targets[window].to(output)
            squares = ((output - target).square() / self.channels).sum(-1)
            errors.append((squares / (target.square().sum(-1) + EPSILON)).flatten())
        return torch.cat(errors).mean()
