"""The search as live curves in TensorBoard, Trackio or Weights & Biases."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ..errors import FFPError


# By name, the packages of which one must be installed.
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
CURVES = ("reward", "perplexity", "best_perplexity", "target_sparsity", "sparsity", "samples")
# As in transformers' own integrations, an environment variable says where a run goes.
TENSORBOARD_FOLDER, PROJECTS = "TENSORBOARD_LOGGING_DIR", {"trackio": "TRACKIO_PROJECT", "wandb": "WANDB_PROJECT"}

logger = logging.getLogger(__name__)


def check_trackers(names: Sequence[str]) -> None:
    """Finds out before the work whether curves can be logged to these.

    Raises:
        FFPError: If one is not known, or its package is not installed.
    """
    for name in names:
        if name not in PACKAGES:
            raise FFPError(f"report_to {name!r} is not known; choose from {', '.join(PACKAGES)}")
        if not any(find_spec(package) for package in PACKAGES[name]):
            raise FFPError(f"reporting to {name} needs a package that is not installed: pip install {name}")


class Tracker:
    """Logs one search. What can't be reached is given up with a warning: curves must not cost a search.

    The trackers are accelerate's, made for loops that are no `Trainer`. The callbacks of transformers would take a
    `Trainer`'s arguments, and record its learning rate and epochs as ours.

    TensorBoard writes to `runs` or `TENSORBOARD_LOGGING_DIR`. The project is `optimum-ffp`, or what `TRACKIO_PROJECT`
    or `WANDB_PROJECT` says.

    Args:
        names: Where to log: any of `tensorboard`, `trackio`, `wandb`; nowhere if empty.
        run: Name of the run.
        settings: What to record beside the curves; lists become text, what has no value is left out.

    Example:
        >>> with Tracker(["tensorboard"], "Llama-2-7b-hf-ffp-20", config.to_dict()) as tracker:
        ...     tracker.log(entry)
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

    def log(self, entry: Mapping[str, Any]) -> None:
        """Logs one candidate evaluation.

        Args:
            entry: A line of `search_log.jsonl`; figures that are not finite leave a gap in their curve.
        """
        values = {f"search/{name}": entry[name] for name in CURVES if _is_finite(entry.get(name))}
        for name in list(self._trackers):
            self._attempt(name, lambda name: self._trackers[name].log(values, step=entry["evaluation"]))

    def _start(self, name: str) -> None:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

        # accelerate's trackers log messages of their own, which raises before there is a state.
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
        # Each library raises exceptions of its own, of networks and of logins.
        try:
            action(name)
        except Exception as error:
            del self._trackers[name]
            logger.warning("the search is no longer reported to %s: %s", name, error)


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else ", ".join(map(str, value))
