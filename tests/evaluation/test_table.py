import math

import pytest
import torch

from optimum_ffp.evaluation import (
    Speed,
    compare_records,
    comparison_table,
    perplexity_record,
    size_record,
    window_losses,
)
from tests.helpers import make_tiny_model, prune_by_hand


ORIGIN = {"dataset": "text", "split": "test"}


@pytest.fixture
def records(tmp_path, windows):
    dense, pruned = make_tiny_model(), prune_by_hand(make_tiny_model())[0]
    made = {}
    for role, model in (("model", pruned), ("baseline", dense)):
        model.save_pretrained(tmp_path / role)
        made[role] = size_record(model, tmp_path / role)
        made[role]["perplexity"] = perplexity_record(model, windows, ORIGIN, 2)
    return made


def cells(table):
    rows = [[cell for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_record_of_a_model(records, windows):
    record, model = records["baseline"], make_tiny_model()
    assert (record["model_type"], record["dtype"], record["device"]) == ("llama", "float32", "cpu")
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    expected = math.exp(float(window_losses(model, windows).mean()))
    assert record["perplexity"]["perplexity"] == pytest.approx(expected)
    assert ORIGIN.items() <= record["perplexity"].items()


def test_sparsity_and_speed_against_the_baseline(records, windows):
    speeds = {"model": Speed(300.0, 30.0, 8, 4, 1, 5), "baseline": Speed(200.0, 20.0, 8, 4, 1, 5)}
    compare_records(records, {"model": [windows], "baseline": [windows]}, speeds)
    policy = prune_by_hand(make_tiny_model())[1]
    model = records["model"]
    assert model["sparsity"] == pytest.approx(policy.sparsity)
    kept = sum(parameter.numel() for parameter in prune_by_hand(make_tiny_model())[0].parameters())
    assert model["model_sparsity"] == pytest.approx(1 - kept / records["baseline"]["parameters"])
    assert model["speed_ratio"] == {"prefill": 1.5, "decode": 1.5}
    table = cells(comparison_table(records))
    assert table["model"] == ["baseline", "ratio"]
    assert table["prefill, tokens/s"] == ["300.0", "200.0", "1.500", "8 tokens of prompt, batch 1, median of 5"]
    assert table["decode, tokens/s"] == ["30.0", "20.0", "1.500", "4 after it, batch 1, median of 5"]
    assert table["sparsity of the blocks"] == [f"{policy.sparsity:.4%}", "-", "-", "according to the baseline"]
    first, second = (record["perplexity"]["perplexity"] for record in records.values())
    losses = [window_losses(one, windows) for one in (prune_by_hand(make_tiny_model())[0], make_tiny_model())]
    error = (losses[0] - losses[1]).numpy().std(ddof=1) / 6**0.5 * first / second
    assert model["perplexity"]["ratio_error"] == pytest.approx(error) and error > 0
    figures = [f"{first:,.4f}", f"{second:,.4f}", f"{first / second:.3f} ± {error:.3f}"]
    assert table["perplexity"] == [*figures, "text, test, 6 windows of 24 tokens, no start token"]


def test_perplexities_of_other_tokens_are_not_compared(records, windows):
    compare_records(records, {"model": [windows], "baseline": [windows + 1]}, {})
    assert cells(comparison_table(records))["perplexity"][2] == "-"
    assert "the tokenizers differ" in comparison_table(records)
    assert "ratio_error" not in records["model"]["perplexity"]


def test_one_window_has_no_error(records, windows):
    for record in records.values():
        record["perplexity"]["losses"] = record["perplexity"]["losses"][:1]
    compare_records(records, {"model": [windows], "baseline": [windows]}, {})
    assert "±" not in comparison_table(records)


def test_a_baseline_that_is_smaller_says_nothing_of_sparsity(records, windows):
    swapped = {"model": records["baseline"], "baseline": records["model"]}
    compare_records(swapped, {"model": [windows], "baseline": [windows]}, {})
    assert "sparsity" not in comparison_table(swapped)


def test_one_model_alone(records):
    del records["baseline"]
    compare_records(records, {"model": []}, {})
    table = cells(comparison_table(records))
    assert "ratio" not in comparison_table(records) and "sparsity of the blocks" not in table
    assert table["parameters"] == [f"{records['model']['parameters']:,}"]


def test_tasks_that_were_measured_on_other_samples_have_no_ratio(records):
    for count, record in zip((20, 30), records.values()):
        task = {"task": "tiny", "samples": count, "fewshot": 2, "stderr": {"acc": 0.1}}
        record["tasks"] = [task | {"metrics": {"acc": 0.5, "mcc": None, "chance": 0.25}}]
    table = cells(comparison_table(records))
    assert table["tiny, acc"] == [
        "0.5000 ± 0.1000",
        "0.5000 ± 0.1000",
        "-",
        "20 samples, 2 shots | 30 samples, 2 shots",
    ]
    assert table["tiny, mcc"][:2] == ["not finite", "not finite"] and table["tiny, chance"][0] == "0.2500"


def test_what_is_not_finite_can_be_written_as_json(windows):
    model = make_tiny_model()
    model.lm_head.weight.data.fill_(torch.nan)
    record = perplexity_record(model, windows, ORIGIN, 1)
    assert record["perplexity"] is None and record["loss"] is None and record["losses"] == [None] * len(windows)
