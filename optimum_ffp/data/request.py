"""How much text a prune asks for."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from ..config import FFPConfig
from ..errors import FFPError


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
        """What a prune wants."""
        return cls(
            length=config.seq_len,
            calibration=config.num_samples,
            search=config.search_samples,
            test=config.eval_samples,
            seed=config.seed,
            self_share=config.self_share,
            text_column=config.text_column,
        )

    def written(self, dataset: str) -> dict[str, int]:
        """Windows of each role that the model has to write, if there is as much text as is asked for."""
        if dataset == "self":
            return {"calibration": self.calibration, "search": self.search, "test": self.test or self.search}
        wanted = {"calibration": self.calibration, "search": self.search}
        return {role: min(round(self.self_share * count), max(0, count - 1)) for role, count in wanted.items()}

    def all_written(self, dataset: str) -> int:
        """All windows that the model has to write."""
        return sum(self.written(dataset).values())


def check_window_length(length: int, config: PretrainedConfig) -> None:
    """Raises `FFPError` if windows are longer than a model with this config knows positions."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and length > limit:
        raise FFPError(f"seq_len {length} is more than the {limit} positions that the model knows")
