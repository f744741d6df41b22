"""Sequential calibration: every projection is fitted to what really reaches it in the pruned model."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from .journal import Journal
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
    nested: NestedModel,
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
        nested: The sorted model, with its ridge factors.
        policy: What to keep.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        held_out: Windows of the same length that nothing was fitted to; λ is chosen on them.
        dense_target: `m`.
        ridge_lambda: λ, relative to the mean diagonal of `X̃_Rᵀ X̃_R`; if `None`, of `LAMBDAS` the one with the smallest
            error on the held-out windows, for every unit.
        dtype: Type to compute the layers in under autocast; `None` for the model's own.
        journal: Keeps the fits.

    Returns:
        The fit of every unit, by its index.
    """
    journal = journal or Journal()
    layers = nested.model.base_model.get_submodule(nested.family.layers)
    dense, arguments = enter(nested.model, layers, torch.cat([windows, held_out]))
    pruned = dense.clone()
    lambdas = LAMBDAS if ridge_lambda is None else (ridge_lambda,)
    calibration = _Calibration(nested, policy, len(windows), dense_target, lambdas)
    with progress_bar(len(layers), "Calibration", "layer") as bar:
        for index, layer in enumerate(layers):
            members = [i for i, unit in enumerate(nested.units) if unit.layer == index]
            modules = [nested.model_units[member].output.module for member in members]
            runner = LayerRunner(layer, arguments[index], dtype)
            targets: list[torch.Tensor] = []
            for number, hidden in enumerate(dense.split(1)):
                output, inputs = runner.watch(hidden, modules)
                hidden.copy_(output)
                targets = targets or [tensor.new_empty(len(dense), *tensor.shape) for tensor in inputs]
                for target, tensor in zip(targets, inputs):
                    target[number] = tensor
            for member, module, target in zip(members, modules, targets):
                fit = partial(calibration.fit, member, runner, module, pruned, target)
                calibration.keep(member, journal.tensors(f"unit-{member}", fit))
            with calibration.applied(index):
                for hidden in pruned.split(1):
                    hidden.copy_(runner(hidden))
            bar.update()
    return calibration.fits


class _Calibration:
    """How far the calibration has come: units before this point are pruned and fitted, those after it are dense."""

    def __init__(
        self, nested: NestedModel, policy: PruningPolicy, windows: int, dense_target: float, lambdas: Iterable[float]
    ):
        self.nested, self.policy, self.windows = nested, policy, windows
        self.dense_target, self.lambdas = dense_target, lambdas
        self.sizes = [unit.items for unit in nested.units]
        self.fits: dict[int, UnitFit] = {}

    def applied(self, layer: int) -> AbstractContextManager[PreTrainedModel]:
        """The model as it is now, with what was fitted in this layer."""
        outputs = {member: fit.weight for member, fit in self.fits.items() if self.nested.units[member].layer == layer}
        return self.nested.applied(PruningPolicy(self.nested.units, tuple(self.sizes)), outputs)

    def fit(
        self,
        member: int,
        runner: LayerRunner,
        module: nn.Module,
        hidden: torch.Tensor,
        targets: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Fits the next unit to hidden states before its layer: of the windows to fit, then of those held out.

        Targets are what the unit's output projection reads in the dense model, `[windows, window length, features]`.
        """
        weight = self.nested.dense_output(member)
        start = self.nested.compensated_output(member, self.policy.sizes[member])
        seen, unseen = (kind(weight, start.shape[1], self.dense_target) for kind in (_Moments, _HeldOut))
        with self.applied(self.nested.units[member].layer):
            for number, (state, target) in enumerate(zip(hidden.split(1), targets)):
                (seen if number < self.windows else unseen).add(
                    runner.input_of(module, state), target.to(weight.device)
                )
        return _fit(seen, unseen, start, self.lambdas).pack()

    def keep(self, member: int, fit: dict[str, torch.Tensor]) -> None:
        """Prunes the unit and gives it the weights of its fit."""
        self.fits[member] = UnitFit.unpack(fit, self.nested.dense_output(member).device)
        self.sizes[member] = self.policy.sizes[member]


class _Moments:
    """Sums over tokens of products with the kept inputs: `X̃_Rᵀ X̃` and `X̃_Rᵀ X`."""

    def __init__(self, weight: torch.Tensor, kept: int, dense_target: float):
        self.weight, self.kept, self.dense_target = weight, kept, dense_target
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
        return torch.lerp(self.own, self.dense, self.dense_target).double() @ self.weight.T.double()


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
    diagonal = gram.diagonal().clone()
    best = UnitFit(start, 0.0, math.inf)
    for ridge_lambda in lambdas:
        # In place: of the largest unit of a 7B model each such matrix is 1 GB.
        damping = ridge_lambda * diagonal.mean()
        gram.diagonal().copy_(diagonal + damping)
        solution = torch.cholesky_solve(cross + damping * begin, torch.linalg.cholesky(gram))
        error = held_out.error(solution)
        if error < best.held_out_error:
            best = UnitFit(solution.T.to(start.dtype).contiguous(), ridge_lambda, error)
    return best
