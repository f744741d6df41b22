"""A training: what is trained, and what is left of wrappers and adapters afterwards."""

from unittest.mock import Mock

import pytest
import torch
from transformers import TrainerCallback

from optimum_ffp import FFPError, FFPModelForCausalLM, RecoveryConfig
from optimum_ffp.recovery import training
from optimum_ffp.recovery.batch import Batch
from optimum_ffp.recovery.loss import DistillationLoss
from optimum_ffp.recovery.trainer import RecoveryTrainer
from optimum_ffp.recovery.training import Training
from tests.helpers import make_tiny_model, prune_by_hand, prune_tiny_model


LENGTH = 24


def make_training(student, teacher, dtype=torch.float32, **options) -> Training:
    config = RecoveryConfig(**{"max_tokens": 480, "batch_tokens": 48, "evaluations": 2} | options)
    return Training(student, teacher, dtype, config, Batch.of(config, LENGTH), bf16=False)


@pytest.fixture
def teacher():
    return make_tiny_model()


@pytest.fixture
def student(teacher):
    return prune_by_hand(make_tiny_model())[0]


@pytest.fixture
def text(windows):
    return windows.repeat(4, 1)[:20].int()


def test_training_lowers_the_divergence(student, teacher, text, windows, tmp_path):
    trained = make_training(student, teacher, learning_rate=3e-3).run(text, windows[4:].int(), tmp_path)
    assert trained.curve[-1]["kl"] < 0.9 * trained.curve[0]["kl"]
    assert [point["tokens"] for point in trained.curve] == [0, 240, 480] and trained.curve[0]["step"] == 0
    assert "forward" not in vars(trained.model) and trained.adapter is None
    assert not any(parameter.requires_grad for parameter in trained.model.parameters())


@pytest.mark.parametrize("changes", [{"batch_size": 2}, {"batch_size": 4}, {"gradient_checkpointing": True}])
def test_how_a_step_is_divided_changes_nothing(teacher, text, windows, tmp_path, changes):
    """Windows without a loss on some tokens, so that forward passes have different numbers of labels."""
    text = torch.where(torch.arange(LENGTH) < torch.arange(len(text))[:, None], -1 - text, text)
    options = {"batch_tokens": 4 * LENGTH, "learning_rate": 1e-3}
    curves = []
    for number, more in enumerate(({}, changes)):
        student = prune_by_hand(make_tiny_model())[0]
        training = make_training(student, teacher, **options, **more)
        curves.append(training.run(text, windows[4:].int(), tmp_path / str(number)).curve)
    for one, other in zip(*curves, strict=True):
        assert other["step"] == one["step"] and other["kl"] == pytest.approx(one["kl"], rel=1e-4)


def test_weights_are_rounded_to_their_dtype(student, teacher, text, windows, tmp_path):
    trained = make_training(student, teacher, torch.bfloat16).run(text, windows[4:].int(), tmp_path)
    assert {one.dtype for one in trained.model.parameters()} == {trained.model.config.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_adapters_are_the_adapters_applied(name, text, windows, tmp_path):
    peft = pytest.importorskip("peft")
    folder, teacher = prune_tiny_model(name, tmp_path / "pruned"), make_tiny_model(name)
    load = FFPModelForCausalLM.from_pretrained
    trained = make_training(load(folder), teacher, lora=4).run(text, windows[4:].int(), tmp_path / "work")
    applied = peft.get_peft_model(load(folder), trained.adapter.config)
    peft.set_peft_model_state_dict(applied, dict(trained.adapter.weights))
    applied.eval()
    with torch.no_grad():
        found, expected, before = (model(windows).logits for model in (trained.model, applied, load(folder)))
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, before, atol=1e-3)


def test_the_best_weights_are_kept_when_training_ends_early(student, teacher, text, windows, tmp_path, monkeypatch):
    """Weights that are ruined after some steps."""
    held_out, steps = windows[4:].int(), []
    step = torch.optim.AdamW.step

    def ruin(optimiser, *arguments):
        step(optimiser, *arguments)
        steps.append(1)
        for group in optimiser.param_groups if len(steps) > 4 else []:
            for weight in group["params"]:
                weight.data.mul_(1.5)

    monkeypatch.setattr(torch.optim.AdamW, "step", ruin)
    options = {"learning_rate": 3e-3, "patience": 2, "evaluations": 10}
    trained = make_training(student, teacher, **options).run(text, held_out, tmp_path)
    assert trained.kept["step"] in (3, 4) and len(trained.curve) == trained.kept["step"] + 3
    student.forward = DistillationLoss(trained.model, teacher)
    found = [student(input_ids=one[None], labels=one[None]) for one in windows[4:]]
    del student.forward
    divergence = sum(float(one["kl"]) for one in found) / sum(float(one["tokens"]) for one in found)
    assert divergence == pytest.approx(trained.kept["kl"], rel=1e-4)
    # A process that is killed at the end goes on there: it trains no more.
    steps.clear()
    with monkeypatch.context() as patched:
        patched.setattr(RecoveryTrainer, "_load_best_model", Mock(side_effect=KeyboardInterrupt))
        killed = make_training(prune_by_hand(make_tiny_model())[0], teacher, **options)
        with pytest.raises(KeyboardInterrupt):
            killed.run(text, held_out, tmp_path / "again")
    count = len(steps)
    again = make_training(prune_by_hand(make_tiny_model())[0], teacher, **options)
    again = again.run(text, held_out, tmp_path / "again")
    assert len(steps) == count and again.kept == trained.kept and again.curve == trained.curve
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, trained.model.state_dict()[name])


def test_a_training_that_gains_nothing_is_an_error(student, teacher, text, windows, tmp_path):
    with pytest.raises(FFPError, match=r"did not lower the divergence on held-out windows: it was .*; lower") as found:
        make_training(student, teacher, learning_rate=3.0).run(text, windows[4:].int(), tmp_path)
    last = f"begin again with --overwrite; the last weights are in {tmp_path / 'checkpoint-10'}"
    assert str(found.value).endswith(last)


def test_a_training_is_judged_by_what_it_trains(teacher, text, windows):
    """The labels alone: the dense model's own predictions are left behind."""
    held_out, options = windows[4:].int(), {"learning_rate": 1e-2, "label_share": 1.0, "evaluations": 10}
    losses = []
    for patience in (None, 1):
        training = make_training(make_tiny_model(), teacher, patience=patience, **options)
        trained = training.run(text, held_out)
        assert trained.kept["kl"] > trained.curve[0]["kl"] == pytest.approx(0, abs=1e-6)
        losses.append(trained.kept["perplexity"])
    assert losses[1] == min(point["perplexity"] for point in trained.curve) < trained.curve[0]["perplexity"]
    with pytest.raises(FFPError, match=r"did not lower the loss on held-out windows: it was .* more tokens$"):
        make_training(make_tiny_model(), teacher, **options | {"learning_rate": 3.0}).run(text, held_out)


def test_a_loss_that_is_not_finite_is_an_error(student, teacher, text, windows, tmp_path):
    message = "the loss on held-out windows is not finite after 5 steps; lower learning_rate .*, and begin again with"
    with pytest.raises(FFPError, match=message):
        make_training(student, teacher, learning_rate=1e30, max_grad_norm=0).run(text, windows[4:].int(), tmp_path)
    # It isn't found at the end alone, and what was saved before isn't replaced.
    assert training._last_checkpoint(tmp_path) is None


def test_with_patience_the_best_weights_outlive_a_loss_that_is_not_finite(teacher, text, windows, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model, **options):
            if state.global_step == 7:
                model.lm_head.weight.data.fill_(torch.nan)

    def run(patience, folder):
        made, options = RecoveryTrainer.__init__, {"evaluations": 10, "learning_rate": 1e-3}
        with pytest.MonkeyPatch.context() as patch:

            def init(self, *arguments, callbacks, **more):
                made(self, *arguments, callbacks=[*callbacks, Poison()], **more)

            patch.setattr(RecoveryTrainer, "__init__", init)
            student = prune_by_hand(make_tiny_model())[0]
            return make_training(student, teacher, patience=patience, **options).run(text, windows[4:].int(), folder)

    trained = run(2, tmp_path / "patient")
    assert trained.kept["step"] == 6 and trained.kept["kl"] < trained.curve[0]["kl"]
    with pytest.raises(FFPError, match="is not finite after 7 steps"):
        run(None, tmp_path / "other")


RATES = {"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"), "opt": ("dropout", "attention_dropout", "layerdrop")}
RATES["seed-oss"] = ("residual_dropout", "attention_dropout")


@pytest.mark.parametrize("name", RATES)
def test_nothing_is_dropped(name, text, windows):
    """The dense model, of which the loss is, drops nothing either."""
    curves = []
    for rate in (0.0, 0.5):
        student = prune_by_hand(make_tiny_model(name, **dict.fromkeys(RATES[name], rate)))[0]
        training = make_training(student, make_tiny_model(name), learning_rate=1e-3)
        curves.append(training.run(text, windows[4:].int()).curve)
    assert curves[0] == curves[1] and curves[0][-1]["kl"] < curves[0][0]["kl"]
    assert 0.5 in {rate for module in student.modules() for rate in vars(module).values() if isinstance(rate, float)}


def test_a_process_that_was_killed_leaves_incomplete_checkpoints(tmp_path):
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert training._last_checkpoint(tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert training._last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
