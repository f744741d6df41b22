import json
import re
import sys

import pytest
import torch

from tests.helpers import make_text, make_tiny_model


@pytest.fixture
def run(run_ffp, save_tiny_model, data_folder):
    """Runs the command with a tiny model and short windows of text; what is given later counts."""

    def run(*words):
        model, sizes = save_tiny_model(), ["--seq-len", 24, "--eval-samples", 2]
        return run_ffp("evaluate", "--device", "cpu", "-m", model, "--dataset", data_folder, *sizes, *words)

    return run


def assert_refused(ended, word):
    code, output, errors = ended
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and re.search(word, line), line
    assert "Traceback" not in errors + output


def test_results_are_printed_and_written_as_json(run, save_tiny_model, data_folder, tmp_path):
    file = tmp_path / "new folder" / "figures.json"
    words = ["--baseline", save_tiny_model("opt"), "--prompt-tokens", 8, "--new-tokens", 4, "--batch-size", 2]
    code, output, errors = run(*words, "--json", file)
    assert code == 0, errors
    model, baseline = json.loads(file.read_text())
    text = f"./{data_folder.name}"
    assert (model["role"], baseline["role"]) == ("model", "baseline")
    assert model["version/torch"] == torch.__version__ and model["decode_tokens_per_second"] > 0
    figures = [record[f"perplexity/{text}"] for record in (model, baseline)]
    assert all(f"{figure:,.2f}" in output for figure in figures) and model[f"windows/{text}"] == 2
    assert model[f"perplexity_ratio/{text}"] == pytest.approx(figures[0] / figures[1])
    assert all(f" {record[f'bits_per_byte/{text}']:.3f} " in output for record in (model, baseline))
    assert f"{model[f'divergence/{text}']:.4f}" in output and f"divergence/{text}" not in baseline
    # Its own file is replaced.
    assert run("--no-speed", "--no-perplexity", "--json", file)[0] == 0
    assert not any(key.startswith("perplexity") for key in json.loads(file.read_text())[0])


def test_text_column_option_selects_column(run, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "w3", "body": make_text(900)}))
    words = ["--dataset", tmp_path / "data.jsonl", "--no-speed"]
    assert_refused(run(*words), "id, body")
    assert run(*words, "--text-column", "body")[0] == 0


def test_foreign_json_file_is_not_overwritten(run, save_tiny_model):
    file = save_tiny_model("opt") / "config.json"
    before = file.read_bytes()
    assert_refused(run("--no-speed", "--json", file), "config.json")
    assert file.read_bytes() == before


def test_failed_json_write_still_prints_table(run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    ended = run("--no-speed", "--json", tmp_path / "figures.json")
    assert_refused(ended, "No space")
    assert "perplexity" in ended[1]


def test_tasks_without_lm_eval_are_one_line_error(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert_refused(run("--tasks", "boolq"), "pip install lm-eval")


def test_model_too_large_for_device_is_one_line_error(run, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(type(make_tiny_model()), "to", fail)
    assert_refused(run(), "memory")
