"""The Trainer of a recovery: what it takes windows for, what an evaluation says, and what a checkpoint holds."""

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import TrainingArguments

from optimum_ffp.recovery.loss import UNLABELLED, DistillationLoss
from optimum_ffp.recovery.trainer import LabelledWindows, RecoveryTrainer
from tests.helpers import make_tiny_model


@pytest.fixture
def trainer(windows, tmp_path):
    teacher, student = make_tiny_model(), make_tiny_model(seed=1).requires_grad_(True)
    student.forward = DistillationLoss(student, teacher)
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=1,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        use_cpu=True,
        report_to="none",
        label_names=["labels"],
        remove_unused_columns=False,
    )
    hidden = windows[3:].clone().int()
    hidden[0, 4:9] = -1 - hidden[0, 4:9]
    text, held_out = LabelledWindows(windows[:3].int()), LabelledWindows(hidden)
    return RecoveryTrainer(student, arguments, train_dataset=text, eval_dataset=held_out, label_share=0.25)


def test_tokens_without_a_loss():
    window = LabelledWindows(torch.tensor([[5, -1 - 7, 0, -1]], dtype=torch.int32))[0]
    assert window["input_ids"].tolist() == [5, 7, 0, 0]
    assert window["labels"].tolist() == [5, UNLABELLED, 0, UNLABELLED]


def test_an_evaluation_measures_divergence_and_perplexity(trainer):
    trainer.train()
    student = trainer.model
    loss = student.forward
    del student.forward
    divergences, losses = [], []
    for index in range(len(trainer.eval_dataset)):
        row = trainer.eval_dataset[index]
        known = row["labels"][1:] != UNLABELLED
        with torch.no_grad():
            logs = [
                model(row["input_ids"][None], use_cache=False).logits[0, :-1].log_softmax(-1)[known]
                for model in (student, loss.teacher)
            ]
        divergences.append(kl_div(*logs, log_target=True, reduction="none").sum(-1))
        losses.append(-logs[0].gather(1, row["labels"][1:][known, None])[:, 0])
    last = [row for row in trainer.state.log_history if "eval_kl" in row][-1]
    assert last["eval_kl"] == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-5)
    assert last["eval_perplexity"] == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-5)
    expected = 0.75 * torch.cat(divergences).mean() + 0.25 * torch.cat(losses).mean()
    assert last["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_windows_are_taken_in_order(trainer, windows):
    taken = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    assert torch.equal(torch.cat(taken), windows[:3])


def test_checkpoints_hold_no_pickles(trainer, tmp_path):
    trainer.train()
    files = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "optimizer.safetensors", "schedule.json", "trainer_state.json"} <= files
    assert {name.rpartition(".")[2] for name in files} <= {"safetensors", "json"}
