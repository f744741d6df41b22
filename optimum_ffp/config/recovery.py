"""All options of a recovery."""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import FFPError
from .fields import Config, named_options, option, same_as
from .prune import SEQ_LEN_DEFAULT, FFPConfig
from .texts import TextMix


# Largest number of tokens per step by preset.
BATCH_TOKENS = {"quick": 8_192, "standard": 131_072, "full": 1_048_576}
# Steps that fewer tokens than a preset's are divided into, if a step is left a window. With few tokens the number of
# steps counts: of SmolLM2, 49 steps of 1,024 tokens lowered the divergence by 11 %, and 49 of 2,048 by 13 %.
STEPS = 200
# Learning rate of weights, and of adapters, which begin at zero.
WEIGHT_RATE, ADAPTER_RATE = 1e-4, 5e-4
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def read_tokens(value: str | int) -> int:
    """Return the number of tokens of a text such as `400k`, `2M` or `1.5B`.

    Raises:
        FFPError: If it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", str(value).replace(",", "").replace("_", "").lower())
    if not match:
        raise FFPError(f"a number of tokens is written as 400k, 2M, 1.5B or 2000000; found {value!r}")
    return round(float(match[1]) * UNITS[match[2]])


@named_options
@dataclass(kw_only=True)
class RecoveryConfig(Config):
    """Options of `FFPRecovery` and `optimum-cli ffp recover`.

    Raises:
        FFPError: If a value is not allowed, or `lora` is asked for without peft.
    """

    dataset: str | None = option(
        None,
        "Text to train on: c4, wikitext2, a Hub id, a .txt/.json/.jsonl/.parquet file, a folder with train, "
        "validation and test files, or self (text that the dense model writes); or a mix of them with the share of "
        "each, such as text.jsonl:0.5,chats.jsonl:0.5.",
        "Common options",
        shown="the text that the model was pruned on, if it is a long one of the Hub, otherwise c4",
    )
    preset: str = option(
        "quick",
        "How much to train, in tokens: quick 2,000,000, standard 100,000,000, full 2,000,000,000.",
        "Common options",
        choices=tuple(BATCH_TOKENS),
    )
    max_tokens: int | str = option(
        2_000_000,
        "Number of tokens to train on, such as 400k, 2M or 1B; rounded up to whole steps.",
        "Common options",
        low=1,
        presets={"standard": 100_000_000, "full": 2_000_000_000},
        shown="the preset's",
        cli={"metavar": "TOKENS"},
    )
    eval_dataset: str | None = same_as(FFPConfig, "eval_dataset")
    text_column: str | None = same_as(FFPConfig, "text_column")
    seq_len: int | None = option(
        None,
        "Tokens per window; all text is packed into windows.",
        "Data",
        low=2,
        shown=f"{SEQ_LEN_DEFAULT}; with few tokens or many processes down to 512",
    )
    start_token: str | None = option(
        None,
        "Whether windows begin with a start token: auto (if the tokenizer adds one) or never.",
        choices=("auto", "never"),
        shown="as in the prune if its text is taken over, otherwise auto",
    )
    held_out_samples: int = option(
        16, "Number of windows, from the validation split, to follow the training on.", low=1
    )
    eval_samples: int | None = same_as(FFPConfig, "eval_samples")
    learning_rate: float | None = option(
        None,
        "Largest learning rate of AdamW.",
        "Training",
        shown=f"{WEIGHT_RATE:g}, or {ADAPTER_RATE:g} with adapters",
    )
    batch_tokens: int | str | None = option(
        None,
        "Tokens per step, of all processes together; rounded to whole windows.",
        "Training",
        low=1,
        presets=dict.fromkeys(BATCH_TOKENS),
        shown="the preset's, but at most 1/200 of max_tokens",
        cli={"metavar": "TOKENS"},
    )
    warmup_ratio: float = option(
        0.1, "Share of the steps over which the learning rate rises, before it falls along a cosine to 0.", high=1
    )
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = option(1.0, "Norm that gradients are clipped to.")
    temperature: float = option(1.0, "Temperature of the distributions that are compared.", low=0.1)
    label_share: float = option(
        0.0, "Share of the language-model loss on the text itself in the loss, 0 to 1.", high=1
    )
    evaluations: int = option(10, "Number of evaluations on the held-out windows, each with a checkpoint.", low=1)
    patience: int | None = option(
        None,
        "End after this number of evaluations without a smaller loss on the held-out windows.",
        low=1,
        shown="train to the end",
    )
    seed: int = option(0, "Random seed.", "Training", high=2**32 - 1)
    lora: int = option(
        0,
        "Train LoRA adapters of this rank (32 without a number), which are merged, in place of all weights; needs "
        "peft.",
        "Training",
        shown="0, all weights",
        cli={"nargs": "?", "const": 32},
    )
    batch_size: int = option(1, "Windows per forward pass of a process.", "Resources", low=1)
    bf16: bool | None = option(
        None,
        "Whether to compute in bfloat16, with weights in float32.",
        "Resources",
        shown="if the hardware is faster at it",
    )
    gradient_checkpointing: bool = option(
        False, "Whether to run layers again in the backward pass, to save memory.", "Resources"
    )

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_tokens"):
            if getattr(self, name) is not None:
                setattr(self, name, read_tokens(getattr(self, name)))
        super().__post_init__()

    @property
    def texts(self) -> TextMix:
        """Texts to train on, where they are named."""
        return TextMix.parse(self.dataset)

    @property
    def reported(self) -> TextMix:
        """Texts to report perplexity on."""
        return TextMix.parse(self.eval_dataset) if self.eval_dataset else self.texts.reported

    def derived(self) -> dict[str, Any]:
        """Return the defaults that follow other options."""
        return {
            "learning_rate": ADAPTER_RATE if self.lora else WEIGHT_RATE,
            "batch_tokens": min(BATCH_TOKENS[self.preset], max(1, self.max_tokens // STEPS)),
        }

    def check(self) -> None:
        """Check what no option can be checked for alone; all are resolved."""
        if self.lora and find_spec("peft") is None:
            raise FFPError("adapters need the peft package: pip install peft")
        if self.dataset is not None:
            TextMix.parse(self.dataset)
        if self.eval_dataset is not None and TextMix.parse(self.eval_dataset).written:
            raise FFPError("eval_dataset self says little: the text is the model's own; name another dataset")

    @classmethod
    def of_record(cls, record: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
        """Return the options of the last recovery, if it is the record of a result."""
        if "policy" not in record:
            return record
        if not record.get("recovery"):
            raise FFPError(f"{path} is the record of a prune alone; name the ffp_config.json of a recovered model")
        options = record["recovery"][-1]["options"]
        return {name: value for name, value in options.items() if name in cls.option_names()}
