import pytest
import torch

from optimum_ffp import evaluate
from optimum_ffp.errors import FFPError
from optimum_ffp.evaluation import TaskSuite
from tests.helpers import make_task, make_tiny_model, make_tokenizer, with_start_token


pytestmark = pytest.mark.slow


@pytest.fixture
def lm_eval():
    return pytest.importorskip("lm_eval", reason="needs the extra `eval`")


@torch.no_grad()
def accuracy_by_hand(model, rows, begin):
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


def test_zero_shot_accuracy_equals_reference_and_lm_eval(lm_eval, tmp_path):
    rows, folder = make_task(tmp_path / "tasks"), str(tmp_path / "tasks")
    models = {"model": make_tiny_model(), "baseline": make_tiny_model(seed=5)}
    tokenizer = with_start_token(make_tokenizer())
    figures = evaluate(
        *models.values(), dataset=None, tasks_path=folder, speed=False, batch_size=2, tokenizer=tokenizer
    )
    for role, model in models.items():
        (record,) = figures[role]["tasks"]
        assert record["metrics"] == accuracy_by_hand(model, rows, [tokenizer.bos_token_id])
        assert {"task": "tiny", "samples": 9, "fewshot": 0, "version": 7.0}.items() <= record.items()
    assert "tiny, acc" in str(figures) and "9 samples" in str(figures)
    (record,) = TaskSuite(["tiny"], folder).score(models["baseline"], tokenizer)
    means = {name: sum(scores) / len(scores) for name, scores in record["per_sample"].items()}
    assert means == record["metrics"] == figures["baseline"]["tasks"][0]["metrics"]

    models["model"].save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    alone = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "model")},
        tasks=["tiny"],
        task_manager=lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False),
        device="cpu",
        batch_size=2,
    )["results"]["tiny"]
    (record,) = figures["model"]["tasks"]
    for name in ("acc", "acc_norm"):
        assert record["metrics"][name] == alone[f"{name},none"]
        assert record["stderr"][name] == alone[f"{name}_stderr,none"]


def test_task_names_accept_files_and_wildcards(lm_eval, tmp_path):
    for name in ("tiny", "tiny_other", "else"):
        make_task(tmp_path / "tasks", name, fewshot_split="test")
    folder, file = str(tmp_path / "tasks"), str(tmp_path / "tasks" / "else.yaml")
    assert TaskSuite(["tiny*"], folder).names == ["tiny", "tiny_other"]
    assert TaskSuite([], folder).names == ["else", "tiny", "tiny_other"]
    suite = TaskSuite([file], folder, num_fewshot=2)
    for limit, samples in ((4.0, 4), (0.5, 5)):
        (record,) = suite.score(make_tiny_model(), make_tokenizer(), limit)
        assert (record["task"], record["samples"], record["fewshot"]) == ("else", samples, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset_path": "nobody/nothing"},
        {"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}},
        {"doc_to_choice": "{{options.nothing}}"},
    ],
)
def test_broken_task_is_one_line_error(lm_eval, changes, tmp_path):
    make_task(tmp_path / "tasks", **changes)
    with pytest.raises(FFPError, match="tiny") as caught:
        TaskSuite([], str(tmp_path / "tasks")).score(make_tiny_model(), make_tokenizer())
    assert "\n" not in str(caught.value)


def test_unknown_and_missing_tasks_are_rejected(lm_eval, tmp_path):
    make_task(tmp_path / "tasks")
    with pytest.raises(FFPError, match="did you mean .*tiny"):
        TaskSuite(["tiny", "tinny"], str(tmp_path / "tasks"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FFPError, match="no tasks"):
        TaskSuite([], str(tmp_path / "empty"))
