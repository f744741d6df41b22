import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from unittest.mock import Mock

import datasets
import pytest
import torch

from optimum_ffp import FFPConfig, FFPError, FFPPruner
from optimum_ffp.checkpoint.gguf import export_gguf
from optimum_ffp.data import DataRequest, load_windows
from optimum_ffp.modeling.loading import LoadOptions, load_any
from tests.helpers import (
    SAMPLE,
    make_byte_fallback_tokenizer,
    make_byte_level_tokenizer,
    make_pruner,
    make_task,
    make_text,
    make_tiny_model,
    make_tokenizer,
    prune_by_hand,
    with_start_token,
)


FAST = ["--device", "cpu"]
needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra `eval`")


@pytest.fixture
def run(run_ffp):
    def run(*words):
        text = [] if "--no-perplexity" in words else ["--seq-len", 24]
        speed = [] if "--no-speed" in words else ["--new-tokens", 4, "--repeats", 1]
        return run_ffp("evaluate", *FAST, *text, *speed, *words)

    return run


@pytest.fixture
def figures(run, tmp_path):
    """The JSON report of a run that succeeds."""

    def call(*arguments):
        code, output, errors = run(*arguments, "--json", tmp_path / "figures.json")
        assert code == 0, errors
        return json.loads((tmp_path / "figures.json").read_text()), output

    return call


def perplexity_by_hand(model, text, length, count=None):
    tokens = torch.tensor([int(word[1:]) for word in text.split()])
    rows = tokens[: len(tokens) // length * length].view(-1, length)[:count]
    losses = [model(row[None], labels=row[None]).loss.double() for row in rows]
    return float(torch.stack(losses).mean().exp()), len(rows)


def assert_same(measured, baseline):
    own = {name: value for name, value in measured.items() if name in baseline and name != "losses"}
    expected = {name: value for name, value in baseline.items() if name != "losses"}
    assert own == pytest.approx(expected) and measured["comparable"]
    assert measured["divergence"] == pytest.approx(0, abs=1e-6) and measured["agreement"] == 1
    assert measured["losses"] == pytest.approx(baseline["losses"])
    assert measured["ratio_error"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_dense_model_alone(figures, save_tiny_model, data_folder):
    report, output = figures("-m", save_tiny_model(), "--dataset", data_folder, "--batch-size", 4)
    expected, count = perplexity_by_hand(make_tiny_model(), (data_folder / "test.txt").read_text(), 24)
    measured = report["model"]["perplexity"]
    assert measured["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert (measured["windows"], measured["window_length"], measured["split"]) == (count, 24, "test")
    assert report["model"]["speed"]["new_tokens"] == 4 and "baseline" not in report
    assert f"{data_folder}, test, {count} windows of 24 tokens" in output and "ratio" not in output
    assert report["settings"]["batch_size"] == 4 and "torch" in report["versions"]


@pytest.mark.slow
def test_several_texts_are_reported_each_by_itself(figures, save_tiny_model, data_folder, tmp_path):
    (tmp_path / "other.txt").write_text(make_text(900, 9))
    texts = f"{data_folder},{tmp_path / 'other.txt'}"
    models = ["-m", save_tiny_model(), "--baseline", save_tiny_model("opt"), "--no-speed"]
    report, output = figures(*models, "--dataset", texts)
    measured = [report["model"]["perplexity"], *report["model"]["other_texts"]]
    assert [one["dataset"] for one in measured] == texts.split(",")
    for one, file in zip(measured, (data_folder / "test.txt", tmp_path / "other.txt")):
        expected, count = perplexity_by_hand(make_tiny_model(), file.read_text(), 24)
        assert one["perplexity"] == pytest.approx(expected, rel=1e-5) and one["windows"] == count
    for number in (1, 2):
        rows = {line.split("  ")[0]: line for line in output.splitlines()}
        assert f"{measured[number - 1]['perplexity']:,.4f}" in rows[f"perplexity, text {number}"]
        assert f"{measured[number - 1]['divergence']:.4f} ± " in rows[f"divergence, text {number}"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--eval-samples", 5], ["--split", "validation"]])
def test_other_windows(figures, save_tiny_model, data_folder, arguments):
    report, _ = figures("-m", save_tiny_model(), "--dataset", data_folder, "--no-speed", *arguments)
    split = "validation" if "--split" in arguments else "test"
    text = (data_folder / f"{split}.txt").read_text()
    expected, count = perplexity_by_hand(make_tiny_model(), text, 24, 5 if split == "test" else None)
    assert report["model"]["perplexity"]["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert report["model"]["perplexity"]["windows"] == count and "speed" not in report["model"]


def test_a_column_that_is_named_in_windows_as_long_as_the_model_knows(run_ffp, save_tiny_model, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "w3", "body": make_text(900)}))
    words = ("evaluate", *FAST, "-m", save_tiny_model(), "--dataset", tmp_path / "data.jsonl", "--no-speed")
    code, _, errors = run_ffp(*words)
    assert code == 2 and "has the columns id, body" in errors
    code, output, _ = run_ffp(*words, "--text-column", "body")
    assert code == 0 and "14 windows of 64 tokens" in output


@pytest.mark.slow
def test_one_file_is_used_whole_or_as_a_prune_does(figures, save_tiny_model, tmp_path):
    path = tmp_path / "my.txt"
    path.write_text(make_text(1500))
    model = save_tiny_model()
    report, _ = figures("-m", model, "--dataset", path, "--no-speed")
    expected, count = perplexity_by_hand(make_tiny_model(), path.read_text(), 24)
    assert report["model"]["perplexity"]["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert report["model"]["perplexity"]["windows"] == count == 62

    request = DataRequest(length=24, calibration=1, search=1, test=None, seed=0)
    test = load_windows(str(path), None, make_tokenizer(), make_tiny_model(), request).test
    report, _ = figures("-m", model, "--dataset", path, "--no-speed", "--split", "test")
    losses = [make_tiny_model()(row[None], labels=row[None]).loss.double() for row in test.tokens]
    expected = float(torch.stack(losses).mean().exp())
    assert report["model"]["perplexity"]["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert report["model"]["perplexity"]["split"] == "test part of my.txt"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["prune", "recovery"])
def test_of_a_file_that_a_model_was_made_from_the_test_part_is_used(step, figures, folder, save_tiny_model, tmp_path):
    path, record = tmp_path / "my.txt", json.loads((folder / "ffp_config.json").read_text())
    path.write_text(make_text(1500))
    if step == "prune":
        record["dataset"] = "wikitext2:0.5,my.txt:0.5"
    else:
        record["recovery"] = [{"options": {"dataset": "my.txt"}}]
    (folder / "ffp_config.json").write_text(json.dumps(record))
    words = ["-m", save_tiny_model(), "--baseline", folder, "--dataset", path, "--no-speed"]
    for split, windows, part in ((None, 12, "test part of my.txt"), ("all", 62, "my.txt")):
        report, output = figures(*words, *(["--split", split] if split else []))
        measured = report["model"]["perplexity"]
        assert (measured["windows"], measured["split"]) == (windows, part)
        assert ("my.txt: a model was calibrated or trained on other parts" in output) == (split is None)
    report, output = figures(*words[:2], *words[4:])
    assert report["model"]["perplexity"]["windows"] == 62 and "trained on" not in output


@pytest.mark.slow
def test_a_pruned_model_agrees_with_what_its_prune_reported(figures, save_tiny_model, data_folder, tmp_path):
    dense = save_tiny_model()
    sizes = {"seq_len": 24, "num_samples": 8, "search_samples": 2, "eval_samples": 3, "method": "uniform"}
    pruner = FFPPruner.from_pretrained(dense, FFPConfig(sparsity=0.3, dataset=str(data_folder), **sizes), device="cpu")
    result = pruner.prune()
    pruner.save_pretrained(tmp_path / "pruned")
    common = ["-m", tmp_path / "pruned", "--dataset", data_folder, "--eval-samples", 3]

    alone, output = figures(*common, "--no-speed")
    assert alone["model"]["perplexity"]["perplexity"] == pytest.approx(result.perplexity, rel=1e-5)
    assert alone["model"]["sparsity"] == result.policy.sparsity and "according to ffp_config.json" in output

    report, output = figures(*common, "--baseline", dense)
    assert report["baseline"]["perplexity"]["perplexity"] == pytest.approx(result.tests[0][1]["dense"], rel=1e-5)
    model, baseline = report["model"], report["baseline"]
    assert model["sparsity"] == pytest.approx(result.policy.sparsity, rel=1e-9)
    assert model["model_sparsity"] == pytest.approx(result.model_sparsity, rel=1e-9)
    assert model["weight_bytes"] < baseline["weight_bytes"] and model["kv_cache_bytes"] < baseline["kv_cache_bytes"]
    ratio = model["speed"]["decode"] / baseline["speed"]["decode"]
    assert math.isclose(model["speed_ratio"]["decode"], ratio) and "ratio" in output


def byte_level_folder(path, model):
    model.save_pretrained(path)
    make_byte_level_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def sample(tmp_path):
    (tmp_path / "sample.txt").write_text(SAMPLE * 8)
    return tmp_path / "sample.txt"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_a_gguf_file_is_the_model_that_it_was_made_from(name, figures, sample, tmp_path):
    pytest.importorskip("gguf")
    model = make_tiny_model(name, vocab_size=320)
    folder, file = byte_level_folder(tmp_path / "folder", model), tmp_path / "model.gguf"
    export_gguf(model, make_byte_level_tokenizer(), file, "f32")
    report, output = figures("-m", file, "--baseline", folder, "--dataset", sample)
    assert f"{file} is dequantised" in output
    model, baseline = report["model"], report["baseline"]
    assert_same(model["perplexity"], baseline["perplexity"])
    assert model["weight_bytes"] == file.stat().st_size
    for name in ("parameters", "projection_parameters", "kv_cache_bytes"):
        assert model[name] == baseline[name]


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_byte_level_tokenizer, make_byte_fallback_tokenizer])
def test_a_gguf_file_keeps_that_its_tokenizer_adds_a_start_token(make, figures, sample, tmp_path):
    pytest.importorskip("gguf")
    tokenizer = with_start_token(make())
    model = make_tiny_model(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    export_gguf(model, tokenizer, tmp_path / "model.gguf", "f32")
    models = ["-m", tmp_path / "model.gguf", "--baseline", tmp_path / "folder", "--dataset", sample, "--no-speed"]
    report, output = figures(*models)
    measured = report["model"]["perplexity"]
    assert_same(measured, report["baseline"]["perplexity"])
    assert measured["start_token"] is True and "tokens, a start token" in output
    without, output = figures(*models, "--start-token", "never")
    assert without["model"]["perplexity"]["perplexity"] != measured["perplexity"]
    assert "tokens, no start token" in output and without["settings"]["start_token"] == "never"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["auto", "never", None])
def test_windows_begin_as_in_the_prune(option, figures, data_folder, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "dense")
    with_start_token(make_tokenizer()).save_pretrained(tmp_path / "dense")
    pruner = make_pruner(tmp_path / "dense", data_folder, method="uniform", start_token=option or "never")
    result = pruner.prune()
    pruner.save_pretrained(tmp_path / "pruned")
    if option is None:
        # A checkpoint of an earlier version, which had no start token.
        file = tmp_path / "pruned" / "ffp_config.json"
        record = json.loads(file.read_text())
        del record["start_token"]
        file.write_text(json.dumps(record))
    words = ["--dataset", data_folder, "--eval-samples", 3, "--no-speed"]
    report, _ = figures("-m", tmp_path / "pruned", "--baseline", tmp_path / "dense", *words)
    assert report["model"]["perplexity"]["start_token"] is (option == "auto")
    for role, name in (("model", "calibrated"), ("baseline", "dense")):
        assert report[role]["perplexity"]["perplexity"] == pytest.approx(result.tests[0][1][name], rel=1e-5)
    report, _ = figures("-m", tmp_path / "dense", *words)
    assert report["model"]["perplexity"]["start_token"] is True


LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}
LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 1000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "pruned", "message"),
    [
        (
            "llama",
            {},
            True,
            "architecture deci, whose layers differ in size .* give the folder that it was exported from",
        ),
        ("qwen3", {"tie_word_embeddings": True}, True, "architecture openelm"),
        ("llama-mha", {}, False, "doesn't read this GGUF file whole and would run another model"),
        ("llama", LLAMA3, False, "doesn't read this GGUF file whole"),
        ("llama", LINEAR, False, "a scaled rotary embedding"),
    ],
)
def test_a_gguf_file_that_transformers_would_misread_is_refused(name, changes, pruned, message, run, sample, tmp_path):
    pytest.importorskip("gguf")
    model = make_tiny_model(name, vocab_size=320, **changes)
    export_gguf(
        prune_by_hand(model)[0] if pruned else model, make_byte_level_tokenizer(), tmp_path / "model.gguf", "f32"
    )
    refused(run("-m", tmp_path / "model.gguf", "--dataset", sample), message)


@needs_lm_eval
@pytest.mark.slow
def test_a_recovered_model_beside_the_dense_and_the_pruned_one(figures, pruned, folder, data_folder, tmp_path):
    """The ratio is that to the first baseline."""
    other = shutil.copytree(folder, tmp_path / "recovered")
    words = ["--dataset", data_folder, "--seq-len", 24, "--no-speed"]
    report, output = figures("-m", other, "--baseline", pruned[0].model_id, folder, *words)
    model, dense, second = (report[role] for role in ("model", "baseline", "baseline 2"))
    assert model["perplexity"]["perplexity"] == second["perplexity"]["perplexity"]
    assert all(one["perplexity"]["comparable"] for one in (model, dense, second))
    (line,) = (line for line in output.splitlines() if line.startswith("perplexity"))
    ratio = model["perplexity"]["perplexity"] / dense["perplexity"]["perplexity"]
    values = [one["perplexity"]["perplexity"] for one in (model, dense, second)]
    assert line.split()[1:5] == [*(f"{value:.4f}" for value in values), f"{ratio:.3f}"]
    assert model["perplexity"]["divergences"] == second["perplexity"]["divergences"]
    logs = []
    for source in (pruned[0].model_id, folder):
        tokens = torch.tensor(make_tokenizer()((data_folder / "test.txt").read_text()).input_ids)
        windows = tokens[: len(tokens) // 24 * 24].view(-1, 24)
        logs.append(load_any(source, LoadOptions())[0](windows).logits[:, :-1].log_softmax(-1))
    divergence = float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())
    assert model["perplexity"]["divergence"] == pytest.approx(divergence, rel=1e-4) and divergence > 0
    (line,) = (line for line in output.splitlines() if line.startswith("divergence"))
    assert line.count(f" {model['perplexity']['divergence']:.4f} ± ") == 2 and line.count("±") == 2
    assert report["model"]["sparsity_source"] == "the baseline"


def test_tasks_beside_a_baseline(figures, save_tiny_model, tmp_path):
    make_task(tmp_path / "tasks")
    common = ["--no-perplexity", "--no-speed", "--tasks-path", tmp_path / "tasks", "--limit", 6]
    report, output = figures("-m", save_tiny_model(), "--baseline", save_tiny_model("opt"), *common)
    for role in ("model", "baseline"):
        (task,) = report[role]["tasks"]
        assert task["task"] == "tiny" and task["samples"] == 6 and set(task["metrics"]) == {"acc", "acc_norm"}
        assert "perplexity" not in report[role]
    assert "tiny, acc" in output and "6 samples" in output and "±" in output


def test_options_that_nothing_would_read_are_named(run_ffp):
    words = ["--limit", 3, "--num-fewshot", 1, "--baseline-revision", "main", "--no-speed", "--repeats", 2]
    code, _, errors = run_ffp("evaluate", "-m", "nobody/nothing", *words)
    assert code == 2 and errors.startswith(
        "error: these options have no effect: --limit, --num-fewshot (used only with --tasks"
    )
    for unread in ("--repeats (used only without --no-speed)", "--baseline-revision (used only with a --baseline"):
        assert unread in errors


def refused(ended, message):
    code, output, errors = ended
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert "Traceback" not in errors + output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seq-len", 1], "--seq-len must be at least 2, found 1"),
        (["--eval-samples", 0], "--eval-samples must be at least 1, found 0"),
        (["--repeats", -3], "--repeats must be at least 1, found -3"),
        (["--limit", 0, "--tasks", "boolq"], "--limit is a number of samples"),
        (["--num-fewshot", -1, "--tasks", "boolq"], "--num-fewshot must be at least 0"),
        (["--tasks", ","], "--tasks names no task; name some"),
        (["--text-column", "text", "--dataset", "c4"], r"--text-column \(used only without --no-perplexity, with a"),
        (["--dataset", "self"], "--dataset self is for pruning only"),
        (["--dataset", "c4,self"], "--dataset self is for pruning only"),
        (["--dataset", "c4:0.5,self"], "must give every text a share"),
        (["--dataset", "nowhere.txt"], "there is no file or folder nowhere.txt"),
        # Text of its own, which it would not take, is not among what is offered.
        (
            ["--dataset", "wikitext2"],
            r"offline mode is on\); name a local .*, or a folder with train, validation and test$",
        ),
        (["--split", "dev"], "has the splits train, validation, test, found --split dev"),
        (["--seq-len", 65], "seq_len 65 is more than the 64 positions"),
        (["--json", "/proc/no/file.json"], "json can't be written: /proc is not a folder that you may write to"),
        (["-m", "./nowhere"], "there is no folder './nowhere'"),
        (["-m", "nowhere.gguf"], "there is no file nowhere.gguf"),
        (["-m", "nobody/nothing"], "nobody/nothing can't be loaded as a causal LM"),
        (["--baseline", "./nowhere"], "there is no folder './nowhere'"),
        (["--dtype", "float7"], "dtype 'float7' is not known"),
        (["--device", "warp"], "device 'warp' can't be used here"),
    ],
)
def test_wrong_input_is_one_line(run, save_tiny_model, data_folder, arguments, message):
    refused(run("-m", save_tiny_model(), "--dataset", data_folder, *arguments), message)


def test_the_table_is_printed_though_its_file_can_not_be_written(run, save_tiny_model, data_folder, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    words = ["--dataset", data_folder, "--no-speed", "--json", data_folder / "figures.json"]
    ended = run("-m", save_tiny_model(), *words)
    refused(ended, "figures.json can't be written: .*No space left on device")
    assert "perplexity" in ended[1]


def test_a_file_of_others_is_not_replaced_by_figures(run, save_tiny_model, data_folder):
    model = save_tiny_model()
    refused(run("-m", model, "--dataset", data_folder, "--json", model / "config.json"), "is never replaced")
    refused(run("-m", model, "--dataset", data_folder, "--json", data_folder), "is an input of this command")


def test_a_split_of_one_text(run, save_tiny_model, data_folder):
    arguments = ["--dataset", data_folder / "test.txt", "--split", "validation"]
    refused(run("-m", save_tiny_model(), *arguments), "is read as one text, found --split validation; give all")


def test_a_broken_gguf_file(run, data_folder, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    refused(run("-m", tmp_path / "model.gguf", "--dataset", data_folder), "is not a readable GGUF file")


def test_tasks_without_lm_eval(run, save_tiny_model, data_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    ended = run("-m", save_tiny_model(), "--dataset", data_folder, "--tasks", "boolq")
    refused(ended, "tasks need the lm-eval package: pip install lm-eval")


def test_a_hub_dataset_without_splits_is_measured_where_a_prune_reports(figures, save_tiny_model, monkeypatch):
    rows = datasets.Dataset.from_dict({"text": make_text(13_000).splitlines()})
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows.to_iterable_dataset())
    words = ["-m", save_tiny_model(), "--dataset", "someone/corpus", "--no-speed", "--seq-len", 24]
    (report, _), (other, _) = figures(*words), figures(*words, "--split", "test")
    assert report["model"]["perplexity"] == other["model"]["perplexity"]
    assert report["model"]["perplexity"]["split"] == "test part of train"
    assert report["model"]["perplexity"]["windows"] == 100


@pytest.mark.parametrize("used", [False, True])
def test_all_of_a_hub_dataset_that_is_a_test_split_is_measured(used, figures, folder, monkeypatch, tmp_path):
    rows = datasets.Dataset.from_dict({"text": make_text(2_000).splitlines()})
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["test"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows.to_iterable_dataset())
    record = json.loads((folder / "ffp_config.json").read_text())
    record["dataset"] = "someone/bench" if used else "someone/else"
    (folder / "ffp_config.json").write_text(json.dumps(record))
    words = ["-m", folder, "--dataset", "someone/bench", "--no-speed"]
    (report, _), (other, _) = figures(*words), figures(*words, "--split", "test")
    measured = report["model"]["perplexity"]
    assert measured == other["model"]["perplexity"]
    assert (measured["windows"], measured["split"]) == ((17, "test part of test") if used else (83, "test"))
    (tmp_path / "my.txt").write_text(make_text(1500))
    request = DataRequest(length=24, calibration=1, search=1, test=None, seed=0)
    tests = load_windows(str(tmp_path / "my.txt"), "someone/bench", make_tokenizer(), make_tiny_model(), request).tests
    assert [len(windows) for windows in tests] == [83]


@pytest.mark.parametrize("link", [False, True])
def test_of_the_file_of_a_folder_that_a_model_was_made_from_the_test_part_is_used(link, figures, folder, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    path = corpus / "train.txt"
    path.write_text(make_text(1500))
    record = json.loads((folder / "ffp_config.json").read_text()) | {"dataset": "corpus"}
    (folder / "ffp_config.json").write_text(json.dumps(record))
    if link:
        path = tmp_path / "other.txt"
        path.symlink_to(corpus / "train.txt")
    report, _ = figures("-m", folder, "--dataset", path, "--no-speed")
    assert report["model"]["perplexity"]["windows"] == 12
    # Of several splits that for tests alone is new to the model.
    for split in ("validation", "test"):
        (corpus / f"{split}.txt").write_text(make_text(300))
    report, output = figures("-m", folder, "--dataset", corpus / "test.txt", "--no-speed")
    assert report["model"]["perplexity"]["windows"] == 12 and report["model"]["perplexity"]["split"] == "test.txt"
    assert "a model was" not in output
    for words in (
        ["--dataset", path],
        ["--dataset", corpus / "validation.txt"],
        ["--dataset", corpus, "--split", "train"],
    ):
        _, output = figures("-m", folder, *words, "--no-speed", "--eval-samples", 2)
        assert "a model was calibrated, searched or trained on this text, so that its figures are too good" in output


def test_a_file_whose_name_is_like_a_mix_is_known_again(figures, folder, tmp_path):
    path, record = tmp_path / "mine,1.txt", json.loads((folder / "ffp_config.json").read_text())
    path.write_text(make_text(1500))
    (folder / "ffp_config.json").write_text(json.dumps(record | {"dataset": "mine,1.txt"}))
    report, _ = figures("-m", folder, "--dataset", path, "--no-speed")
    assert report["model"]["perplexity"]["split"] == "test part of mine,1.txt"


def test_models_of_different_lengths_are_measured_on_the_same_windows(run_ffp, save_tiny_model, data_folder, tmp_path):
    short = tmp_path / "short"
    make_tiny_model(max_position_embeddings=32).save_pretrained(short)
    make_tokenizer().save_pretrained(short)
    words = ("evaluate", *FAST, "-m", save_tiny_model(), "--baseline", short, "--dataset", data_folder, "--no-speed")
    code, output, errors = run_ffp(*words)
    assert code == 0, errors
    assert output.count("windows of 32 tokens") == 1 and "tokenizers differ" not in output


def test_fewer_windows_than_asked_for_are_told(figures, save_tiny_model, data_folder, caplog):
    figures("-m", save_tiny_model(), "--dataset", data_folder, "--no-speed", "--eval-samples", 5000)
    assert re.search(r"has \d+ of 5000 windows of 24 tokens", caplog.text)


def test_figures_are_printed_though_speed_fails(run, save_tiny_model, data_folder, monkeypatch):
    monkeypatch.setattr("optimum_ffp.evaluation.measure_speed", Mock(side_effect=KeyboardInterrupt))
    code, output, _ = run("-m", save_tiny_model(), "--dataset", data_folder)
    assert code == 130 and "perplexity" in output


def test_a_model_without_room_on_the_device_ends_in_one_line(run, save_tiny_model, data_folder, monkeypatch):
    monkeypatch.setattr(type(make_tiny_model()), "to", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.")))
    refused(run("-m", save_tiny_model(), "--dataset", data_folder), "CUDA out of memory.*; choose --no-speed, which")


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
)


@pytest.mark.slow
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["card", "host"])
def test_where_memory_runs_out_batches_are_halved_and_speed_is_left_out(
    error, figures, save_tiny_model, data_folder, monkeypatch
):
    forward = type(make_tiny_model()).forward

    def short_of_memory(self, input_ids=None, **arguments):
        if len(input_ids) > 1:
            raise error
        return forward(self, input_ids, **arguments)

    monkeypatch.setattr(type(make_tiny_model()), "forward", short_of_memory)
    report, _ = figures("-m", save_tiny_model(), "--dataset", data_folder, "--batch-size", 4)
    assert report["model"]["perplexity"]["perplexity"] > 1 and "speed" not in report["model"]


@pytest.mark.slow
def test_help_does_not_import_torch():
    program = (
        "import sys; from optimum.commands.optimum_cli import main\n"
        "sys.argv = ['optimum-cli', 'ffp', 'evaluate', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'optimum_ffp' in sys.modules and 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--tasks-path" in done.stdout


def test_a_wrong_baseline_is_found_before_the_first_model_is_scored(run, save_tiny_model, data_folder, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr("optimum_ffp.evaluation.perplexity_record", fail)
    words = ["-m", save_tiny_model(), "--dataset", data_folder, "--no-speed", "--baseline", "./nowhere"]
    refused(run(*words), "there is no folder './nowhere'")


def test_figures_of_the_first_model_are_kept_when_the_second_fails(run, save_tiny_model, data_folder, monkeypatch):
    from optimum_ffp import evaluation

    measure, done = evaluation.perplexity_record, []

    def fail_later(*arguments, **options):
        done.append(1)
        if len(done) == 2:
            raise FFPError("the second one fails")
        return measure(*arguments, **options)

    monkeypatch.setattr("optimum_ffp.evaluation.perplexity_record", fail_later)
    words = ["-m", save_tiny_model(), "--baseline", save_tiny_model("opt"), "--dataset", data_folder, "--no-speed"]
    ended = run(*words, "--json", data_folder / "figures.json")
    refused(ended, "the second one fails")
    assert "perplexity" in ended[1] and not (data_folder / "figures.json").exists()
