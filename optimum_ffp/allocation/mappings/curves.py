"""Loss curves: the loss of every size of every unit, and the policy that minimizes their sum under a budget."""

from collections.abc import Sequence

import numpy as np

from ..budget import Budget
from ..policy import PruningPolicy


# Larger scores have no effect: units are then at their bounds.
SCORE_LIMIT = 20.0


class CurveMapping:
    """Allocates the budget where the loss curves decrease fastest; scores are logarithms of curve multipliers.

    Minimizes `Σ exp(A_i) C_i(k_i)` under the budget. On the lower convex hulls of the curves the greedy order of their
    segments is optimal. The order is the same for every budget, so one set of scores serves all sparsities. Scores of
    zero give the no-search policy, which depends on the curves alone. A unit may also have several scores, one per
    part of its curve, where all parts cover the same number of groups: the decrease of each part is then multiplied
    separately.

    Args:
        curves: Estimated loss in nats per number of kept groups, one non-increasing array of shape `[groups + 1]` per
            unit.
    """

    def __init__(self, curves: Sequence[np.ndarray]):
        self.curves = [np.asarray(curve, dtype=np.float64) for curve in curves]
        self._hulls: dict[tuple, tuple[np.ndarray, ...]] = {}

    def __call__(self, scores: np.ndarray, budget: Budget) -> PruningPolicy:
        """Return the policy for scores of shape `[units]`, or `[units, parts]` for parts of every curve."""
        if scores.ndim > 1:
            return self._multiplied(scores)(np.zeros(len(scores)), budget)
        unit, steps, cost, gain = self._segments(budget)
        weighted = gain * np.exp(np.clip(scores, -SCORE_LIMIT, SCORE_LIMIT))[unit]
        order = np.argsort(-weighted, kind="stable")
        spent = np.cumsum(cost[order])
        affordable = int(np.searchsorted(spent, budget.allowed - budget.parameters(budget.smallest), side="right"))
        taken = order[:affordable]
        sizes = budget.smallest + np.bincount(unit[taken], steps[taken], len(budget.units)).astype(np.int64)
        # The next segment exceeds the budget. The rest is allocated to units in the order of their remaining segments.
        units, first = np.unique(unit[order[affordable:]], return_index=True)
        unfinished = units[np.argsort(first)]
        finished = np.setdiff1d(np.arange(len(budget.units)), unfinished)
        return budget.discretize_and_correct(sizes / budget.groups, np.concatenate([unfinished, finished]))

    def predict(self, policy: PruningPolicy) -> np.ndarray:
        """Return the loss of every unit of a policy as estimated by the curves, in nats, shape `[units]`."""
        return np.array([curve[size] for curve, size in zip(self.curves, policy.sizes)])

    def decreases(self, down: PruningPolicy, up: PruningPolicy, parts: int) -> np.ndarray:
        """Return the decrease of every curve between the sizes of two policies, in nats.

        Args:
            down: The policy of the smaller sizes.
            up: The policy of the larger sizes.
            parts: Number of parts per curve, each of the same number of groups.

        Returns:
            Decrease within every part, shape `[units, parts]`.
        """
        decreases = np.zeros((len(self.curves), parts))
        for row, curve, low, high in zip(decreases, self.curves, down.sizes, up.sizes):
            np.add.at(row, parts_of(len(curve) - 1, parts)[low:high], -np.diff(curve[low : high + 1]))
        return decreases

    def _multiplied(self, scores: np.ndarray) -> "CurveMapping":
        multipliers = np.exp(np.clip(scores, -SCORE_LIMIT, SCORE_LIMIT))
        curves = []
        for row, curve in zip(multipliers, self.curves):
            decreases = -np.diff(curve) * row[parts_of(len(curve) - 1, len(row))]
            curves.append(np.append(np.cumsum(decreases[::-1])[::-1], 0.0))
        return CurveMapping(curves)

    def _segments(self, budget: Budget) -> tuple[np.ndarray, ...]:
        key = (budget.smallest.tobytes(), budget.largest.tobytes(), budget.multiples.tobytes())
        if key not in self._hulls:
            segments = []
            for index, curve in enumerate(self.curves):
                sizes = np.arange(budget.smallest[index], budget.largest[index] + 1, budget.multiples[index])
                corners = lower_hull(sizes, curve[sizes])
                steps = np.diff(sizes[corners])
                cost = steps * budget.group_parameters[index]
                segments.append((np.full(len(steps), index), steps, cost, -np.diff(curve[sizes[corners]]) / cost))
            self._hulls[key] = tuple(np.concatenate(column) for column in zip(*segments))
        return self._hulls[key]


def parts_of(groups: int, parts: int) -> np.ndarray:
    """Return the part index of every group, most important first, shape `[groups]`."""
    return np.arange(groups) * parts // groups


def lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the indices of the corners of the lower convex hull of points sorted by `x`."""
    corners: list[int] = []
    for index in range(len(x)):
        while len(corners) > 1:
            first, second = corners[-2:]
            turn = (x[second] - x[first]) * (y[index] - y[first]) - (y[second] - y[first]) * (x[index] - x[first])
            if turn > 0:
                break
            corners.pop()
        corners.append(index)
    return np.array(corners)
