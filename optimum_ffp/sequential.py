"""Sequential calibration: every projection is fitted to what really reaches it in the pruned model."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .nested import NestedModel
from .policy import PruningPolicy
from .progress import progress_bar


# λ is chosen from these, relative to the mean diagonal of the kept inputs' Gram matrix.
LAMBDAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


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
    dense, arguments = _enter(nested.model, layers, torch.cat([windows, held_out]))
    pruned = list(dense)
    sizes = [unit.items for unit in nested.units]
    fits: dict[int, UnitFit] = {}
    with progress_bar(len(layers), "Calibration", "layer") as bar:
        for index, layer in enumerate(layers):
            members = [i for i, unit in enumerate(nested.units) if unit.layer == index]
            modules = [nested.model_units[member].output.module for member in members]
            runner = _LayerRunner(layer, arguments[index], dtype)
            dense, targets = zip(*(runner.watch(hidden, modules) for hidden in dense))
            fitted: dict[int, torch.Tensor] = {}
            for position, member in enumerate(members):
                weight = nested.dense_output(member)
                moments = [_Moments(weight, starts[member].shape[1], dense_target) for _ in range(2)]
                with nested.applied(PruningPolicy(nested.units, tuple(sizes)), fitted):
                    for number, hidden in enumerate(pruned):
                        reaching = runner.input_of(modules[position], hidden)
                        moments[number >= len(windows)].add(reaching, targets[number][position])
                lambdas = LAMBDAS if ridge_lambda is None else (ridge_lambda,)
                fits[member] = _fit(*moments, starts[member], lambdas)
                fitted[member] = fits[member].weight
                sizes[member] = policy.sizes[member]
            with nested.applied(PruningPolicy(nested.units, tuple(sizes)), fitted):
                pruned = [runner(hidden) for hidden in pruned]
            bar.update()
    return fits


class _Moments:
    """Sums over tokens: `X̃_Rᵀ X̃_R`, `X̃_Rᵀ Y` and `‖Y‖²`."""

    def __init__(self, weight: torch.Tensor, kept: int, dense_target: float):
        self.weight, self.kept, self.dense_target = weight.float(), kept, dense_target
        self.gram = weight.new_zeros(kept, kept, dtype=torch.float32)
        self.cross = weight.new_zeros(kept, len(weight), dtype=torch.float32)
        self.energy = 0.0

    def add(self, reaching: torch.Tensor, dense: torch.Tensor) -> None:
        retained = reaching[:, : self.kept]
        target = torch.lerp(reaching, dense.float(), self.dense_target) @ self.weight.T
        self.gram.addmm_(retained.T, retained)
        self.cross.addmm_(retained.T, target)
        self.energy += float(target.square().sum(dtype=torch.float64))

    def error(self, fit: torch.Tensor) -> float:
        """`‖Y - X̃_R W'ᵀ‖² / ‖Y‖²` of a float64 `W'ᵀ`, shape `[kept, out_features]`."""
        left = (fit * (self.gram.double() @ fit - 2 * self.cross.double())).sum()
        return max(0.0, 1 + float(left) / max(self.energy, 1e-30))


def _fit(fitted: _Moments, held_out: _Moments, start: torch.Tensor, lambdas: Iterable[float]) -> UnitFit:
    gram, cross, begin = fitted.gram.double(), fitted.cross.double(), start.T.double()
    candidates = []
    for ridge_lambda in lambdas:
        damping = ridge_lambda * gram.diagonal().mean()
        factor = torch.linalg.cholesky(gram + damping * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        solution = torch.cholesky_solve(cross + damping * begin, factor)
        candidates.append((held_out.error(solution), ridge_lambda, solution))
    error, ridge_lambda, solution = min(candidates, key=lambda candidate: candidate[0])
    return UnitFit(solution.T.to(start.dtype).contiguous(), ridge_lambda, error)


class _LayerRunner:
    """Runs one decoder layer on hidden states of one window."""

    def __init__(self, layer: nn.Module, arguments: dict[str, Any], dtype: torch.dtype | None):
        self.layer, self.arguments, self.dtype = layer, arguments, dtype

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, self.dtype) if self.dtype else nullcontext():
            output = self.layer(hidden, **self.arguments)
        output = output[0] if isinstance(output, tuple) else output
        return output.to(hidden.dtype)

    def watch(self, hidden: torch.Tensor, modules: Sequence[nn.Module]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The layer's output, and what each of the modules reads on the way, shape `[tokens, features]`."""
        seen: dict[nn.Module, torch.Tensor] = {}

        def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[module] = inputs[0].flatten(0, -2)

        with ExitStack() as hooks:
            for module in modules:
                hooks.callback(module.register_forward_pre_hook(keep).remove)
            output = self(hidden)
        return output, [seen[module] for module in modules]

    def input_of(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What the module reads when the layer runs, float32, shape `[tokens, features]`. Runs no further than it."""
        seen: list[torch.Tensor] = []

        def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(inputs[0].flatten(0, -2).float())
            raise _Reached

        hook = module.register_forward_pre_hook(keep)
        try:
            self(hidden)
        except _Reached:
            return seen[0]
        finally:
            hook.remove()
        raise AssertionError("a unit's output projection runs whenever its layer does")


def _enter(
    model: PreTrainedModel, layers: Sequence[nn.Module], windows: torch.Tensor
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Hidden states before the first layer of every window, and the other arguments that each layer is called with."""
    hidden: list[torch.Tensor] = []
    arguments: dict[int, dict[str, Any]] = {}

    def watch(index: int):
        def record(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            arguments[index] = keywords
            if index == 0:
                hidden.append(inputs[0])
                # All windows are of one length, so their masks and positions are alike: one whole pass is enough.
                if len(hidden) > 1:
                    raise _Reached

        return record

    hooks = [layer.register_forward_pre_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for window in windows.split(1):
            try:
                model.base_model(window.to(model.device), use_cache=False)
            except _Reached:
                continue
    finally:
        for hook in hooks:
            hook.remove()
    return hidden, [arguments[index] for index in range(len(layers))]


class _Reached(Exception):
    """Ends a forward pass at the module that was waited for."""
