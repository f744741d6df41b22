"""Sequential calibration: every projection is fitted to what really reaches it in the pruned model."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from ..allocation.policy import PruningPolicy
from ..utils.cholesky import check_finite, factorise, ridge_damping
from ..utils.heap import return_free_memory
from ..utils.precision import float32_products
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from .layer_runner import LayerRunner, enter
from .sorted_model import SortedModel


# λ is chosen from these, relative to the mean diagonal of the kept inputs' Gram matrix. Those of `STRONG_LAMBDAS` are
# tried one after another, for as long as the error falls: where there is little text for a unit to be fitted to.
LAMBDAS = (0.003, 0.03, 0.1, 0.3, 1.0)
STRONG_LAMBDAS = (3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class UnitFit:
    """What calibration made of one unit.

    Attributes:
        weight: Of the output projection, shape `[out_features, kept columns]`.
        ridge_lambda: λ that it was fitted with; infinite where no fit is better than the start, the ridge solution.
        held_out_error: `‖Y - X̃_R W'ᵀ‖² / ‖Y‖²` on windows that no fit has seen, `Y` being the target.
    """

    weight: torch.Tensor
    ridge_lambda: float
    held_out_error: float

    def pack(self) -> dict[str, torch.Tensor]:
        """All of it as tensors by name."""
        figures = torch.tensor([self.ridge_lambda, self.held_out_error], dtype=torch.float64)
        return {"weight": self.weight, "figures": figures}

    @classmethod
    def unpack(cls, tensors: dict[str, torch.Tensor], device: torch.device) -> "UnitFit":
        """What `pack` made tensors of."""
        return cls(tensors["weight"].to(device), *tensors["figures"].tolist())


@torch.no_grad()
def calibrate_sequentially(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    windows: torch.Tensor,
    held_out: torch.Tensor,
    dense_target: float = 0.5,
    ridge_lambda: float | None = None,
    dtype: torch.dtype | None = None,
    journal: Journal | None = None,
) -> dict[int, UnitFit]:
    """Fits output projections layer by layer, from the input that the pruned layers before them produce.

    For a unit with dense weight `W`, input `X` in the dense model and `X̃` in the pruned one, of which `R` stays,
    solves `min ‖Y - X̃_R W'ᵀ‖² + λ ‖W' - W'_R‖²` with the target `Y = (m X + (1 - m) X̃) Wᵀ`, where `W'_R` is what
    prefix ridge regression gives and `m` the share of the dense model in the target. `m = 0` repairs every unit on its
    own; `m = 1` lets it make up for all units before it, which fits the calibration text better and other text worse.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: What to keep.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        held_out: Windows of the same length that nothing was fitted to; λ is chosen on them.
        dense_target: `m`.
        ridge_lambda: λ, relative to the mean diagonal of `X̃_Rᵀ X̃_R`; every unit is then fitted with it. If `None`, a
            unit takes what has the smallest error on the held-out windows: one of `LAMBDAS` and, where the largest of
            them is the best, `STRONG_LAMBDAS`, or `W'_R` as it is (an infinite λ).
        dtype: Type to compute the layers in under autocast; `None` for the model's own.
        journal: Keeps the fits.

    Returns:
        The fit of every unit, by its index.

    Raises:
        FFPError: If what a unit reads is not finite.
    """
    journal = journal or Journal()
    layers = sorted_model.model.base_model.get_submodule(sorted_model.family.layers)
    states, arguments = enter(sorted_model.model, layers, torch.cat([windows, held_out]), dtype)
    calibration = _Calibration(sorted_model, policy, states, len(windows), dense_target, ridge_lambda)
    with progress_bar(len(layers), "Calibration", "layer") as bar:
        for index, layer in enumerate(layers):
            runner = LayerRunner(layer, arguments[index], dtype)
            members = [member for member, unit in enumerate(sorted_model.units) if unit.layer == index]
            for member in members:
                fit = partial(calibration.fit, member, runner, member == members[-1])
                calibration.keep(member, journal.tensors(f"unit-{member}", fit))
            if index + 1 < len(layers):
                calibration.go_on(index, runner)
            return_free_memory()
            bar.update()
    return calibration.fits


class _Calibration:
    """How far the calibration has come.

    Args:
        nested, policy: The model and what to keep of it.
        states: Hidden states before the first layer, `[windows, window length, hidden size]`; it is these that go
            through the layers of the dense model.
        windows: How many of them to fit to; the others are held out.
        dense_target, ridge_lambda: `m`, and λ, or `None` to choose it.
    """

    def __init__(
        self,
        sorted_model: SortedModel,
        policy: PruningPolicy,
        states: torch.Tensor,
        windows: int,
        dense_target: float,
        ridge_lambda: float | None,
    ):
        self.sorted_model, self.policy, self.windows = sorted_model, policy, windows
        self.in_dense, self.in_pruned = states, states.clone()
        self.dense_layers = 0
        self.dense_target, self.ridge_lambda = dense_target, ridge_lambda
        self.fits: dict[int, UnitFit] = {}

    def fit(self, member: int, runner: LayerRunner, last: bool) -> dict[str, torch.Tensor]:
        """Fits the next unit to what it reads in the dense and in the pruned model.

        That is made anew for every window, rather than kept for all. With the last unit of a layer the states of the
        dense model go on to the next, which saves a pass.
        """
        weight, unit = self.sorted_model.dense_output(member), self.sorted_model.model_units[member]
        start, module = self.sorted_model.compensated_output(member, self.policy.sizes[member]), unit.output.module
        seen, unseen = (kind(weight, start.shape[1], self.dense_target) for kind in (_Moments, _HeldOut))
        for number, (in_dense, in_pruned) in enumerate(zip(self.in_dense.split(1), self.in_pruned.split(1))):
            if last:
                output, dense_input = runner.watch(module, in_dense)
                in_dense.copy_(output)
            else:
                dense_input = runner.input_of(module, in_dense)
            with self._applied(unit.unit.layer):
                pruned_input = runner.input_of(module, in_pruned)
            (seen if number < self.windows else unseen).add(pruned_input, dense_input)
        self.dense_layers += last
        for squares in (seen.with_pruned.diagonal(), torch.tensor(unseen.energy)):
            check_finite(squares, f"what the output projection of {unit.unit.name} reads in the pruned model")
        return _fit(seen, unseen, start, self.ridge_lambda).pack()

    def go_on(self, layer: int, runner: LayerRunner) -> None:
        """Takes the states of both models to the next layer, once all units of this one are fitted."""
        if self.dense_layers == layer:
            # Its last unit was fitted before a resumption.
            for state in self.in_dense.split(1):
                state.copy_(runner(state))
            self.dense_layers += 1
        with self._applied(layer):
            for state in self.in_pruned.split(1):
                state.copy_(runner(state))

    def _applied(self, layer: int) -> AbstractContextManager[PreTrainedModel]:
        """The model with what is fitted of this layer. It is the layer alone that will run."""
        sizes, outputs = [unit.groups for unit in self.sorted_model.units], {}
        for member, fit in self.fits.items():
            if self.sorted_model.units[member].layer == layer:
                sizes[member], outputs[member] = self.policy.sizes[member], fit.weight
        return self.sorted_model.applied(PruningPolicy(self.sorted_model.units, tuple(sizes)), outputs)

    def keep(self, member: int, fit: dict[str, torch.Tensor]) -> None:
        """Prunes the unit and gives it the weights of its fit."""
        self.fits[member] = UnitFit.unpack(fit, self.sorted_model.dense_output(member).device)


class _Moments:
    """Sums over tokens of products with the kept inputs: `X̃_Rᵀ X̃` and `X̃_Rᵀ X`, each `[kept, features]`."""

    def __init__(self, weight: torch.Tensor, kept: int, dense_target: float):
        self.weight, self.kept, self.dense_target = weight, kept, dense_target
        self.with_pruned = weight.new_zeros(kept, weight.shape[1], dtype=torch.float32)
        self.with_dense = torch.zeros_like(self.with_pruned)

    def add(self, pruned_input: torch.Tensor, dense_input: torch.Tensor) -> None:
        with float32_products(pruned_input, dense_input) as (pruned_input, dense_input):
            retained = pruned_input[:, : self.kept]
            self.with_pruned.addmm_(retained.T, pruned_input)
            self.with_dense.addmm_(retained.T, dense_input)

    @property
    def gram(self) -> torch.Tensor:
        """`X̃_Rᵀ X̃_R`, float64."""
        return self.with_pruned[:, : self.kept].double()

    @property
    def cross(self) -> torch.Tensor:
        """`X̃_Rᵀ Y`, float64."""
        mixed = torch.lerp(self.with_pruned, self.with_dense, self.dense_target)
        return mixed.double() @ self.weight.T.double()


class _HeldOut(_Moments):
    """The same on windows that no fit has seen, with `‖Y‖²`, which tells the error of any fit."""

    def __init__(self, weight: torch.Tensor, kept: int, dense_target: float):
        super().__init__(weight, kept, dense_target)
        self.energy = 0.0

    def add(self, pruned_input: torch.Tensor, dense_input: torch.Tensor) -> None:
        super().add(pruned_input, dense_input)
        mixed = torch.lerp(pruned_input.float(), dense_input.float(), self.dense_target)
        self.energy += float((mixed @ self.weight.T.float()).square().sum(dtype=torch.float64))

    def error(self, fit: torch.Tensor) -> float:
        """`‖Y - X̃_R W'ᵀ‖² / ‖Y‖²` of a float64 `W'ᵀ`, shape `[kept, out_features]`."""
        explained = float((fit * (2 * self.cross - self.gram @ fit)).sum())
        return max(0.0, self.energy - explained) / max(self.energy, torch.finfo(torch.float32).tiny)


def _fit(fitted: _Moments, held_out: _HeldOut, start: torch.Tensor, ridge_lambda: float | None) -> UnitFit:
    gram, cross, begin = fitted.gram, fitted.cross, start.T.double()

    def solve(strength: float) -> UnitFit:
        factor, damping = factorise(gram, ridge_damping(gram, strength))
        solution = torch.cholesky_solve(cross + damping * begin, factor)
        return UnitFit(solution.T.to(start.dtype).contiguous(), strength, held_out.error(solution))

    if ridge_lambda is not None:
        return solve(ridge_lambda)
    best, least = UnitFit(start, math.inf, held_out.error(begin)), math.inf
    for strength in LAMBDAS + STRONG_LAMBDAS:
        fit = solve(strength)
        best = min(best, fit, key=lambda one: one.held_out_error)
        if strength >= LAMBDAS[-1] and fit.held_out_error >= least:
            break
        least = min(least, fit.held_out_error)
    return best
