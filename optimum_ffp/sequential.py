"""Sequential calibration: every projection is fitted to what really reaches it in the pruned model."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .layerwise import LayerRunner, enter
from .nested import NestedModel
from .policy import PruningPolicy
from .precision import float32_products
from .progress import progress_bar


# λ is chosen from these, relative to the mean diagonal of the kept inputs' Gram matrix.
LAMBDAS = (0.003, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class UnitFit:
    """What calibration made of one unit.

    Attributes:
        weight: Of the output projection, shape `[out_features, kept columns]`.
        ridge_lambda: λ that it was fitted with.
        held_out_error: `‖Y - X̃_R W'ᵀ‖² / ‖Y‖²` on windows that no fit has seen, `Y` being the target.
    """

    weight: torch.Tensor
    ridge_lambda: float
    held_out_error: float


@torch.no_grad()
def calibrate_sequentially(
    nested: NestedModel,
    policy: PruningPolicy,
    windows: torch.Tensor,
    held_out: torch.Tensor,
    dense_target: float = 0.5,
    ridge_lambda: float | None = None,
    dtype: torch.dtype | None = None,
) -> dict[int, UnitFit]:
    """Fits output projections layer by layer, from the input that the pruned layers before them produce.

    For a unit with dense weight `W`, input `X` in the dense model and `X̃` in the pruned one, of which `R` stays,
    solves `min ‖Y - X̃_R W'ᵀ‖² + λ ‖W' - W'_R‖²` with the target `Y = (m X + (1 - m) X̃) Wᵀ`, where `W'_R` is what
    prefix ridge regression gives and `m` the share of the dense model in the target. `m = 0` repairs every unit on its
    own; `m = 1` lets it make up for all units before it, which fits the calibration text better and other text worse.

    Args:
        nested: The sorted model, with its ridge factors.
        policy: What to keep.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        held_out: Windows of the same length that nothing was fitted to; λ is chosen on them.
        dense_target: `m`.
        ridge_lambda: λ, relative to the mean diagonal of `X̃_Rᵀ X̃_R`; if `None`, of `LAMBDAS` the one with the smallest
            error on the held-out windows, for every unit.
        dtype: Type to compute the layers in under autocast; `None` for the model's own.

    Returns:
        The fit of every unit, by its index.
    """
    starts = nested.compensated(policy)
    layers = nested.model.base_model.get_submodule(nested.family.layers)
    dense, arguments = enter(nested.model, layers, torch.cat([windows, held_out]))
    pruned = list(dense)
    sizes = [unit.items for unit in nested.units]
    fits: dict[int, UnitFit] = {}
    with progress_bar(len(layers), "Calibration", "layer") as bar:
        for index, layer in enumerate(layers):
            members = [i for i, unit in enumerate(nested.units) if unit.layer == index]
            modules = [nested.model_units[member].output.module for member in members]
            runner = LayerRunner(layer, arguments[index], dtype)
            targets: list[list[torch.Tensor]] = []
            for number, hidden in enumerate(dense):
                dense[number], inputs = runner.watch(hidden, modules)
                targets.append(inputs)
            fitted: dict[int, torch.Tensor] = {}
            for position, member in enumerate(members):
                weight = nested.dense_output(member)
                kept = starts[member].shape[1]
                seen, unseen = _Moments(weight, kept, dense_target), _HeldOut(weight, kept, dense_target)
                with nested.applied(PruningPolicy(nested.units, tuple(sizes)), fitted):
                    for number, hidden in enumerate(pruned):
                        reaching = runner.input_of(modules[position], hidden)
                        (seen if number < len(windows) else unseen).add(reaching, targets[number][position])
                lambdas = LAMBDAS if ridge_lambda is None else (ridge_lambda,)
                fits[member] = _fit(seen, unseen, starts[member], lambdas)
                fitted[member] = fits[member].weight
                sizes[member] = policy.sizes[member]
            with nested.applied(PruningPolicy(nested.units, tuple(sizes)), fitted):
                for number, hidden in enumerate(pruned):
                    pruned[number] = runner(hidden)
            bar.update()
    return fits


class _Moments:
    """Sums over tokens of products with the kept inputs: `X̃_Rᵀ X̃` and `X̃_Rᵀ X`."""

    def __init__(self, weight: torch.Tensor, kept: int, dense_target: float):
        self.weight, self.kept, self.dense_target = weight.double(), kept, dense_target
        self.own = weight.new_zeros(kept, weight.shape[1], dtype=torch.float32)
        self.dense = torch.zeros_like(self.own)

    def add(self, reaching: torch.Tensor, dense: torch.Tensor) -> None:
        with float32_products(reaching, dense) as (reaching, dense):
            retained = reaching[:, : self.kept]
            self.own.addmm_(retained.T, reaching)
            self.dense.addmm_(retained.T, dense)

    @property
    def gram(self) -> torch.Tensor:
        """`X̃_Rᵀ X̃_R`, float64."""
        return self.own[:, : self.kept].double()

    @property
    def cross(self) -> torch.Tensor:
        """`X̃_Rᵀ Y`, float64."""
        return torch.lerp(self.own, self.dense, self.dense_target).double() @ self.weight.T


class _HeldOut(_Moments):
    """The same on windows that no fit has seen, with `‖Y‖²`, which tells the error of any fit."""

    energy = 0.0

    def add(self, reaching: torch.Tensor, dense: torch.Tensor) -> None:
        super().add(reaching, dense)
        target = torch.lerp(reaching.float(), dense.float(), self.dense_target) @ self.weight.T.float()
        self.energy += float(target.square().sum(dtype=torch.float64))

    def error(self, fit: torch.Tensor) -> float:
        """`‖Y - X̃_R W'ᵀ‖² / ‖Y‖²` of a float64 `W'ᵀ`, shape `[kept, out_features]`."""
        explained = float((fit * (2 * self.cross - self.gram @ fit)).sum())
        return max(0.0, self.energy - explained) / max(self.energy, torch.finfo(torch.float32).tiny)


def _fit(fitted: _Moments, held_out: _HeldOut, start: torch.Tensor, lambdas: Iterable[float]) -> UnitFit:
    gram, cross, begin = fitted.gram, fitted.cross, start.T.double()
    candidates = []
    for ridge_lambda in lambdas:
        damping = ridge_lambda * gram.diagonal().mean()
        factor = torch.linalg.cholesky(gram + damping * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        solution = torch.cholesky_solve(cross + damping * begin, factor)
        candidates.append((held_out.error(solution), ridge_lambda, solution))
    error, ridge_lambda, solution = min(candidates, key=lambda candidate: candidate[0])
    return UnitFit(solution.T.to(start.dtype).contiguous(), ridge_lambda, error)
