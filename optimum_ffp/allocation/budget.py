"""Parameter budget: bounds per unit, the parameters to keep in total, and sizes that meet both. Uses only numpy."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..errors import FFPError
from .policy import PruningPolicy, Unit, block_parameters


class Budget:
    """Bounds per unit and the number of parameters to keep in total.

    Every mapping returns a policy whose kept parameters are at most `(1 - sparsity) * Σ w_i` and less than one
    smallest quantum below it, provided that the bounds of the units with the smallest quantum are at least one largest
    quantum apart (true of every transformer: FFN channels are fine-grained, KV groups coarse). Otherwise the gap is
    still smaller than the largest quantum.

    Args:
        units: The units of the model.
        sparsity: Fraction of the block parameters to remove, `σ`.
        min_retention: Minimum fraction of groups to keep per unit, `a_min`. A unit always keeps at least one step.
        max_retention: Maximum fraction of groups to keep per unit, `a_max`.
        precision: Grid that retentions are rounded to before they become sizes (the paper: 0.01); `None` for no grid.

    Attributes:
        allowed: Maximum number of parameters of the kept groups in total.
        min_sparsity: Sparsity of the largest policy within the bounds.
        feasible: Smallest and largest feasible sparsity, rounded to four places.

    Raises:
        FFPError: If the sparsity can't be met within the bounds; the message gives the feasible range.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        sparsity: float,
        min_retention: float = 0.0,
        max_retention: float = 1.0,
        precision: float | None = None,
    ):
        self.units = tuple(units)
        self.sparsity = sparsity
        self.min_retention, self.max_retention = min_retention, max_retention
        self.precision = precision
        self.groups = np.array([unit.groups for unit in units], dtype=np.int64)
        self.multiples = np.array([unit.multiple for unit in units], dtype=np.int64)
        self.group_parameters = np.array([unit.group_parameters for unit in units], dtype=np.int64)
        self.quanta = np.array([unit.quantum for unit in units], dtype=np.int64)
        steps = self.groups / self.multiples
        self.smallest = np.maximum(1, np.ceil(min_retention * steps - 1e-9)).astype(np.int64) * self.multiples
        self.largest = np.floor(max_retention * steps + 1e-9).astype(np.int64) * self.multiples
        # A single group is never removed.
        self.largest[self.groups == 1] = 1
        self._check_bounds()

        total = block_parameters(units)
        fixed = sum(unit.fixed_parameters for unit in units)
        # Exact decimal arithmetic: in binary 1 - 0.775 is slightly less than 0.225.
        self.allowed = math.floor((1 - Fraction(str(sparsity))) * total) - fixed
        min_kept, max_kept = self.parameters(self.smallest), self.parameters(self.largest)
        self.min_sparsity = 1 - (max_kept + fixed) / total
        low = math.ceil(Fraction(total - fixed - max_kept, total) * 10**4) / 1e4
        high = math.floor(Fraction(total - fixed - min_kept, total) * 10**4) / 1e4
        self.feasible = low, high
        if self.allowed < min_kept:
            raise FFPError(
                f"sparsity {sparsity} can't be met: with min_retention {min_retention:g} at most {high:g} of the "
                "block parameters can be removed; lower sparsity or min_retention"
            )
        if self.allowed >= max_kept + self.quanta.min():
            raise FFPError(
                f"sparsity {sparsity} can't be met: with max_retention {max_retention:g} at least {low:g} of the "
                "block parameters are removed; raise sparsity or max_retention"
            )

    def _check_bounds(self) -> None:
        for unit, smallest, largest in zip(self.units, self.smallest, self.largest):
            if unit.groups % unit.multiple:
                raise FFPError(
                    f"{unit.name} has {unit.groups} groups, which {unit.multiple} does not divide; "
                    "choose ffn_multiple among the divisors of the FFN width"
                )
            if smallest > largest:
                raise FFPError(
                    f"{unit.name} has no size between min_retention {self.min_retention:g} and max_retention "
                    f"{self.max_retention:g} in steps of {unit.multiple} of its {unit.groups} groups; widen the bounds"
                )

    def parameters(self, sizes: np.ndarray) -> int:
        """Return the number of parameters of the kept groups."""
        return int(sizes @ self.group_parameters)

    def policy(self, sizes: np.ndarray) -> PruningPolicy:
        """Return the policy of the given sizes."""
        return PruningPolicy(self.units, tuple(int(size) for size in sizes))

    def discretize_and_correct(self, rates: np.ndarray, preference: np.ndarray) -> PruningPolicy:
        """Convert retentions to sizes that meet the budget (DiscretizeAndCorrect of Algorithm 1).

        Retentions are rounded to the grid and to whole steps, then corrected (`correct`).

        Args:
            rates: Retention of every unit, shape `[units]`.
            preference: Unit indices, most important first, shape `[units]`.
        """
        if self.precision:
            rates = np.round(rates / self.precision) * self.precision
        sizes = np.round(rates * self.groups / self.multiples).astype(np.int64) * self.multiples
        return self.correct(sizes, preference)

    def correct(self, sizes: np.ndarray, preference: np.ndarray) -> PruningPolicy:
        """Return the policy of sizes that are corrected in the order of preference until the budget is met.

        Fine-grained units are corrected before coarse ones, whose steps may exceed the whole correction. If only
        coarse units can still grow, one does and the least preferred fine-grained units shrink by the difference.

        Args:
            sizes: Number of groups of every unit, whole steps, shape `[units]`.
            preference: Unit indices, most important first, shape `[units]`.
        """
        sizes = np.clip(sizes, self.smallest, self.largest)
        fine = self.quanta[preference] == self.quanta.min()
        order = np.concatenate([preference[fine], preference[~fine]])
        remaining = self.allowed - self.parameters(sizes)
        if remaining < 0:
            remaining = self._shrink(sizes, order, remaining)
        remaining = self._grow(sizes, order, remaining)
        if remaining >= self.quanta.min():
            self._exchange(sizes, preference[~fine], preference[fine], remaining)
        return self.policy(sizes)

    def _shrink(self, sizes: np.ndarray, order: np.ndarray, remaining: int) -> int:
        for unit in order:
            if remaining >= 0:
                break
            quantum = int(self.quanta[unit])
            steps = min(-(remaining // quantum), int(sizes[unit] - self.smallest[unit]) // int(self.multiples[unit]))
            sizes[unit] -= steps * self.multiples[unit]
            remaining += steps * quantum
        return remaining

    def _grow(self, sizes: np.ndarray, order: np.ndarray, remaining: int) -> int:
        for unit in order:
            quantum = int(self.quanta[unit])
            steps = min(remaining // quantum, int(self.largest[unit] - sizes[unit]) // int(self.multiples[unit]))
            sizes[unit] += steps * self.multiples[unit]
            remaining -= steps * quantum
        return remaining

    def _exchange(self, sizes: np.ndarray, coarse: np.ndarray, fine: np.ndarray, remaining: int) -> None:
        spare = int((sizes - self.smallest)[fine] @ self.group_parameters[fine])
        for unit in coarse:
            missing = int(self.quanta[unit]) - remaining
            if sizes[unit] < self.largest[unit] and missing <= spare:
                sizes[unit] += self.multiples[unit]
                self._shrink(sizes, fine[::-1], -missing)
                return
