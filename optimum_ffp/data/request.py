"""How much text a prune asks for."""

import copy
import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..config import FFPConfig
from ..errors import FFPError


# Tokens of a window, where a model has positions for them and nothing else is asked for.
LONGEST = 2048
# Of the widest unit, for every token of the calibration windows: with more of them the Gram matrix means nothing.
CHANNELS_PER_TOKEN = 16


@dataclass(frozen=True)
class DataRequest:
    """How many windows of what length each role wants; `test=None` takes all there are.

    Attributes:
        length: Tokens a window.
        calibration, search, test: Number of windows.
        seed: Picks the calibration and search windows. Test windows are the first.
        self_share: Share of the calibration and search windows that the model writes itself.
        text_column: Column to read where there are columns; one of a known name if `None`.
    """

    length: int
    calibration: int
    search: int
    test: int | None
    seed: int
    self_share: float = 0.0
    text_column: str | None = None

    @classmethod
    def of(cls, config: FFPConfig) -> "DataRequest":
        """What a prune wants, once it is known how long windows are (`with_window_length`)."""
        return cls(
            length=config.seq_len,
            calibration=config.num_samples,
            search=config.search_samples,
            test=config.eval_samples,
            seed=config.seed,
            self_share=config.self_share,
            text_column=config.text_column,
        )

    def written(self, dataset: str, eval_dataset: str | None = None) -> dict[str, int]:
        """Windows of each role that the model has to write, if there is as much text as is asked for."""
        counts = {"calibration": self.calibration, "search": self.search}
        if dataset != "self":
            counts = {role: min(round(self.self_share * count), max(0, count - 1)) for role, count in counts.items()}
        if (eval_dataset or dataset) == "self":
            counts["test"] = self.test or self.search
        return counts

    def all_written(self, dataset: str, eval_dataset: str | None = None) -> int:
        """All windows that the model has to write."""
        return sum(self.written(dataset, eval_dataset).values())


def check_calibration_tokens(tokens: int, channels: int) -> None:
    """Raises `FFPError` if so few tokens say nothing of what the widest unit's channels do together.

    A Gram matrix has at most as many dimensions as tokens went into it; beyond them ridge regression only guesses.
    """
    least = math.ceil(channels / CHANNELS_PER_TOKEN)
    if tokens < least:
        raise FFPError(
            f"{tokens:,} calibration tokens are too few for units of {channels:,} channels: at least {least:,} are "
            f"needed, a token for {CHANNELS_PER_TOKEN} channels; give more text, or raise num_samples or seq_len"
        )


def window_length(seq_len: int | None, config: PretrainedConfig) -> int:
    """Tokens a window for a model with this config: `seq_len`, or its positions, up to 2048.

    Raises:
        FFPError: If that is more than it has positions.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if seq_len is None:
        return min(positions or LONGEST, LONGEST)
    if positions and seq_len > positions:
        raise FFPError(f"seq_len {seq_len} is more than the {positions} positions that the model knows; lower it")
    return seq_len


def with_window_length(config: FFPConfig, model_config: PretrainedConfig) -> FFPConfig:
    """A copy of a prune's config whose `seq_len` is a number. Raises `FFPError` as `window_length`."""
    resolved = copy.deepcopy(config)
    resolved.seq_len = window_length(config.seq_len, model_config)
    return resolved
