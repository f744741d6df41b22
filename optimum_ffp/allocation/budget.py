"""Budgets: limits on what a model costs, bounds per unit, and sizes that meet both. Uses only numpy."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..config.budgets import format_value
from ..errors import FFPError
from .policy import PruningPolicy, Unit, block_parameters


@dataclass(frozen=True)
class Limit:
    """An upper limit on a cost that is a sum over units, such as parameters, bytes or seconds.

    Attributes:
        option: Name of the option.
        asked: Value of the option.
        allowed: Maximum cost of all units.
        costs: Cost of every unit by the number of kept groups, not decreasing, each of shape `[groups + 1]`.
        value: Returns the value of the option at a cost of all units.
        rises: Whether that rises with the cost; sparsity and speed fall.
        tokens: What the tokens that a trimmed vocabulary lacks add to the value for the dense model.
        pending: What is measured first, if costs aren't known yet: they are 0, and `allowed` is infinite.
    """

    option: str
    asked: float
    allowed: float
    costs: Sequence[np.ndarray]
    value: Callable[[float], float] = float
    rises: bool = True
    tokens: float = 0
    pending: str | None = None

    def cost(self, sizes: Iterable[int]) -> float:
        """Return the cost of all units with the given numbers of groups."""
        return float(sum(costs[size] for costs, size in zip(self.costs, sizes)))

    def describe(self, cost: float, higher: bool) -> str:
        """Format the value of the option at a cost of all units, rounded to that of a higher or of a lower cost."""
        return format_value(self.option, self.value(cost), math.ceil if higher == self.rises else math.floor)

    def __str__(self) -> str:
        return f"{self.option} {format_value(self.option, self.asked)}"


def parameter_costs(units: Sequence[Unit]) -> list[np.ndarray]:
    """Return the number of parameters of every unit by its size, each of shape `[groups + 1]`."""
    sizes = (np.arange(unit.groups + 1) for unit in units)
    return [(size > 0) * unit.fixed_parameters + size * unit.group_parameters for unit, size in zip(units, sizes)]


def sparsity_limit(units: Sequence[Unit], sparsity: float) -> Limit:
    """Return the limit for a fraction of the block parameters to remove, `σ`."""
    total = block_parameters(units)
    # Exact decimal arithmetic: in binary 1 - 0.775 is slightly less than 0.225.
    allowed = math.floor((1 - Fraction(str(sparsity))) * total)
    return Limit("sparsity", sparsity, allowed, parameter_costs(units), lambda cost: 1 - cost / total, rises=False)


class Budget:
    """Limits on the costs of a model, and bounds per unit.

    Every mapping returns a policy that meets all limits and misses at least one of them by less than one smallest
    step, provided that the bounds of the units with the smallest step are at least one largest step apart (true of
    every transformer: FFN channels are fine-grained, KV groups coarse). Otherwise no unit can grow by a step.

    Args:
        units: The units of the model.
        limits: One or several limits.
        min_retention: Minimum fraction of groups to keep per unit, `a_min`. A unit always keeps at least one step.
        max_retention: Maximum fraction of groups to keep per unit, `a_max`.
        precision: Grid that retentions are rounded to before they become sizes (the paper: 0.01); `None` for no grid.
        removable: Indices of units that may be removed entirely (`without`), regardless of the bounds.
        removed: Indices of units that are removed entirely.

    Attributes:
        sizes: Allowed numbers of groups of every unit, in ascending order.
        costs: Costs of the allowed sizes by unit, each of shape `[limits, sizes]`.
        allowed: Maximum cost of all units, shape `[limits]`.
        dense: Cost of all units of the dense model, shape `[limits]`.
        minimum: Cost of all units at their smallest, without the removable ones, shape `[limits]`.
        quanta: Largest cost of a step of every unit that keeps something, shape `[limits, units]`.

    Raises:
        FFPError: If a limit can't be met within the bounds, or none of them removes anything; the message says what
            can be reached.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        limits: Sequence[Limit],
        min_retention: float = 0.0,
        max_retention: float = 1.0,
        precision: float | None = None,
        removable: Collection[int] = (),
        removed: Collection[int] = (),
    ):
        self.units, self.limits, self.precision = tuple(units), tuple(limits), precision
        self.min_retention, self.max_retention = min_retention, max_retention
        self.groups = np.array([unit.groups for unit in units], dtype=np.int64)
        self.multiples = np.array([unit.multiple for unit in units], dtype=np.int64)
        remaining = np.array([unit.remaining for unit in units], dtype=np.int64)
        remaining[[*removed]] = 0
        steps = self.groups / self.multiples
        smallest = np.maximum(1, np.ceil(min_retention * steps - 1e-9)).astype(np.int64) * self.multiples
        self.smallest = np.maximum(smallest, [unit.required for unit in units]) * (remaining > 0)
        largest = np.floor(max_retention * steps + 1e-9).astype(np.int64) * self.multiples
        # A single group is never removed.
        largest[self.groups == 1] = 1
        self.largest = np.minimum(largest, remaining // self.multiples * self.multiples)
        self._check_bounds()
        bounds = zip(self.smallest, self.largest, self.multiples)
        self.sizes = [np.arange(low, high + 1, multiple) for low, high, multiple in bounds]
        tables = [np.array(costs, dtype=float) for costs in zip(*(limit.costs for limit in limits))]
        self.costs = [costs[:, sizes] for costs, sizes in zip(tables, self.sizes)]
        self.allowed = np.array([limit.allowed for limit in limits], dtype=float)
        self.dense = self.costs_of(self.groups)
        self.minimum = self.costs_of([0 if one in removable else size for one, size in enumerate(self.smallest)])
        rises = [np.diff(costs[:, ::multiple]) for costs, multiple in zip(tables, self.multiples)]
        self.quanta = np.stack([rise[:, min(1, rise.shape[1] - 1) :].max(1) for rise in rises], 1)
        self._check_limits()
        # Nothing is to be removed if the vocabulary alone is pruned.
        if not len(removed) and any(limit.asked for limit in limits):
            self._check_removal()

    def __str__(self) -> str:
        return " and ".join(map(str, self.limits))

    def _check_bounds(self) -> None:
        for unit, smallest, largest in zip(self.units, self.smallest, self.largest):
            if unit.groups % unit.multiple:
                raise FFPError(
                    f"{unit.name} has {unit.groups} groups, not a multiple of {unit.multiple}; "
                    "choose multiple_of among the divisors of the FFN width"
                )
            if smallest > largest:
                raise FFPError(
                    f"{unit.name} has no size between min_retention {self.min_retention:g} and max_retention "
                    f"{self.max_retention:g} in steps of {unit.multiple} of its {unit.groups} groups; widen the bounds"
                )

    def _check_limits(self) -> None:
        bound, widen = f"with min_retention {self.min_retention:g} ", ", or lower min_retention"
        if not self.min_retention:
            bound = widen = ""
        for limit, cost in zip(self.limits, self.minimum):
            if cost > limit.allowed:
                minimum, lower = ("minimum", "raise") if limit.rises else ("maximum", "lower")
                value = limit.describe(cost, higher=True)
                raise FFPError(f"{limit} can't be met: {bound}the {minimum} is {value}; {lower} {limit.option}{widen}")

    def _check_removal(self) -> None:
        largest, is_dense = self.costs_of(self.largest), (self.largest == self.groups).all()
        # Below the dense sizes, a policy may miss a limit by less than a step.
        steps = 0 if is_dense else np.array([min(row[row > 0], default=0) for row in self.quanta])
        if (np.isfinite(self.allowed) & (self.allowed - largest >= steps)).all():
            limit = self.limits[0]
            lower, value = "lower" if limit.rises else "raise", limit.describe(largest[0], higher=False)
            bound = f"with max_retention {self.max_retention:g} " if self.max_retention < 1 else ""
            raise FFPError(
                f"{limit} leaves nothing to remove: {bound}the model has {value} already; {lower} {limit.option}"
            )

    @property
    def sparsity(self) -> float:
        """Fraction of the cost of all units to remove, of the limit that removes the largest one."""
        return float((1 - self.allowed / self.dense).max())

    @property
    def removed_parameters(self) -> int:
        """Number of parameters that are removed for certain; 0 if only bytes are limited."""
        counts = zip(self.limits, self.dense - self.allowed)
        return max((int(one) for limit, one in counts if limit.option in ("sparsity", "params", "experts")), default=0)

    def describe(self) -> list[str]:
        """Return a line per limit: what was asked, the value of the dense model, and the best that can be reached."""
        return [
            f"{limit} ({limit.pending} are measured first; --costs FILE keeps them)"
            if limit.pending
            else f"{limit} (dense model {format_value(limit.option, limit.value(dense) + limit.tokens)}, at "
            f"{'least' if limit.rises else 'most'} {limit.describe(minimum, higher=True)} possible)"
            for limit, dense, minimum in zip(self.limits, self.dense, self.minimum)
        ]

    def relaxed(self, progress: float) -> "Budget":
        """Return the budget at a fraction of the way from the dense model to the limits."""
        budget = copy(self)
        budget.allowed = self.dense - progress * (self.dense - self.allowed)
        return budget

    def without(self, removed: Collection[int]) -> "Budget":
        """Return the budget without the units of these indices and with all others, if that can be met."""
        bounds = self.min_retention, self.max_retention, self.precision
        return Budget(self.units, self.limits, *bounds, removed=removed)

    @property
    def shares(self) -> np.ndarray:
        """Share of every unit in the cost of all dense units, of the limit where it is largest, shape `[units]`."""
        whole = [[costs[unit.remaining] for costs, unit in zip(limit.costs, self.units)] for limit in self.limits]
        return (np.array(whole) / self.dense[:, None]).max(0)

    @property
    def is_linear(self) -> bool:
        """Whether there is a single limit, and every group of a unit costs the same."""
        return len(self.limits) == 1 and self.limits[0].option != "speedup"

    def linear(self) -> tuple[np.ndarray, float]:
        """Return the cost per group of every unit, shape `[units]`, and what all groups may cost, if `is_linear`."""
        if not self.is_linear:
            names = " and ".join(limit.option for limit in self.limits)
            raise FFPError(
                f"this mapping or method takes a single limit on parameters or bytes, found {names}; choose mapping "
                "'curves'"
            )
        before, whole = (np.array([costs[size] for costs in self.limits[0].costs]) for size in (-2, -1))
        per_group = whole - before
        fixed = whole - per_group * self.groups
        return per_group, float(self.allowed[0] - fixed @ (self.largest > 0))

    def record(self, policy: PruningPolicy) -> list[dict[str, Any]]:
        """Return the JSON-ready values of every limit's option: asked, of the dense model, and reached by a policy."""
        reached = self.costs_of(policy.sizes)
        return [
            {
                "option": limit.option,
                "asked": limit.asked,
                "dense": limit.value(dense) + limit.tokens,
                "reached": limit.value(cost),
            }
            for limit, dense, cost in zip(self.limits, self.dense.tolist(), reached.tolist())
        ]

    def costs_of(self, sizes: Iterable[int]) -> np.ndarray:
        """Return the costs of all units with the given numbers of groups, shape `[limits]`."""
        return np.array([limit.cost(sizes) for limit in self.limits])

    def indices(self, sizes: Iterable[float]) -> np.ndarray:
        """Return the index of the nearest allowed size of every unit, shape `[units]`."""
        return np.array([np.abs(allowed - size).argmin() for allowed, size in zip(self.sizes, sizes)])

    def policy(self, sizes: Iterable[int]) -> PruningPolicy:
        """Return the policy of the given sizes."""
        return PruningPolicy(self.units, tuple(int(size) for size in sizes))

    def discretize_and_correct(self, rates: np.ndarray, preference: np.ndarray) -> PruningPolicy:
        """Round the retentions of all units to the grid and to whole steps, and `correct` the sizes.

        This is DiscretizeAndCorrect of the paper's Algorithm 1.
        """
        if self.precision:
            rates = np.round(rates / self.precision) * self.precision
        return self.correct(np.round(rates * self.groups / self.multiples) * self.multiples, preference)

    def correct(self, sizes: np.ndarray, preference: np.ndarray, exact: bool = True) -> PruningPolicy:
        """Return the policy of sizes that are corrected in the order of preference until the budget is met.

        Fine-grained units are corrected before coarse ones, whose steps may exceed the whole correction.

        Args:
            sizes: Number of groups of every unit, rounded to the nearest allowed one, shape `[units]`.
            preference: Unit indices, most important first, shape `[units]`.
            exact: Whether a coarse unit grows if only these can, and the least preferred fine-grained units shrink by
                the difference, at any loss.
        """
        chosen = self.indices(sizes)
        slack = self.allowed - sum(costs[:, index] for costs, index in zip(self.costs, chosen))
        grain = (self.quanta / self.allowed[:, None]).max(0)[preference]
        fine, coarse = preference[grain == grain.min()], preference[grain > grain.min()]
        slack = self._shrink(chosen, slack, [*fine, *coarse])
        for unit in (*fine, *coarse):
            costs = self.costs[unit][:, chosen[unit] :]
            fits = (costs - costs[:, :1] <= slack[:, None]).all(0)
            slack = self._resize(chosen, slack, unit, chosen[unit] + np.flatnonzero(fits)[-1])
        if exact and (slack >= self.quanta[:, fine].min(1)).all():
            chosen = self._exchange(chosen, slack, coarse, fine[::-1])
        return self.policy([sizes[index] for sizes, index in zip(self.sizes, chosen)])

    def _resize(self, chosen: np.ndarray, slack: np.ndarray, unit: int, index: int) -> np.ndarray:
        """Give a unit another size, by its index among the allowed ones, and return the slack of all limits."""
        before, chosen[unit] = self.costs[unit][:, chosen[unit]], index
        return slack + before - self.costs[unit][:, index]

    def _shrink(self, chosen: np.ndarray, slack: np.ndarray, order: Iterable[int]) -> np.ndarray:
        """Shrink units in this order, by as little as possible each, until all limits hold; return their slack."""
        for unit in order:
            if (slack >= 0).all():
                break
            costs = self.costs[unit][:, : chosen[unit] + 1]
            # A unit without a cost of the exceeded kind stays as it is.
            wanted = np.maximum(costs[:, -1] + np.minimum(slack, 0), costs[:, 0])
            index = np.flatnonzero((costs <= wanted[:, None]).all(0))[-1]
            slack = self._resize(chosen, slack, unit, index)
        return slack

    def _exchange(self, chosen: np.ndarray, slack: np.ndarray, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
        for unit in coarse:
            if chosen[unit] + 1 < len(self.sizes[unit]):
                exchanged = chosen.copy()
                larger = self._resize(exchanged, slack, unit, int(chosen[unit]) + 1)
                if (self._shrink(exchanged, larger, fine) >= 0).all():
                    return exchanged
        return chosen
