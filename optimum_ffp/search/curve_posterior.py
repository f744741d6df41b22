"""Prior of the multipliers of the loss curves, and their posterior given measured size gradients."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.linalg import block_diag
from scipy.sparse import csr_array

from ..allocation.policy import STEP, Unit
from ..errors import FFPError


# Multipliers are positive; beyond this range units are at their bounds.
MULTIPLIER_RANGE = (0.05, 20.0)
# Prior standard deviations of a multiplier: common to all units, and varying smoothly with depth (separately for
# attention and FFN).
COMMON_SPREAD, DEPTH_SPREAD = 0.5, 0.4
# Correlation length in depth, as a fraction of the model's depth.
DEPTH_SCALE = 0.25
# Number of parts per curve, which is the number of steps of a unit. SIZE_SCALE is the correlation length between parts
# as a fraction of the unit, PART_SPREAD the standard deviation of a part around the multiplier of its curve.
PARTS = round(1 / STEP)
SIZE_SCALE, PART_SPREAD = 0.15, {"attention": 1.0, "ffn": 0.2}
# Prior standard deviation of the curvature at the pruned model, relative to that at the dense one.
CURVATURE_SPREAD = 1.0
# Standard error of a ratio that is measured on one window.
UNKNOWN_ERROR = 0.5
# Pseudo-count when shrinking the noise of a unit to the median of its kind.
PSEUDO_COUNT = 3
# Curves that decrease less than this (nats) are skipped: the ratio is noise.
MIN_DECREASE = 1e-9
# Factor on the errors of equations from another sparsity.
FORGETTING = 2.0


def shared_covariance(units: Sequence[Unit]) -> np.ndarray:
    """Return the prior covariance of the multipliers between units, shape `[units, units]`."""
    depth = np.array([unit.layer for unit in units]) / (1 + max(unit.layer for unit in units))
    kind = np.array([unit.kind for unit in units])
    near = np.exp(-0.5 * ((depth[:, None] - depth) / DEPTH_SCALE) ** 2) * (kind[:, None] == kind)
    return COMMON_SPREAD**2 + DEPTH_SPREAD**2 * near


def to_scores(multipliers: np.ndarray) -> np.ndarray:
    """Return the raw scores of a curve mapping: the logarithms of its multipliers."""
    return np.log(np.clip(multipliers, *MULTIPLIER_RANGE))


class MultiplierRegression:
    """Bayesian linear regression of measured size gradients on the decreases of the curves of the model's units.

    Between the sizes of two neighboring policies the curve of a unit decreases by `C_p` in part `p`, with the total
    `C = Σ C_p`, and the actual change of the loss is `Σ T_p C_p`. The size gradient `D` is the first-order change at
    one of the two policies. Components of a unit's output are independent, so that the curve is also the second-order
    term, up to the curvature `q` at the pruned model:

        Σ T_p C_p = D + q C    if the policy keeps the groups in between (`D` is for removing them),
        Σ T_p C_p = -(D + q C) if the policy does not keep them          (`D` is for adding them).

    So every ratio `D / C` gives one linear equation in the multipliers `T` and the curvature of the unit's kind, all
    of which are 1 if the curves are exact. Nearby parts of one curve, and units of one kind that are close in depth,
    are correlated.
    """

    def __init__(self, units: Sequence[Unit]):
        self.units = units
        kinds, self._kind = np.unique([unit.kind for unit in units], return_inverse=True)
        distance = np.subtract.outer(np.arange(PARTS), np.arange(PARTS)) / PARTS
        of_parts = np.kron(
            np.diag([PART_SPREAD[unit.kind] ** 2 for unit in units]), np.exp(-0.5 * (distance / SIZE_SCALE) ** 2)
        )
        # Unknowns: a value per unit, the deviations of its parts from it, and the curvature of every kind.
        blocks = shared_covariance(units), of_parts, CURVATURE_SPREAD**2 * np.eye(len(kinds))
        self._prior = np.asarray(block_diag(*blocks))
        self.equations = {"unit": np.zeros(0, dtype=np.int64), "share": np.zeros((0, PARTS))}
        self.equations |= {name: np.zeros(0) for name in ("sign", "ratio", "error")}

    def observe(self, down: np.ndarray, up: np.ndarray, decrease_down: np.ndarray, decrease_up: np.ndarray) -> None:
        """Add the equations measured at one policy, except for units whose gradient is not finite.

        `down` and `up` are the first-order changes of the loss for the smaller and the larger neighboring size, shape
        `[windows, units]`, `decrease_down` and `decrease_up` the decreases of the curves from the smaller size to the
        policy's, and from that to the larger one, shape `[units, PARTS]`.
        """
        for sign, gradients, decreases in ((1.0, down, decrease_down), (-1.0, -up, decrease_up)):
            (known,) = np.nonzero((decreases.sum(1) > MIN_DECREASE) & np.isfinite(gradients).all(0))
            total = decreases[known].sum(1)
            ratios = gradients[:, known] / total
            error = np.full(len(known), UNKNOWN_ERROR**2)
            if len(ratios) > 1:
                error = ratios.var(0, ddof=1) / len(ratios)
            share, signs = decreases[known] / total[:, None], np.full(len(known), sign)
            self._add(unit=known, share=share, sign=signs, ratio=ratios.mean(0), error=error)

    def _add(self, **equations: np.ndarray) -> None:
        self.equations = {name: np.concatenate([rows, equations[name]]) for name, rows in self.equations.items()}

    def solve(self) -> np.ndarray:
        """Return the posterior mean of all multipliers, shape `[units, PARTS]`.

        With the design `A` and the right-hand sides `y` of the equations, both divided by the standard errors, and the
        prior covariance `P` of the unknowns, it is `P (I + Aᵀ A P)⁻¹ Aᵀ y`, whose size doesn't grow with the number of
        equations.
        """
        unit, share, sign, ratio = (self.equations[name] for name in ("unit", "share", "sign", "ratio"))
        count, size, errors = len(self.units), len(self._prior), np.sqrt(self._errors())
        # The unknowns of every equation: those of its unit, and the curvature.
        parts = count + PARTS * unit[:, None] + np.arange(PARTS)
        columns = np.column_stack([unit, parts, count * (1 + PARTS) + self._kind[unit]])
        values = np.column_stack([np.ones(len(unit)), share, sign]) / errors[:, None]
        starts = columns.shape[1] * np.arange(len(unit) + 1)
        design = csr_array((values.ravel(), columns.ravel(), starts), shape=(len(unit), size))
        residuals = design.T @ ((ratio - (1 - sign)) / errors)
        mean = self._prior @ np.linalg.solve(np.eye(size) + (design.T @ design) @ self._prior, residuals)
        return 1 + mean[:count, None] + mean[count : count * (1 + PARTS)].reshape(count, PARTS)

    def _errors(self) -> np.ndarray:
        """Return the squared standard errors of the ratios, pooled per unit since there are few windows."""
        unit, error = self.equations["unit"], self.equations["error"]
        typical = np.ones(len(self.units))
        for kind in np.unique(self._kind[unit]):
            typical[self._kind == kind] = np.median(error[self._kind[unit] == kind])
        sums, counts = (np.bincount(unit, weights, len(self.units)) for weights in (error, None))
        return ((sums + PSEUDO_COUNT * typical) / (counts + PSEUDO_COUNT))[unit] + 1e-6

    def state(self) -> dict[str, np.ndarray]:
        """Return the equations, from which a search at another sparsity can start."""
        return self.equations | {"units": np.array([len(self.units)])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Load the equations of a search at another sparsity.

        Raises:
            FFPError: If the state is that of another agent or for another number of units.
        """
        if not np.array_equal(state.get("units", ()), [len(self.units)]):
            raise FFPError(
                f"the warm-start agent has no size gradients for {len(self.units)} units; warm-start from a "
                "checkpoint of the same model that was searched with the same agent"
            )
        self._add(**{name: state[name] for name in self.equations} | {"error": FORGETTING * state["error"]})
