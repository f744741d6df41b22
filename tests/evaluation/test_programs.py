"""Programs that models write: which pass, and what they can't reach."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from optimum_ffp import FFPError, evaluate
from optimum_ffp.evaluation import programs
from optimum_ffp.evaluation.programs import pass_at_1, runs
from tests.helpers import make_tiny_model, make_tokenizer, with_start_token


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs run on Linux only")
ROW = {
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}


@pytest.mark.parametrize(
    ("completion", "passes"),
    [
        (ROW["canonical_solution"], 1),
        ("    return x\n", 0),
        ("    return 2 * x\n\nexit(1)", 0),
        ("    import time\n    time.sleep(9)\n    return 2 * x", 0),
        ("    bytearray(2**34)\n    return 2 * x", 0),
        ("    return (", 0),
    ],
)
def test_function_passes_if_its_tests_do(completion, passes, monkeypatch):
    monkeypatch.setattr(programs, "TIMEOUT", 3)
    assert pass_at_1(ROW, [completion]) == {"pass_at_1": passes}


def test_program_has_no_network_nor_environment_variables(monkeypatch):
    monkeypatch.setenv("TOKEN", "secret")
    assert runs("import os\nassert 'TOKEN' not in os.environ and not os.listdir()")
    connect = "import socket\ntry:\n    socket.socket()\nexcept PermissionError:\n    print()\nelse:\n    exit(1)"
    assert runs(connect)
    assert runs(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {connect!r}], check=True)")


def test_processes_of_program_are_killed_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "TIMEOUT", 1)
    started = tmp_path / "pid"
    child = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    assert not runs(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])")
    time.sleep(0.1)
    status = Path(f"/proc/{started.read_text()}/status")
    assert not status.exists() or "Z (zombie)" in status.read_text()


def test_program_is_refused_if_network_cannot_be_denied(monkeypatch, tmp_path):
    script = tmp_path / "sandbox.py"
    text = Path(programs.sandbox.__file__).read_text()
    script.write_text(text.replace('"x86_64"', '"other"').replace('"aarch64"', '"another"'))
    monkeypatch.setattr(programs.sandbox, "__file__", str(script))
    with pytest.raises(FFPError, match="Linux"):
        runs("pass")


@pytest.mark.slow
def test_example_task_runs_only_if_confirmed(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    monkeypatch.chdir(tmp_path)
    # Any completion passes: the test defines the function again.
    again = ROW | {"prompt": "'''", "test": "'''\ndef double(x): return 2 * x\n" + ROW["test"]}
    Path("functions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ROW, again, again)))
    path = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "tasks", "functions.yaml")
    options = {"dataset": None, "speed": False, "tasks": [path], "batch_size": 2}
    models = make_tiny_model(max_position_embeddings=512), make_tiny_model(max_position_embeddings=512, seed=5)
    options["tokenizer"] = with_start_token(make_tokenizer())
    with pytest.raises(FFPError, match="confirm_run_unsafe_code"):
        evaluate(*models, **options)
    figures = evaluate(*models, **options, confirm_run_unsafe_code=True)
    (task,) = figures["model"]["tasks"]
    assert task["per_sample"] == {"pass_at_1": [0, 1, 1]} and task["metrics"]["pass_at_1"] == pytest.approx(2 / 3)
    assert task["kept"]["pass_at_1"] == {"fraction": 1, "error": 0, "of": 2}
    assert "of the 2 samples that the baseline solves" in str(figures)
