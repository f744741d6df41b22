"""Experiment tracking with TensorBoard, Trackio or Weights & Biases, using accelerate's trackers."""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ..errors import FFPError
from . import processes


# Packages per tracker, one of which must be installed.
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
CURVES = ("reward", "perplexity", "best_perplexity", "target_sparsity", "sparsity", "samples")

logger = logging.getLogger(__name__)


def check_trackers(names: str | Sequence[str]) -> list[str]:
    """Check that trackers are available, and return their names. `"none"` disables tracking, as in `Trainer`."""
    names = [names] if isinstance(names, str) else [*names]
    if names == ["none"]:
        return []
    for name in names:
        if name not in PACKAGES:
            raise FFPError(f"report_to {name!r} is not known; choose from {', '.join(PACKAGES)}, none")
        if not any(map(find_spec, PACKAGES[name])):
            raise FFPError(f"reporting to {name} needs a package that is not installed: pip install {name}")
    return names


class Tracker:
    """Logs a run to trackers in the main process. A tracker that fails is dropped with a warning.

    TensorBoard writes to `TENSORBOARD_LOGGING_DIR`, by default `runs`. The project is `TRACKIO_PROJECT` or
    `WANDB_PROJECT`, by default `optimum-ffp`.

    Args:
        names: Any of `tensorboard`, `trackio`, `wandb`; nothing is logged if empty.
        run: Name of the run.
        settings: Settings to record, except those that are `None`.
    """

    def __init__(self, names: Sequence[str], run: str, settings: Mapping[str, Any]):
        self.run = run
        # By name; `None` before they are started.
        self._trackers: dict[str, Any] = dict.fromkeys(names if processes.is_main() else ())
        self.settings = {name: _plain(value) for name, value in settings.items() if value is not None}

    def __enter__(self) -> "Tracker":
        self._for_each(self._start)
        return self

    def __exit__(self, *_: Any) -> None:
        self._for_each(lambda name: self._trackers[name].finish())

    def log_evaluation(self, entry: Mapping[str, Any]) -> None:
        """Log a record of `search_log.jsonl`."""
        self.log({f"search/{name}": entry.get(name) for name in CURVES}, entry["evaluation"])

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Log named values of one step, except those that are `None` or not finite."""
        values = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        self._for_each(lambda name: self._trackers[name].log(values, step=step))

    def _start(self, name: str) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        # accelerate's trackers log messages, which raises an error unless its state is initialized.
        PartialState()
        if name == "tensorboard":
            options = {"run_name": self.run, "logging_dir": os.environ.get("TENSORBOARD_LOGGING_DIR", "runs")}
        else:
            project = os.environ.get(f"{name.upper()}_PROJECT", "optimum-ffp")
            options = {"run_name": project, "name": self.run}
        self._trackers[name] = LOGGER_TYPE_TO_CLASS[name](**options)
        self._trackers[name].start()
        self._trackers[name].store_init_configuration(self.settings)

    def _for_each(self, action: Callable[[str], Any]) -> None:
        for name in list(self._trackers):
            # Every library raises its own exceptions for network and login failures.
            try:
                action(name)
            except Exception as error:
                del self._trackers[name]
                logger.warning("reporting to %s stopped: %s", name, error)


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else ", ".join(map(str, value))
