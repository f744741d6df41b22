"""All options of a prune, with defaults and the paper's values."""

import os
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from ..errors import FFPError
from ..version import __version__
from .fields import Config, named_options, option
from .texts import TextMix


# Cost of a forward and backward pass in forward passes, for counts of candidate evaluations and of tokens.
GRADIENT_COST = 3
# Where the weights of layers may be while they don't run, the fastest first.
OFFLOADS = ("none", "host", "disk")
# Values of earlier versions that select what no longer exists.
REMOVED_VALUES = {"grad": False, "agent": "bandit", "calibration": "sequential"}

SEQ_LEN_DEFAULT = "the model's maximum length, up to 2048"
SEARCHES = ("method", "ffp", "random", "evolutionary")
measured = partial(option, stage="measured")
of_ppo = partial(option, when=("agent", "ppo"))
of_distillation = partial(option, when=("calibration", "distillation"), stage="calibration")


@named_options
@dataclass(kw_only=True)
class FFPConfig(Config):
    """Options of a prune, saved as `ffp_config.json`.

    Options that are not given take the values of the preset; `FFPConfig(preset="paper")` has the paper's numbers. A
    window is a sequence of `seq_len` tokens; a unit is the attention or the FFN of a layer; a group is what a unit can
    lose: a KV head with its query heads, a query head of every KV head, or an FFN channel; a candidate is a pruned
    model that the search evaluates.

    Raises:
        FFPError: If a value is not allowed, or an option is unknown.
    """

    sparsity: float = option(
        0.2,
        "Fraction of the parameters of attention and FFN to remove, between 0 and 1. On the command line several "
        "values write one folder each, and a plot of size against perplexity.",
        "Common options",
        cli={"nargs": "+", "metavar": "X"},
    )
    dataset: str = measured(
        "wikitext2,c4",
        "Text to prune with, ideally like the text the model is used on: wikitext2, c4, a Hub id, a "
        ".txt/.json/.jsonl/.parquet file (cut into train, validation and test), a folder with train, validation and "
        "test files, or self (text that the model generates, which is slow: lower num_samples); or a mix of them with "
        "the share of each, such as wikitext2:0.5,c4:0.3,self:0.2.",
        "Common options",
        paper="wikitext2",
    )
    eval_dataset: str | None = measured(
        None,
        "Text to report perplexity on, or several separated by commas, each reported by itself; same choices as for "
        "the dataset.",
        "Data",
        shown="the test split of the dataset, of each text of a mix but self",
        cli={"metavar": "DATASET"},
    )
    text_column: str | None = measured(
        None,
        "Dataset column with texts, or with conversations, which the chat template renders.",
        "Data",
        shown="the first that exists of text, messages, conversations, content, document, or else prompt with "
        "completion",
        cli={"metavar": "NAME"},
    )
    seq_len: int | None = measured(
        None,
        "Tokens per window; all text is cut into windows (the paper: 2048).",
        "Data",
        low=2,
        shown=SEQ_LEN_DEFAULT,
    )
    start_token: str = measured(
        "auto",
        "Whether windows of text begin with a start token, one of their tokens: auto (if the tokenizer adds one) or "
        "never (as most published perplexities on WikiText-2 are measured).",
        choices=("auto", "never"),
    )
    num_samples: int = measured(128, "Number of calibration windows, from the train split.", "Data", low=1, paper=32)
    search_samples: int = measured(
        32, "Number of search windows, from the validation split, to compare candidates on.", "Data", low=1, paper=4
    )
    eval_samples: int | None = measured(
        None,
        "Number of test windows of each text, from the test split.",
        "Data",
        low=1,
        shown="all of a test split, the first 100 of a text without one",
    )
    method: str = option(
        "ffp",
        "How the number of heads and channels per layer is chosen: ffp (a search guided by the loss), no-search (from "
        "measurements of single layers), uniform (the same fraction in every layer), homogeneous (exactly the same "
        "number in every layer, so that the checkpoint needs no code of its own), or the baselines random and "
        "evolutionary.",
        "Pruning",
        choices="search.methods",
    )
    preset: str = option(
        "default",
        "Values of the options that are not given: default, or paper for those of the FastForward Pruning paper.",
        "Pruning",
        choices=("default", "paper"),
    )
    criterion: str = measured(
        "fisher-obs",
        "How heads and channels are ranked within a layer: fisher-obs (backward elimination, weighted by the Fisher "
        "matrix), obs (backward elimination), flap or wanda, or a function of your own as package.module.",
        "Pruning",
        choices="analysis.criteria",
        paper="wanda",
    )
    attention: str | None = measured(
        None,
        "What attention loses: kv-groups (a KV head with its query heads), query-heads (the same number of query "
        "heads of every KV head) or auto (for every layer whichever costs less by its loss curve). Models with one KV "
        "head, or one for each query head, are pruned in the one way that there is; OLMo's attention stays whole.",
        "Pruning",
        choices=("auto", "kv-groups", "query-heads"),
        paper="kv-groups",
        shown="auto, or kv-groups with method homogeneous",
    )
    min_retention: float = option(
        0.2, "Smallest fraction of heads, or of FFN channels, to keep in a layer.", "Pruning", high=1
    )
    max_retention: float = option(
        1.0, "Largest fraction of heads, or of FFN channels, to keep in a layer.", "Pruning", high=1
    )
    rate_precision: float | None = option(
        None, "Step that these fractions are rounded to.", high=1, paper=0.01, shown="no rounding"
    )
    ffn_multiple: int | None = measured(
        None,
        "FFN widths are multiples of this number of channels.",
        "Pruning",
        low=1,
        paper=1,
        shown="256 or 32 (block sizes of llama.cpp) if that leaves at least 32 steps, otherwise 1",
    )
    relative_outputs: bool = measured(
        True,
        "Whether every token counts relative to the size of a projection's output, in families that normalize it.",
        paper=False,
    )
    fisher_samples: int = measured(
        32, "Number of calibration windows for the backward pass that estimates the Fisher matrix.", "Pruning", low=1
    )
    seed: int = measured(0, "Random seed.", "Pruning", high=2**32 - 1)
    agent: str | None = option(
        None,
        "Search algorithm of method ffp: gradient (follows the gradient of the loss) or ppo (the paper's).",
        "Search",
        choices="search.agents",
        paper="ppo",
        when=("method", "ffp"),
        shown="gradient, or ppo with reward pruned",
    )
    search_steps: int | None = option(
        None,
        "Number of candidates (pruned models) to evaluate; one with a backward pass counts as three.",
        "Search",
        low=1,
        paper=1000,
        when=SEARCHES,
        shown="26, 256 with agent ppo, or 1000 with preset paper",
    )
    fall_back: bool = option(
        True,
        "Whether the uniform policy and that without a search are compared with the finalists of a search, and taken "
        "if they are better.",
        paper=False,
        when=SEARCHES,
    )
    candidates: int = option(
        8,
        "Number of candidates per update of agent ppo, at once of method random or evolutionary, or in all of method "
        "homogeneous.",
        "Search",
        low=1,
    )
    update_samples: int = option(
        4,
        "Number of search windows per update of the agent, or per candidate of random and evolutionary search. The "
        "agents take other windows in every update, so that they do not overfit.",
        low=1,
        when=SEARCHES,
    )
    reward: str = option(
        "compensated",
        "When candidates are evaluated: pruned (before their weights are adapted) or compensated (after ridge "
        "regression).",
        "Search",
        choices=("pruned", "compensated"),
        paper="pruned",
    )
    mapping: str = measured(
        "curves",
        "How the agent's score per layer becomes the size of the layer: curves (from the estimated loss of every "
        "size), greedy (Algorithm 1 of the paper) or water-filling.",
        "Search",
        choices="allocation.mappings",
        paper="greedy",
    )
    search_dtype: str = measured(
        "auto",
        "Dtype of matrix products in statistics, search and distillation of a float32 model: auto (bfloat16 where the "
        "hardware is known to be faster at it) or model (float32).",
        choices=("auto", "model"),
    )
    learning_rate: float = of_ppo(3e-3, "Learning rate of PPO.", "Search", paper=1e-4)
    alpha_start: float = of_ppo(
        1.0,
        "Fraction of the sparsity and of the search windows that PPO's progressive schedule starts with; 1 is no "
        "schedule.",
        high=1,
        paper=0.3,
    )
    action_std: float = of_ppo(
        0.1,
        "Standard deviation of PPO's actions before training; a warm start has that of its agent.",
        low=1e-6,
        paper=1.0,
    )
    clip_range: float = of_ppo(0.2, "Clip range of PPO: limits the change of the agent per update.", high=1, paper=0.2)
    hidden_sizes: tuple[int, ...] = of_ppo(
        (256, 128), "Widths of the hidden layers of PPO's network.", low=1, paper=(256, 128)
    )
    calibration: str = option(
        "distillation",
        "How the remaining weights are adapted: distillation (starts from ridge regression; every layer is trained to "
        "give the output of the dense layer, and the last norm to give its predictions), ridge (every layer alone, by "
        "ridge regression) or none.",
        "Calibration",
        choices="compression.calibrations",
        paper="ridge",
        stage="calibration",
    )
    ridge_lambda: float = measured(0.01, "Penalty λ of ridge regression.", "Calibration", paper=0.01)
    ridge_lambda_relative: bool = measured(
        True, "Whether λ is relative to the mean diagonal of the layer's Gram matrix, or absolute."
    )
    held_out_samples: int = of_distillation(
        4, "Number of search windows that the error of distillation is measured on.", low=1
    )
    distillation_passes: int = of_distillation(
        2, "Number of passes of distillation over the calibration windows.", low=1
    )
    distillation_rate: float = of_distillation(
        0.01,
        "Learning rate of distillation, relative to the size of the weights. It is multiplied by the root of "
        "distillation_batch.",
    )
    train_seq_len: int | None = of_distillation(
        None,
        "Least tokens per window of distillation: calibration windows are cut into as many parts of one length as "
        "have them, and shorter ones give more steps.",
        low=2,
        shown="whole windows",
    )
    distillation_batch: int = of_distillation(
        1, "Number of windows per step of distillation, and at least 512 tokens. Fewer steps may be worse.", low=1
    )
    batch_size: int = option(1, "Windows per forward pass.", "Resources", low=1)

    @property
    def texts(self) -> TextMix:
        """Texts to calibrate and search on."""
        return TextMix.parse(self.dataset)

    @property
    def reported(self) -> TextMix:
        """Texts to report perplexity on."""
        return TextMix.parse(self.eval_dataset) if self.eval_dataset else self.texts.reported

    @property
    def needs_fishers(self) -> bool:
        """Whether Fisher matrices are collected, by a backward pass."""
        return self.mapping == "curves" or is_fisher_weighted(self.criterion)

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
        return max(1, self.seq_len // (self.train_seq_len or self.seq_len))

    @property
    def reports_searched(self) -> bool:
        """Whether perplexity before calibration is reported; not if the search optimizes compensated candidates."""
        return self.reward == "pruned" or self.calibration == "none"

    def derived(self) -> dict[str, Any]:
        """Return the defaults that follow other options."""
        agent = self.agent or ("ppo" if self.reward == "pruned" else "gradient")
        return {
            "agent": agent,
            "attention": "kv-groups" if self.method == "homogeneous" else "auto",
            "search_steps": 256 if agent == "ppo" else 26,
        }

    def check(self) -> None:
        """Check what no option can be checked for alone; all are resolved."""
        if not 0 < self.sparsity < 1:
            hint = f"; for {self.sparsity:g} % give {self.sparsity / 100:g}" if 1 < self.sparsity < 100 else ""
            raise FFPError(f"sparsity must be a number between 0 and 1, found {self.sparsity!r}{hint}")
        _, names = self.reported, self.texts.names
        if min(self.num_samples, self.search_samples) < len(names):
            raise FFPError(
                f"num_samples and search_samples must be at least {len(names)}, a window of each of "
                f"{', '.join(names)}, found {self.num_samples} and {self.search_samples}"
            )
        if self.method == "ffp" and self.agent == "gradient" and self.mapping != "curves":
            raise FFPError(f"agent 'gradient' needs mapping 'curves', found {self.mapping!r}; or choose agent 'ppo'")
        if self.follows_gradient and self.reward != "compensated":
            raise FFPError("agent 'gradient' needs reward 'compensated'; or choose agent 'ppo'")
        if self.method == "homogeneous" and self.attention == "auto":
            raise FFPError(
                "method 'homogeneous' needs one kind of group in all layers; choose attention 'kv-groups' or "
                "'query-heads'"
            )
        if self.min_retention > self.max_retention:
            raise FFPError(f"min_retention {self.min_retention:g} is above max_retention {self.max_retention:g}")

    def to_dict(self) -> dict[str, Any]:
        """Return all options, as they are saved, and the version of optimum-ffp."""
        return super().to_dict() | {"ffp_version": __version__}

    @classmethod
    def of_record(cls, record: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
        """Return the options of a record, also one of an earlier version."""
        for name, value in REMOVED_VALUES.items():
            if name in record and record[name] == value:
                raise FFPError(
                    f"{name} {value!r} was removed; leave it out for the default, or use an earlier version"
                )
        options = dict(record)
        share = options.pop("self_share", 0)
        if share and "dataset" in options:
            parts = [f"{text.name}:{text.share * (1 - share):.6g}" for text in TextMix.parse(options["dataset"])]
            options["dataset"] = ",".join([*parts, f"self:{share:.6g}"])
        if "distillation_seq_len" in options:
            options["train_seq_len"] = options.pop("distillation_seq_len")
        # What else a record has are results, and options of earlier versions.
        saved = "ffp_version" in record
        return {name: value for name, value in options.items() if not saved or name in cls.option_names()}


# The function of a module that is a choice, where it isn't `search`.
FUNCTIONS = {"criterion": "score", "mapping": "map_scores", "calibration": "calibrate"}


def find_choice(option: str, name: str) -> ModuleType:
    """Return the module of a choice. It is imported on demand: PPO's stable-baselines3 takes seconds.

    Args:
        option: An option whose choices are modules.
        name: One of its choices, or a module of another package with dots in its name.

    Raises:
        FFPError: If a module of another package can't be imported, or isn't one for this option.
    """
    package = FFPConfig.__dataclass_fields__[option].metadata["choices"]
    if "." not in name:
        return import_module(f"..{package}.{name.replace('-', '_')}", __package__)
    try:
        module = import_module(name)
    except ImportError as error:
        raise FFPError(f"{option} {name} can't be imported: {error}") from None
    function = FUNCTIONS.get(option, "search")
    if not hasattr(module, function):
        raise FFPError(f"{option} {name} has no function {function!r}")
    return module


def is_fisher_weighted(criterion: str) -> bool:
    """Return whether weights are multiplied by the root of the Fisher matrix for a criterion: its name says so."""
    return criterion.rpartition(".")[2].startswith(("fisher-", "fisher_"))
