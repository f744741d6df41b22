import sys

import pytest
import torch

from optimum_ffp.errors import FFPError
from optimum_ffp.evaluation import TaskSuite
from tests.helpers import make_task, make_tiny_model, make_tokenizer, with_start_token


pytestmark = pytest.mark.slow


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(FFPError, match="need the lm-eval package: pip install lm-eval"):
        TaskSuite(["boolq"])


@pytest.fixture
def lm_eval():
    return pytest.importorskip("lm_eval", reason="needs the extra `eval`")


@torch.no_grad()
def accuracy_by_hand(model, rows, begin=()):
    """Which answer the model finds most likely after `begin` and the question: as it is, and by character."""
    tokenizer = make_tokenizer()
    hits = {"acc": 0, "acc_norm": 0}
    for row in rows:
        scores = []
        for choice in row["choices"]:
            context, answer = (tokenizer(text).input_ids for text in (row["question"], choice))
            context = [*begin, *context]
            logits = model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[len(context) - 1 + index, token]) for index, token in enumerate(answer)))
        lengths = [len(choice) for choice in row["choices"]]
        hits["acc"] += max(range(4), key=scores.__getitem__) == row["label"]
        hits["acc_norm"] += max(range(4), key=lambda index: scores[index] / lengths[index]) == row["label"]
    return {name: count / len(rows) for name, count in hits.items()}


@pytest.mark.parametrize("begin", [[], [0]], ids=["plain", "start token"])
def test_accuracy_by_hand_and_by_lm_eval_alone(lm_eval, tmp_path, begin):
    rows = make_task(tmp_path / "tasks", samples=20)
    model, tokenizer = make_tiny_model(), with_start_token(make_tokenizer()) if begin else make_tokenizer()
    suite = TaskSuite(["tiny"], str(tmp_path / "tasks"))
    (record,) = suite.score(model, tokenizer, batch_size=2)
    assert record["metrics"] == accuracy_by_hand(model, rows, begin)
    assert {"task": "tiny", "samples": 20, "fewshot": 0, "version": 7.0}.items() <= record.items()
    # The same suite serves the baseline too.
    other = make_tiny_model(seed=5)
    (again,) = suite.score(other, tokenizer, with_samples=True)
    assert again["metrics"] == accuracy_by_hand(other, rows, begin)
    assert {name: sum(scores) / len(scores) for name, scores in again["per_sample"].items()} == again["metrics"]

    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    manager = lm_eval.tasks.TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    alone = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "model")},
        tasks=["tiny"],
        task_manager=manager,
        device="cpu",
        batch_size=2,
    )["results"]["tiny"]
    for name in ("acc", "acc_norm"):
        assert record["metrics"][name] == alone[f"{name},none"]
        assert record["stderr"][name] == alone[f"{name}_stderr,none"]


def test_limit_is_a_number_or_a_fraction(lm_eval, tasks_folder):
    model, tokenizer = make_tiny_model(), make_tokenizer()
    suite = TaskSuite([], str(tasks_folder))
    assert [suite.score(model, tokenizer, limit)[0]["samples"] for limit in (4.0, 0.5)] == [4, 5]


def test_tasks_by_file_and_by_wildcard(lm_eval, tasks_folder):
    make_task(tasks_folder, "tiny_other")
    make_task(tasks_folder, "else")
    assert TaskSuite(["tiny*"], str(tasks_folder)).names == ["tiny", "tiny_other"]
    assert TaskSuite([], str(tasks_folder)).names == ["else", "tiny", "tiny_other"]
    file = str(tasks_folder / "else.yaml")
    (record,) = TaskSuite([file], str(tasks_folder)).score(make_tiny_model(), make_tokenizer(), 2)
    assert record["task"] == "else"


def test_solved_examples_before_the_question(lm_eval, tmp_path):
    make_task(tmp_path / "tasks", fewshot_split="test")
    suite = TaskSuite([], str(tmp_path / "tasks"), num_fewshot=2)
    assert suite.score(make_tiny_model(), make_tokenizer(), 3)[0]["fewshot"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_path": "nobody/nothing"}, "tiny can't be evaluated: .*Tasks whose data is on the Hub need"),
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "tiny can't be evaluated: FileNotFoundError"),
        ({"test_split": "other"}, "tiny can't be evaluated"),
        ({"output_type": "telepathy"}, "tiny can't be evaluated"),
    ],
)
def test_a_task_that_cannot_be_read_is_one_line_before_any_model(lm_eval, changes, message, tmp_path):
    make_task(tmp_path / "tasks", **changes)
    with pytest.raises(FFPError, match=message) as caught:
        TaskSuite([], str(tmp_path / "tasks"))
    assert "\n" not in str(caught.value)


def test_a_task_that_cannot_be_run_is_one_line(lm_eval, tmp_path):
    make_task(tmp_path / "tasks", doc_to_choice="{{options.nothing}}")
    with pytest.raises(FFPError, match="tiny can't be evaluated"):
        TaskSuite([], str(tmp_path / "tasks")).score(make_tiny_model(), make_tokenizer())


def test_unknown_names(lm_eval, tasks_folder, tmp_path):
    with pytest.raises(FFPError, match="there is no task 'tinny'.*did you mean .*tiny"):
        TaskSuite(["tiny", "tinny"], str(tasks_folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FFPError, match="holds no task"):
        TaskSuite([], str(tmp_path / "empty"))
    with pytest.raises(FFPError, match="there is no folder"):
        TaskSuite([], str(tmp_path / "nowhere"))
