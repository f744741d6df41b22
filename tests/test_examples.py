"""The examples that prune and evaluate, as a user starts them; those on what comes after are in their own tests."""

import json
import re
from pathlib import Path

import pytest

from optimum_ffp import FFPModelForCausalLM
from tests.helpers import make_task, make_text, make_tiny_model, make_tokenizer, prune_tiny_model


pytestmark = pytest.mark.slow


@pytest.fixture
def dense(tmp_path) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}w8 {{ message.content }} w9 {% endfor %}"
    for one in (make_tiny_model(), tokenizer):
        one.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_prune_at_two_sparsities(run_example, dense, tmp_path):
    (tmp_path / "text.txt").write_text(make_text(4000))
    printed = run_example("prune_from_python.py", dense, tmp_path / "text.txt", tmp_path / "out", "24")
    assert "10%: " in printed and "20%: " in printed
    parameters = [FFPModelForCausalLM.from_pretrained(tmp_path / f"out-{n}").num_parameters() for n in (10, 20)]
    assert parameters[0] > parameters[1] and f"{parameters[1]:,} parameters" in printed

    printed = run_example("generate.py", dense, tmp_path / "out-20", "--prompts", "w5 w6 w7", "w8")
    measured = json.loads((tmp_path / "out-20" / "ffp_config.json").read_text())["provenance"]
    for name, figure in (("dense", "dense"), ("pruned", "calibrated")):
        row = rf"^{name} +{measured['parameters'][name]:,} +\d+ +{measured['perplexity'][figure]:.2f} +\d+\.\d$"
        assert re.search(row, printed, re.M), printed
        assert len(re.findall(rf"^  {name} +w\d+ w\d+", printed, re.M)) == 2, printed


def test_a_model_writes_chats(run_example, dense, tmp_path):
    run_example("write_chats.py", dense, tmp_path / "chats.jsonl", "--chats", "3", "--batch-size", "16")
    chats = [json.loads(line)["messages"] for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert len({user["content"] for user, _ in chats}) == 3
    assert all([message["role"] for message in chat] == ["user", "assistant"] for chat in chats)
    assert all(message["content"] for chat in chats for message in chat)


def test_lm_eval_takes_a_pruned_model(run_example, tmp_path):
    pytest.importorskip("lm_eval")
    make_task(tmp_path / "tasks")
    folder = prune_tiny_model("llama", tmp_path / "pruned")
    printed = run_example("evaluate_with_lm_eval.py", folder, "--tasks", "tiny", "--tasks-path", tmp_path / "tasks")
    assert "|tiny " in printed and "acc_norm" in printed
