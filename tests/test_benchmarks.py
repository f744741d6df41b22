"""The benchmarks on tiny models: they run to the end, print a table and write a record that names no folder."""

import json
import os
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from optimum_ffp import evaluate
from optimum_ffp.allocation.policy import Unit
from optimum_ffp.config.texts import Text
from tests.helpers import make_task, make_tiny_model, mixed_units, statistics_of


pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SHORT = ["--eval-samples", "2", "--seq-len", "24"]
FEW = ["--options", "num_samples=4", "search_samples=2", "fisher_samples=2", "search_steps=6"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a benchmark in this process and returns what it printed and wrote."""

    def run(name: str, *arguments: str | Path) -> tuple[str, dict | list]:
        output = tmp_path / f"{name}.json"
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments), "--output", str(output)])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        printed, text = capsys.readouterr().out, output.read_text()
        assert "|---" in printed and str(tmp_path) not in text
        return printed, json.loads(text)

    return run


def load(name: str, monkeypatch) -> dict:
    """The functions of a benchmark."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return runpy.run_path(str(BENCHMARKS / f"{name}.py"))


def test_compare_resumes_from_work_folder(run, save_tiny_model, data_folder, tmp_path, monkeypatch):
    words = [save_tiny_model(), data_folder, "--sparsities", "0.3", "--seeds", "0", "--work", tmp_path / "work"]
    words += [*SHORT, *FEW]
    _, first = run("compare", *words, "--methods", "uniform")
    monkeypatch.setattr("optimum_ffp.analysis.prepare.collect_statistics", None)
    _, records = run("compare", *words, "--methods", "uniform", "no-search")
    assert {record["method"] for record in records} == {"uniform", "no-search"}
    assert records[0]["perplexities"] == first[0]["perplexities"]


def test_compare_pairs_own_criterion_and_method_with_the_first(
    run, save_tiny_model, data_folder, tmp_path, monkeypatch
):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    score = "def score(weight, statistics, block):\n    return weight.abs().sum(0).view(-1, block).sum(1)\n"
    (tmp_path / "my_package" / "magnitude.py").write_text(score)
    search = "from optimum_ffp.search.methods.uniform import search\n"
    (tmp_path / "my_package" / "equal.py").write_text(search)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--sparsities", "0.3", "--seeds", "0", "1", "--head", "0", "--distilled", *FEW]
    words += ["--eval-samples", "24", "--seq-len", "24"]
    words += ["--methods", "uniform", "my_package.equal", "--criteria", "wanda", "my_package.magnitude"]
    printed, records = run("compare", save_tiny_model(), data_folder, *words)
    losses = {
        (record["options"]["criterion"], record["method"], record["seed"]): np.array(record["losses"]["calibrated"][0])
        for record in records
    }
    assert len(losses) == 8
    changes = []
    for seed in (0, 1):
        first, own = (losses[criterion, "uniform", seed] for criterion in ("wanda", "my_package.magnitude"))
        assert (losses["wanda", "my_package.equal", seed] == first).all()
        changes.append((own - first).mean())
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith(("| uniform", "| my_package"))]
    differences = {(row[1], row[0].strip("| ")): row[6] for row in rows}
    assert differences["wanda", "uniform"] == differences["wanda", "my_package.equal"] == ""
    expected = f"{100 * np.expm1(np.mean(changes)):+.2f} ± "
    assert differences["my_package.magnitude", "uniform"].startswith(expected)
    assert differences["my_package.magnitude", "my_package.equal"].startswith(expected)


def test_compare_adds_row_for_flap_allocation(run, save_tiny_model, data_folder, tmp_path, monkeypatch):
    model, file = save_tiny_model(), tmp_path / "flap.json"
    words = [model, data_folder, "--sparsity", "0.3", "--num-samples", "8", "--seq-len", "24", "--output", file]
    monkeypatch.setattr("sys.argv", ["flap", *map(str, words)])
    runpy.run_path(str(BENCHMARKS / "flap.py"), run_name="__main__")
    words = [model, data_folder, "--methods", "uniform", "--sparsities", "0.3", "--seeds", "0"]
    words += ["--policies", f"flap={file}", "--against", "uniform", "--distilled", "flap", *SHORT, *FEW]
    printed, records = run("compare", *words)
    assert [record["method"] for record in records] == ["uniform", "flap", "flap"] and "| flap |" in printed
    rows = json.loads(file.read_text())
    assert records[1]["sizes"] == records[2]["sizes"] == [row["kept"] for row in rows]
    assert [stage["stage"] for stage in records[2]["held_out"]["stages"]] == ["ridge", "layers", "model"]
    assert records[1]["sparsity"] == pytest.approx(0.3, abs=0.01) and records[1]["asked"] == 0.3


def test_flap_allocation_uses_one_threshold_for_all_units(monkeypatch):
    allocate = load("flap", monkeypatch)["allocate"]
    # A head has as many parameters as ten channels. Of 200, 40 go: those with the lowest scores, by the parameters.
    sizes = {"kv_group": (4, 10), "channel": (60, 1)}
    units = [Unit(layer, group, *size) for layer in (0, 1) for group, size in sizes.items()]
    channels = np.linspace(3, -3, 60)
    scores = [np.array([2, 1, 0, -2.5]), channels, np.array([2, 1, 0, -0.5]), channels]
    policy = allocate(units, scores, 0.2)
    # Above the threshold t there are 3 + 4 heads and twice 60 (3 - t) / 6 channels: t = -1.5.
    assert policy.sizes == (3, 45, 4, 45) and policy.sparsity == 0.2
    policy = allocate([replace(unit, multiple=4) if unit.kind == "ffn" else unit for unit in units], scores, 0.2)
    assert policy.sizes[::2] == (3, 4) and sorted(policy.sizes[1::2]) == [44, 44]


def test_flap_scores_equal_standardized_fluctuation_metric(windows):
    """As the authors compute them: by column, standardized in a layer, and the mean of those of a head."""
    model, seen = make_tiny_model(num_key_value_heads=2), {}
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.setdefault(name, []).append(inputs[0])
            )
    for window in windows:
        model(window[None])
    expected = []
    for name, inputs in seen.items():
        weight = model.get_submodule(name).weight
        metric = torch.cat(inputs).flatten(0, 1).var(0, correction=0) * weight.square().sum(0)
        metric = metric.square() if name.endswith("o_proj") else metric
        metric = (metric - metric.mean()) / metric.std()
        scores = metric.view(2, -1).mean(1) if name.endswith("o_proj") else metric
        expected.append(scores.sort(descending=True).values)
    model, score = make_tiny_model(num_key_value_heads=2), runpy.run_path(str(BENCHMARKS / "flap.py"))["score"]
    units = mixed_units(model, ["kv_group"])
    for unit, found, scores in zip(units, statistics_of(model, units, windows), expected, strict=True):
        assert score(unit, found) == pytest.approx(scores.numpy(), rel=1e-3, abs=1e-3)


def test_learning_curve_benchmark(run, save_tiny_model, data_folder):
    words = ["--sparsities", "0.3", "--steps", "26", "--seq-len", "24", "--search-samples", "2", "--held-out", "3"]
    _, (search,) = run("learning_curve", save_tiny_model(), data_folder, *words)
    assert search["ppo"]["tokens"] > 0 and search["mean_action"][0][0] == 0


def test_divergence_and_zero_shot_benchmarks(run, save_tiny_model, pruned, data_folder, tmp_path):
    dense = save_tiny_model()
    words = [dense, pruned[1], dense, "--dataset", data_folder, "--dtype", "float32", "--windows", "2", "4-5"]
    _, records = run("divergence", *words)
    assert min(records[1]["divergence"]) > 0 and max(records[2]["divergence"]) < 1e-6
    assert records[2]["lost"] == 0 < records[2]["first_tokens"]
    assert [record["numbers"] for record in records] == 3 * [[1, 2, 4, 5]]
    whole = evaluate(pruned[1], dense, dataset=str(data_folder), speed=False)["model"]["perplexity"]
    for name, figures in (("losses", whole["losses"]), ("divergence", whole["divergences"])):
        assert records[1][name] == pytest.approx([*figures[:2], *figures[3:5]], rel=1e-4)
    pytest.importorskip("lm_eval")
    make_task(tmp_path / "tasks")
    words = ["--tasks", "tiny", "--balanced", "tiny", "--tasks-path", tmp_path / "tasks"]
    _, records = run("zero_shot", dense, pruned[1], *words)
    assert [record["acc"]["mean"][0] for record in records] == [
        record["tasks"][0]["metrics"]["acc"] for record in records
    ]


def test_recover_benchmark(run, pruned, data_folder, tmp_path):
    words = [pruned[1], "--teacher", pruned[0].model_id, "--dataset", data_folder, "--max-tokens", "2k"]
    sizes = ["seq_len=24", "batch_tokens=96", "held_out_samples=3", "learning_rate=0.00001"]
    _, (record,) = run("recover", *words, "--work", tmp_path / "work", "--eval-samples", "3", "--options", *sizes)
    assert record["perplexity"]["recovered"] > 0


def test_serve_benchmark_appends_to_record(run, save_tiny_model, pruned):
    words = [f"dense={save_tiny_model()}", f"pruned={pruned[1]}", "--workloads", "6+2x2", "4+1", "--rounds", "2"]
    run("serve", "transformers", *words)
    _, records = run("serve", "transformers", *words)
    assert [record["model"] for record in records] == 4 * ["dense", "pruned"]
    assert all(len(record["seconds"]) == 2 and min(record["seconds"]) > 0 for record in records)


def test_completions_benchmark(run, save_tiny_model, pruned):
    printed, records = run("completions", save_tiny_model(), pruned[1], "--max-new-tokens", "8")
    assert len(records) == 2 and printed.count("`is_prime`") == 1
    # Untrained models write no Python.
    assert not any(function["passed"] for record in records for function in record["functions"].values())


def test_generated_programs_run_in_isolated_process(monkeypatch, tmp_path):
    runs = load("completions", monkeypatch)["runs"]
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert runs("import os\nassert os.listdir() == [] and 'HF_TOKEN' not in os.environ", 60)
    assert runs(f"import os\nassert os.getpid() != {os.getpid()}", 60)
    assert not runs("assert 1 == 2", 60) and not runs("while True: pass", 0.5)


def test_python_source_splits_are_stable(monkeypatch, tmp_path):
    names = [f"package{number % 7}/module{number}.py" for number in range(80)]
    left_out = ["test/test_this.py", "package1/tests/case.py", "site-packages/other.py", "_sysconfigdata_linux.py"]
    library = tmp_path / "library"
    for name in [*names, *left_out]:
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f"# {name}", encoding="utf-8")
    source = load("python_source", monkeypatch)
    monkeypatch.setattr("sysconfig.get_path", lambda name: library)
    monkeypatch.setattr("sys.argv", ["python_source", str(tmp_path / "corpus")])
    source["main"]()
    splits = {name: [row["text"] for row in rows] for name, rows in Text(str(tmp_path / "corpus")).open().items()}
    assert sorted(sum(splits.values(), [])) == sorted(f"# {name}" for name in names)
    assert 2 * len(splits["test"] + splits["validation"]) < len(splits["train"]) and all(splits.values())
    (library / "new.py").write_text("# new", encoding="utf-8")
    again = source["read_library"](library)
    assert {name: [text for text in texts if text != "# new"] for name, texts in again.items()} == splits
