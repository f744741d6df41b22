"""Loss per output error of every unit from forward passes alone, for when a backward pass doesn't fit in memory."""

import numpy as np
import torch

from ..allocation.policy import PruningPolicy
from ..compression.sorted_model import SortedModel
from ..engine import LayerRunner, LayerwiseModel
from ..errors import FFPError
from ..utils import processes
from ..utils.lm_head import divergences, logits_in_pieces
from ..utils.precision import computing_in
from ..utils.processes import Shares
from ..utils.progress import progress_bar


# Fraction of its groups that a unit keeps while its slope is measured.
PROBE_RETENTION = 2 / 3
# Smallest slope, of the median of its kind.
LEAST_SLOPE = 0.01


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
    layerwise, units = sorted_model.layerwise, sorted_model.units
    probes = [max(1, min(unit.groups - 1, round(PROBE_RETENTION * unit.groups))) for unit in units]
    shares = Shares(len(windows))
    own = windows[shares.own]
    # By window and unit.
    divergences = torch.zeros(len(own), len(units), dtype=torch.float64)
    passes = list(own.split(layerwise.at_once(own, len(units) + 1))) if len(own) else []
    done = 0
    with progress_bar(len(passes) * len(layerwise.layers), "Slopes", "layer") as bar:
        for together in passes:
            dense, arguments = layerwise.enter(together, copies=len(units) + 1)
            # By unit; they branch off from the dense model in the unit's layer.
            pruned: list[torch.Tensor] = []
            for index, layer in layerwise.walk():
                runner = LayerRunner(layer, arguments[index], dtype)
                for states in pruned:
                    runner.advance(states)
                for member in sorted_model.members(index):
                    sizes = [
                        probe if other == member else unit.groups
                        for other, (unit, probe) in enumerate(zip(units, probes))
                    ]
                    pruned.append(dense.clone())
                    with sorted_model.change(PruningPolicy(units, tuple(sizes)), compensated=True)(index):
                        runner.advance(pruned[-1])
                runner.advance(dense)
                bar.update()
            with layerwise.ends_loaded():
                for number, expected in enumerate(dense.split(1)):
                    for member, states in enumerate(pruned):
                        divergences[done, member] = _divergence(layerwise, expected, states[[number]], dtype)
                    done += 1
    totals = processes.gather(divergences, shares).sum(0) / windows.numel()
    fallen = np.array(
        [max(float(error[size]), torch.finfo(torch.float32).tiny) for error, size in zip(errors, probes)]
    )
    return _plausible(totals.clamp_min(0).numpy() / fallen, np.array([unit.kind for unit in units])).tolist()


def _plausible(slopes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return slopes with the largest one of their kind for those that are not finite, and not far below its median.

    The probe may have removed dead channels alone, or overflowed in float16. A unit whose curve is all zero would lose
    as much as it may.
    """
    found = slopes.copy()
    for kind in np.unique(kinds):
        own = kinds == kind
        finite = slopes[own][np.isfinite(slopes[own])]
        if not len(finite):
            raise FFPError(
                f"the loss is not finite when a third of any {kind} unit is removed; choose dtype float32 or bfloat16"
            )
        least = LEAST_SLOPE * np.median(finite)
        found[own] = np.nan_to_num(slopes[own], nan=finite.max(), posinf=finite.max()).clip(least)
    return found


def _divergence(
    layerwise: LayerwiseModel, expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype | None
) -> float:
    """Return `KL(expected ‖ found)`, summed over positions, of states after the last layer."""
    by_position = []
    with computing_in(layerwise.device, dtype):
        decoded = layerwise.decoded(expected), layerwise.decoded(found)
        for _, one, other in logits_in_pieces(layerwise.model, *decoded):
            by_position.append(divergences(one, other))
            del one, other
    return float(torch.cat(by_position, 1).cpu().double().sum())
