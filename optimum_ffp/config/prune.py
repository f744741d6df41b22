"""FFPConfig: all options of a prune, with units, defaults and the paper's values."""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

from ..errors import FFPError
from ..version import __version__
from .fields import (
    CHOICES,
    FISHER,
    MEASURED,
    PAPER,
    PPO_STEPS,
    READ_WHEN,
    Options,
    check_choices,
    check_numbers,
    read_file,
    read_names,
)
from .texts import TextMix


# Options whose defaults follow others of the same preset.
DERIVED = ("agent", "attention", "search_steps")
# Options of earlier versions, and values that select what no longer exists.
REMOVED = ("grad", "slope_samples", "dense_target", "sequential_lambda")
REMOVED_VALUES = {"grad": False, "agent": "bandit", "calibration": "sequential"}
# Entries of `ffp_config.json` with the results that a checkpoint keeps.
RESULTS = ("policy", "search", "provenance", "recovery", "model", "files", "run", "schema_version")


class FFPConfig(Options):
    """Options of a prune, saved as `ffp_config.json`.

    Options that are not given take the values of the preset; `FFPConfig(preset="paper")` has the paper's numbers. A
    window is a sequence of `seq_len` tokens; a unit is the attention or the FFN of a layer; a group is what a unit can
    lose: a KV head with its query heads, a query head of every KV head, or an FFN channel; a candidate is a pruned
    model that the search evaluates.

    Args:
        sparsity: Fraction of the parameters of the decoder blocks' projections to remove, default 0.2 (the paper: 0.2
            and 0.3).
        method: How the number of groups per unit is chosen: `"ffp"` (default, a search by the agent), or one of the
            baselines `"no-search"` (what the mapping makes of equal scores), `"random"`, `"evolutionary"` and
            `"uniform"`. `"homogeneous"` gives all layers the same size, so that the checkpoint is one of the dense
            model's own class: it compares up to `candidates` shares of attention.
        agent: Search algorithm of method `"ffp"`: `"gradient"` (default, follows the gradient of the loss),
            or `"ppo"` (the paper's, default if `reward` is `"pruned"`).
        preset: `"default"` or `"paper"`.
        criterion: Ranking of the groups of a unit: `"fisher-obs"` (default, backward elimination, weighted by the
            Fisher matrix), `"obs"` (backward elimination), `"flap"` or `"wanda"` (the paper's).
        mapping: From the agent's scores to a policy: `"curves"` (default, from the loss curves), `"water-filling"` or
            `"greedy"` (the paper's Algorithm 1).
        attention: What attention loses: `"kv-groups"` (the paper's; a KV head with its query heads), `"query-heads"`
            (the same number of query heads of every KV head), or `"auto"` (default), for every layer whichever has the
            lower loss curve; KV groups without curves. A model that has one KV head, or one query head per KV head, is
            pruned in the one way that there is: the heads of Llama-2-7B have a KV head each, which they take along.
            The default of method `"homogeneous"` is `"kv-groups"`.
        reward: When candidates are evaluated: after ridge regression, `"compensated"` (default), or before,
            `"pruned"` (the paper's).
        calibration: How the remaining weights are adapted: `"distillation"` (default, starts from ridge regression and
            trains layer by layer to give the outputs of the dense layers, then the last norm to give the dense model's
            predictions), `"ridge"` (Eq. 6-7) or `"none"`.
        ridge_lambda: λ of ridge regression, default 0.01 (the paper's). The criteria `obs` and `fisher-obs` order
            groups for a relative λ of 0.01, whatever it is.
        ridge_lambda_relative: Whether λ is relative to the mean diagonal of the Gram matrix (default) or absolute.
        held_out_samples: Number of search windows that the error of distillation is measured on, default 4.
        distillation_passes: Number of passes of distillation over the calibration windows, default 2.
        distillation_rate: Learning rate of distillation, relative to the size of the weights, default 0.01. It is
            multiplied by the root of `distillation_batch`.
        distillation_seq_len: Least tokens per window of distillation: calibration windows are cut into as many parts
            of one length as have them. `None` (default) leaves windows whole.
        distillation_batch: Number of windows per step of distillation, default 1, and at least 512 tokens. As many
            processes share it.
        dataset: Text to calibrate and search on: `"wikitext2"` (the paper's), `"c4"`, a Hub id, a file, a folder, or
            `"self"` (text that the model generates). Several, with the share of the windows that each has, are a mix:
            `"wikitext2:0.5,c4:0.3,self:0.2"`; without shares, of equal parts. Default `"wikitext2,c4"`.
        eval_dataset: Text to report perplexity on, or several, each reported by itself; `None` (default) uses
            `dataset`, without `self` in a mix.
        text_column: Column of a .jsonl, .parquet or Hub dataset with texts, or with conversations, which the chat
            template renders. `None` (default) takes the first that exists of `text`, `messages`, `conversations`,
            `content` and `document`, or else `prompt` with `completion`.
        num_samples: Number of calibration windows, default 128 (the paper: 32).
        seq_len: Tokens per window (the paper: 2048). `None` (default) is the model's maximum length, up to 2048;
            `PruningResult.config` and `ffp_config.json` have the number.
        start_token: Whether windows of text begin with a start token, which is one of their `seq_len` tokens:
            `"auto"` (default) if the tokenizer itself adds one (Llama 2, Gemma), `"never"` (as most published
            perplexities on WikiText-2 are measured).
        search_samples: Number of search windows at full fidelity, `N_max`, default 32 (paper preset: 4).
        update_samples: Number of search windows per update of the agents and per candidate of methods `"random"` and
            `"evolutionary"`, default 4 and at most `search_samples`. The agents take other windows in every update;
            with the defaults none is used twice, so that the agent does not overfit.
        fisher_samples: Number of calibration windows for the Fisher estimate, default 32.
        eval_samples: Number of test windows of each text; `None` (default) takes all of a test split, and the first
            100 of a text without one.
        batch_size: Windows per forward pass, default 1. Statistics on the CPU take at most an eighth of all at once.
        search_steps: Number of candidate evaluations, default 26, or 256 for agent `"ppo"` (the paper: 1000); one with
            a backward pass counts as three. The no-search and the uniform policy are evaluated in addition.
        candidates: Number of candidates per update of the agent, or in all of method `"homogeneous"`, default 8.
        alpha_start: Fraction of the target sparsity and of the windows per update that PPO's progressive schedule
            starts with, default 1, which is no schedule (paper preset: 0.3).
        learning_rate: Learning rate of PPO, default 3e-3 (the paper: 1e-4).
        action_std: Standard deviation of PPO's actions before training, default 0.1 (paper preset: 1). A
            warm start has that of its agent.
        clip_range: Clip range of PPO, default 0.2 (the paper's).
        hidden_sizes: Widths of the hidden layers of PPO's MLP, default 256 and 128 (the paper's, with ReLU).
        fall_back: Whether a search returns the uniform or the no-search policy where that is better than what it
            found (default; not so the paper).
        relative_outputs: Whether statistics weigh tokens by the size of a projection's output where a norm follows it
            (default; not so the paper).
        search_dtype: Dtype of matrix products in statistics, search and distillation: `"auto"` (default) is bfloat16
            where the hardware multiplies it faster, `"model"` is the model's own.
        min_retention: Smallest fraction of its groups that a unit keeps, `a_min`, default 0.2.
        max_retention: Largest fraction of its groups that a unit keeps, `a_max`, default 1.
        rate_precision: Step that retentions are rounded to (the paper: 0.01); `None` (default) does not round.
        ffn_multiple: FFN widths are multiples of this number of channels (the paper: 1). `None` (default) is 256, the
            block size of llama.cpp's K-quants, or 32, that of its simpler types, if that leaves at least 32 steps, and
            otherwise 1.
        seed: Random seed, default 0.

    Raises:
        FFPError: If a value is not allowed, or an option is unknown.
    """

    CONFIG_NAME: ClassVar[str] = "ffp_config.json"

    def __init__(self, **options: Any):
        known = self.option_names()
        options = _without_removed(options)
        # Entries of `ffp_config.json` that are not options.
        for name in (*RESULTS, "self_share", "transformers_version", "optimum_version", "ffp_version"):
            options.pop(name, None)
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise FFPError(f"FFPConfig has no {', '.join(unknown)}; it has {', '.join(known)}")
        defaults = _defaults(options)
        for name in known:
            setattr(self, name, options.get(name, defaults.get(name, getattr(type(self), name))))
        self._validate()

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of all options."""
        return [field.name for field in fields(Options)]

    def reads(self, name: str) -> bool:
        """Whether an option has an effect, given the values of the others."""
        return name not in READ_WHEN or READ_WHEN[name].holds(self)

    @property
    def texts(self) -> TextMix:
        """Texts to calibrate and search on."""
        return TextMix.parse(self.dataset)

    @property
    def reported(self) -> TextMix:
        """Texts to report perplexity on."""
        return TextMix.parse(self.eval_dataset) if self.eval_dataset else self.texts.reported

    @property
    def eliminates(self) -> bool:
        """Whether groups are ranked by backward elimination."""
        return self.criterion.removeprefix(FISHER) == "obs"

    @property
    def needs_fishers(self) -> bool:
        """Whether Fisher matrices are collected, by a backward pass."""
        return self.mapping == "curves" or self.criterion.startswith(FISHER)

    @property
    def needs_factors(self) -> bool:
        """Whether the ridge regressions of all units are factored."""
        return self.calibration != "none" or self.reward != "pruned" or self.mapping == "curves"

    @property
    def follows_gradient(self) -> bool:
        """Whether the search runs backward passes."""
        return self.method == "ffp" and self.agent == "gradient"

    @property
    def distillation_parts(self) -> int:
        """Number of windows of distillation that a calibration window is cut into, if `seq_len` is set."""
        return max(1, self.seq_len // (self.distillation_seq_len or self.seq_len))

    @property
    def reports_searched(self) -> bool:
        """Whether perplexity before calibration is reported; not if the search optimises compensated candidates."""
        return self.reward == "pruned" or self.calibration == "none"

    @property
    def measured_options(self) -> dict[str, Any]:
        """Options that the measurements before the search depend on."""
        return {name: getattr(self, name) for name in MEASURED}

    def replace(self, **options: Any) -> "FFPConfig":
        """Returns a copy with new values of these options.

        Raises:
            FFPError: As the constructor does.
        """
        return FFPConfig(**{name: getattr(self, name) for name in self.option_names()} | options)

    def _validate(self) -> None:
        check_choices(self, CHOICES)
        check_sparsity(self.sparsity)
        shares = ("min_retention", "max_retention", "alpha_start", "clip_range")
        check_numbers(self, float, 0, 1, *shares)
        check_numbers(self, float, 0, None, "ridge_lambda", "learning_rate", "distillation_rate")
        check_numbers(self, float, 1e-6, None, "action_std")
        check_numbers(
            self,
            int,
            1,
            None,
            *(
                "num_samples",
                "search_samples",
                "update_samples",
                "fisher_samples",
                "held_out_samples",
                "distillation_passes",
                "distillation_batch",
                "batch_size",
            ),
            *("search_steps", "candidates"),
        )
        check_numbers(self, int, 0, 2**32 - 1, "seed")
        optional = {
            "rate_precision": (float, 0, 1),
            "eval_samples": (int, 1, None),
            "seq_len": (int, 2, None),
            "distillation_seq_len": (int, 2, None),
            "ffn_multiple": (int, 1, None),
        }
        for name, (kind, low, high) in optional.items():
            if getattr(self, name) is not None:
                check_numbers(self, kind, low, high, name)
        read_names(self, "eval_dataset", "text_column")
        _, texts = self.reported, self.texts.names
        for name in ("num_samples", "search_samples"):
            if getattr(self, name) < len(texts):
                raise FFPError(
                    f"{name} must be at least {len(texts)}, a window of each of {', '.join(texts)}, found "
                    f"{getattr(self, name)}"
                )
        for name in ("ridge_lambda_relative", "fall_back", "relative_outputs"):
            if not isinstance(getattr(self, name), bool):
                raise FFPError(f"{name} must be true or false, found {getattr(self, name)!r}")
        if self.method == "ffp" and self.agent != "ppo" and self.mapping != "curves":
            raise FFPError(
                f"agent {self.agent!r} needs mapping 'curves', found {self.mapping!r}; or choose agent 'ppo'"
            )
        if self.follows_gradient and self.reward != "compensated":
            raise FFPError("agent 'gradient' needs reward 'compensated'; or choose agent 'ppo'")
        if self.method == "homogeneous" and self.attention == "auto":
            raise FFPError(
                "method 'homogeneous' needs one kind of group in all layers; choose attention 'kv-groups' or "
                "'query-heads'"
            )
        if self.min_retention > self.max_retention:
            raise FFPError(f"min_retention {self.min_retention:g} is above max_retention {self.max_retention:g}")
        sizes = self.hidden_sizes
        if not isinstance(sizes, (list, tuple)) or not all(type(size) is int and size > 0 for size in sizes):
            raise FFPError(f"hidden_sizes must be a list of positive integers, found {sizes!r}")
        self.hidden_sizes = tuple(sizes)

    def to_dict(self) -> dict[str, Any]:
        """All options, and the version of optimum-ffp."""
        options = {name: getattr(self, name) for name in self.option_names()}
        return options | {"hidden_sizes": list(self.hidden_sizes), "ffp_version": __version__}

    @classmethod
    def from_file(cls, path: str | os.PathLike, **overrides: Any) -> "FFPConfig":
        """Reads options from a JSON file.

        Args:
            path: Path of the file.
            overrides: Options that replace those of the file; `preset` replaces all that presets set. Defaults that
                follow other options, as `search_steps` does `agent`, follow those that are given.

        Raises:
            FFPError: If the file can't be read or isn't an object of known options.
        """
        options = read_file(path)
        if "preset" in overrides:
            options = {name: value for name, value in options.items() if name not in PAPER}
        defaults = {name: getattr(cls, name) for name in DERIVED} | _defaults(options)
        # A config that was saved has all options, one that was written by hand those that are meant.
        saved = "ffp_version" in options
        replaced = [name for name in DERIVED if saved and options.get(name) == defaults[name]]
        return cls(**{name: value for name, value in options.items() if name not in replaced} | overrides)


def _without_removed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that no longer exist. Raises `FFPError` if one selects what went with it."""
    for name, value in REMOVED_VALUES.items():
        if name in options and options[name] == value:
            raise FFPError(f"{name} {value!r} was removed; leave it out for the default, or use an earlier version")
    return {name: value for name, value in options.items() if name not in REMOVED}


def _defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that follow other options."""
    if options.get("preset", "default") == "paper":
        return PAPER
    defaults = {"agent": "ppo"} if options.get("reward") == "pruned" else {}
    if options.get("method") == "homogeneous":
        defaults["attention"] = "kv-groups"
    agent = options.get("agent", defaults.get("agent"))
    return defaults | ({"search_steps": PPO_STEPS} if agent == "ppo" else {})


def check_sparsity(sparsity: float) -> None:
    """Checks that a sparsity is a number between 0 and 1, both excluded.

    Raises:
        FFPError: If it is not.
    """
    number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not number or not 0 < sparsity < 1:
        meant = f"; for {sparsity:g} % give {sparsity / 100:g}" if number and 1 < sparsity < 100 else ""
        raise FFPError(f"sparsity must be a number between 0 and 1, found {sparsity!r}{meant}")
