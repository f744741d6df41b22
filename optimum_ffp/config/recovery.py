"""Options of a recovery. Imports nothing heavy."""

import os
import re
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Any

from ..errors import FFPError
from .fields import CHOICES, check_choices, check_numbers, read_file, read_names
from .texts import TextMix


# Number of tokens and tokens per step by preset.
PRESETS = {
    "quick": {"max_tokens": 2_000_000, "batch_tokens": 8_192},
    "standard": {"max_tokens": 100_000_000, "batch_tokens": 131_072},
    "full": {"max_tokens": 2_000_000_000, "batch_tokens": 1_048_576},
}
# Steps that fewer tokens than a preset's are divided into, if a step is left a window. With few tokens the number of
# steps counts: of SmolLM2, 49 steps of 1,024 tokens lowered the divergence by 11 %, and 49 of 2,048 by 13 %.
STEPS = 200
# Learning rate of weights, and of adapters, which begin at zero.
WEIGHT_RATE, ADAPTER_RATE = 1e-4, 5e-4
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def read_tokens(value: str | int) -> int:
    """Number of tokens of a text such as `400k`, `2M` or `1.5B`.

    Raises:
        FFPError: If it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", str(value).replace(",", "").replace("_", "").lower())
    if not found:
        raise FFPError(f"a number of tokens is written as 400k, 2M, 1.5B or 2000000; found {value!r}")
    return round(float(found[1]) * UNITS[found[2]])


@dataclass(kw_only=True)
class RecoveryConfig:
    """Options of `FFPRecovery` and `optimum-cli ffp recover`.

    Attributes:
        dataset: Text to train on, or a mix, as for `FFPConfig`. `self` is text that the dense model writes. `None` is
            the text of the prune if all of it is on the Hub, and none of it the short WikiText-2, and otherwise `c4`.
        eval_dataset: Texts to report perplexity on; those of `dataset` that the model doesn't write if `None`.
        text_column: Column of a dataset to read; one of a known name if `None`, or else `prompt` with `completion`.
        start_token: Whether windows begin with the start token: `"auto"` (if the tokenizer adds one) or `"never"`; as
            in the prune if its text is taken over and `None` is given (default), otherwise `"auto"`.
        preset: Defaults of the number of tokens and the tokens per step: `"quick"`, `"standard"` or `"full"`
            (`PRESETS`).
        max_tokens: Number of tokens to train on, as a number or as `"2M"`. Rounded up to whole steps.
        batch_tokens: Tokens per step of the optimiser, of all processes; the preset's if `None`, or fewer, so that
            there are `STEPS` steps. Rounded to whole windows.
        learning_rate: Largest learning rate of AdamW; 1e-4, or 5e-4 for adapters, if `None`.
        warmup_ratio: Share of the steps over which the learning rate rises; then it falls along a cosine to 0.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Norm that gradients are clipped to.
        temperature: Temperature of both distributions in the divergence.
        label_share: Share of the language-model loss in the loss, 0 to 1.
        seq_len: Tokens per window; the model's maximum length up to 2048 if `None`, or where steps have fewer tokens
            up to theirs, but at least 512.
        batch_size: Windows per forward pass of a process.
        lora: Rank of LoRA adapters, which are trained in place of the weights and merged into them; 0 for none.
        bf16: Whether to compute in bfloat16 (weights stay in float32); where the hardware is faster at it if `None`.
        gradient_checkpointing: Whether layers run again in the backward pass, in place of keeping what they computed.
        evaluations: Number of evaluations on held-out windows, and of checkpoints, in the course of the training.
        held_out_samples: Number of held-out windows.
        patience: Evaluations without a smaller loss on held-out windows after which the training ends; `None` trains
            to the end. The weights with the smallest loss are kept in any case.
        eval_samples: Number of test windows of each text; if `None` all of a test split, and the first 100 of a text
            without one.
        seed: Random seed.

    Raises:
        FFPError: If a value is not allowed, or `lora` is asked for without peft.
    """

    dataset: str | None = None
    eval_dataset: str | None = None
    text_column: str | None = None
    start_token: str | None = None
    preset: str = "quick"
    max_tokens: int | str | None = None
    batch_tokens: int | str | None = None
    learning_rate: float | None = None
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    label_share: float = 0.0
    seq_len: int | None = None
    batch_size: int = 1
    lora: int = 0
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    evaluations: int = 10
    held_out_samples: int = 16
    patience: int | None = None
    eval_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self, {"preset": (*PRESETS,)})
        if self.start_token is not None:
            check_choices(self, {"start_token": CHOICES["start_token"]})
        self.max_tokens = read_tokens(self._given_or("max_tokens", PRESETS[self.preset]["max_tokens"]))
        most = min(PRESETS[self.preset]["batch_tokens"], max(1, self.max_tokens // STEPS))
        self.batch_tokens = read_tokens(self._given_or("batch_tokens", most))
        self.learning_rate = self._given_or("learning_rate", ADAPTER_RATE if self.lora else WEIGHT_RATE)
        check_numbers(
            self, int, 1, None, "max_tokens", "batch_tokens", "batch_size", "evaluations", "held_out_samples"
        )
        check_numbers(self, int, 0, None, "lora")
        check_numbers(self, int, 0, 2**32 - 1, "seed")
        check_numbers(self, float, 0, None, "learning_rate", "weight_decay", "max_grad_norm")
        check_numbers(self, float, 0, 1, "warmup_ratio", "label_share")
        check_numbers(self, float, 0.1, None, "temperature")
        for name, least in {"seq_len": 2, "patience": 1, "eval_samples": 1}.items():
            if getattr(self, name) is not None:
                check_numbers(self, int, least, None, name)
        if self.lora and find_spec("peft") is None:
            raise FFPError("adapters need the peft package: pip install peft")
        read_names(self, "dataset", "eval_dataset", "text_column")
        if self.dataset is not None:
            TextMix.parse(self.dataset)
        if self.eval_dataset is not None and TextMix.parse(self.eval_dataset).written:
            raise FFPError("eval_dataset self says little: the text is the model's own; name another dataset")

    @property
    def texts(self) -> TextMix:
        """Texts to train on, where they are named."""
        return TextMix.parse(self.dataset)

    @property
    def reported(self) -> TextMix:
        """Texts to report perplexity on."""
        return TextMix.parse(self.eval_dataset) if self.eval_dataset else self.texts.reported

    def _given_or(self, name: str, default: Any) -> Any:
        found = getattr(self, name)
        return default if found is None else found

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of all options."""
        return [field.name for field in fields(cls)]

    @classmethod
    def from_file(cls, path: str | os.PathLike, **overrides: Any) -> "RecoveryConfig":
        """Reads options from a JSON file, or those of the last recovery from the `ffp_config.json` of a result.

        Args:
            path: Path of the file.
            overrides: Options that replace those of the file. `preset` replaces both numbers of tokens. The tokens per
                step follow `max_tokens`, and the learning rate `lora`, unless the file has others than the defaults.

        Raises:
            FFPError: If the file can't be read, or isn't an object of known options or the record of a recovery.
        """
        options = read_file(path)
        records = options.get("recovery")
        if isinstance(records, list) and records and isinstance(records[-1], dict):
            options = records[-1].get("options") or options
        if {"ffp_version", "policy"} <= options.keys():
            raise FFPError(f"{path} is the record of a prune alone; name the ffp_config.json of a recovered model")
        unknown = sorted(set(options) - set(cls.option_names()))
        if unknown:
            raise FFPError(f"RecoveryConfig has no {', '.join(unknown)}; it has {', '.join(cls.option_names())}")
        told = {name: options[name] for name in ("preset", "max_tokens") if name in options}
        rate = ADAPTER_RATE if options.get("lora") else WEIGHT_RATE
        derived = {"batch_tokens": cls(**told).batch_tokens, "learning_rate": rate}
        replaced = {name for name, value in derived.items() if options.get(name) == value}
        replaced |= {"max_tokens", "batch_tokens"} if "preset" in overrides else set()
        return cls(**{name: value for name, value in options.items() if name not in replaced} | overrides)

    def to_dict(self) -> dict[str, Any]:
        """All options, with those of the preset."""
        return asdict(self)

    def stated(self) -> dict[str, Any]:
        """The options that differ from the defaults of the preset, and the seed."""
        defaults = RecoveryConfig(preset=self.preset, lora=self.lora, max_tokens=self.max_tokens).to_dict() | {
            "preset": RecoveryConfig.preset,
            "lora": RecoveryConfig.lora,
            "max_tokens": PRESETS[self.preset]["max_tokens"],
            # What it is without an option, where the text is named.
            "start_token": None if self.dataset is None else "auto",
            "seed": None,
        }
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}
