"""Loss per output error of every unit from forward passes alone, for when a backward pass doesn't fit in memory."""

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..allocation.policy import PruningPolicy
from ..compression.sorted_model import SortedModel
from ..utils.lm_head import decode, logits_in_pieces
from ..utils.precision import computing_in
from ..utils.progress import progress_bar


# Fraction of its groups that a unit keeps while its slope is measured.
PROBE_RETENTION = 2 / 3


@torch.no_grad()
def measure_slopes(
    sorted_model: SortedModel, windows: torch.Tensor, errors: list[np.ndarray], dtype: torch.dtype | None = None
) -> list[float]:
    """Measure the loss in nats per output error of every unit, by pruning one unit at a time.

    Each unit is pruned on its own to two thirds of its groups and compensated by ridge regression. The divergence from
    the dense model, `KL(dense ‖ pruned)`, equals the prediction of the Fisher matrix to second order, is never
    negative, and is far less noisy than a difference of losses on few windows.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        windows: Token ids, shape `[windows, window length]`.
        errors: Output error `Σ_{j≥k} ‖V_j‖²` per unit by number of kept groups, each of shape `[groups + 1]`.
        dtype: Autocast dtype; `None` for the model's own.

    Returns:
        One slope per unit, at least 0.
    """
    dense = PruningPolicy.dense(sorted_model.units)
    probes = [max(1, min(unit.groups - 1, round(PROBE_RETENTION * unit.groups))) for unit in sorted_model.units]
    divergences = torch.zeros(len(probes), dtype=torch.float64)
    with progress_bar(len(windows) * len(probes), "Slopes", "probe") as bar:
        for window in windows.split(1):
            expected = _decode(sorted_model, dense, {}, window, dtype)
            for index, size in enumerate(probes):
                sizes = list(dense.sizes)
                sizes[index] = size
                pruned = PruningPolicy(sorted_model.units, tuple(sizes))
                found = _decode(sorted_model, pruned, sorted_model.compensated(pruned, [index]), window, dtype)
                divergences[index] += _divergence(sorted_model.model, expected, found, dtype) / windows.numel()
                bar.update()
    return [
        max(0.0, float(divergence)) / max(float(error[size]), torch.finfo(torch.float32).tiny)
        for divergence, error, size in zip(divergences, errors, probes)
    ]


def _decode(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    weights: dict[str, torch.Tensor],
    window: torch.Tensor,
    dtype: torch.dtype | None,
) -> ModelOutput:
    with sorted_model.applied(policy, weights) as model, computing_in(model.device, dtype):
        return decode(model, window)


def _divergence(model: PreTrainedModel, expected: ModelOutput, found: ModelOutput, dtype: torch.dtype | None) -> float:
    """Return `KL(expected ‖ found)`, summed over positions. Both use the same head, which is never pruned."""
    total = 0.0
    with computing_in(model.device, dtype):
        for _, one, other in logits_in_pieces(model, expected, found):
            one, other = one.float().log_softmax(-1), other.float().log_softmax(-1)
            total += float((one.exp() * (one - other)).sum(dtype=torch.float64))
            del one, other
    return total
