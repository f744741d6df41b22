"""How far every loss curve can be trusted: what is expected before anything was measured, and what slopes tell."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..allocation.policy import STEP, Unit
from ..errors import FFPError


# Trust in a curve can't be negative, and beyond these factors a unit is at its bounds anyway.
MULTIPLIER_RANGE = (0.05, 20.0)
# Prior standard deviations of trust: of what all units have in common, of what varies smoothly with depth (over this
# part of the model's depth, for attention and FFN apart), and of a unit on its own.
COMMON_SPREAD, DEPTH_SPREAD, OWN_SPREAD = 0.5, 0.4, 0.2
DEPTH_SCALE = 0.25
# A curve has as many parts as a unit has steps. Trust in one of them says less of another the farther they are apart,
# in this share of the unit; there is more to know of a part than of a whole curve.
PARTS = round(1 / STEP)
SIZE_SCALE, PART_SPREAD = 0.15, {"attention": 1.0, "ffn": 0.2}
# Prior standard deviation of the curvature at the pruned model, in multiples of that at the dense one.
CURVATURE_SPREAD = 1.0
# Standard error of a trust where a single window gives no other.
UNKNOWN_ERROR = 0.5
# How many measurements of a unit the spread between windows that its kind has in general counts for.
TYPICAL = 3
# Where a curve falls by less than this, nats, a slope says nothing of how far to trust it.
FLAT = 1e-9
# What was measured at another sparsity counts for less: by this factor its errors are larger.
FORGETTING = 2.0


def shared_covariance(units: Sequence[Unit]) -> np.ndarray:
    """Prior covariance of what units have in common in the trust in their curves, shape `[units, units]`."""
    depth = np.array([unit.layer for unit in units]) / (1 + max(unit.layer for unit in units))
    kind = np.array([unit.kind for unit in units])
    near = np.exp(-0.5 * ((depth[:, None] - depth) / DEPTH_SCALE) ** 2) * (kind[:, None] == kind)
    return COMMON_SPREAD**2 + DEPTH_SPREAD**2 * near


def to_scores(multiplier: np.ndarray) -> np.ndarray:
    """Raw scores of a curve mapping: the logarithm of the trust."""
    return np.log(np.clip(multiplier, *MULTIPLIER_RANGE))


class MultiplierRegression:
    """Bayesian linear regression of measured slopes on how far the curves fall.

    With `C_p` what the curve of a unit falls by in part `p` between the sizes of two neighbours, and `C = Σ C_p`,
    giving up what is between them really costs `Σ T_p C_p`. The slope `D` is the first-order change of the loss at one
    of the two policies, and components of a unit's output are independent, so that the curve is the second-order term
    too, up to the curvature `q` at the pruned model:

        Σ T_p C_p = D + q C    where the unit keeps them (D is that of giving them up),
        Σ T_p C_p = -(D + q C) where it does not         (D is that of keeping them too).

    So every slope, divided by `C`, is one linear equation in the multipliers `T` and the curvature of the unit's kind, all
    of which are 1 if the curves are right. Parts of one curve that are close, and units of one kind that are close in
    depth, lend each other strength.

    Args:
        units: The model's units.
    """

    def __init__(self, units: Sequence[Unit]):
        self.units = units
        self._kind = np.array([unit.kind for unit in units])
        self._own = np.array([PART_SPREAD[kind] for kind in self._kind])
        self._shared = shared_covariance(units)
        self.equations = {
            "unit": np.zeros(0, dtype=np.int64),
            "share": np.zeros((0, PARTS)),
            "sign": np.zeros(0),
            "slope": np.zeros(0),
            "error": np.zeros(0),
        }

    def observe(self, down: np.ndarray, up: np.ndarray, falls_down: np.ndarray, falls_up: np.ndarray) -> None:
        """Adds what was measured at one policy.

        Args:
            down: First-order change where a unit goes to its smaller neighbouring size, `[windows, units]`.
            up: The same for the larger one.
            falls_down: What the curves fall by from the smaller size to the policy's, shape `[units, PARTS]`.
            falls_up: What they fall by from the policy's size to the larger one.
        """
        for sign, slopes, falls in ((1.0, down, falls_down), (-1.0, -up, falls_up)):
            (known,) = np.nonzero(falls.sum(1) > FLAT)
            total = falls[known].sum(1)
            slopes = slopes[:, known] / total
            error = np.full(len(known), UNKNOWN_ERROR**2)
            if len(slopes) > 1:
                error = slopes.var(0, ddof=1) / len(slopes)
            new = {"unit": known, "share": falls[known] / total[:, None], "sign": np.full(len(known), sign)}
            self._add(new | {"slope": slopes.mean(0), "error": error})

    def _add(self, equations: Mapping[str, np.ndarray]) -> None:
        self.equations = {name: np.concatenate([rows, equations[name]]) for name, rows in self.equations.items()}

    def solve(self) -> np.ndarray:
        """The posterior mean of all trusts, shape `[units, PARTS]`."""
        unit, share, sign = (self.equations[name] for name in ("unit", "share", "sign"))
        place = np.arange(PARTS) / PARTS
        smoothed = share @ np.exp(-0.5 * ((place[:, None] - place) / SIZE_SCALE) ** 2)
        same_unit, same_kind = (of[:, None] == of for of in (unit, self._kind[unit]))
        covariance = (
            self._shared[np.ix_(unit, unit)]
            + self._own[unit] ** 2 * same_unit * (smoothed @ share.T)
            + CURVATURE_SPREAD**2 * same_kind * np.outer(sign, sign)
            + np.diag(self._errors())
        )
        weights = np.linalg.solve(covariance, self.equations["slope"] - (1 - sign))
        shared = 1 + self._shared[:, unit] @ weights
        own = np.zeros((len(self.units), PARTS))
        np.add.at(own, unit, weights[:, None] * smoothed)
        return shared[:, None] + self._own[:, None] ** 2 * own

    def _errors(self) -> np.ndarray:
        """Squared standard errors of the slopes. Since few windows tell little of it, a unit's are pooled."""
        unit, error = self.equations["unit"], self.equations["error"]
        typical = np.ones(len(self.units))
        for kind in np.unique(self._kind[unit]):
            typical[self._kind == kind] = np.median(error[self._kind[unit] == kind])
        sums, counts = (np.bincount(unit, weights, len(self.units)) for weights in (error, None))
        return ((sums + TYPICAL * typical) / (counts + TYPICAL))[unit] + 1e-6

    def state(self) -> dict[str, np.ndarray]:
        """What a search at another sparsity goes on from."""
        return self.equations | {"units": np.array([len(self.units)])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes over what a search at another sparsity has measured.

        Raises:
            FFPError: If it is of another kind or for another number of units.
        """
        found = {name: getattr(state.get(name), "shape", None) for name in self.equations}
        count = (found["unit"] or (0,))[0]
        expected = {name: (count, *rows.shape[1:]) for name, rows in self.equations.items()}
        if found != expected or not np.array_equal(state.get("units"), [len(self.units)]):
            raise FFPError(
                f"the warm-start agent holds no slopes of {len(self.units)} units; warm-start from a checkpoint of "
                "the same model that the same kind of agent has searched"
            )
        equations = {name: state[name] for name in self.equations}
        self._add(equations | {"error": FORGETTING * equations["error"]})
