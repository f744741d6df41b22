"""Loss curves: the loss of every size of every unit, and the policy that minimizes their sum under a budget."""

from collections.abc import Sequence

import numpy as np

from ..budget import Budget
from ..knapsack import minimize_loss
from ..policy import PruningPolicy, Unit


# Larger scores have no effect: units are then at their bounds.
SCORE_LIMIT = 20.0
# Logarithm of the multiplier of the last layer when weights are trained; that of the first layer is its negative.
DEPTH_TILT = 0.4


class CurveMapping:
    """Allocates the budget where the loss curves decrease fastest; scores are logarithms of curve multipliers.

    Minimizes `Σ exp(A_i) C_i(k_i)` under any budget (`minimize_loss`), so one set of scores serves all of them. Scores
    of zero give the no-search policy, which depends on the curves alone. A unit may also have several scores, one per
    part of its curve, where all parts cover the same number of groups: the decrease of each part is then multiplied
    separately.

    Args:
        curves: Estimated loss in nats per number of kept groups, one non-increasing array of shape `[groups + 1]` per
            unit.
    """

    def __init__(self, curves: Sequence[np.ndarray]):
        self.curves = [np.asarray(curve, dtype=np.float64) for curve in curves]

    def __call__(self, scores: np.ndarray, budget: Budget) -> PruningPolicy:
        """Return the policy for scores of shape `[units]`, or `[units, parts]` for parts of every curve."""
        return minimize_loss([curve[sizes] for curve, sizes in zip(self._multiplied(scores), budget.sizes)], budget)

    def tilted(self, units: Sequence[Unit]) -> "CurveMapping":
        """Return curves that remove more from earlier layers, whose errors later layers can be trained to compensate.

        The curves of layer `l` of `0, ..., L` are multiplied by `exp(DEPTH_TILT · (2l / L - 1))`.
        """
        depth = np.array([unit.layer for unit in units]) / max(1, units[-1].layer)
        return CurveMapping(self._multiplied(DEPTH_TILT * (2 * depth - 1)))

    def predict(self, policy: PruningPolicy) -> np.ndarray:
        """Return the loss of every unit of a policy as estimated by the curves, in nats, shape `[units]`."""
        return np.array([curve[size] for curve, size in zip(self.curves, policy.sizes)])

    def decreases(self, down: PruningPolicy, up: PruningPolicy, parts: int) -> np.ndarray:
        """Return the decrease of every part of every curve between two policies, in nats, shape `[units, parts]`."""
        decreases = np.zeros((len(self.curves), parts))
        for row, curve, low, high in zip(decreases, self.curves, down.sizes, up.sizes):
            np.add.at(row, parts_of(len(curve) - 1, parts)[low:high], -np.diff(curve[low : high + 1]))
        return decreases

    def _multiplied(self, scores: np.ndarray) -> list[np.ndarray]:
        multipliers = np.exp(np.clip(scores, -SCORE_LIMIT, SCORE_LIMIT)).reshape(len(self.curves), -1)
        curves = []
        for row, curve in zip(multipliers, self.curves):
            decreases = -np.diff(curve) * row[parts_of(len(curve) - 1, len(row))]
            curves.append(np.append(np.cumsum(decreases[::-1])[::-1], 0.0))
        return curves


def parts_of(groups: int, parts: int) -> np.ndarray:
    """Return the part index of every group, most important first, shape `[groups]`."""
    return np.arange(groups) * parts // groups
