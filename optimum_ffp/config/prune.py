"""Options of a prune, with their defaults and the values of the paper."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from ..errors import FFPError
from ..version import __version__
from .budgets import LIMITS, format_value, parse_workload
from .choices import KINDS, built_in_options, options_of
from .fields import Config, expand, named_options, option
from .texts import HUB_NAME, TextConfig


# Cost of a forward and backward pass in forward passes, used to count candidate evaluations and tokens.
GRADIENT_COST = 3
# Storage of the weights of layers that aren't running, fastest first.
OFFLOADS = ("none", "host", "disk")
# Workload that speed is measured with.
WORKLOAD = "512+32"
DEFAULT_SPARSITY = 0.2
# Sparsity from which training makes up for what a search gains: at 20 %, divergence is still 1.9 % lower after one.
TRAINING_SUFFICES = 0.25
# Maximum tokens per window by default.
MAX_DEFAULT_LENGTH = 2048
# Candidate evaluations by default, and those of the agent ppo.
SEARCH_STEPS, PPO_STEPS = 26, 256

SEQ_LEN_DEFAULT = f"the model's maximum length, up to {MAX_DEFAULT_LENGTH}"
SEARCHES = ("ffp", "random", "evolutionary")
limit_option = partial(option, None, group="Budget", cli={"nargs": "+"})
measured_option = partial(option, stage="measured")
data_option = partial(option, stage="measured", group="Data")
# Without a meaning for mixtures of experts, all layers of which keep the same number.
dense_option = partial(option, for_experts=False)


@named_options
@dataclass(frozen=True, kw_only=True)
class FFPConfig(TextConfig):
    """Options of a prune, saved as `ffp_config.json`.

    Options that are not set take their values from the preset; `FFPConfig(preset="paper")` has the paper's settings. A
    *window* is a sequence of `seq_len` tokens. A *unit* is the attention or the FFN of a layer. A *group* is the
    smallest part that can be removed from a unit: a KV head with its query heads, one query head per KV head, or
    an FFN channel. A *candidate* is a pruned model that the search evaluates.

    Raises:
        FFPError: If a value is not allowed, or an option is unknown.
    """

    replaces: ClassVar = dict.fromkeys(LIMITS, (*LIMITS, "policy"))
    replaces |= {"policy": (*LIMITS, "depth"), "method": ("policy",), "agent": ("search_steps",)}
    replaces |= {"costs": ("workload",), "workload": ("costs",), "calibration": ("distillation_passes", "lora")}

    sparsity: float | None = limit_option(
        "Fraction of the attention and FFN parameters to remove, between 0 and 1; for a mixture of experts, the "
        "fraction of the expert parameters. Budget options can be combined. On the command line, one of them can take "
        "several values: each writes its own folder, and a plot shows perplexity against size.",
        default_text=f"{DEFAULT_SPARSITY:g} if no other budget option is set",
    )
    params: int | str | None = limit_option(
        "Maximum number of parameters, such as 600M, 6B, or 80% of the dense model's.", low=1
    )
    memory: int | str | None = limit_option(
        "Maximum memory for weights and KV cache together, such as 900MiB, 12GiB, or 80% of the dense model's.", low=1
    )
    kv_cache: float | None = limit_option(
        "Maximum size of the KV cache relative to the dense model's, between 0 and 1.", for_experts=False
    )
    context: int | str = option(
        4096,
        "Tokens per sequence in the KV cache, such as 4096 or 32k (32768). Layers with sliding-window attention cache "
        "at most their window.",
        "Budget",
        low=1,
        high=10**8,
    )
    sequences: int = option(1, "Number of sequences in the KV cache.", "Budget", low=1, high=10**6)
    speedup: float | None = limit_option(
        "Minimum speed relative to the dense model's, such as 1.3. Attention and FFNs of several sizes are timed "
        "first, on the device that prunes.",
        low=1,
        for_experts=False,
    )
    experts: int | None = limit_option("Maximum number of experts per layer of a mixture of experts.", low=1)
    vocabulary: int | str | None = limit_option(
        "Maximum number of tokens in the vocabulary, such as 64k (65536); others are written in several of these. "
        "Alone, nothing else is pruned. With params or memory, auto decides how many tokens are removed, and how much "
        "of the layers.",
        low=64,
    )
    workload: str | None = measured_option(
        None,
        "Workload to measure the speed with: prompt tokens + new tokens x sequences, such as 1024+200x8. 1024+0 "
        "measures only the prompt, 1+200 only decoding.",
        "Budget",
        default_text=f"the workload in costs, or {WORKLOAD}",
    )
    costs: dict[str, Any] | str | None = dense_option(
        None,
        "JSON file with measured times to reuse, or the ffp_config.json of a result. The file is written if it "
        "doesn't exist. With other budgets, only warns if little time is saved.",
        "Budget",
        cli={"metavar": "FILE"},
    )
    dataset: str = measured_option(
        "wikitext2,c4",
        "Text to calibrate and search on, ideally similar to the text the model will be used on: wikitext2, c4, a Hub "
        "id, a .txt/.json/.jsonl/.parquet file (split into train, validation and test), a folder with train, "
        "validation and test files, self (text generated by the model; slow, so lower num_samples), self:TEXT (its "
        "answers to the prompts of a text), or a mix of these with shares, such as wikitext2:0.5,c4:0.3,self:0.2.",
        "Common options",
        paper="wikitext2",
    )
    eval_dataset: str | None = data_option(
        None,
        "Text to report perplexity on, in the same format as the dataset. Several texts, separated by commas, are "
        "reported separately.",
        default_text="each text of the dataset except self",
    )
    vocabulary_dataset: str | None = option(
        None,
        "Text whose tokens are counted to choose those of a smaller vocabulary, in the same format as the dataset.",
        "Data",
        default_text="the dataset",
    )
    base_model: str | None = option(
        None,
        "Hub id of the dense model, for the lineage and license in the model card, if the model is a local folder or "
        "a .gguf file. To prune a pruned model further, this can also be the folder or .gguf file of its dense model.",
        "Data",
    )
    text_column: str | None = data_option(
        None,
        "Dataset column with texts, or with conversations to render with the chat template.",
        default_text="the first nonempty column with a usual name, such as text or messages",
    )
    seq_len: int | None = data_option(
        None, "Tokens per window (2048 in the paper).", low=2, default_text=SEQ_LEN_DEFAULT
    )
    start_token: str = measured_option(
        "auto",
        "Whether every window begins with the start token: auto (if the tokenizer adds one) or never (as in most "
        "published WikiText-2 perplexities).",
        choices=("auto", "never"),
    )
    num_samples: int = data_option(
        128, "Number of windows to calibrate on, from the train split.", low=1, paper=32, fast=32
    )
    search_samples: int = data_option(
        28, "Number of windows to compare candidates on, from the validation split.", low=1, paper=4
    )
    eval_samples: int | None = data_option(
        None,
        "Number of windows per text to report perplexity on, from the test split.",
        low=1,
        default_text="the whole test split, or the first 100 windows of a text without one",
    )
    method: str | None = dense_option(
        None,
        "How to choose the number of heads and channels per layer: ffp (loss-guided search), no-search (from layer "
        "measurements), uniform (the same fraction in every layer), homogeneous (exactly the same number in every "
        "layer, so that the checkpoint needs no custom code), given (as in the policy), or the baselines random and "
        "evolutionary.",
        "Pruning",
        fast="no-search",
        default_text=f"ffp, or no-search from a sparsity of {TRAINING_SUFFICES:g} on, where weights are trained",
    )
    policy: str | None = dense_option(
        None,
        "Policy to use instead of a search, which determines the sparsity: a pruned model (folder or Hub id), or a "
        "JSON file with the list `units` of an ffp_config.json.",
        "Pruning",
    )
    preset: str = option(
        "default",
        "Values for all options that you don't set: fast (a sixth of the tokens), default, best (1.6 times the "
        "tokens), or paper (the settings of the FastForward Pruning paper).",
        "Pruning",
        choices=("fast", "default", "best", "paper"),
    )
    criterion: str = measured_option(
        "fisher-obs",
        "How to rank heads and channels within a layer: fisher-obs (backward elimination, weighted by the Fisher "
        "matrix), obs (backward elimination), flap or wanda, or a custom module as package.module.",
        "Pruning",
        paper="wanda",
        for_experts=False,
    )
    expert_criterion: str = measured_option(
        "reap",
        "How to rank the experts of a mixture: reap (gate times output norm, averaged over the expert's tokens) or "
        "loss (increase of the loss when the expert's tokens are routed to others; slower).",
        "Pruning",
    )
    attention: str | None = measured_option(
        None,
        "What to remove from attention: kv-groups (KV heads with their query heads), query-heads (the same number of "
        "query heads per KV head) or auto (whichever increases the loss less, per layer). Models with a single KV "
        "head, or one per query head, allow only one of them. OLMo's attention is not pruned.",
        "Pruning",
        choices=("auto", "kv-groups", "query-heads"),
        paper="kv-groups",
        default_text="auto, or kv-groups with method homogeneous or a limit on memory or the KV cache",
        for_experts=False,
    )
    depth: str = dense_option(
        "none",
        "Also remove whole layers or sublayers where that hurts less than narrowing, regardless of min_retention: "
        "none, layers (the checkpoint has fewer; also with method homogeneous) or sublayers (the attention or the FFN "
        "of a layer).",
        "Pruning",
        choices=("none", "layers", "sublayers"),
    )
    min_retention: float = dense_option(
        0.2, "Minimum fraction of heads or FFN channels to keep in a layer.", "Pruning", high=1
    )
    max_retention: float = dense_option(1.0, "Maximum fraction of heads or FFN channels to keep in a layer.", high=1)
    rate_precision: float | None = dense_option(
        None, "Round the fraction that a layer keeps to multiples of this.", high=1, paper=0.01
    )
    multiple_of: int | None = measured_option(
        None,
        "Round FFN widths to multiples of this number of channels, for example 128 times the number of devices for "
        "FP8 blocks or Marlin kernels.",
        "Pruning",
        low=1,
        paper=1,
        default_text="256 or 32 (llama.cpp block sizes) if the FFN is wide enough, otherwise 1",
        for_experts=False,
    )
    relative_outputs: bool = measured_option(
        True,
        "Whether to weight tokens by the inverse norm of the attention's or FFN's output, in families that normalize "
        "it.",
        paper=False,
    )
    first_tokens: int = measured_option(
        32,
        "Also run every n-th calibration token at position 0 (attention sinks). 0 disables this; so do texts with a "
        "start token.",
        paper=0,
    )
    fisher_samples: int = measured_option(
        32,
        "Number of calibration windows for the backward pass that estimates the Fisher matrix.",
        low=1,
        fast=16,
    )
    seed: int = measured_option(0, "Random seed.", "Pruning", high=2**32 - 1)
    agent: str | None = dense_option(
        None,
        "Search algorithm of method ffp: gradient (gradient descent on the loss) or ppo (the paper's).",
        "Search",
        paper="ppo",
        default_text="gradient, or ppo with reward pruned",
    )
    search_steps: int | None = dense_option(
        None,
        f"Number of candidates (pruned models) to evaluate; one with a backward pass counts as {GRADIENT_COST}.",
        "Search",
        low=1,
        paper=1000,
        default_text=f"{SEARCH_STEPS}, or {PPO_STEPS} with agent ppo",
    )
    fall_back: bool = option(
        True,
        "Whether to compare the finalists of a search with the uniform and no-search policies, and use the best of "
        "them.",
        paper=False,
    )
    candidates: int = option(
        8,
        "Number of candidates per update (agent ppo), per batch (method random or evolutionary) or in total (method "
        "homogeneous).",
        low=1,
    )
    update_samples: int = option(
        4,
        "Number of search windows per update of the agent, or per candidate of a random or evolutionary search. "
        "Updates cycle through the search windows.",
        low=1,
    )
    reward: str = option(
        "compensated",
        "When to evaluate candidates: pruned (before their weights are adapted) or compensated (after ridge "
        "regression).",
        choices=("pruned", "compensated"),
        paper="pruned",
    )
    mapping: str = measured_option(
        "curves",
        "How to convert the agent's scores to layer sizes: curves (from the estimated loss at every size), greedy "
        "(Algorithm 1 of the paper) or water-filling.",
        "Search",
        paper="greedy",
        for_experts=False,
    )
    search_dtype: str = measured_option(
        "auto",
        "Compute dtype of statistics, search and distillation for a float32 model: auto (bfloat16 if the hardware is "
        "faster at it) or model (float32).",
        choices=("auto", "model"),
    )
    calibration: str | None = option(
        None,
        "How far to adapt the remaining weights; each choice adds a stage: none, ridge (ridge regression, layer by "
        "layer), layers (train each layer to reproduce the dense layer's output, with memory for one layer) or model "
        "(train the whole model to match the dense model's predictions).",
        "Calibration",
        paper="ridge",
        stage="calibration",
        default_text="model if it fits into memory, otherwise layers",
    )
    ridge_lambda: float = measured_option(
        0.01, "Penalty λ of ridge regression, relative to the mean diagonal of the Gram matrix.", paper=0.01
    )
    held_out_samples: int = measured_option(
        4,
        "Number of windows from the validation split, apart from the search windows, that decide which training "
        "stages are kept.",
        low=1,
    )
    batch_size: int = option(1, "Windows per forward pass.", "Resources", low=1)

    choice_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy is not None:
            object.__setattr__(self, "method", "given")
        super().__post_init__()

    @property
    def limits(self) -> dict[str, float]:
        """The limits on heads, channels and experts, by option."""
        names = [name for name in LIMITS if name != "vocabulary"]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return given or {"sparsity": 0.0 if self.vocabulary else DEFAULT_SPARSITY}

    @property
    def keeps_units(self) -> bool:
        """Whether only the vocabulary is pruned."""
        return self.policy is None and self.limits == {"sparsity": 0.0}

    @property
    def budget_name(self) -> str:
        """Name of the budget for folders: `20`, `6B`, `params-80`, `kv-50`, `1.3x` or `96-experts`."""
        forms, names = {"kv_cache": "kv-{}", "speedup": "{}x", "experts": "{}-experts", "vocabulary": "{}-tokens"}, []
        limits = {} if self.keeps_units else self.limits
        for limit, value in (limits | ({"vocabulary": self.vocabulary} if self.vocabulary else {})).items():
            if isinstance(value, str):
                names.append(f"{limit}-{value.rstrip('%')}")
                continue
            text = f"{100 * value:g}" if limit in ("sparsity", "kv_cache") else format_value(limit, value)
            names.append(forms.get(limit, "{}").format(text))
        return "-".join(names)

    @property
    def agent_name(self) -> str:
        """The agent, by default the one that can use the reward."""
        return self.agent or ("ppo" if self.reward == "pruned" else "gradient")

    def options_for(self, option: str, name: str, **decided: Any) -> Config | None:
        """Return the options of a choice, with values of the preset and those set; `None` if it has no options."""
        if (owner := options_of(option, name)) is None:
            return None
        given = {name: self.choice_options[name] for name in owner.option_names() if name in self.choice_options}
        return owner(**owner.preset_values(self.preset) | given | decided)

    @property
    def ignored(self) -> dict[str, str]:
        """Options that have no effect, with the condition on which they have one."""
        conditions = [
            ("sequences", "--memory is set", self.memory),
            ("context", "--memory or --kv-cache is set", self.memory or self.kv_cache),
            ("workload", "--speedup or --costs is set", self.speedup or self.costs),
            ("agent", "method is ffp", self.method in (None, "ffp")),
            ("held_out_samples", "calibration is layers or model", self.calibration not in ("none", "ridge")),
        ]
        searches = f"method is {' or '.join(SEARCHES)}", self.method in (None, *SEARCHES)
        conditions += [(name, *searches) for name in ("search_steps", "fall_back", "update_samples")]
        ignored = {name: condition for name, condition, is_met in conditions if not is_met}
        used = {"agent": None if "agent" in ignored else self.agent_name, "calibration": self.calibration or "model"}
        for kind, chosen in used.items():
            known = built_in_options(kind)
            own = known[chosen].option_names() if chosen in known else ()
            for name, owner in known.items():
                ignored |= dict.fromkeys({*owner.option_names()} - {*own, *ignored}, f"{kind} is {name}")
        return ignored

    def check(self) -> None:
        """Check combinations of options."""
        for name in ("sparsity", "kv_cache"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1:
                hint = f"; for {value:g} % pass {value / 100:g}" if 1 < value < 100 else ""
                raise FFPError(f"{name} must be a number between 0 and 1, found {value!r}{hint}")
        if self.vocabulary == "auto" and not (self.params or self.memory):
            raise FFPError("vocabulary auto needs a limit on the whole model; pass params or memory too")
        if self.workload:
            parse_workload(self.workload)
        if self.base_model and not (HUB_NAME.fullmatch(self.base_model) or os.path.exists(expand(self.base_model))):
            raise FFPError(f"base_model must be a Hub id such as Qwen/Qwen3-0.6B, found {self.base_model!r}")
        for is_refused, message in self._conflicts():
            if is_refused:
                raise FFPError(message)
        defaults = {"method": "ffp", "agent": self.agent_name, "calibration": "model"}
        for kind in KINDS:
            self.options_for(kind, getattr(self, kind) or defaults[kind])

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        """Yield whether options conflict, and how."""
        names = self.texts.names
        yield (
            min(self.num_samples, self.search_samples) < len(names),
            f"num_samples and search_samples must be at least {len(names)}, one window for each of "
            f"{', '.join(names)}, found {self.num_samples} and {self.search_samples}",
        )
        yield (
            self.min_retention > self.max_retention,
            f"min_retention {self.min_retention:g} is above max_retention {self.max_retention:g}",
        )
        decided = [*self.limits, "depth"] if self.depth != "none" else [*self.limits]
        sizes = [name for name in decided if name != "sparsity"]
        yield bool(self.policy and sizes), f"the policy determines the sizes; leave out {' and '.join(sizes)}"
        yield (
            self.method == "given" and not self.policy,
            "method 'given' needs a policy; pass a pruned folder as --policy (policy=...)",
        )
        yield (
            self.method in (None, "ffp")
            and self.agent_name == "gradient"
            and (self.mapping, self.reward) != ("curves", "compensated"),
            "agent 'gradient' needs mapping 'curves' and reward 'compensated'; change them, or choose agent 'ppo'",
        )
        yield (
            self.method == "homogeneous" and (self.attention == "auto" or self.depth == "sublayers"),
            "method 'homogeneous' needs the same parts in all layers; choose attention 'kv-groups' or 'query-heads', "
            "and depth 'layers' or 'none'",
        )
        yield (
            self.speedup is not None and (self.mapping != "curves" or self.method == "uniform"),
            "speedup needs mapping 'curves', and a method other than uniform",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all options and the version of optimum-ffp in JSON-ready form."""
        return super().to_dict() | dict(self.choice_options) | {"ffp_version": __version__}

    @classmethod
    def options_from_record(cls, record: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
        """Return the options in a record, which is itself the `policy` if its prune was given one."""
        if not isinstance(record.get("policy"), dict):
            return record
        is_given = record.get("method") == "given"
        return record | ({"policy": os.fspath(path), "method": None} if is_given else {"policy": None})
