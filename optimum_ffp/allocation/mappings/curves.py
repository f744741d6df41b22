"""Loss curves: the loss that every size of every unit costs, and the policy that spends the budget best."""

from collections.abc import Sequence

import numpy as np

from ..budget import Budget
from ..policy import PruningPolicy


# Larger scores change nothing: units are then at their bounds.
SCORE_LIMIT = 20.0


class CurveMapping:
    """Spends the budget where the curves fall fastest; scores are the logarithms of the curves' multipliers.

    Minimises `Σ exp(A_i) C_i(k_i)` under the budget. On the lower convex hulls of the curves the greedy order of their
    segments is optimal, and it is the same for every budget, so one set of scores serves all sparsities. Scores of
    zero give the no-search policy, which the curves alone ask for. A unit may also have several scores, for parts of
    its curve that cover equally many groups each: then the fall of every part is multiplied on its own.

    Args:
        curves: Estimated loss in nats of every unit for every number of groups kept, one array of shape
            `[groups + 1]` per unit. Not increasing.
    """

    def __init__(self, curves: Sequence[np.ndarray]):
        self.curves = [np.asarray(curve, dtype=np.float64) for curve in curves]
        self._hulls: dict[tuple, tuple[np.ndarray, ...]] = {}

    def __call__(self, scores: np.ndarray, budget: Budget) -> PruningPolicy:
        """The policy for these scores, shape `[units]`, or `[units, parts]` for parts of every curve."""
        if scores.ndim > 1:
            return self._multiplied(scores)(np.zeros(len(scores)), budget)
        unit, steps, cost, gain = self._segments(budget)
        weighted = gain * np.exp(np.clip(scores, -SCORE_LIMIT, SCORE_LIMIT))[unit]
        order = np.argsort(-weighted, kind="stable")
        spent = np.cumsum(cost[order])
        affordable = int(np.searchsorted(spent, budget.allowed - budget.parameters(budget.smallest), side="right"))
        taken = order[:affordable]
        sizes = budget.smallest + np.bincount(unit[taken], steps[taken], len(budget.units)).astype(np.int64)
        # What the next whole segment would overspend goes to the units in the order of the segments that are left.
        units, first = np.unique(unit[order[affordable:]], return_index=True)
        waiting = units[np.argsort(first)]
        settled = np.setdiff1d(np.arange(len(budget.units)), waiting)
        return budget.discretize_and_correct(sizes / budget.groups, np.concatenate([waiting, settled]))

    def predict(self, policy: PruningPolicy) -> np.ndarray:
        """What the curves say that every unit of a policy costs, nats, shape `[units]`."""
        return np.array([curve[size] for curve, size in zip(self.curves, policy.sizes)])

    def falls(self, down: PruningPolicy, up: PruningPolicy, parts: int) -> np.ndarray:
        """How far every curve falls from one policy's size to that of a larger one, nats.

        Args:
            down: The policy of the smaller sizes.
            up: The policy of the larger sizes.
            parts: Number of parts, of equally many groups each, that every curve is divided into.

        Returns:
            Share of every part, shape `[units, parts]`.
        """
        falls = np.zeros((len(self.curves), parts))
        for row, curve, low, high in zip(falls, self.curves, down.sizes, up.sizes):
            np.add.at(row, parts_of(len(curve) - 1, parts)[low:high], -np.diff(curve[low : high + 1]))
        return falls

    def _multiplied(self, scores: np.ndarray) -> "CurveMapping":
        multipliers = np.exp(np.clip(scores, -SCORE_LIMIT, SCORE_LIMIT))
        curves = []
        for row, curve in zip(multipliers, self.curves):
            falls = -np.diff(curve) * row[parts_of(len(curve) - 1, len(row))]
            curves.append(np.append(np.cumsum(falls[::-1])[::-1], 0.0))
        return CurveMapping(curves)

    def _segments(self, budget: Budget) -> tuple[np.ndarray, ...]:
        key = (budget.smallest.tobytes(), budget.largest.tobytes(), budget.multiples.tobytes())
        if key not in self._hulls:
            pieces = []
            for index, curve in enumerate(self.curves):
                sizes = np.arange(budget.smallest[index], budget.largest[index] + 1, budget.multiples[index])
                corners = lower_hull(sizes, curve[sizes])
                steps = np.diff(sizes[corners])
                cost = steps * budget.group_parameters[index]
                pieces.append((np.full(len(steps), index), steps, cost, -np.diff(curve[sizes[corners]]) / cost))
            self._hulls[key] = tuple(np.concatenate(column) for column in zip(*pieces))
        return self._hulls[key]


def parts_of(groups: int, parts: int) -> np.ndarray:
    """The part that every group belongs to, most important first, shape `[groups]`."""
    return np.arange(groups) * parts // groups


def lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the corners of the lower convex hull of points sorted by `x`."""
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
