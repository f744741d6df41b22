"""What a unit's output error means to the loss, from forward passes alone, where a backward pass doesn't fit."""

from contextlib import nullcontext

import numpy as np
import torch

from .nested import NestedModel
from .policy import PruningPolicy
from .progress import progress_bar


# Of its items, what a unit is left with while its slope is measured.
PROBE_RETENTION = 2 / 3


@torch.no_grad()
def measure_slopes(
    nested: NestedModel, windows: torch.Tensor, errors: list[np.ndarray], dtype: torch.dtype | None = None
) -> list[float]:
    """Loss in nats per output error of every unit, from pruning one unit at a time.

    Every unit alone is pruned to two thirds of its items and repaired by ridge regression. The divergence from the
    dense model, `KL(dense ‖ pruned)`, is what its Fisher matrix would predict to second order, never negative, and far
    less noisy than a difference of losses on a few windows.

    Args:
        nested: The sorted model, with its ridge factors.
        windows: Token ids, shape `[windows, window length]`.
        errors: Output error `Σ_{j≥k} ‖V_j‖²` of every unit by number of items kept, each of shape `[items + 1]`.
        dtype: Type to compute in under autocast; `None` for the model's own.

    Returns:
        One slope a unit, at least 0.
    """
    dense = PruningPolicy.dense(nested.units)
    probes = [max(1, min(unit.items - 1, round(PROBE_RETENTION * unit.items))) for unit in nested.units]
    divergences = torch.zeros(len(probes), dtype=torch.float64)
    with progress_bar(len(windows) * len(probes), "Slopes", "probe") as bar:
        for window in windows.split(1):
            expected = _log_probabilities(nested, dense, {}, window, dtype)
            for index, size in enumerate(probes):
                sizes = list(dense.sizes)
                sizes[index] = size
                output = {index: nested.compensated_output(index, size)}
                found = _log_probabilities(nested, PruningPolicy(nested.units, tuple(sizes)), output, window, dtype)
                divergence = (expected.exp() * (expected - found)).sum(-1).mean()
                divergences[index] += float(divergence) / len(windows)
                bar.update()
    return [
        max(0.0, float(divergence)) / max(float(error[size]), torch.finfo(torch.float32).tiny)
        for divergence, error, size in zip(divergences, errors, probes)
    ]


def _log_probabilities(
    nested: NestedModel,
    policy: PruningPolicy,
    outputs: dict[int, torch.Tensor],
    window: torch.Tensor,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    precision = torch.autocast(nested.model.device.type, dtype) if dtype else nullcontext()
    with nested.applied(policy, outputs) as model, precision:
        return model(window.to(model.device), use_cache=False).logits[0].float().log_softmax(-1)
