"""The benchmarks on tiny models: they run to the end, and what they print and write is what was measured."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.data import DataRequest, load_windows
from optimum_ffp.evaluation import TaskSuite, window_losses
from tests.helpers import CHOICES, make_task, make_tiny_model, make_tokenizer, write_data


pytestmark = pytest.mark.slow


BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SHORT = ["--eval-samples", "2", "--seq-len", "24"]
FEW = ["num_samples=4", "search_samples=2", "fisher_samples=2", "search_steps=6"]


@pytest.fixture
def dense(save_tiny_model) -> Path:
    return save_tiny_model()


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a benchmark in this process and returns what it printed and wrote."""

    def run(name: str, *arguments: str | Path) -> tuple[str, dict | list]:
        output = tmp_path / f"{name}.json"
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments), "--output", str(output)])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out, json.loads(output.read_text())

    return run


def test_a_users_mistake_ends_in_one_line(run, dense, tmp_path, capsys):
    (tmp_path / "train.txt").write_text("a b c")
    with pytest.raises(SystemExit) as ending:
        run("compare", dense, tmp_path, "--seeds", "0", *SHORT)
    assert ending.value.code == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("error: ") and "has 3 tokens, less than one window of 24" in printed


def test_compare_goes_on_where_it_was(run, dense, data_folder, tmp_path, monkeypatch):
    folders = ["--work", tmp_path / "work", "--save", tmp_path / "models"]
    rest = [
        "--sparsities",
        "0.3",
        "--seeds",
        "0",
        "--distilled",
        "ffp",
        "--paper-steps",
        "4",
        *SHORT,
        "--options",
        *FEW,
    ]
    _, first = run("compare", dense, data_folder, "--methods", "ffp", *folders, *rest)
    assert [record["calibration"] for record in first] == ["ridge", "distillation"]
    monkeypatch.setattr("optimum_ffp.analysis.prepare.collect_statistics", None)
    monkeypatch.setattr("optimum_ffp.analysis.prepare.collect_fisher", None)
    printed, records = run("compare", dense, data_folder, "--methods", "ffp", "no-search", *folders, *rest)
    assert [record["method"] for record in records] == ["ffp", "ffp", "no-search"]
    assert [record["perplexities"] for record in records[:2]] == [record["perplexities"] for record in first]
    assert f"| ffp | distillation | 30% | {first[1]['perplexities']['calibrated']:.2f} |" in printed
    assert str(data_folder) not in json.dumps(records)
    assert FFPModelForCausalLM.from_pretrained(tmp_path / "models" / "no-search-30-seed0").num_parameters() > 0


def test_texts_measures_every_model_on_every_text(run, dense, data_folder, tmp_path):
    texts = [data_folder, write_data(tmp_path / "other")]
    printed, records = run("texts", dense, "--texts", *texts, *SHORT, "--options", *FEW)
    assert [record["calibrated_on"] for record in records] == ["data", "other", "data, other"]
    rows = [line.split(" | ") for line in printed.splitlines()[2:5]]
    for record, (_, first, _, own_first, second, _, own_second) in zip(records, rows):
        found = record["perplexities"]["calibrated"], record["other_texts"][0]["calibrated"]
        assert (first, second) == tuple(f"{perplexity:.2f}" for perplexity in found)
        assert bool(own_first) == (record["calibrated_on"] != "data")
        assert bool(own_second.strip(" |")) == (record["calibrated_on"] != "other")
    assert str(tmp_path) not in json.dumps(records)


def test_ablation_searches_once_for_variants_of_calibration(run, dense, data_folder):
    variants = ["uniform", "distillation", "default", "uncalibrated", "table3-calibration-only"]
    printed, records = run("ablation", dense, data_folder, "--sparsity", "0.3", "--variants", *variants, *SHORT)
    sizes = {record["variant"]: record["sizes"] for record in records}
    assert sizes["distillation"] == sizes["default"] == sizes["uncalibrated"]
    # The default's search may fall back on uniform.
    figures = [record["perplexities"].get("calibrated") for record in records]
    assert len(set(figures[1:])) == len(variants) - 1
    assert figures[3] is None
    assert records[3]["perplexities"]["searched"] > 0
    cells = [line.split(" | ")[2] for line in printed.splitlines()[2:]]
    assert cells == [f"{figure:.2f}" if figure else "" for figure in figures]


def test_ablation_goes_on_where_it_was(run, dense, data_folder, tmp_path, monkeypatch):
    rest = ["--variants", "no-search", "--work", tmp_path / "work", *SHORT, "--options", *FEW]
    printed, first = run("ablation", dense, data_folder, *rest)
    for expensive in ("analysis.prepare.collect_statistics", "analysis.prepare.collect_fisher"):
        monkeypatch.setattr(f"optimum_ffp.{expensive}", None)
    again, second = run("ablation", dense, data_folder, *rest)
    assert again == printed
    assert first[0]["sizes"] == second[0]["sizes"]


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_learning_curve_is_measured_on_held_out_windows(preset, run, dense, data_folder, tmp_path):
    words = ["--preset", preset, "--sparsities", "0.3", "0.4", "--steps", "26", "--every", "2", "--seq-len", "24"]
    words += ["--search-samples", "2", "--held-out", "3", "--save", tmp_path / "models"]
    printed, record = run("learning_curve", dense, data_folder, *words)
    assert [one["sparsity"] for one in record["searches"]] == [0.3, 0.4]
    request = DataRequest(24, record["options"]["num_samples"], 5, 2, record["options"]["seed"])
    windows = load_windows(str(data_folder), None, make_tokenizer(), make_tiny_model(), request).search.tokens[2:]
    for one in record["searches"]:
        updates, rewards = zip(*one["mean_action"])
        assert updates[0] == 0 and updates[-1] >= 2 and min(rewards) > 0 and one["moved"] > 0
        assert f"| ppo | {one['ppo']['tokens']:,} | " in printed and f"{rewards[0]:.4f} {rewards[-1]:.4f} |" in printed
        if preset == "default":
            # The models that are written are after ridge regression too.
            models = (
                make_tiny_model(),
                *(
                    FFPModelForCausalLM.from_pretrained(tmp_path / "models" / f"{name}-{100 * one['sparsity']:g}")
                    for name in ("ppo", "random")
                ),
            )
            expected, *found = (float(window_losses(model, windows).mean()) for model in models)
            for name, loss in zip(("ppo", "random"), found):
                assert one[name]["held_out"] == pytest.approx(np.exp(expected - loss), rel=1e-4)
    for one in record["searches"]:
        assert 0.5 * one["ppo"]["tokens"] < one["random"]["tokens"] <= one["ppo"]["tokens"] + 24 * 2 * 2
    assert (tmp_path / "learning_curve.png").is_file() and str(tmp_path) not in json.dumps(record)


def test_candidate_beside_a_dense_pass(run, dense, data_folder):
    rest = ["--sparsities", "0.3", "--repeats", "2", "--device", "cpu", "--options", "seq_len=24", *FEW]
    printed, record = run("candidate", dense, data_folder, *rest)
    figures = record["0.3"]
    assert 0 < figures["share_not_forward"] < 1
    assert min(figures["candidate_over_dense"], figures["update_over_dense"]) > 0
    assert f"| 30% | {figures['candidate_over_dense']:.2f} |" in printed


def test_zero_shot_compares_on_the_same_samples(run, dense, tmp_path):
    pytest.importorskip("lm_eval")
    tasks, other = tmp_path / "tasks", make_tiny_model(seed=5)
    rows = make_task(tasks, samples=18)
    other.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    models = [dense, tmp_path / "other", dense]
    printed, records = run("zero_shot", *models, "--tasks", "tiny", "--balanced", "tiny", "--tasks-path", tasks)
    for kind in ("acc", "acc_norm", "balanced"):
        means = [record[kind]["mean"][0] for record in records]
        if kind != "balanced":
            assert means == [record["tasks"][0]["metrics"][kind] for record in records]
        more = [record[kind]["first_has_more"][0] for record in records]
        assert more == pytest.approx([0, means[0] - means[1], 0])
        assert records[2][kind]["first_has_more"][1] == 0
    assert len(printed.splitlines()) == 5
    assert {record["dtype"] for record in records} == {"float32"}
    _, (record,) = run("zero_shot", dense, "--tasks", "tiny", "--tasks-path", tasks, "--dtype", "bfloat16")
    assert record["dtype"] == "bfloat16"

    (score,) = TaskSuite(["tiny"], str(tasks)).score(other, make_tokenizer(), with_samples=True)
    hits = {label: [] for label in range(CHOICES)}
    for row, hit in zip(rows, score["per_sample"]["acc_norm"]):
        hits[row["label"]].append(hit)
    recalls = [sum(found) / len(found) for found in hits.values()]
    balanced = records[1]["balanced"]["mean"][0]
    assert balanced == pytest.approx(sum(recalls) / CHOICES)
    assert balanced != records[1]["acc_norm"]["mean"][0]


def test_cost_extrapolates_to_all_layers(run, dense):
    printed, record = run("cost", dense, "--layers", "1", "2", "--device", "cpu", "--options", "seq_len=24", *FEW)
    low, high = (record["measured"][count]["peak_bytes"]["search"] for count in ("1", "2"))
    assert record["stages"]["search"]["peak_bytes"] == high + max(0, high - low)
    assert str(dense) not in json.dumps(record)
    assert "3 layers, extrapolated from runs with 1 and 2 layers" in printed


def test_latency_of_both_models(run, dense):
    printed, record = run("latency", dense, dense, "--prompt", "8", "--new", "4", "--repeats", "1")
    assert record["settings"]["dense"] == "tiny-llama"
    assert record["dense"]["parameters"] == record["pruned"]["parameters"]
    assert f"{record['pruned']['decode']:,.1f}" in printed


def test_recoveries_are_compared_and_go_on(run, pruned, folder, data_folder, tmp_path, monkeypatch):
    sizes = ["seq_len=24", "eval_seq_len=24", "batch_tokens=96", "held_out_samples=3", "evaluations=2"]
    words = [folder, "--teacher", pruned[0].model_id, "--dataset", data_folder, "--eval-samples", "3"]
    words += ["--max-tokens", "500", "1k", "--seeds", "0", "1", "--work", tmp_path / "work", "--options", *sizes]
    printed, records = run("recover", *words)
    assert [(record["asked"], record["options"]["seed"]) for record in records] == [
        (tokens, seed) for tokens in ("500", "1k") for seed in (0, 1)
    ]
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| tiny ffp")]
    assert [row[2:4] for row in rows] == [["500", "2"], ["1k", "2"]]
    for row, group in zip(rows, (records[:2], records[2:])):
        dense, before, after = (
            np.mean([record["losses"][name][0] for record in group]) for name in ("dense", "pruned", "recovered")
        )
        assert row[4:6] == [f"{np.exp(before):.2f}", f"{np.exp(after):.2f}"]
        assert row[6].startswith(f"{100 * (before - after) / (before - dense):.1f} ± ")
    assert not list((tmp_path / "work").glob("*/*")), "finished work is kept as a record alone"
    # What is finished is read again.
    monkeypatch.setattr("optimum_ffp.FFPRecovery.recover", None)
    assert run("recover", *words)[1] == records


def test_versions_are_compared(run, dense, tmp_path):
    few = [*FEW, "seq_len=24", "eval_samples=2", 'method="uniform"']
    data = write_data(tmp_path / "data")
    output, record = run(
        "versions", dense, data, BENCHMARKS.parent, "--options", *few, "--new-options", "calibration=ridge"
    )
    assert record["new"]["options"]["calibration"] == "ridge" and record["old"]["options"]["dataset"] == "data"
    assert output.startswith("times as fast: seconds ")
    change = record["new"]["perplexity"] / record["old"]["perplexity"] - 1
    assert output.strip().endswith(f"perplexity {change:+.2%}") and "statistics" in output


def test_divergence_is_that_of_the_predictions(run, dense, folder, data_folder):
    words = [dense, folder, dense, "--dataset", data_folder, "--windows", "3", "--dtype", "float32"]
    printed, (pruned, same) = run("divergence", *words)
    text = make_tokenizer()((data_folder / "test.txt").read_text()).input_ids
    length = make_tiny_model().config.max_position_embeddings
    windows = torch.tensor(text[: 3 * length]).view(3, length)
    models = make_tiny_model(), FFPModelForCausalLM.from_pretrained(folder)
    expected, found = (model(windows).logits[:, :-1].log_softmax(-1) for model in models)
    divergence = kl_div(found, expected, reduction="none", log_target=True).sum(-1).mean(1)
    assert pruned["divergence"] == pytest.approx(divergence.tolist(), rel=1e-3) and min(divergence) > 0
    losses = [window_losses(model, windows) for model in models]
    assert pruned["excess_loss"] == pytest.approx((losses[1] - losses[0]).tolist(), abs=1e-5)
    assert same["agreement"] == [1.0] * 3 and same["divergence"] == pytest.approx([0.0] * 3, abs=1e-6)
    assert "| 0.0000 | -100.0 ± " in printed
