"""Units, and the policy that sets the number of groups to keep per unit. Needs neither torch nor numpy."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import FFPError


# Fraction of a unit's groups by which neighboring policies differ.
STEP = 1 / 12
Group = Literal["kv_group", "query_head", "channel", "all_heads", "expert"]
GROUP_NAMES: dict[Group, str] = {
    "kv_group": "KV groups",
    "query_head": "query heads per KV head",
    "channel": "channels",
    "all_heads": "all heads",
    "expert": "experts",
}
# Groups of policies that don't name theirs, by the kind of unit.
DEFAULT_GROUPS: dict[str, Group] = {"attention": "kv_group", "ffn": "channel", "experts": "expert"}


@dataclass(frozen=True)
class Unit:
    """The attention, the FFN or the experts of one layer, in terms of groups and parameters.

    Attributes:
        layer: Index of the decoder layer.
        group: What a group is: `"kv_group"`, a KV head with all its query heads; `"query_head"`, one query head of
            every KV head; `"all_heads"`, the single group of attention that is not pruned; `"channel"` of an FFN; or
            `"expert"`.
        groups: Number of groups in the dense model.
        group_parameters: Number of parameters per group, biases included.
        fixed_parameters: Number of parameters that belong to no group (the bias of the output projection, and key and
            value projections if groups are query heads). They are removed with the whole unit.
        multiple: Sizes are multiples of this number of groups.
        required: Smallest number of groups that the model can run with: 1 in the attention of the first layer of each
            type, by which caches tell how many tokens they hold, and of experts those that a token is routed to.
        removed: Number of groups that an earlier prune has removed.
    """

    layer: int
    group: Group
    groups: int
    group_parameters: int
    fixed_parameters: int = 0
    multiple: int = 1
    required: int = 0
    removed: int = 0

    @property
    def kind(self) -> str:
        """`"ffn"`, `"experts"` or `"attention"`."""
        return {"channel": "ffn", "expert": "experts"}.get(self.group, "attention")

    @property
    def remaining(self) -> int:
        """Number of groups that an earlier prune has left."""
        return self.groups - self.removed

    @property
    def parameters(self) -> int:
        """Parameters of the dense unit, `w_i` of the paper's Algorithm 1."""
        return self.groups * self.group_parameters + self.fixed_parameters

    @property
    def step(self) -> int:
        """Number of groups by which neighboring sizes differ: about a twelfth, a multiple of `multiple`, not 0."""
        return self.multiple * max(1, round(self.groups * STEP / self.multiple))

    @property
    def name(self) -> str:
        """Name of the unit in messages, such as `layer 3 attention`."""
        return f"layer {self.layer} {self.kind}"


@dataclass(frozen=True)
class UnitSize:
    """What a policy keeps of a unit, as a row of a record.

    Attributes:
        layer: Index of the decoder layer.
        unit: `"attention"`, `"ffn"` or `"experts"`.
        group: What a group is, as in `Unit`.
        items: Number of groups in the dense model.
        kept: Number of groups that are kept.
    """

    layer: int
    unit: str
    group: Group
    items: int
    kept: int

    @property
    def retention(self) -> float:
        """Fraction of kept groups."""
        return round(self.kept / self.items, 6)

    def to_dict(self) -> dict[str, Any]:
        """Return the row of a record."""
        return asdict(self) | {"retention": self.retention}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "UnitSize":
        """Restore a row, which may lack its group. Raises `KeyError` or `TypeError` if it isn't one."""
        size = cls(row["layer"], row["unit"], row.get("group", DEFAULT_GROUPS[row["unit"]]), row["items"], row["kept"])
        numbers = size.layer, size.items, size.kept
        if size.group not in GROUP_NAMES or not all(type(one) is int for one in numbers) or size.items < 1:
            raise TypeError(f"{size} is not possible")
        return size


def block_parameters(units: Sequence[Unit]) -> int:
    """Return the number of parameters in the projections of all decoder blocks, which sparsity refers to."""
    return sum(unit.parameters for unit in units)


@dataclass(frozen=True)
class PruningPolicy:
    """Number of groups to keep per unit.

    Groups are sorted by importance, so unit `i` keeps its first `sizes[i]` groups. A unit that keeps no groups is
    removed, and so is a layer whose attention and FFN keep none.

    Attributes:
        units: The units of the model.
        sizes: Number of kept groups per unit; 0 removes it.
    """

    units: tuple[Unit, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.units) != len(self.sizes):
            raise FFPError(f"found {len(self.sizes)} sizes for {len(self.units)} units; a policy has one per unit")
        for unit, size in zip(self.units, self.sizes):
            if isinstance(size, bool) or not isinstance(size, int) or not unit.required <= size <= unit.remaining:
                raise FFPError(f"{unit.name} can keep {unit.required:d} to {unit.remaining} groups, found {size!r}")

    @classmethod
    def dense(cls, units: Sequence[Unit]) -> "PruningPolicy":
        """Return the policy that keeps all groups."""
        return cls(tuple(units), tuple(unit.remaining for unit in units))

    @property
    def retentions(self) -> tuple[float, ...]:
        """Fraction of kept groups per unit, `a_i`."""
        return tuple(size / unit.groups for unit, size in zip(self.units, self.sizes))

    @property
    def removed_layers(self) -> frozenset[int]:
        """Layers that lose their attention and their FFN. They are removed, and the rest is renumbered."""
        lost = Counter(unit.layer for unit, size in zip(self.units, self.sizes) if not size)
        # Layers of a hybrid that have no attention stay.
        return frozenset(layer for layer, units in lost.items() if units > 1)

    def kept_layers(self, layers: int) -> list[int]:
        """Return the indices of the layers that a model with this many layers keeps."""
        return sorted({*range(layers)} - self.removed_layers)

    @property
    def kept_parameters(self) -> int:
        """Number of kept parameters in the projections of all decoder blocks."""
        return sum(
            size * unit.group_parameters + unit.fixed_parameters for unit, size in zip(self.units, self.sizes) if size
        )

    @property
    def sparsity(self) -> float:
        """Fraction of removed parameters in the projections of all decoder blocks."""
        total = block_parameters(self.units)
        # Subtract integers before dividing, so that an exactly met budget has no rounding error.
        return (total - self.kept_parameters) / total

    def neighbors(self) -> tuple["PruningPolicy", "PruningPolicy"]:
        """Return the policies with every unit one step smaller and one step larger; none appears or disappears."""
        down = tuple(max(min(unit.multiple, k), k - unit.step) for unit, k in zip(self.units, self.sizes))
        up = tuple(k and min(unit.remaining, k + unit.step) for unit, k in zip(self.units, self.sizes))
        return PruningPolicy(self.units, down), PruningPolicy(self.units, up)

    @property
    def rows(self) -> tuple[UnitSize, ...]:
        """The rows of a record, one per unit."""
        return tuple(
            UnitSize(unit.layer, unit.kind, unit.group, unit.groups, size)
            for unit, size in zip(self.units, self.sizes)
        )

    @classmethod
    def from_rows(cls, rows: Sequence[UnitSize], units: Sequence[Unit]) -> "PruningPolicy":
        """Return the policy of a record for a model with the given units.

        Raises:
            FFPError: If the record belongs to a model of another shape, has other groups, or a size is out of bounds.
        """
        shapes = [(row.layer, row.unit, row.items, row.group) for row in rows]
        if shapes != [(unit.layer, unit.kind, unit.groups, unit.group) for unit in units]:
            raise FFPError(
                "the saved policy belongs to a model with other layers, heads or FFN widths than this one, or was "
                "pruned with another value of attention"
            )
        return cls(tuple(units), tuple(row.kept for row in rows))
