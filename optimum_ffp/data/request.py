"""Texts, and number and length of the windows to read of them."""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..config import RecoveryPlan
from ..config.prune import MAX_DEFAULT_LENGTH
from ..config.texts import TextMix
from ..errors import FFPError
from ..plan import Plan


# Maximum channels of the widest unit per calibration token; beyond that, the Gram matrix is meaningless.
CHANNELS_PER_TOKEN = 16


@dataclass(frozen=True)
class DataRequest:
    """Texts, and the number and length of windows by role.

    Attributes:
        texts: Texts for all roles but the test.
        reported: Texts to report on separately.
        length: Tokens per window.
        test: Number of test windows of each text, the first ones; `None` for all of a test split, or 100 of a text
            without one.
        seed: Random seed for the choice of all other windows.
        calibration, search, held_out: Number of these windows.
        text_column: Column of a dataset to read; one of a known name if `None`.
        start_token: Whether windows begin with the start token: `"auto"` or `"never"`.
        token: Access token of the Hub.
    """

    texts: TextMix
    reported: TextMix
    length: int
    test: int | None
    seed: int
    calibration: int = 0
    search: int = 0
    held_out: int = 0
    text_column: str | None = None
    start_token: str = "auto"
    token: str | None = None

    @classmethod
    def of(cls, plan: Plan | RecoveryPlan, length: int, token: str | None = None, **windows: int) -> "DataRequest":
        """Create the request for windows of `length`, with the number of `windows` by role."""
        return cls(
            texts=plan.texts,
            reported=plan.reported,
            length=length,
            held_out=plan.held_out_samples,
            test=plan.eval_samples,
            seed=plan.seed,
            text_column=plan.text_column,
            start_token=plan.start_token,
            token=token,
            **windows,
        )

    @classmethod
    def of_prune(cls, plan: Plan, token: str | None = None) -> "DataRequest":
        """Create the request of a prune."""
        return cls.of(plan, plan.seq_len, token, calibration=plan.num_samples, search=plan.search_samples)

    @property
    def generated(self) -> int:
        """Number of windows that the model generates."""
        divided = [self.texts.divide(count) for count in (self.calibration, self.search, self.held_out)]
        generated = [text.name for text in self.texts if text.is_generated]
        return (
            sum(counts.get(name, 0) for counts in divided for name in generated)
            + self.generated_tests * self.reported.includes_self
        )

    @property
    def generated_tests(self) -> int:
        """Number of test windows that the model generates: by default as many as for the search and held out."""
        return self.test or self.search + self.held_out or 1


def check_calibration_tokens(tokens: int, channels: int) -> None:
    """Raise `FFPError` if there are too few calibration tokens for the widest unit, with this many input channels.

    The rank of a Gram matrix is at most the number of tokens; ridge regression lacks data in other dimensions.
    """
    minimum = math.ceil(channels / CHANNELS_PER_TOKEN)
    if tokens < minimum:
        raise FFPError(
            f"{tokens:,} calibration tokens are too few for units of {channels:,} channels: at least {minimum:,} are "
            f"needed, one per {CHANNELS_PER_TOKEN} channels; use more text, or raise num_samples or seq_len"
        )


def window_length(seq_len: int | None, config: PretrainedConfig, trims_vocabulary: bool = False) -> int:
    """Return the tokens per window for a model: `seq_len`, or the model's number of positions, up to 2048.

    If its vocabulary is trimmed, windows take half of the positions, since they have more tokens then. Raises
    `FFPError` if `seq_len` is larger than the number of positions.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions and trims_vocabulary:
        positions //= 2
    if seq_len is None:
        return min(positions or MAX_DEFAULT_LENGTH, MAX_DEFAULT_LENGTH)
    if positions and seq_len > positions:
        raise FFPError(f"seq_len {seq_len} exceeds the {positions} positions of the model; lower it")
    return seq_len
