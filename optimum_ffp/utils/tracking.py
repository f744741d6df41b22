"""Live tracking of a search or a training with TensorBoard, Trackio or Weights & Biases."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ..errors import FFPError


# Packages per tracker, one of which must be installed.
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
CURVES = ("reward", "perplexity", "best_perplexity", "target_sparsity", "sparsity", "samples")
# Environment variables that set the folder or project, as in transformers' integrations.
TENSORBOARD_FOLDER, PROJECTS = "TENSORBOARD_LOGGING_DIR", {"trackio": "TRACKIO_PROJECT", "wandb": "WANDB_PROJECT"}

logger = logging.getLogger(__name__)


def check_trackers(names: str | Sequence[str]) -> list[str]:
    """Check before a run that the given trackers are available, and return their names.

    Args:
        names: One or several, or `"none"`, as `TrainingArguments` takes them.

    Raises:
        FFPError: If a tracker is not known, or its package is not installed.
    """
    names = [names] if isinstance(names, str) else [*names]
    if names == ["none"]:
        return []
    for name in names:
        if name not in PACKAGES:
            raise FFPError(f"report_to {name!r} is not known; choose from {', '.join(PACKAGES)}, none")
        if not any(find_spec(package) for package in PACKAGES[name]):
            raise FFPError(f"reporting to {name} needs a package that is not installed: pip install {name}")
    return names


class Tracker:
    """Logs one run to trackers. A tracker that fails is dropped with a warning, so that the run continues.

    It uses the trackers of accelerate. The callbacks of transformers need a `Trainer`, end its training if they fail,
    and write for TensorBoard beside its checkpoints, which are removed.

    TensorBoard writes to `TENSORBOARD_LOGGING_DIR`, by default `runs`. The project is `TRACKIO_PROJECT` or
    `WANDB_PROJECT`, by default `optimum-ffp`.

    Args:
        names: Any of `tensorboard`, `trackio`, `wandb`; nothing is logged if empty.
        run: Name of the run.
        settings: Settings to record; lists become text, and `None` values are left out.

    Example:
        >>> with Tracker(["tensorboard"], "Llama-2-7b-hf-ffp-20", config.to_dict()) as tracker:
        ...     tracker.log_evaluation(entry)
    """

    def __init__(self, names: Sequence[str], run: str, settings: Mapping[str, Any] | None = None):
        self.run = run
        self.settings = {name: _plain(value) for name, value in (settings or {}).items() if value is not None}
        self._trackers: dict[str, Any] = dict.fromkeys(names)

    def __enter__(self) -> "Tracker":
        for name in list(self._trackers):
            self._attempt(name, self._start)
        return self

    def __exit__(self, *_: Any) -> None:
        for name in list(self._trackers):
            self._attempt(name, lambda name: self._trackers[name].finish())

    def log_evaluation(self, entry: Mapping[str, Any]) -> None:
        """Log one candidate evaluation.

        Args:
            entry: A record of `search_log.jsonl`.
        """
        self.log({f"search/{name}": entry.get(name) for name in CURVES}, entry["evaluation"])

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Log numbers of one step of the run.

        Args:
            values: Numbers by name; those that are `None` or not finite are not logged.
            step: Number of the step.
        """
        values = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        for name in list(self._trackers):
            self._attempt(name, lambda name: self._trackers[name].log(values, step=step))

    def _start(self, name: str) -> None:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

        # accelerate's trackers log messages, which raises an error before its state is initialised.
        PartialState()
        if name == "tensorboard":
            tracker = TensorBoardTracker(self.run, os.environ.get(TENSORBOARD_FOLDER, "runs"))
        else:
            project = os.environ.get(PROJECTS[name], "optimum-ffp")
            tracker = {"trackio": TrackioTracker, "wandb": WandBTracker}[name](project, name=self.run)
        tracker.start()
        tracker.store_init_configuration(self.settings)
        self._trackers[name] = tracker

    def _attempt(self, name: str, action: Any) -> None:
        # Every library raises its own exceptions for network and login failures.
        try:
            action(name)
        except Exception as error:
            del self._trackers[name]
            logger.warning("nothing more is reported to %s: %s", name, error)


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else ", ".join(map(str, value))
