"""The card is a function of the record alone. If the golden file differs on purpose, write what is rendered there."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from optimum_ffp import FFPConfig, RecoveryConfig
from optimum_ffp.checkpoint.card import render_card


FOLDER = Path(__file__).parent


@pytest.fixture
def record() -> dict[str, Any]:
    return json.loads((FOLDER / "record.json").read_text())


def test_the_card_is_the_golden_one(record):
    assert render_card(record, "me/tiny ffp") == (FOLDER / "card.md").read_text()


def test_a_pruned_model_of_a_local_one(record):
    del record["recovery"]
    record["provenance"] |= {"base_model": "tiny", "revision": None, "trust_remote_code": True, "license": {}}
    record["search"] |= {"warm_start": "my agent", "repeated_windows": {"search": 2, "test": 1}, "non_finite": 3}
    record["provenance"]["perplexity"]["calibrated"] = None
    card = render_card(record, "./out")
    for text in (
        "\n# tiny, 50 % pruned\n\ntiny pruned by",
        "| 20.000 | **not finite** |",
        "(3 candidates had a perplexity that is not finite)",
        "**2 search windows and 1 test windows repeat calibration or search text**",
        "prune -m tiny OUT --config ffp_config.json --dataset PATH --dtype float32 --trust-remote-code "
        "--warm-start 'my agent'\n",
        '"./out"',
        "all figures in one file",
    ):
        assert text in card
    data = ModelCard(card).data
    assert data.base_model is None and data.license is None and data.datasets == ["Salesforce/wikitext"]
    # Perplexities that are not finite are no results.
    assert [result.metric_value for result in data.eval_results] == [40.0]


def test_a_recovery_names_its_teacher_unless_that_is_the_base_model_on_the_hub(record):
    recovery, provenance = record["recovery"][-1], record["provenance"]
    recovery["teacher"] = provenance["base_model"]
    assert "--teacher" not in render_card(record, "./out")
    provenance["base_model"], provenance["revision"], recovery["teacher"] = "tiny", None, "my tiny"
    assert " OUT --teacher 'my tiny' --config ffp_config.json" in render_card(record, "./out")


def test_a_model_without_code_whose_windows_were_given(record):
    record["model"] |= {"code_file": None, "chat": False, "linear": False, "gguf": None, "language_model_only": True}
    record["provenance"]["given_data"] = True
    record["files"] = ["policy.png"]
    record["calibration"] = "ridge"
    del record["recovery"]
    for unit in record["policy"]["units"]:
        unit |= {"kept": unit["items"], "retention": 1.0, "group": "all_heads"} if unit["unit"] == "attention" else {}
        unit |= {"kept": 24, "retention": 0.5} if unit["unit"] == "ffn" else {}
    card = render_card(record, "me/it")
    for text in ("FFN channels are\nremoved, the same number", "given from Python", "Attention stays whole"):
        assert text in card
    for text in ("trust", "torchao", "llama.cpp", "ffp prune", "## Search", "every layer alone"):
        assert text not in card
    assert "The language model of org/tiny, which takes text alone," in card


def test_a_record_is_a_config(record):
    path = FOLDER / "record.json"
    assert FFPConfig.from_file(path, dataset="wikitext2").num_samples == record["num_samples"]
    options = RecoveryConfig.from_file(path, dataset="wikitext2").to_dict()
    assert options["seed"] == 3 and options["dataset"] == "wikitext2"
