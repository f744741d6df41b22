"""Sequential calibration: every projection is fitted to what really reaches it in the pruned model."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .nested import NestedModel
from .policy import PruningPolicy
from .progress import progress_bar


@torch.no_grad()
def calibrate_sequentially(
    nested: NestedModel,
    policy: PruningPolicy,
    windows: torch.Tensor,
    dense_target: float = 0.5,
    ridge_lambda: float = 0.03,
    dtype: torch.dtype | None = None,
) -> dict[int, torch.Tensor]:
    """Fits output projections layer by layer, from the input that the pruned layers before them produce.

    For a unit with dense weight `W`, input `X` in the dense model and `X̃` in the pruned one, of which `R` stays,
    solves `min ‖(m X + (1 - m) X̃) Wᵀ - X̃_R W'ᵀ‖² + λ ‖W' - W'_R‖²`, where `W'_R` is what prefix ridge regression
    gives and `m` the share of the dense model in the target. `m = 0` repairs every unit on its own; `m = 1` lets it
    make up for all units before it, which fits the calibration text better and other text worse.

    Args:
        nested: The sorted model, with its ridge factors.
        policy: What to keep.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        dense_target: `m`.
        ridge_lambda: λ, relative to the mean diagonal of `X̃_Rᵀ X̃_R`.
        dtype: Type to compute the layers in under autocast; `None` for the model's own.

    Returns:
        Weights of all output projections by unit index, each of shape `[out_features, kept columns]`.
    """
    outputs = nested.compensated(policy)
    layers = nested.model.base_model.get_submodule(nested.family.layers)
    dense, arguments = _enter(nested.model, layers, windows)
    pruned = list(dense)
    sizes = [unit.items for unit in nested.units]
    with progress_bar(len(layers), "Calibration", "layer") as bar:
        for index, layer in enumerate(layers):
            runner = _LayerRunner(layer, arguments[index], dtype)
            fitted: dict[int, torch.Tensor] = {}
            for member in (i for i, unit in enumerate(nested.units) if unit.layer == index):
                now = PruningPolicy(nested.units, tuple(sizes))
                kept = outputs[member].shape[1]
                moments = _Moments(kept, dense_target)
                module = nested.model_units[member].output.module
                for one, other in zip(dense, pruned):
                    target = runner.input_of(module, one)
                    with nested.applied(now, fitted):
                        moments.add(runner.input_of(module, other), target)
                fitted[member] = moments.solve(nested.dense_output(member), outputs[member], ridge_lambda)
                sizes[member] = policy.sizes[member]
            dense = [runner(hidden) for hidden in dense]
            with nested.applied(PruningPolicy(nested.units, tuple(sizes)), fitted):
                pruned = [runner(hidden) for hidden in pruned]
            outputs |= fitted
            bar.update()
    return outputs


class _Moments:
    """Sums of products over tokens of the kept inputs `X̃_R` and the target's inputs `m X + (1 - m) X̃`."""

    def __init__(self, kept: int, dense_target: float):
        self.kept, self.dense_target = kept, dense_target
        self.gram: torch.Tensor | float = 0.0
        self.cross: torch.Tensor | float = 0.0

    def add(self, pruned: torch.Tensor, dense: torch.Tensor) -> None:
        retained = pruned[:, : self.kept]
        self.gram = self.gram + retained.T @ retained
        self.cross = self.cross + retained.T @ torch.lerp(pruned, dense, self.dense_target)

    def solve(self, weight: torch.Tensor, start: torch.Tensor, ridge_lambda: float) -> torch.Tensor:
        gram = self.gram.double()
        damping = ridge_lambda * gram.diagonal().mean()
        right = self.cross.double() @ weight.T.double() + damping * start.T.double()
        factor = torch.linalg.cholesky(gram + damping * torch.eye(self.kept, dtype=gram.dtype, device=gram.device))
        return torch.cholesky_solve(right, factor).T.to(weight.dtype).contiguous()


class _LayerRunner:
    """Runs one decoder layer on hidden states of one window."""

    def __init__(self, layer: nn.Module, arguments: dict[str, Any], dtype: torch.dtype | None):
        self.layer, self.arguments, self.dtype = layer, arguments, dtype

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, self.dtype) if self.dtype else nullcontext():
            output = self.layer(hidden, **self.arguments)
        output = output[0] if isinstance(output, tuple) else output
        return output.to(hidden.dtype)

    def input_of(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What the module reads when the layer runs, float32, shape `[tokens, features]`."""
        seen: list[torch.Tensor] = []
        with module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].flatten(0, -2).float())):
            self(hidden)
        return seen[0]


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
                    raise _Entered

        return record

    hooks = [layer.register_forward_pre_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for window in windows.split(1):
            try:
                model.base_model(window.to(model.device), use_cache=False)
            except _Entered:
                continue
    finally:
        for hook in hooks:
            hook.remove()
    return hidden, [arguments[index] for index in range(len(layers))]


class _Entered(Exception):
    """Ends a forward pass at the first decoder layer."""
