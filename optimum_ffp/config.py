"""FFPConfig: every option, with its unit and the paper's value."""

import json
import math
import os
from dataclasses import fields
from typing import Any, ClassVar

from optimum.configuration_utils import BaseConfig

from .errors import FFPError
from .options import CALIBRATION, CHOICES, FISHER, FORMER, MEASURED, PAPER, READ_WHEN, Options
from .version import __version__


class FFPConfig(Options, BaseConfig):
    """How to prune. Saved as `ffp_config.json`.

    Values that are not given come from the preset: `FFPConfig(preset="paper")` sets exactly the paper's numbers.

    Args:
        sparsity: Fraction of the parameters of the decoder blocks' projections to remove (the paper: 0.2 and 0.3).
        method: How the policy is found: `"ffp"` (the agent). As baselines behind the same evaluator `"no-search"`
            (what the mapping makes of equal scores), `"random"`, `"evolutionary"` and `"uniform"`.
        agent: Of method `"ffp"`: `"gradient"` (follows the derivative of the reward by backward passes), `"bandit"`
            (Thompson sampling over loss curves, the default where there is no backward pass or the reward is taken
            before calibration) or `"ppo"` (the paper's).
        preset: `"default"` or `"paper"`.
        criterion: Importance of groups: `"wanda"` (the paper's), `"flap"`, `"obs"` (backward elimination), or
            `"fisher-obs"` (the same, weighted by what the loss feels).
        mapping: From scores to a policy: `"greedy"` (the paper's Algorithm 1), `"water-filling"`, or `"curves"` (where
            the loss curves fall fastest).
        reward: Whether candidates are rewarded as they are `"pruned"` (the paper's) or after ridge regression,
            `"compensated"`.
        calibration: `"ridge"` (Eq. 6-7), `"sequential"` (starts from there and fits layer by layer to what the pruned
            layers before produce), or `"none"`.
        ridge_lambda: λ of the ridge regression (the paper: 0.01).
        ridge_lambda_relative: λ in multiples of the mean diagonal of the Gram matrix; otherwise absolute.
        dense_target: Share of the dense model in the target of sequential calibration, 0 to 1.
        sequential_lambda: λ of sequential calibration, relative to the mean diagonal; pulls towards ridge. `None`
            chooses it for every unit on held-out windows, or leaves what ridge regression gives where that is better.
        held_out_samples: Search windows that sequential calibration measures its error on.
        dataset: Text to calibrate and search on: `"wikitext2"`, `"c4"`, a Hub id, a file, a folder, or `"self"`.
        eval_dataset: Text to report on; that of `dataset` if `None`.
        text_column: Column of a .jsonl, .parquet or Hub dataset to read: of texts, or of conversations, which the chat
            template renders. `None` takes the first that is there of `text`, `messages`, `conversations`, `content`
            and `document`.
        self_share: Share of the calibration and search windows that the model writes itself, 0 to 1 (the paper: 0). A
            model that is pruned for one kind of text alone is worse on others.
        num_samples: Calibration windows (the paper: 32).
        seq_len: Tokens a window (the paper: 2048). `None` is what the model has positions for, up to 2048;
            `PruningResult.config` and `ffp_config.json` have the number.
        search_samples: Search windows at full fidelity, `N_max`.
        update_samples: Search windows that an update of the default agents sees, others every time; all that there
            are, if there are fewer. With the default numbers each is seen once: an agent that sees the same text again
            learns that text.
        grad: Whether a backward pass through the dense model may be run. Without one the order of groups is that of
            `"obs"`, and the loss curves get their scale from pruning one unit at a time.
        fisher_samples: Calibration windows of the backward pass.
        slope_samples: Calibration windows of every one-unit probe, where there is no backward pass.
        eval_samples: Test windows; all there are if `None`.
        batch_size: Windows a forward pass.
        search_steps: Candidate evaluations of the search (the paper: 1000); one with a backward pass counts for three.
        candidates: Candidates of one update of the agent.
        alpha_start: Fraction of target sparsity and fidelity that the progressive schedule starts with.
        learning_rate: Of PPO (the paper: 1e-4).
        clip_range: Of PPO (the paper: 0.2).
        hidden_sizes: Layers of the agent's MLP (the paper: 256 and 128, ReLU).
        search_dtype: `"auto"` computes candidates in bfloat16 where the hardware multiplies it natively, `"model"` in
            the model's own type.
        min_retention: Smallest fraction of its groups that a unit keeps, `a_min`.
        max_retention: Largest fraction of its groups that a unit keeps, `a_max`.
        rate_precision: Grid that retentions are rounded to (the paper: 0.01); `None` for none.
        ffn_multiple: FFN widths are multiples of this many channels. By default 256, the block of llama.cpp's
            K-quants, or 32, that of its simpler ones, where that leaves at least 32 steps, otherwise 1 (the paper: 1).
        seed: Random seed.

    Raises:
        FFPError: If a value is not allowed, or a name is not known.
    """

    CONFIG_NAME: ClassVar[str] = "ffp_config.json"
    FULL_CONFIGURATION_FILE: ClassVar[str] = "ffp_config.json"

    def __init__(self, **options: Any):
        known = self.option_names()
        # What optimum and transformers write beside the options, and the results that a checkpoint keeps with them.
        for name in ("policy", "search", "provenance", "transformers_version", "optimum_version", "ffp_version"):
            options.pop(name, None)
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise FFPError(f"FFPConfig has no {', '.join(unknown)}; it has {', '.join(known)}")
        super().__init__()
        for name, values in FORMER.items():
            if isinstance(options.get(name), str):
                options[name] = values.get(options[name], options[name])
        preset = options.get("preset", "default")
        if preset == "paper":
            defaults = PAPER
        elif options.get("grad") is False:
            defaults = {"criterion": "obs", "agent": "bandit"}
        elif options.get("reward") == "pruned":
            defaults = {"agent": "bandit"}
        else:
            defaults = {}
        for name in known:
            setattr(self, name, options.get(name, defaults.get(name, getattr(type(self), name))))
        self._validate()

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of all options, in the order of the documentation."""
        return [field.name for field in fields(Options)]

    def reads(self, name: str) -> bool:
        """Whether an option makes a difference, with the others as they are."""
        return name not in READ_WHEN or READ_WHEN[name].holds(self)

    @property
    def needs_fishers(self) -> bool:
        """Whether Fisher matrices are collected, by a backward pass."""
        return self.grad and (self.mapping == "curves" or self.criterion.startswith(FISHER))

    @property
    def needs_factors(self) -> bool:
        """Whether the ridge regressions of all units are factored."""
        return self.calibration != "none" or self.reward != "pruned" or self.mapping == "curves"

    @property
    def follows_gradient(self) -> bool:
        """Whether the search runs backward passes."""
        return self.method == "ffp" and self.agent == "gradient"

    @property
    def reports_searched(self) -> bool:
        """Whether perplexity before calibration says something: a policy may be chosen for what calibration leaves."""
        return self.reward == "pruned" or self.calibration == "none"

    @property
    def measured_options(self) -> dict[str, Any]:
        """The options that what is measured before any search depends on."""
        return {name: getattr(self, name) for name in MEASURED}

    @property
    def search_options(self) -> dict[str, Any]:
        """The options that the policy depends on: all but those of its calibration."""
        return {name: getattr(self, name) for name in self.option_names() if name not in CALIBRATION}

    def replace(self, **options: Any) -> "FFPConfig":
        """A copy in which these options have other values.

        Raises:
            FFPError: As the constructor does.
        """
        return FFPConfig(**{name: getattr(self, name) for name in self.option_names()} | options)

    def steps_in_sweep(self, number: int) -> int:
        """Candidate evaluations of a sweep's search: the first has all, those after it go on from its agent."""
        return self.search_steps if number == 0 else max(1, self.search_steps // 2)

    def _validate(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise FFPError(f"{name} {getattr(self, name)!r} is not known; choose from {', '.join(choices)}")
        check_sparsity(self.sparsity)
        shares = ("min_retention", "max_retention", "alpha_start", "clip_range", "dense_target", "self_share")
        self._check_numbers(float, 0, 1, *shares)
        self._check_numbers(float, 0, None, "ridge_lambda", "learning_rate")
        self._check_numbers(
            int,
            1,
            None,
            *(
                "num_samples",
                "search_samples",
                "update_samples",
                "fisher_samples",
                "slope_samples",
                "held_out_samples",
                "batch_size",
            ),
            *("search_steps", "candidates"),
        )
        self._check_numbers(int, 0, 2**32 - 1, "seed")
        optional = {
            "rate_precision": (float, 0, 1),
            "sequential_lambda": (float, 0, None),
            "eval_samples": (int, 1, None),
            "seq_len": (int, 2, None),
            "ffn_multiple": (int, 1, None),
        }
        for name, (kind, low, high) in optional.items():
            if getattr(self, name) is not None:
                self._check_numbers(kind, low, high, name)
        for name, what in {"dataset": "or a path", "eval_dataset": "or a path", "text_column": "of a column"}.items():
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and not (value is None and name != "dataset"):
                raise FFPError(f"{name} must be a name {what}, found {value!r}")
        for name in ("ridge_lambda_relative", "grad"):
            if not isinstance(getattr(self, name), bool):
                raise FFPError(f"{name} must be true or false, found {getattr(self, name)!r}")
        if self.criterion.startswith(FISHER) and not self.grad:
            others = ", ".join(name for name in CHOICES["criterion"] if not name.startswith(FISHER))
            raise FFPError(
                f"criterion {self.criterion!r} needs a backward pass; choose from {others}, or leave grad on"
            )
        if self.method == "ffp" and self.agent != "ppo" and self.mapping != "curves":
            raise FFPError(
                f"agent {self.agent!r} needs mapping 'curves', found {self.mapping!r}; or choose agent 'ppo'"
            )
        if self.follows_gradient and not (self.grad and self.reward == "compensated"):
            raise FFPError("agent 'gradient' needs a backward pass and reward 'compensated'; or choose agent 'bandit'")
        if self.min_retention > self.max_retention:
            raise FFPError(f"min_retention {self.min_retention:g} is above max_retention {self.max_retention:g}")
        sizes = self.hidden_sizes
        if not isinstance(sizes, (list, tuple)) or not all(type(size) is int and size > 0 for size in sizes):
            raise FFPError(f"hidden_sizes must be a list of positive integers, found {sizes!r}")
        self.hidden_sizes = tuple(sizes)

    def _check_numbers(self, kind: type, low: float, high: float | None, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            right_type = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
            if not (right_type and math.isfinite(value) and low <= value <= (math.inf if high is None else high)):
                allowed = "an integer" if kind is int else "a number"
                between = f"of at least {low}" if high is None else f"between {low} and {high}"
                raise FFPError(f"{name} must be {allowed} {between}, found {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """All options, with the version that wrote them."""
        options = {name: getattr(self, name) for name in self.option_names()}
        return options | {"hidden_sizes": list(self.hidden_sizes), "ffp_version": __version__}

    def to_diff_dict(self) -> dict[str, Any]:
        """All options too: a default may change, what was done with a checkpoint may not."""
        return self.to_dict()

    @classmethod
    def from_file(cls, path: str | os.PathLike, **overrides: Any) -> "FFPConfig":
        """Reads a JSON file of options.

        Args:
            path: The file.
            overrides: Options that replace those of the file; a preset replaces all that presets set.

        Raises:
            FFPError: If the file can't be read or isn't an object of known options.
        """
        try:
            with open(path, encoding="utf-8") as file:
                options = json.load(file)
        except (OSError, ValueError) as error:
            raise FFPError(f"{path} can't be read as a config: {error}") from None
        if not isinstance(options, dict):
            raise FFPError(f"{path} must hold a JSON object of options, found {type(options).__name__}")
        if "preset" in overrides:
            options = {name: value for name, value in options.items() if name not in PAPER}
        return cls(**(options | overrides))


def check_sparsity(sparsity: float) -> None:
    """Whether something is a fraction that may be removed of a model.

    Raises:
        FFPError: If it isn't.
    """
    number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not number or not 0 < sparsity < 1:
        meant = f"; for {sparsity:g} % give {sparsity / 100:g}" if number and 1 < sparsity < 100 else ""
        raise FFPError(f"sparsity must be a number between 0 and 1, found {sparsity!r}{meant}")
