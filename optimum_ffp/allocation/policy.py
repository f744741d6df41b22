"""Units, and the policy that says how many groups of every unit stay. Plain arithmetic, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import FFPError


# Share of a unit's groups by which neighbouring policies differ.
STEP = 1 / 12


@dataclass(frozen=True)
class Unit:
    """The attention or the FFN of one layer, as the budget sees it.

    Attributes:
        layer: Index of the decoder layer.
        kind: `"attention"`, whose groups are KV groups (a KV head with all its query heads), or `"ffn"`, whose groups
            are channels.
        groups: Number of groups in the dense model.
        group_parameters: Parameters that disappear with one group, biases included.
        fixed_parameters: Parameters of the unit's projections that no group owns (the bias of its output projection).
        multiple: Sizes are multiples of this many groups.
    """

    layer: int
    kind: Literal["attention", "ffn"]
    groups: int
    group_parameters: int
    fixed_parameters: int = 0
    multiple: int = 1

    @property
    def parameters(self) -> int:
        """Parameters of the dense unit, `w_i` of the paper's Algorithm 1."""
        return self.groups * self.group_parameters + self.fixed_parameters

    @property
    def quantum(self) -> int:
        """Parameters by which the unit can grow or shrink at the least."""
        return self.multiple * self.group_parameters

    @property
    def step(self) -> int:
        """Groups by which neighbouring sizes differ: about a twelfth of all, in whole multiples and at least one."""
        return self.multiple * max(1, round(self.groups * STEP / self.multiple))

    @property
    def name(self) -> str:
        """What messages call the unit, as in `layer 3 attention`."""
        return f"layer {self.layer} {self.kind}"


def block_parameters(units: Sequence[Unit]) -> int:
    """Parameters of all projections of the decoder blocks, the base that sparsity refers to."""
    return sum(unit.parameters for unit in units)


@dataclass(frozen=True)
class PruningPolicy:
    """How many groups every unit keeps.

    Groups are sorted by importance once, so a size is all there is to say: unit `i` keeps its first `sizes[i]` groups.
    """

    units: tuple[Unit, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.units) != len(self.sizes):
            raise FFPError(
                f"a policy has one size per unit: found {len(self.sizes)} sizes for {len(self.units)} units"
            )
        for unit, size in zip(self.units, self.sizes):
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= unit.groups:
                raise FFPError(f"{unit.name} can keep 1 to {unit.groups} groups, found {size!r}")

    @classmethod
    def dense(cls, units: Sequence[Unit]) -> "PruningPolicy":
        """The policy that keeps everything."""
        return cls(tuple(units), tuple(unit.groups for unit in units))

    @property
    def retentions(self) -> tuple[float, ...]:
        """Fraction of its groups that every unit keeps, `a_i`."""
        return tuple(size / unit.groups for unit, size in zip(self.units, self.sizes))

    @property
    def kept_parameters(self) -> int:
        """Parameters of the projections of all decoder blocks that stay."""
        return sum(size * unit.group_parameters + unit.fixed_parameters for unit, size in zip(self.units, self.sizes))

    @property
    def sparsity(self) -> float:
        """Fraction of the parameters of the decoder blocks' projections that is removed."""
        total = block_parameters(self.units)
        # Whole numbers are subtracted: a budget that is met exactly must not seem missed by a rounding.
        return (total - self.kept_parameters) / total

    def neighbours(self) -> tuple["PruningPolicy", "PruningPolicy"]:
        """The policies in which every unit keeps a step down and a step up, as far as it can."""
        down = tuple(max(min(unit.multiple, k), k - unit.step) for unit, k in zip(self.units, self.sizes))
        up = tuple(min(unit.groups, k + unit.step) for unit, k in zip(self.units, self.sizes))
        return PruningPolicy(self.units, down), PruningPolicy(self.units, up)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: one row per unit, with its size in the dense and in the pruned model."""
        rows = [
            {"layer": unit.layer, "unit": unit.kind, "items": unit.groups, "kept": size, "retention": round(rate, 6)}
            for unit, size, rate in zip(self.units, self.sizes, self.retentions)
        ]
        return {"sparsity": self.sparsity, "units": rows}

    @classmethod
    def from_dict(cls, data: dict[str, Any], units: Sequence[Unit]) -> "PruningPolicy":
        """Reads `to_dict`'s form back for a model with these units.

        Raises:
            FFPError: If the rows are not of this form or belong to a model of another shape.
        """
        try:
            found = [(row["layer"], row["unit"], row["items"]) for row in data["units"]]
            sizes = tuple(row["kept"] for row in data["units"])
        except (KeyError, TypeError) as error:
            raise FFPError(f"this is no saved policy: {error!r} where a list of units was expected") from None
        if found != [(unit.layer, unit.kind, unit.groups) for unit in units]:
            raise FFPError("the saved policy belongs to a model with other layers, heads or FFN widths than this one")
        return cls(tuple(units), sizes)
