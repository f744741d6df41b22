import sys
from types import SimpleNamespace

import pytest

from optimum_ffp import FFPError
from optimum_ffp.utils.tracking import Tracker, check_trackers


ENTRIES = [{"evaluation": step, "sparsity": 0.3, "perplexity": found} for step, found in ((1, 30.0), (2, None))]


@pytest.fixture(params=["trackio", "wandb"])
def library(request, monkeypatch) -> SimpleNamespace:
    """A stand-in for a library whose public API both share: `init`, `config`, and `log` and `finish` of a run."""
    seen = SimpleNamespace(name=request.param, project=None, settings={}, rows=[], finished=False)

    def finish() -> None:
        seen.finished = True

    def init(project: str, **options: str) -> SimpleNamespace:
        seen.project = project
        return SimpleNamespace(log=lambda values, step: seen.rows.append((step, values)), finish=finish)

    config = SimpleNamespace(update=lambda values, allow_val_change: seen.settings.update(values))
    seen.module = SimpleNamespace(__spec__=True, init=init, config=config, finish=finish)
    monkeypatch.setitem(sys.modules, request.param, seen.module)
    return seen


def test_evaluations_are_logged_without_missing_values(library, monkeypatch):
    monkeypatch.setenv(f"{library.name.upper()}_PROJECT", "mine")
    with Tracker(check_trackers(library.name), "tiny-30", {"seed": 3, "sizes": [2, 1], "text": None}) as tracker:
        for entry in ENTRIES:
            tracker.log_evaluation(entry)
    assert library.project == "mine" and library.settings == {"seed": 3, "sizes": "2, 1"} and library.finished
    assert library.rows == [(1, {"search/sparsity": 0.3, "search/perplexity": 30.0}), (2, {"search/sparsity": 0.3})]


def test_failing_tracker_is_only_a_warning(library, monkeypatch, caplog):
    monkeypatch.setattr(library.module, "init", lambda **_: 1 / 0)
    with Tracker([library.name], "tiny-30", {}) as tracker:
        tracker.log_evaluation(ENTRIES[0])
    assert caplog.text.count(f"reporting to {library.name} stopped") == 1


def test_unknown_and_missing_trackers_are_rejected(monkeypatch):
    monkeypatch.setattr("optimum_ffp.utils.tracking.find_spec", lambda name: None)
    for names, word in (("mlflow", "mlflow"), (["wandb"], "pip install wandb")):
        with pytest.raises(FFPError, match=word):
            check_trackers(names)
    assert check_trackers(["none"]) == []
