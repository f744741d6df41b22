"""Sequential calibration: every output projection is fitted to its input in the pruned model."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import torch

from ..allocation.policy import PruningPolicy
from ..engine import LayerRunner
from ..utils import processes
from ..utils.cholesky import algebra_device, check_finite, factorise, ridge_damping
from ..utils.heap import return_free_memory
from ..utils.precision import float32_products
from ..utils.processes import Shares
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from ..utils.window_sum import WindowSum, shares_of_sum
from .sorted_model import SortedModel


# Candidates for λ, relative to the mean diagonal of the kept inputs' Gram matrix. `STRONG_LAMBDAS` are tried in order
# for as long as the held-out error falls: large values win where a unit has few calibration tokens.
LAMBDAS = (0.003, 0.03, 0.1, 0.3, 1.0)
STRONG_LAMBDAS = (3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class UnitFit:
    """Calibration result of one unit.

    Attributes:
        weight: Weight of the output projection, shape `[out_features, kept columns]`.
        ridge_lambda: λ of the fit; infinite if no fit improves on the initial ridge solution.
        held_out_error: `‖Y - X̃_R W'ᵀ‖² / ‖Y‖²` on held-out windows, with the target `Y`.
    """

    weight: torch.Tensor
    ridge_lambda: float
    held_out_error: float

    def pack(self) -> dict[str, torch.Tensor]:
        """Return the fit as named tensors."""
        figures = torch.tensor([self.ridge_lambda, self.held_out_error], dtype=torch.float64)
        return {"weight": self.weight, "figures": figures}

    @classmethod
    def unpack(cls, tensors: dict[str, torch.Tensor], device: torch.device) -> "UnitFit":
        """Return the fit from the tensors of `pack`."""
        return cls(tensors["weight"].to(device), *tensors["figures"].tolist())


def sequential_tokens(tokens: int, layers: int) -> int:
    """Return the tokens of `calibrate_sequentially` in forward passes of the model, from those of all windows.

    Both units of a layer read its input in the dense and in the pruned model, and the pruned layer runs once more to
    advance, except the last one. Passes that stop at an output projection count as whole ones.
    """
    return round((5 - 1 / layers) * tokens)


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
    """Fit the output projections layer by layer, on the input that the preceding pruned layers produce.

    For a unit with dense weight `W`, input `X` in the dense model and `X̃` in the pruned one, of which the columns `R`
    are kept, this solves `min ‖Y - X̃_R W'ᵀ‖² + λ ‖W' - W'_R‖²` with the target `Y = (m X + (1 - m) X̃) Wᵀ`, where
    `W'_R` is the solution of prefix ridge regression and `m` the weight of the dense model in the target. With `m = 0`
    every unit is calibrated on its own. With `m = 1` it also compensates for all units before it, which fits the
    calibration text better and other text worse.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: Number of groups to keep per unit.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        held_out: Windows of the same length that no fit uses; λ is chosen on them.
        dense_target: `m`.
        ridge_lambda: λ for all units, relative to the mean diagonal of `X̃_Rᵀ X̃_R`. If `None`, λ with the smallest
            held-out error is chosen per unit: from `LAMBDAS`, from `STRONG_LAMBDAS` if the largest of `LAMBDAS` is the
            best, or infinite, which leaves `W'_R` unchanged.
        dtype: Autocast dtype of the layers; `None` for the model's own.
        journal: Saves the fits.

    Returns:
        The fit of every unit, by unit index.

    Raises:
        FFPError: If the input of a unit's output projection is not finite.
    """
    journal = journal or Journal()
    layerwise = sorted_model.layerwise
    shares = shares_of_sum(len(windows), layerwise.device), shares_of_sum(len(held_out), layerwise.device)
    own = torch.cat([windows[shares[0].own], held_out[shares[1].own]])
    states, arguments = layerwise.enter(own, dtype, copies=2)
    calibration = _Calibration(sorted_model, policy, states, shares, dense_target, ridge_lambda)
    with progress_bar(len(layerwise.layers), "Calibration", "layer") as bar:
        for index, layer in layerwise.walk():
            runner = LayerRunner(layer, arguments[index], dtype)
            members = sorted_model.members(index)
            for member in members:
                fit = partial(calibration.fit, member, runner, member == members[-1])
                calibration.keep(member, journal.tensors(f"unit-{member}", fit))
            if index + 1 < len(layerwise.layers):
                calibration.advance(index, runner)
            return_free_memory()
            bar.update()
    return calibration.fits


class _Calibration:
    """State of a sequential calibration.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: Number of groups to keep per unit.
        states: Hidden states of this process before the first layer, `[windows, window length, hidden size]`. They are
            updated in place with the outputs of the dense layers.
        shares: Shares of the processes in the windows to fit to, and in those that are held out.
        dense_target: `m`.
        ridge_lambda: λ, or `None` to choose it per unit.
    """

    def __init__(
        self,
        sorted_model: SortedModel,
        policy: PruningPolicy,
        states: torch.Tensor,
        shares: tuple[Shares, Shares],
        dense_target: float,
        ridge_lambda: float | None,
    ):
        self.sorted_model, self.policy, self.shares = sorted_model, policy, shares
        self.in_dense, self.in_pruned = states, states.clone()
        self.dense_layers = 0
        self.dense_target, self.ridge_lambda = dense_target, ridge_lambda
        self.fits: dict[int, UnitFit] = {}

    def fit(self, member: int, runner: LayerRunner, last: bool) -> dict[str, torch.Tensor]:
        """Fit the next unit to its inputs in the dense and in the pruned model.

        The inputs are recomputed per window rather than stored for all windows. For the last unit of a layer the
        dense states are advanced to the next layer in the same pass. One process fits the unit to the sums of all.
        """
        weight, unit = self.sorted_model.dense_output(member), self.sorted_model.model_units[member]
        start, module = self.sorted_model.compensated_output(member, self.policy.sizes[member]), unit.output.module
        start = start.to(self.sorted_model.layerwise.stored_dtype)
        fitted = weight, start.shape[1], self.dense_target
        seen, unseen = (kind(*fitted, shares) for kind, shares in zip((_Moments, _HeldOut), self.shares))
        states = zip(self.in_dense.split(1), self.in_pruned.split(1))
        for moments in (seen, unseen):
            for _, chunk in moments.shares.own_chunks:
                moments.start()
                for in_dense, in_pruned in islice(states, chunk.stop - chunk.start):
                    if last:
                        output, dense_input = runner.watch(module, in_dense)
                        in_dense.copy_(output)
                    else:
                        dense_input = runner.input_of(module, in_dense)
                    with self._applied(unit.unit.layer):
                        pruned_input = runner.input_of(module, in_pruned)
                    moments.add(*map(unit.in_group_order, (pruned_input, dense_input)))
        self.dense_layers += last
        owner = member % processes.count()
        unseen.finish(owner)
        if not seen.finish(owner):
            return processes.broadcast(None, owner)
        for squares in (seen.with_pruned.diagonal(), torch.tensor(unseen.energy)):
            check_finite(squares, f"the input of the output projection of {unit.unit.name} in the pruned model")
        return processes.broadcast(_fit(seen, unseen, start, self.ridge_lambda).pack(), owner)

    def advance(self, layer: int, runner: LayerRunner) -> None:
        """Advance the states of both models to the next layer, once all units of this one are fitted."""
        if self.dense_layers == layer:
            # The fit of the last unit was read from the journal.
            runner.advance(self.in_dense)
            self.dense_layers += 1
        with self._applied(layer):
            runner.advance(self.in_pruned)

    def _applied(self, layer: int) -> AbstractContextManager[None]:
        """Apply the fitted units of one layer."""
        sizes, weights = [unit.groups for unit in self.sorted_model.units], {}
        for member in self.sorted_model.members(layer):
            if member in self.fits:
                sizes[member] = self.policy.sizes[member]
                weights |= [self.sorted_model.named_output(member, self.fits[member].weight)]
        return self.sorted_model.change(PruningPolicy(self.sorted_model.units, tuple(sizes)), weights)(layer)

    def keep(self, member: int, fit: dict[str, torch.Tensor]) -> None:
        """Store the fit of a unit."""
        self.fits[member] = UnitFit.unpack(fit, self.sorted_model.dense_output(member).device)


class _Moments:
    """Products with the kept inputs, summed over tokens: `X̃_Rᵀ X̃` and `X̃_Rᵀ X`, each `[kept, features]`.

    Attributes:
        shares: Shares of the processes in the windows.
        with_pruned, with_dense: The products, once all windows are added.
    """

    with_pruned: torch.Tensor
    with_dense: torch.Tensor

    def __init__(self, weight: torch.Tensor, kept: int, dense_target: float, shares: Shares):
        self.weight, self.kept, self.dense_target, self.shares = weight, kept, dense_target, shares
        zeros = partial(weight.new_zeros, kept, weight.shape[1], dtype=torch.float32)
        self._sums = WindowSum(shares, zeros), WindowSum(shares, zeros)

    def start(self) -> None:
        for products in self._sums:
            products.start()

    def add(self, pruned_input: torch.Tensor, dense_input: torch.Tensor) -> None:
        with float32_products(pruned_input, dense_input) as (pruned_input, dense_input):
            retained = pruned_input[:, : self.kept]
            for products, found in zip(self._sums, (pruned_input, dense_input)):
                products.current.addmm_(retained.T, found)

    def finish(self, at: int) -> bool:
        """Add up the windows of all processes in one of them, and return whether it is this one."""
        self.with_pruned, self.with_dense = (products.finish(at) for products in self._sums)
        return processes.rank() == at

    @cached_property
    def place(self) -> torch.device:
        """Device of the fit."""
        return algebra_device(self.with_pruned.device, self.weight.shape[1])

    @cached_property
    def gram(self) -> torch.Tensor:
        """`X̃_Rᵀ X̃_R`, float64, once all windows are added."""
        return self.with_pruned[:, : self.kept].to(self.place).double()

    @cached_property
    def cross(self) -> torch.Tensor:
        """`X̃_Rᵀ Y`, float64, once all windows are added."""
        mixed = torch.lerp(self.with_pruned, self.with_dense, self.dense_target)
        return mixed.to(self.place).double() @ self.weight.T.to(self.place).double()


class _HeldOut(_Moments):
    """Moments of the held-out windows, with `‖Y‖²` to compute the error of a fit."""

    def __init__(self, weight: torch.Tensor, kept: int, dense_target: float, shares: Shares):
        super().__init__(weight, kept, dense_target, shares)
        # They stay on the device, which would wait for every transfer.
        self._energies: list[torch.Tensor] = []

    def add(self, pruned_input: torch.Tensor, dense_input: torch.Tensor) -> None:
        super().add(pruned_input, dense_input)
        mixed = torch.lerp(pruned_input.float(), dense_input.float(), self.dense_target)
        self._energies.append((mixed @ self.weight.T.float()).square().sum(-1))

    def finish(self, at: int) -> bool:
        energies = torch.tensor([float(tokens.cpu().double().sum()) for tokens in self._energies], dtype=torch.float64)
        self.energy = sum(processes.gather(energies, self.shares).tolist())
        return super().finish(at)

    def error(self, fit: torch.Tensor) -> float:
        """Return `‖Y - X̃_R W'ᵀ‖² / ‖Y‖²` of a float64 `W'ᵀ`, shape `[kept, out_features]`."""
        explained = float((fit * (2 * self.cross - self.gram @ fit)).sum())
        # In this order NaN stays NaN, which is smaller than no other error.
        return max(self.energy - explained, 0.0) / max(self.energy, torch.finfo(torch.float32).tiny)


def _fit(fitted: _Moments, held_out: _HeldOut, start: torch.Tensor, ridge_lambda: float | None) -> UnitFit:
    # Both need one device; a choice of its own, made later with less memory free, could differ.
    held_out.place = fitted.place
    gram, cross, begin = fitted.gram, fitted.cross, start.T.to(fitted.place).double()

    def solve(strength: float) -> UnitFit:
        factor, damping = factorise(gram, ridge_damping(gram, strength))
        solution = torch.cholesky_solve(cross + damping * begin, factor)
        return UnitFit(solution.T.to(start).contiguous(), strength, held_out.error(solution))

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
