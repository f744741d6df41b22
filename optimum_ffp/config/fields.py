"""Defaults of all options, the paper's values, the choices, and when an option is read. Imports nothing heavy."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NamedTuple

from ..errors import FFPError
from .texts import TextMix


# Packages whose modules are the choices of an option: `fisher_obs.py` is the choice `fisher-obs`.
PACKAGES = {
    "method": "search.methods",
    "agent": "search.agents",
    "criterion": "analysis.criteria",
    "mapping": "allocation.mappings",
}


def _choices_of(option: str) -> tuple[str, ...]:
    folder = Path(__file__).parents[1].joinpath(*PACKAGES[option].split("."))
    return tuple(sorted(module.name.replace("_", "-") for module in iter_modules([str(folder)])))


def find_choice(option: str, name: str) -> ModuleType:
    """Return the module of a choice. It is imported on demand: PPO's stable-baselines3 takes seconds.

    Args:
        option: An option in `PACKAGES`.
        name: One of its `CHOICES`.
    """
    return import_module(f"..{PACKAGES[option]}.{name.replace('-', '_')}", __package__)


CHOICES = {
    "method": _choices_of("method"),
    "agent": _choices_of("agent"),
    "preset": ("default", "paper"),
    "criterion": _choices_of("criterion"),
    "mapping": _choices_of("mapping"),
    "attention": ("auto", "kv-groups", "query-heads"),
    "reward": ("pruned", "compensated"),
    "calibration": ("distillation", "ridge", "none"),
    "search_dtype": ("auto", "model"),
    "start_token": ("auto", "never"),
}
# Prefix of criteria whose weights are multiplied by the root of the Fisher matrix: they measure loss, not error.
FISHER = "fisher-"
# Methods that evaluate a fixed number of candidates, whatever `search_steps` is, and are not compared with baselines.
NO_SEARCH = ("homogeneous", "no-search", "uniform")
# Cost of a forward and backward pass in forward passes, for counts of candidate evaluations and of tokens.
GRADIENT_COST = 3
# Where the weights of layers may be while they don't run, the fastest first.
OFFLOADS = ("none", "host", "disk")
# Candidate evaluations that agent "ppo" needs to learn.
PPO_STEPS = 256
# Values that the paper states, and two of ours for its agent; the presets share what else it leaves open.
PAPER = {
    "dataset": "wikitext2",
    "agent": "ppo",
    "criterion": "wanda",
    "mapping": "greedy",
    "attention": "kv-groups",
    "reward": "pruned",
    "calibration": "ridge",
    "search_steps": 1000,
    "alpha_start": 0.3,
    "action_std": 1.0,
    "search_samples": 4,
    "rate_precision": 0.01,
    "learning_rate": 1e-4,
    "clip_range": 0.2,
    "ffn_multiple": 1,
    "hidden_sizes": (256, 128),
    "ridge_lambda": 0.01,
    "num_samples": 32,
    "relative_outputs": False,
    "fall_back": False,
}
# Options that the measurements before the search depend on.
MEASURED = (
    *("seed", "search_dtype", "ffn_multiple", "relative_outputs"),
    *("dataset", "eval_dataset", "text_column", "seq_len", "start_token"),
    *("num_samples", "search_samples", "eval_samples", "fisher_samples"),
    *("criterion", "mapping", "attention", "ridge_lambda", "ridge_lambda_relative"),
)
# Options of calibration alone; the policy depends on all others.
CALIBRATION = (
    *("calibration", "held_out_samples"),
    *("distillation_passes", "distillation_rate", "distillation_seq_len", "distillation_batch"),
)


def check_choices(options: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Check that options have one of the values that are allowed.

    Args:
        options: An object that has them as attributes, as for the functions below.
        choices: The values by name of the option.

    Raises:
        FFPError: If one has another.
    """
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise FFPError(f"{name} {getattr(options, name)!r} is not known; choose from {', '.join(allowed)}")


def check_numbers(options: Any, kind: type, low: float, high: float | None, *names: str) -> None:
    """Check that options are finite numbers (or integers) in a range.

    Args:
        options: An object that has them as attributes.
        kind: `int` or `float`.
        low: Least value.
        high: Largest value; none if `None`.
        names: Names of the options.

    Raises:
        FFPError: If one is not.
    """
    for name in names:
        value = getattr(options, name)
        right_type = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not (right_type and math.isfinite(value) and low <= value <= (math.inf if high is None else high)):
            allowed = "an integer" if kind is int else "a number"
            between = f"of at least {low}" if high is None else f"between {low} and {high}"
            raise FFPError(f"{name} must be {allowed} {between}, found {value!r}")


def read_names(options: Any, *optional: str) -> None:
    """Check the names of texts and of their column, and turn paths into text.

    Args:
        options: An object that has `dataset`, `eval_dataset` and `text_column`.
        optional: Those that may be `None`.

    Raises:
        FFPError: If one is no name.
    """
    for name, what in {"dataset": "or a path", "eval_dataset": "or a path", "text_column": "of a column"}.items():
        value = getattr(options, name)
        if isinstance(value, os.PathLike):
            setattr(options, name, value := os.fspath(value))
        if not (isinstance(value, str) and value) and not (value is None and name in optional):
            raise FFPError(f"{name} must be a name {what}, found {value!r}")


def read_file(path: str | os.PathLike) -> dict[str, Any]:
    """Read the options of a JSON file.

    Raises:
        FFPError: If it can't be read, or doesn't hold a JSON object.
    """
    try:
        options = json.loads(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FFPError(f"{path} can't be read as a config: {error}") from None
    if not isinstance(options, dict):
        raise FFPError(f"{path} must hold a JSON object of options, found {type(options).__name__}")
    return options


@dataclass(kw_only=True)
class Options:
    """Defaults of the options; `FFPConfig` documents them."""

    sparsity: float = 0.2
    method: str = "ffp"
    preset: str = "default"
    agent: str = "gradient"
    criterion: str = "fisher-obs"
    mapping: str = "curves"
    attention: str = "auto"
    reward: str = "compensated"
    calibration: str = "distillation"
    ridge_lambda: float = 0.01
    ridge_lambda_relative: bool = True
    held_out_samples: int = 4
    distillation_passes: int = 2
    distillation_rate: float = 0.01
    distillation_seq_len: int | None = None
    distillation_batch: int = 1
    dataset: str = "wikitext2,c4"
    eval_dataset: str | None = None
    text_column: str | None = None
    num_samples: int = 128
    seq_len: int | None = None
    start_token: str = "auto"
    search_samples: int = 32
    update_samples: int = 4
    fisher_samples: int = 32
    eval_samples: int | None = None
    batch_size: int = 1
    search_steps: int = 26
    candidates: int = 8
    alpha_start: float = 1.0
    learning_rate: float = 3e-3
    action_std: float = 0.1
    clip_range: float = 0.2
    hidden_sizes: tuple[int, ...] = (256, 128)
    fall_back: bool = True
    relative_outputs: bool = True
    search_dtype: str = "auto"
    min_retention: float = 0.2
    max_retention: float = 1.0
    rate_precision: float | None = None
    ffn_multiple: int | None = None
    seed: int = 0


class Condition(NamedTuple):
    """When an option is read: in words, and as a function of the settings."""

    words: str
    holds: Callable[[Any], bool]


def _with(words: str, *names: str) -> Condition:
    return Condition(words, lambda config: (config.agent if config.method == "ffp" else config.method) in names)


OTHER_TEXT = Condition(
    "with a --dataset or --eval-dataset other than self",
    lambda config: any(
        TextMix.parse(name).names != ["self"] for name in (config.dataset, config.eval_dataset) if name
    ),
)
SEARCHES = ("random", "evolutionary")
AGENT = Condition("with --method ffp", lambda config: config.method == "ffp")
MAPPED = Condition("with a --method other than uniform", lambda config: config.method != "uniform")
SEARCH = _with("with --method ffp, random or evolutionary", *CHOICES["agent"], *SEARCHES)
PPO = _with("with --agent ppo", "ppo")
RIDGE = Condition(
    "with a --calibration other than none, --reward compensated or --mapping curves",
    lambda config: config.needs_factors,
)
DISTILLATION = Condition("with --calibration distillation", lambda config: config.calibration == "distillation")
# Conditions of options that are not always read.
READ_WHEN = {
    "agent": AGENT,
    "mapping": MAPPED,
    "rate_precision": Condition(
        "with a --method other than uniform and homogeneous",
        lambda config: config.method not in ("uniform", "homogeneous"),
    ),
    "ridge_lambda": RIDGE,
    "ridge_lambda_relative": RIDGE,
    "held_out_samples": DISTILLATION,
    "distillation_passes": DISTILLATION,
    "distillation_rate": DISTILLATION,
    "distillation_seq_len": DISTILLATION,
    "distillation_batch": DISTILLATION,
    "start_token": OTHER_TEXT,
    "update_samples": SEARCH,
    "fisher_samples": Condition(
        "with --mapping curves or --criterion fisher-obs", lambda config: config.needs_fishers
    ),
    "search_steps": SEARCH,
    "candidates": _with(
        "with --agent ppo, --method random, evolutionary or homogeneous",
        *("ppo", "homogeneous", *SEARCHES),
    ),
    "alpha_start": PPO,
    "learning_rate": PPO,
    "action_std": PPO,
    "clip_range": PPO,
    "hidden_sizes": PPO,
}
