"""The card is a function of the record alone. If the golden file differs on purpose, write what is rendered there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from optimum_ffp.checkpoint.card import render_card as render
from optimum_ffp.utils.record import Record


FOLDER = Path(__file__).parent


def render_card(record: dict[str, Any], name: str) -> str:
    return render(Record.from_dict(record), name)


@pytest.fixture
def record() -> dict[str, Any]:
    return json.loads((FOLDER / "record.json").read_text())


def test_model_card_equals_golden_file(record):
    assert render_card(record, "me/tiny ffp") == (FOLDER / "card.md").read_text()


def test_model_card_of_local_base_model(record):
    del record["recovery"]
    record["provenance"] |= {"base_model": "tiny", "revision": None, "trust_remote_code": True, "license": {}}
    record["search"] |= {"warm_start": "my agent", "non_finite": 3}
    record["provenance"]["perplexity"]["calibrated"] = None
    card = render_card(record, "./out")
    for text in (
        "\n# tiny, 50 % of the blocks pruned (36.6 % of the model)\n\nThis is tiny, pruned by",
        "| 20.00 | **not finite** |",
        "(3 candidates had a non-finite perplexity)",
        "prune -m tiny OUT --config ffp_config.json --dataset wikitext2:0.75,mine.jsonl:0.25 --dtype float32 "
        "--trust-remote-code --warm-start 'my agent'\n",
        '"./out"',
        "all figures in one file",
    ):
        assert text in card
    data = ModelCard(card).data
    assert data.base_model is None and data.get("base_model_relation") is None
    assert data.license is None and data.datasets == ["Salesforce/wikitext"]
    # Perplexities that are not finite are no results.
    assert [result.metric_value for result in data.eval_results] == [40.0]


def test_model_card_names_teacher_other_than_base_model(record):
    recovery, provenance = record["recovery"][-1], record["provenance"]
    recovery["teacher"] = provenance["base_model"]
    assert "--teacher" not in render_card(record, "./out")
    provenance["base_model"], provenance["revision"], recovery["teacher"] = "tiny", None, "my tiny"
    assert " OUT --teacher 'my tiny' --config ffp_config.json" in render_card(record, "./out")


def test_model_card_of_dense_class_and_given_windows(record):
    record["model"] |= {"code_file": None, "chat": False, "linear": False, "gguf": None, "language_model_only": True}
    record["provenance"]["given_data"] = True
    record["files"] = ["policy.png"]
    record["calibration"], record["provenance"]["held_out"] = "ridge", {}
    del record["recovery"]
    for unit in record["policy"]["units"]:
        unit |= {"kept": unit["items"], "retention": 1.0, "group": "all_heads"} if unit["unit"] == "attention" else {}
        unit |= {"kept": 24, "retention": 0.5} if unit["unit"] == "ffn" else {}
    card = render_card(record, "me/it")
    for text in ("FFN channels are removed, the same number", "passed from Python", "Attention is unchanged"):
        assert text in card
    for text in ("trust", "torchao", "llama.cpp", "ffp prune", "## Search", "each layer was trained"):
        assert text not in card
    assert "the text-only language model of [org/tiny]" in card


def test_model_card_of_quantized_model_has_no_results(record):
    record["quantization"] = {"scheme": "w4a16", "group_size": 32, "windows": None, "llmcompressor": "0.14.0.1"}
    card = render_card(record, "me/it")
    assert "recovered, w4a16\n" in card and "rounded to the nearest" in card and "vllm serve me/it" in card
    assert "torchao" not in card and "ffp export" not in card
    data = ModelCard(card).data
    assert not data.eval_results and data.get("widget") is None and data.base_model_relation == "quantized"


def test_model_card_names_removed_layers_and_vllm_options(record):
    units = record["policy"]["units"]
    for index in (2, 3, 5):
        units[index] |= {"kept": 0, "retention": 0.0}
    card = render_card(record, "me/it")
    assert "from 0: layer 1, the FFN of layer 2." in card and "or with `--trust-remote-code`" in card
    units[4]["kept"], units[5]["kept"] = 0, 1
    card = render_card(record, "me/it")
    assert "from 0: layer 1, the attention of layer 2." in card and "or with `--trust" not in card


def test_model_card_names_base_model_of_gguf_file(record):
    del record["recovery"]
    record["base_model"] = "org/Tiny"
    record["provenance"] |= {"base_model": "tiny.Q8_0.gguf", "revision": None}
    card = render_card(record, "me/it")
    assert "# Tiny, 50 %" in card
    assert "[org/Tiny](https://huggingface.co/org/Tiny), read from tiny.Q8_0.gguf, pruned" in card
    assert ModelCard(card).data.base_model == "org/Tiny"


def test_model_card_marks_small_test_sets(record):
    del record["recovery"]
    small, large = ModelCard(render_card(record, "me/it")).data.eval_results
    assert "small sample" in small.dataset_name and "small sample" not in large.dataset_name


def test_model_card_metadata_has_answers_of_final_model(record):
    written = "First\n---\n'second': <b>\\"
    record["recovery"][-1]["samples"] = {"What is 2 * 3?": written}
    (example,) = ModelCard(render_card(record, "me/it")).data.widget
    assert example["messages"] == [{"role": "user", "content": "What is 2 * 3?"}]
    assert example["output"] == {"text": written}
    del record["recovery"]
    record["model"]["chat"] = False
    (example,) = ModelCard(render_card(record, "me/it")).data.widget
    assert example == {"text": "What is 2 * 3?", "output": {"text": record["provenance"]["samples"][0]["pruned"]}}


def test_model_card_escapes_html_outside_code(record):
    hostile = "<script>alert(1)<b>"

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: poison(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [poison(item, key) for item in value]
        named = key in ("base_model", "dataset", "split", "teacher", "prompt", "dense", "pruned", "source")
        return hostile if named and isinstance(value, str) else value

    record["provenance"]["revision"], record["recovery"][0]["passes"] = None, {hostile: 2.0}
    card = render_card(poison(record), hostile)
    # Code blocks, code spans and the examples of the widget show HTML as it is.
    outside = re.sub(r"```.*?\n```|`[^`\n]*`|\nwidget:.*?(?=\n\w)", "", card, flags=re.DOTALL)
    assert "<script" in card and "&lt;script" in outside and "<script" not in outside
