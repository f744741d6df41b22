"""The examples that prune and evaluate, as a user starts them; those on what comes after are in their own tests."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ffp import FFPModelForCausalLM
from tests.helpers import (
    EXAMPLES,
    make_pruner,
    make_task,
    make_text,
    make_tiny_model,
    make_tokenizer,
    save_pruned_model,
)


pytestmark = pytest.mark.slow


@pytest.fixture
def dense(tmp_path) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}w8 {{ message.content }} w9 {% endfor %}"
    for one in (make_tiny_model(), tokenizer):
        one.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def run_notebook(path: Path, **parameters: str | int) -> None:
    """Runs the code cells of a notebook in order; as with papermill, parameters follow the cell that has this tag."""
    namespace: dict[str, Any] = {}
    for cell in json.loads(path.read_text())["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] == "code" and not code.startswith("%pip"):
            exec(compile(code, str(path), "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            assert parameters.keys() <= namespace.keys()
            namespace |= parameters


def test_notebook_and_generate_example(run_example, dense, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(make_text(4000))
    files = {"MODEL": str(dense), "DATASET": str(tmp_path / "text.txt"), "OUTPUT": str(tmp_path / "out")}
    run_notebook(EXAMPLES / "prune.ipynb", **files, SEQ_LEN=24, MAX_TOKENS="480", PROMPT="w5 w6 w7")
    printed = capsys.readouterr().out
    folders = [tmp_path / f"out-{name}" for name in ("pruned", "recovered")]
    parameters = [FFPModelForCausalLM.from_pretrained(folder).num_parameters() for folder in folders]
    assert parameters[0] == parameters[1] and printed.count(f"{parameters[1]:,}") >= 2
    assert re.search(r"^divergence +\d", printed, re.M) and re.match("w5 w6 w7 w", printed.splitlines()[-1])

    printed = run_example("generate.py", dense, folders[0], "--prompts", "w5 w6 w7", "w8")
    measured = json.loads((folders[0] / "ffp_config.json").read_text())["provenance"]
    for name, figure in (("dense", "dense"), ("pruned", "calibrated")):
        row = rf"^{name} +{measured['parameters'][name]:,} +\d+ +{measured['perplexity'][figure]:.2f} +\d+\.\d$"
        assert re.search(row, printed, re.M), printed
        assert len(re.findall(rf"^  {name} +w\d+ w\d+", printed, re.M)) == 2, printed


def test_zoo_plans_without_weights_and_network(run_example, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows = run_example("zoo.py", "--plan").splitlines()
    # As the Hub says on the pages of these models.
    published = (134_515_008, 361_821_120, 494_032_768, 596_049_920, 1_720_574_976)
    assert [int(row.split()[1].replace(",", "")) for row in rows] == [*published]
    assert all(int(re.search(r"([\d,]+) tokens to prune", row)[1].replace(",", "")) > 2e6 for row in rows)


def test_scaled_wanda_example_criterion(dense, data_folder, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)

    def weights(**options) -> dict[str, torch.Tensor]:
        pruner = make_pruner(dense, data_folder, method="uniform", calibration="none", **options)
        return pruner.prune().model.state_dict()

    wanda = weights(criterion="wanda")
    for power, is_wanda in ((1.0, True), (0.0, False)):
        scaled = weights(criterion="criteria.scaled_wanda", activation_power=power)
        assert all(torch.equal(weight, scaled[name]) for name, weight in wanda.items()) == is_wanda


def test_write_chats_example(run_example, dense, tmp_path):
    run_example("write_chats.py", dense, tmp_path / "chats.jsonl", "--chats", "3", "--batch-size", "16")
    chats = [json.loads(line)["messages"] for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert len({user["content"] for user, _ in chats}) == 3
    assert all([message["role"] for message in chat] == ["user", "assistant"] for chat in chats)
    assert all(message["content"] for chat in chats for message in chat)


def test_lm_eval_example(run_example, tmp_path):
    pytest.importorskip("lm_eval")
    make_task(tmp_path / "tasks")
    folder = save_pruned_model("llama", tmp_path / "pruned")
    printed = run_example("evaluate_with_lm_eval.py", folder, "--tasks", "tiny", "--tasks-path", tmp_path / "tasks")
    assert "|tiny " in printed and "acc_norm" in printed
