"""Options of training a whole model to match the dense model's predictions."""

from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import FFPError
from .fields import Config, option


# Learning rates relative to the size of the weights (`default_rate`), after ridge regression and after the layers were
# trained; and of adapters, which start at zero, whatever the size of the weights.
WEIGHT_RATE, TRAINED_RATE, ADAPTER_RATE = 7.8e-4, 5.2e-4, 5e-4
LORA_RANK = 32


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Config):
    """Options of a recovery, or of the calibration `model`."""

    warmup_ratio: float = option(0.1, "Fraction of the steps for linear warmup, before cosine decay to 0.", high=1)
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = option(1.0, "Maximum gradient norm for clipping.")
    temperature: float = option(1.0, "Temperature of both distributions in the divergence.", low=0.1)
    label_share: float = option(0.0, "Weight of the language modeling loss in the total loss, 0 to 1.", high=1)
    evaluations: int = option(
        10, "Number of evaluations on the held-out windows, each of which saves a checkpoint.", low=1
    )
    patience: int | None = option(
        None,
        "Stop after this number of evaluations without improvement on the held-out windows.",
        low=1,
    )
    seed: int = option(0, "Random seed.", "Training", high=2**32 - 1)
    lora: int = option(
        0,
        "Train LoRA adapters of this rank (32 if no number is given) and merge them, instead of training all weights; "
        "needs peft.",
        "Training",
        cli={"nargs": "?", "const": LORA_RANK},
    )
    gradient_checkpointing: bool = option(
        False, "Whether to recompute activations in the backward pass to save memory.", "Resources"
    )


def check_lora(rank: int | None) -> None:
    """Raise `FFPError` if adapters are to be trained and peft is not installed."""
    if rank and find_spec("peft") is None:
        raise FFPError("lora needs the peft package: pip install peft")
