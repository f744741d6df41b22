"""What a prune does, with every decision made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .allocation.budget import Budget
from .config import FFPConfig
from .config.choices import KINDS, find_choice
from .config.fields import Config
from .version import __version__


@dataclass(frozen=True, kw_only=True)
class Plan(FFPConfig):
    """All options of a prune, with those filled in that `FFPConfig` leaves to other options, the model or the machine.

    `planning.make_plans` makes plans; all stages read them, and the record stores them.

    Attributes:
        asked: The config that was asked for.
        budget: The budget, for units of the first kind of attention group.
        offload: Storage of the weights of layers that aren't running: `"none"`, `"host"` or `"disk"`.
        skips_search: Whether the method is `"no-search"` only because training makes up for what a search would gain.
        vocabulary_alone: Whether nothing but the vocabulary is pruned.
        options: Options of the modules that are used, by option: `{"calibration": Options(lora=32)}`.
        alternatives: With vocabulary `"auto"`, the plans for several sizes, among which the search chooses.
    """

    asked: FFPConfig
    budget: Budget
    offload: str
    skips_search: bool
    vocabulary_alone: bool
    options: Mapping[str, Config]
    alternatives: "tuple[Plan, ...]" = ()

    if TYPE_CHECKING:
        # Decided, so never `None`.
        seq_len: int = 0
        method: str = ""
        attention: str = ""
        agent: str = ""
        search_steps: int = 0
        workload: str = ""
        calibration: str = ""
        # A size, since `"auto"` has been decided.
        vocabulary: int | None = None

    def __post_init__(self) -> None:
        """Skip the checks of the options, which `asked` has passed."""

    def function(self, option: str, name: str | None = None) -> Callable[..., Any]:
        """Return a function of the module that is chosen for an option, by default the one that every choice has.

        The options of the module are bound. Raises `FFPError` as `find_choice`.
        """
        module = find_choice(option, getattr(self, option))
        function = getattr(module, name or KINDS[option].function)
        return partial(function, options=self.options[option]) if option in self.options else function

    @property
    def lora(self) -> int:
        """Rank of the adapters that are trained; 0 if weights are trained, or nothing is."""
        return getattr(self.options.get("calibration"), "lora", None) or 0

    @property
    def uses_ppo(self) -> bool:
        """Whether PPO searches."""
        return self.method == "ffp" and self.agent == "ppo"

    @property
    def trains(self) -> bool:
        """Whether calibration trains weights."""
        return self.calibration not in ("none", "ridge")

    @property
    def needs_fishers(self) -> bool:
        """Whether Fisher matrices are estimated, which needs a backward pass."""
        return self.mapping == "curves" or is_fisher_weighted(self.criterion)

    @property
    def needs_factors(self) -> bool:
        """Whether Gram matrices of all units are factored for ridge regression."""
        is_used = self.calibration != "none" or self.reward != "pruned" or self.mapping == "curves"
        return is_used and not self.vocabulary_alone

    @property
    def compares_policies(self) -> bool:
        """Whether policies are measured on the search windows."""
        is_alone = self.method == "homogeneous" and self.candidates == 1
        return not is_alone and self.method not in ("no-search", "uniform", "given")

    @property
    def reports_searched(self) -> bool:
        """Whether to report perplexity before calibration; not if the search optimizes compensated candidates."""
        return (self.reward == "pruned" or self.calibration == "none") and not self.vocabulary_alone

    def describe_budget(self) -> list[str]:
        """Return a line per limit, with its value for the dense model."""
        lines = [] if self.vocabulary_alone else self.budget.describe()
        if self.alternatives:
            sizes = (f"{one.vocabulary:,}" if one.vocabulary else "all" for one in self.alternatives)
            lines.append(f"vocabulary {' or '.join(sizes)} tokens")
        elif self.vocabulary is not None:
            lines.append(f"vocabulary {self.vocabulary:,} tokens")
        return lines

    def for_stages(self, *stages: str) -> dict[str, Any]:
        """Return the options whose first dependent stage is one of these, with those of the modules that are used."""
        values = super().for_stages(*stages)
        for option, options in self.options.items():
            if option in values:
                values |= options.to_dict()
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return all options that are in effect, and the version of optimum-ffp, in JSON-ready form."""
        values = Config.to_dict(self)
        for options in self.options.values():
            values |= options.to_dict()
        return values | {"ffp_version": __version__}


def is_fisher_weighted(criterion: str) -> bool:
    """Return whether a criterion weights by the root of the Fisher matrix, which its name says."""
    return criterion.rpartition(".")[2].startswith(("fisher-", "fisher_"))
