"""Options of a prune, with their defaults and the values of the paper."""

import os
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from ..errors import FFPError
from ..version import __version__
from .budgets import LIMITS, format_value, parse_workload
from .fields import expand, named_options, option, read_file
from .texts import HUB_NAME, TextConfig


# Cost of a forward and backward pass in forward passes, used to count candidate evaluations and tokens.
GRADIENT_COST = 3
# Storage of the weights of layers that aren't running, fastest first.
OFFLOADS = ("none", "host", "disk")
# Workload that speed is measured on.
WORKLOAD = "512+32"

# Learning rates of the whole model relative to the size of its weights (`default_rate`), after ridge regression and
# after its layers were trained; and of adapters, which start at zero, whatever the size of the weights.
WEIGHT_RATE, TRAINED_RATE, ADAPTER_RATE = 7.8e-4, 5.2e-4, 5e-4
LORA_RANK = 32
# Sparsity from which training makes up for what a search gains: at 20 %, divergence is still 1.9 % lower after one.
TRAINING_SUFFICES = 0.25

# Options without a meaning for mixtures of experts, and what some of them are then.
NOT_FOR_EXPERTS = (
    *("kv_cache", "speedup", "costs", "method", "policy", "criterion", "attention", "depth", "min_retention"),
    *("max_retention", "rate_precision", "multiple_of", "agent", "search_steps", "mapping"),
)
FOR_EXPERTS = {"method": "homogeneous", "candidates": 1, "min_retention": 0.0, "reward": "pruned"}

SEQ_LEN_DEFAULT = "the model's maximum length, up to 2048"
SEARCHES = ("method", "ffp", "random", "evolutionary")
limit_option = partial(option, None, group="Budget", cli={"nargs": "+"})
measured_option = partial(option, stage="measured")
ppo_option = partial(option, when=("agent", "ppo"))
layer_option = partial(option, when=("calibration", "layers", "model"), stage="calibration")
model_option = partial(option, when=("calibration", "model"), stage="calibration")


@named_options
@dataclass(kw_only=True)
class FFPConfig(TextConfig):
    """Options of a prune, saved as `ffp_config.json`.

    Options that are not set take their values from the preset; `FFPConfig(preset="paper")` has the paper's settings. A
    *window* is a sequence of `seq_len` tokens. A *unit* is the attention or the FFN of a layer. A *group* is the
    smallest part that can be removed from a unit: a KV head with its query heads, one query head per KV head, or
    an FFN channel. A *candidate* is a pruned model that the search evaluates.

    Raises:
        FFPError: If a value is not allowed, or an option is unknown.
    """

    replaces = dict.fromkeys(LIMITS, (*LIMITS, "policy"))
    replaces |= {"policy": (*LIMITS, "depth"), "method": ("policy",), "agent": ("search_steps",)}
    replaces |= {"costs": ("workload",), "workload": ("costs",)}

    sparsity: float | None = limit_option(
        "Fraction of the attention and FFN parameters to remove, between 0 and 1; for a mixture of experts, fraction "
        "of the expert parameters. All budget options can be combined. On the command line, one of them can take "
        "several values: each writes a folder, with a plot of size against perplexity.",
        default_text="0.2, or none with another budget",
    )
    params: int | str | None = limit_option(
        "Maximum number of parameters, such as 600M or 6B.", low=1, cli={"nargs": "+", "metavar": "N"}
    )
    memory: int | str | None = limit_option(
        "Maximum memory for the weights and the KV cache together, such as 900MiB or 12GiB.",
        low=1,
        cli={"nargs": "+", "metavar": "BYTES"},
    )
    kv_cache: float | None = limit_option(
        "Maximum size of the KV cache as a fraction of the dense model's, between 0 and 1."
    )
    context: int | str = option(
        4096,
        "Tokens per sequence in the KV cache, such as 4096 or 32k (32768). Layers with a sliding window cache at most "
        "their window.",
        "Budget",
        low=1,
        when=("memory or kv_cache",),
        cli={"metavar": "TOKENS"},
    )
    sequences: int = option(1, "Number of sequences in the KV cache.", "Budget", low=1, when=("memory",))
    speedup: float | None = limit_option(
        "Minimum speed as a multiple of the dense model's, such as 1.3. Attention and FFNs of several sizes are timed "
        "first, on the device of the prune.",
        low=1,
    )
    experts: int | None = limit_option(
        "Maximum number of experts in every layer of a mixture of experts.",
        low=1,
    )
    workload: str | None = measured_option(
        None,
        "Workload to measure the speed on: prompt tokens + new tokens x sequences, such as 1024+200x8. 1024+0 "
        "measures the prompt alone, 1+200 decoding.",
        "Budget",
        default_text=f"the workload in costs, or {WORKLOAD}",
        when=("speedup or costs",),
    )
    costs: dict[str, Any] | str | None = option(
        None,
        "JSON file of measured times to reuse, or the ffp_config.json of a result. The file is written if it doesn't "
        "exist. With other budgets, a warning is printed if the prune saves little time.",
        "Budget",
        cli={"metavar": "FILE"},
    )
    dataset: str = measured_option(
        "wikitext2,c4",
        "Text to calibrate and search on, ideally similar to the text the model will be used on: wikitext2, c4, a Hub "
        "id, a .txt/.json/.jsonl/.parquet file (split into train, validation and test), a folder with train, "
        "validation and test files, self (text generated by the model; slow, so lower num_samples), or a mix of these "
        "with shares, such as wikitext2:0.5,c4:0.3,self:0.2.",
        "Common options",
        paper="wikitext2",
    )
    eval_dataset: str | None = measured_option(
        None,
        "Text to report perplexity on, in the same format as the dataset. Several texts, separated by commas, are "
        "reported separately.",
        "Data",
        default_text="the test split of the dataset, for each text of a mix except self",
        cli={"metavar": "DATASET"},
    )
    base_model: str | None = option(
        None,
        "Hub id of the dense model for the lineage and license in the model card, if the model is a local folder or a "
        ".gguf file. To prune a pruned model further, this can also be the folder or .gguf file of its dense model.",
        "Data",
        default_text="the model, if it is on the Hub",
        cli={"metavar": "ID"},
    )
    text_column: str | None = measured_option(
        None,
        "Dataset column with texts, or with conversations to render with the chat template.",
        "Data",
        default_text="the first nonempty of text, messages, conversations, content, document, or prompt with "
        "completion",
        cli={"metavar": "NAME"},
    )
    seq_len: int | None = measured_option(
        None,
        "Tokens per window (2048 in the paper).",
        "Data",
        low=2,
        default_text=SEQ_LEN_DEFAULT,
    )
    start_token: str = measured_option(
        "auto",
        "Whether the first token of every window is the start token: auto (if the tokenizer adds one) or never (as in "
        "most published WikiText-2 perplexities).",
        choices=("auto", "never"),
    )
    num_samples: int = measured_option(
        128, "Number of windows to calibrate on, from the train split.", "Data", low=1, paper=32, fast=32
    )
    search_samples: int = measured_option(
        28, "Number of windows to compare candidates on, from the validation split.", "Data", low=1, paper=4
    )
    eval_samples: int | None = measured_option(
        None,
        "Number of windows per text to report perplexity on, from the test split.",
        "Data",
        low=1,
        default_text="all of the test split, or the first 100 if the text has none",
    )
    method: str | None = option(
        None,
        "How to choose the number of heads and channels per layer: ffp (loss-guided search), no-search (from layer "
        "measurements), uniform (the same fraction in every layer), homogeneous (exactly the same number in every "
        "layer, so that the checkpoint needs no custom code), given (by a policy), or the baselines random and "
        "evolutionary.",
        "Pruning",
        choices="search.methods",
        fast="no-search",
        default_text=f"ffp, or no-search if weights are trained and at least {TRAINING_SUFFICES:g} is removed",
    )
    policy: str | None = option(
        None,
        "Policy to use instead of a search: a pruned model (folder or Hub id), or a JSON file with a list of units as "
        "in ffp_config.json. The policy determines the sparsity.",
        "Pruning",
        cli={"metavar": "POLICY"},
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
        choices="analysis.criteria",
        paper="wanda",
    )
    expert_criterion: str = measured_option(
        "reap",
        "How to rank the experts of a mixture: reap (gate times output norm, averaged over the expert's tokens) or "
        "loss (increase of the loss when the expert's tokens are routed to others; slower).",
        "Pruning",
        choices=("reap", "loss"),
    )
    attention: str | None = measured_option(
        None,
        "What to remove from attention: kv-groups (KV heads with their query heads), query-heads (the same number of "
        "query heads per KV head) or auto (whichever has the lower loss curve, per layer). Models with a single KV "
        "head, or one per query head, allow only one of them. OLMo's attention is not pruned.",
        "Pruning",
        choices=("auto", "kv-groups", "query-heads"),
        paper="kv-groups",
        default_text="auto, or kv-groups with method homogeneous or a limit on the KV cache",
    )
    depth: str = option(
        "none",
        "What can be removed entirely, regardless of min_retention, if that costs less than removing heads and "
        "channels: none, layers (the checkpoint has fewer; also with method homogeneous) or sublayers (the attention "
        "or the FFN of a layer). The number removed is the one with the lowest loss.",
        "Pruning",
        choices=("none", "layers", "sublayers"),
    )
    min_retention: float = option(
        0.2, "Minimum fraction of heads or FFN channels to keep in a layer.", "Pruning", high=1
    )
    max_retention: float = option(1.0, "Maximum fraction of heads or FFN channels to keep in a layer.", high=1)
    rate_precision: float | None = option(
        None, "Step size to round retentions to.", high=1, paper=0.01, default_text="no rounding"
    )
    multiple_of: int | None = measured_option(
        None,
        "Round FFN widths to multiples of this number of channels, for example 128 times the number of devices for "
        "FP8 blocks or Marlin kernels.",
        "Pruning",
        low=1,
        paper=1,
        default_text="256 or 32 (llama.cpp block sizes) if that leaves at least 32 steps, otherwise 1",
    )
    relative_outputs: bool = measured_option(
        True,
        "Whether to weight tokens by the inverse norm of a unit's output, in families that normalize that output.",
        paper=False,
    )
    first_tokens: int = measured_option(
        32,
        "Read every n-th calibration token also as the first token of a text, unless texts have a start token; 0 to "
        "disable. Many models give the first token a massive activation that attention relies on.",
        paper=0,
    )
    fisher_samples: int = measured_option(
        32,
        "Number of calibration windows for the backward pass that estimates the Fisher matrix.",
        "Pruning",
        low=1,
        fast=16,
    )
    seed: int = measured_option(0, "Random seed.", "Pruning", high=2**32 - 1)
    agent: str | None = option(
        None,
        "Search algorithm of method ffp: gradient (gradient descent on the loss) or ppo (the paper's).",
        "Search",
        choices="search.agents",
        paper="ppo",
        when=("method", "ffp"),
        default_text="gradient, or ppo with reward pruned",
    )
    search_steps: int | None = option(
        None,
        "Number of candidates (pruned models) to evaluate; a candidate with a backward pass counts as three.",
        "Search",
        low=1,
        paper=1000,
        when=SEARCHES,
        default_text="26, or 256 with agent ppo",
    )
    fall_back: bool = option(
        True,
        "Whether to compare the finalists of a search with the uniform and no-search policies, and use the best of "
        "them.",
        paper=False,
        when=SEARCHES,
    )
    candidates: int = option(
        8,
        "Number of candidates per update (agent ppo), per batch (method random or evolutionary) or in total (method "
        "homogeneous).",
        low=1,
    )
    update_samples: int = option(
        4,
        "Number of search windows per update of the agent, or per candidate of random and evolutionary search. "
        "Updates cycle through the search windows.",
        low=1,
        when=SEARCHES,
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
        choices="allocation.mappings",
        paper="greedy",
    )
    search_dtype: str = measured_option(
        "auto",
        "Compute dtype of statistics, search and distillation for a float32 model: auto (bfloat16 if the hardware is "
        "faster at it) or model (float32).",
        choices=("auto", "model"),
    )
    learning_rate: float = ppo_option(3e-3, "Learning rate of PPO.", paper=1e-4)
    alpha_start: float = ppo_option(
        1.0,
        "Fraction of the sparsity and of the search windows at the start of PPO's progressive schedule; 1 disables "
        "the schedule.",
        high=1,
        paper=0.3,
    )
    action_std: float = ppo_option(
        0.1,
        "Initial standard deviation of PPO's actions; a warm start uses the loaded agent's.",
        low=1e-6,
        paper=1.0,
    )
    clip_range: float = ppo_option(
        0.2, "Clip range of PPO, which limits how much the policy changes per update.", high=1, paper=0.2
    )
    hidden_sizes: tuple[int, ...] = ppo_option(
        (256, 128), "Widths of the hidden layers of PPO's network.", low=1, paper=(256, 128)
    )
    calibration: str | None = option(
        None,
        "How far to adapt the remaining weights; each choice adds a stage: none, ridge (ridge regression, layer by "
        "layer), layers (train each layer to reproduce the dense layer's output, with memory for one layer) or model "
        "(train the whole model to match the dense model's predictions).",
        "Calibration",
        choices="compression.calibrations",
        paper="ridge",
        stage="calibration",
        default_text="model if it fits into memory (with lora 32, if peft is installed), otherwise layers",
    )
    ridge_lambda: float = measured_option(
        0.01, "Penalty λ of ridge regression, relative to the mean diagonal of the Gram matrix.", paper=0.01
    )
    held_out_samples: int = measured_option(
        4,
        "Number of windows from the validation split, apart from the search windows, that decide which training "
        "stages are kept.",
        low=1,
        when=("calibration", "layers", "model"),
    )
    distillation_passes: int | None = layer_option(
        None,
        "Number of passes over the calibration windows to train the layers.",
        fast=0,
        best=2,
        default_text="2, or 1 with calibration model",
    )
    distillation_rate: float = layer_option(
        0.01, "Learning rate for training the layers, relative to the size of the weights."
    )
    train_seq_len: int = layer_option(
        512,
        "Minimum tokens per training window: calibration windows are split into equal parts of at least this length. "
        "Shorter windows mean more steps and less time in attention.",
        low=2,
    )
    model_passes: int = model_option(
        1, "Number of passes over the calibration windows to train the whole model.", "Calibration", low=1, best=2
    )
    model_rate: float | None = model_option(
        None,
        "Peak learning rate for training the whole model.",
        default_text=f"{WEIGHT_RATE:g} × RMS of the weights, {TRAINED_RATE:g} × after layers, "
        f"{ADAPTER_RATE:g} with lora",
    )
    lora: int | None = model_option(
        None,
        "Train the whole model with LoRA adapters of this rank (32 if no number is given) and merge them; needs peft. "
        "0 trains the weights themselves.",
        "Calibration",
        default_text=f"0, or {LORA_RANK} if only that fits into memory",
        cli={"nargs": "?", "const": LORA_RANK},
    )
    batch_size: int = option(1, "Windows per forward pass.", "Resources", low=1)

    def __post_init__(self) -> None:
        if self.policy is not None:
            self.method = "given"
        # Its name in earlier versions.
        self.calibration = "layers" if self.calibration == "distillation" else self.calibration
        super().__post_init__()

    @property
    def needs_fishers(self) -> bool:
        """Whether Fisher matrices are estimated, which needs a backward pass."""
        return self.mapping == "curves" or is_fisher_weighted(self.criterion)

    @property
    def needs_factors(self) -> bool:
        """Whether Gram matrices of all units are factored for ridge regression."""
        return self.calibration != "none" or self.reward != "pruned" or self.mapping == "curves"

    @property
    def trains(self) -> bool:
        """Whether calibration trains weights, as it does by default."""
        return self.calibration not in ("none", "ridge")

    def with_method(self, removed: float) -> "FFPConfig":
        """Return the config; unless a method is given, without a search if training makes up for what it would gain.

        Args:
            removed: Fraction that the budget removes (`Budget.sparsity`).
        """
        # The threshold is a fraction of the blocks, not of the KV cache.
        is_default = self.preset != "paper" and not self.agent and not self.kv_cache
        skips = self.method is None and self.trains and is_default and removed >= TRAINING_SUFFICES
        return replace(self, method="no-search") if skips else self

    def for_experts(self) -> "FFPConfig":
        """Return the config for a mixture, whose layers all lose the same number of experts, without a search.

        Raises:
            FFPError: If an option is given that has no meaning for a mixture.
        """
        if FOR_EXPERTS.items() <= vars(self).items():
            return self
        defaults = {field.name: field.default for field in fields(self)} | self.preset_values(self.preset)
        given = [
            name for name in NOT_FOR_EXPERTS if getattr(self, name) not in (defaults[name], FOR_EXPERTS.get(name))
        ]
        if given:
            raise FFPError(
                f"every layer of a mixture of experts loses the same number of experts; leave out {given[0]}"
            )
        return replace(self, **FOR_EXPERTS)

    @property
    def limits(self) -> dict[str, float]:
        """The limits of the budget that are given, by option."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}

    @property
    def cost_table(self) -> dict[str, Any] | None:
        """The measured times, as returned by `measure_costs`; `None` if there are none yet.

        Raises:
            FFPError: If the file has none.
        """
        if isinstance(self.costs, dict):
            return self.costs
        if self.costs is None or not os.path.exists(expand(self.costs)):
            return None
        record = read_file(self.costs)
        if "units" not in (table := record.get("costs") or record):
            raise FFPError(f"{self.costs} has no measured times; pass a result of a prune with speedup, or a new file")
        return table

    @property
    def budget_name(self) -> str:
        """Name of the budget for folders: `20`, `6B`, `12GiB`, `kv-50`, `1.3x` or `96-experts`."""
        names = []
        for limit, value in self.resolve().limits.items():
            text = f"{100 * value:g}" if limit in ("sparsity", "kv_cache") else format_value(limit, value)
            suffix = {"speedup": "x", "experts": "-experts"}.get(limit, "")
            names.append(f"kv-{text}" if limit == "kv_cache" else text + suffix)
        return "-".join(names)

    @property
    def compares_policies(self) -> bool:
        """Whether policies are measured on the search windows."""
        is_alone = self.method == "homogeneous" and self.candidates == 1
        return not is_alone and self.method not in ("no-search", "uniform", "given")

    @property
    def distillation_parts(self) -> int:
        """Number of distillation windows per calibration window, if `seq_len` is set."""
        return max(1, self.seq_len // self.train_seq_len)

    @property
    def layer_passes(self) -> int:
        """Number of passes that train the layers, with the default of the calibration."""
        if self.calibration == "model":
            return 1 if self.distillation_passes is None else self.distillation_passes
        # With `fast`, which trains no layers before the whole model, nothing would be trained.
        return self.distillation_passes or 2

    @property
    def reports_searched(self) -> bool:
        """Whether to report perplexity before calibration; not if the search optimizes compensated candidates."""
        return self.reward == "pruned" or self.calibration == "none"

    def derived(self) -> dict[str, Any]:
        """Return the defaults that are derived from other options, and from the file of `costs`."""
        workload = (self.cost_table or {}).get("workload", self.workload or WORKLOAD)
        if self.workload and parse_workload(self.workload) != parse_workload(workload):
            raise FFPError(f"costs were measured on workload {workload}, found {self.workload}; leave out one of them")
        agent = self.agent or ("ppo" if self.reward == "pruned" else "gradient")
        removes_heads = self.method == "homogeneous" or self.memory or self.kv_cache
        return ({} if self.limits else {"sparsity": 0.2}) | {
            "agent": agent,
            "method": "ffp",
            "attention": "kv-groups" if removes_heads else "auto",
            "workload": workload,
            "search_steps": 256 if agent == "ppo" else 26,
        }

    def check(self) -> None:
        """Check combinations of options, after derived defaults are filled in."""
        for name in ("sparsity", "kv_cache"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1:
                hint = f"; for {value:g} % pass {value / 100:g}" if 1 < value < 100 else ""
                raise FFPError(f"{name} must be a number between 0 and 1, found {value!r}{hint}")
        if self.policy and (given := self.limits.keys() - {"sparsity"}):
            raise FFPError(f"the policy determines the sizes; leave out {' and '.join(sorted(given))}")
        if self.base_model and not (HUB_NAME.fullmatch(self.base_model) or os.path.exists(expand(self.base_model))):
            raise FFPError(f"base_model must be a Hub id such as Qwen/Qwen3-0.6B, found {self.base_model!r}")
        names = self.texts.names
        if min(self.num_samples, self.search_samples) < len(names):
            raise FFPError(
                f"num_samples and search_samples must be at least {len(names)}, one window for each of "
                f"{', '.join(names)}, found {self.num_samples} and {self.search_samples}"
            )
        if self.method == "ffp" and self.agent == "gradient":
            if self.mapping != "curves":
                raise FFPError(
                    f"agent 'gradient' needs mapping 'curves', found {self.mapping!r}; or choose agent 'ppo'"
                )
            if self.reward != "compensated":
                raise FFPError("agent 'gradient' needs reward 'compensated'; or choose agent 'ppo'")
        check_lora(self.lora)
        if self.method == "given" and not self.policy:
            raise FFPError("method 'given' needs a policy, such as a pruned folder; pass it as --policy (policy=...)")
        if self.method == "homogeneous" and self.attention == "auto":
            raise FFPError(
                "method 'homogeneous' needs the same kind of group in all layers; choose attention 'kv-groups' or "
                "'query-heads'"
            )
        if self.method == "homogeneous" and self.depth == "sublayers":
            raise FFPError("method 'homogeneous' needs the same parts in all layers; choose depth 'layers' or 'none'")
        if self.speedup and (self.mapping != "curves" or self.method == "uniform"):
            raise FFPError("speedup needs mapping 'curves', and a method other than uniform")
        if self.policy and self.depth != "none":
            raise FFPError(f"the policy determines what is removed entirely; leave out depth {self.depth!r}")
        if self.min_retention > self.max_retention:
            raise FFPError(f"min_retention {self.min_retention:g} is above max_retention {self.max_retention:g}")

    def to_dict(self) -> dict[str, Any]:
        """Return all options and the version of optimum-ffp in JSON-ready form."""
        return super().to_dict() | {"ffp_version": __version__}

    @classmethod
    def options_from_record(cls, record: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
        """Return the options in a record, which is itself the `policy` if its prune was given one."""
        options = dict(record)
        if isinstance(options.get("policy"), dict):
            is_given = options.get("method") == "given"
            options |= {"policy": os.fspath(path), "method": None} if is_given else {"policy": None}
        # Other keys of a record are results and options of earlier versions.
        is_result = "ffp_version" in record
        return {name: value for name, value in options.items() if not is_result or name in cls.option_names()}


# Function that a module must define to be a choice of these options; `search` for others.
FUNCTIONS = {"criterion": "score", "mapping": "map_scores", "calibration": "calibrate"}


def find_choice(option: str, name: str) -> ModuleType:
    """Import the module of a choice, on demand because stable-baselines3 (PPO) takes seconds.

    Args:
        option: An option whose choices are modules.
        name: One of its choices, or the dotted name of a module of another package.

    Raises:
        FFPError: If a module of another package can't be imported, or lacks the function for this option.
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


def check_lora(rank: int | None) -> None:
    """Raise `FFPError` if adapters are to be trained and peft is not installed."""
    if rank and find_spec("peft") is None:
        raise FFPError("lora needs the peft package: pip install peft")


def is_fisher_weighted(criterion: str) -> bool:
    """Return whether a criterion weights by the root of the Fisher matrix, which its name says."""
    return criterion.rpartition(".")[2].startswith(("fisher-", "fisher_"))
