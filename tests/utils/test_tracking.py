import sys
from types import SimpleNamespace

import pytest

from optimum_ffp import FFPConfig, FFPError
from optimum_ffp.utils.tracking import Tracker, check_trackers


ENTRIES = [
    {
        "evaluation": number,
        "target_sparsity": 0.3,
        "sparsity": 0.299,
        "samples": 4,
        "perplexity": perplexity,
        "reward": 20 / perplexity if perplexity else 0.0,
        "final": False,
        "best_perplexity": None,
    }
    for number, perplexity in enumerate((30.0, None, 25.0), start=1)
]


@pytest.fixture(params=["trackio", "wandb"])
def library(request, monkeypatch) -> SimpleNamespace:
    """A stand-in for a library whose public API both share: `init`, `config`, and `log` and `finish` of a run."""
    seen = SimpleNamespace(name=request.param, runs=[], settings={}, rows=[], finished=0)

    def finish():
        seen.finished += 1

    def init(**options):
        seen.runs.append(options)
        return SimpleNamespace(log=lambda values, step: seen.rows.append((step, values)), finish=finish)

    config = SimpleNamespace(update=lambda values, allow_val_change: seen.settings.update(values))
    seen.module = SimpleNamespace(__spec__=True, init=init, config=config, finish=finish)
    monkeypatch.setitem(sys.modules, request.param, seen.module)
    for variable in ("TRACKIO_PROJECT", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    return seen


def test_every_evaluation_is_logged_with_the_figures_that_it_has(library):
    assert check_trackers([library.name]) == check_trackers(library.name) == [library.name]
    with Tracker([library.name], "tiny-30", FFPConfig(seed=3).to_dict()) as tracker:
        for entry in ENTRIES:
            tracker.log_evaluation(entry)
    assert library.runs == [{"project": "optimum-ffp", "name": "tiny-30"}]
    assert library.settings["seed"] == 3 and library.settings["hidden_sizes"] == "256, 128"
    assert "eval_samples" not in library.settings
    assert [step for step, _ in library.rows] == [1, 2, 3] and library.finished == 1
    curves = {"search/reward", "search/target_sparsity", "search/sparsity", "search/samples"}
    assert set(library.rows[0][1]) == curves | {"search/perplexity"} and set(library.rows[1][1]) == curves


def test_the_environment_names_the_project(library, monkeypatch):
    monkeypatch.setenv(f"{library.name.upper()}_PROJECT", "mine")
    with Tracker([library.name], "tiny-30"):
        pass
    assert library.runs[0]["project"] == "mine"


@pytest.mark.parametrize("broken", ["init", "log"])
def test_what_cannot_be_reached_costs_a_warning_and_nothing_else(library, monkeypatch, caplog, broken):
    def fail(*args, **options):
        raise ConnectionError("no route to host")

    lost = SimpleNamespace(log=fail, finish=fail)
    monkeypatch.setattr(library.module, "init", fail if broken == "init" else lambda **options: lost)
    with Tracker([library.name], "tiny-30") as tracker:
        for entry in ENTRIES:
            tracker.log_evaluation(entry)
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing more is reported to {library.name}: no route to host"
    ]


def test_unknown_and_missing_trackers_are_found_before_the_work(monkeypatch):
    monkeypatch.setattr("optimum_ffp.utils.tracking.find_spec", lambda name: None)
    with pytest.raises(FFPError, match="'mlflow' is not known; choose from tensorboard, trackio, wandb, none"):
        check_trackers(["mlflow"])
    with pytest.raises(FFPError, match="not installed: pip install wandb"):
        check_trackers(["wandb"])
    assert check_trackers([]) == check_trackers("none") == check_trackers(["none"]) == []
    with pytest.raises(FFPError, match="not installed: pip install wandb"):
        check_trackers("wandb")


def test_tensorboard_gets_the_curves(monkeypatch, tmp_path):
    if not any(map(_installed, ("tensorboard", "tensorboardX"))):
        pytest.skip("needs tensorboard or tensorboardX")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    with Tracker(["tensorboard"], "tiny-30", {"seed": 0}) as tracker:
        for entry in ENTRIES:
            tracker.log_evaluation(entry)
    (events,) = (tmp_path / "tiny-30").glob("events.out.tfevents.*")
    assert events.read_bytes().count(b"search/reward") == 3 and events.read_bytes().count(b"search/perplexity") == 2


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
