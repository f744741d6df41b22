"""A training: what is trained, what an evaluation says, and how it goes on after an interruption."""

import math
from shutil import copytree

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.compression.training.batch import Batch
from optimum_ffp.compression.training.end_to_end import Training, TrainingOutput, default_rate
from optimum_ffp.compression.training.trainer import DistillationTrainer
from optimum_ffp.config import RecoveryPlan
from tests.helpers import assert_same_weights, make_tiny_model, prune_to_sizes, sample_windows, save_pruned_model


LENGTH = 24
# Text of the teacher, whose perplexity falls with the divergence from it.
TOKENS = sample_windows(make_tiny_model(), 28, LENGTH)
TEXT, HELD_OUT = TOKENS[:20].int(), TOKENS[20:]


def train(folder=None, student=None, teacher=None, dtype=torch.float32, **options) -> TrainingOutput:
    """Trains a tiny model for 10 steps of 2 windows, evaluated after 5 and 10."""
    settings = {"max_tokens": 480, "batch_tokens": 48, "seq_len": LENGTH, "evaluations": 2, "learning_rate": 3e-3}
    plan = RecoveryPlan(**settings | options)
    student, teacher = student or prune_to_sizes(make_tiny_model())[0], teacher or make_tiny_model()
    batch = Batch.of_recovery(plan, student.config, count=1)
    training = Training(student, teacher, dtype, plan, plan.learning_rate, batch, bf16=False)
    return training.run(TEXT, HELD_OUT.int(), folder)


def divergence(model, teacher) -> float:
    logits, target = (one(HELD_OUT).logits[:, :-1].flatten(0, 1).log_softmax(-1) for one in (model, teacher))
    return kl_div(logits, target, log_target=True, reduction="batchmean").item()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> TrainingOutput:
    return train(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a training that was interrupted in step 8, and before in step 3."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        training_step = DistillationTrainer.training_step
        for stop in (3, 8):

            def interrupt(self, *arguments, stop=stop):
                if self.state.global_step == stop:
                    raise KeyboardInterrupt
                return training_step(self, *arguments)

            patch.setattr(DistillationTrainer, "training_step", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(folder)
    return folder


def test_training_lowers_held_out_divergence(trained):
    assert [point["tokens"] for point in trained.curve] == [0, 240, 480]
    assert trained.best == trained.curve[-1] and trained.best["kl"] < 0.9 * trained.curve[0]["kl"]
    assert "forward" not in vars(trained.model)
    assert not any(parameter.requires_grad for parameter in trained.model.parameters())
    assert trained.best["kl"] == pytest.approx(divergence(trained.model, make_tiny_model()), rel=1e-4)
    losses = cross_entropy(trained.model(HELD_OUT).logits[:, :-1].flatten(0, 1), HELD_OUT[:, 1:].flatten())
    assert trained.best["perplexity"] == pytest.approx(losses.exp().item(), rel=1e-4)


def test_learning_rate_warms_up_and_decays(monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def watch(optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    train(warmup_ratio=0.3, evaluations=1)
    assert rates[:4] == pytest.approx([3e-3 / 4 * share for share in (1, 2, 3, 4)])
    assert rates[3:] == sorted(rates[3:], reverse=True) and 0 < rates[-1] < 3e-4


@torch.no_grad()
def test_default_learning_rate_scales_with_layer_matrices():
    model = make_tiny_model()
    rate = default_rate(model, 1e-3)
    for name, weight in model.named_parameters():
        weight.mul_(0.1 if "proj" in name else 7)
    assert default_rate(model, 1e-3) == pytest.approx(rate / 10, rel=0.01)


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"gradient_checkpointing": True}])
def test_micro_batches_and_checkpointing_give_same_curve(trained, change):
    divided = train(**change).curve
    assert [point["kl"] for point in divided] == pytest.approx([point["kl"] for point in trained.curve], rel=1e-4)


@pytest.mark.slow
def test_interrupted_training_resumes_to_identical_weights(trained, interrupted, tmp_path, monkeypatch):
    folder, steps = copytree(interrupted, tmp_path / "work"), []
    training_step = DistillationTrainer.training_step

    def count(self, *arguments):
        steps.append(self.state.global_step)
        return training_step(self, *arguments)

    monkeypatch.setattr(DistillationTrainer, "training_step", count)
    # Those that a killed training had not written completely are left alone.
    for name, state in (("checkpoint-8", ""), ("checkpoint-9", '{"best_global_step": 5,')):
        copytree(folder / "checkpoint-5", folder / name)
        (folder / name / "trainer_state.json").write_text(state)
    # Then after the training.
    for first in ([5], []):
        steps.clear()
        resumed = train(folder)
        assert steps[:1] == first and resumed.curve == trained.curve
        assert_same_weights(resumed.model, trained.model)


@pytest.mark.slow
def test_best_weights_are_kept_and_patience_stops_training(monkeypatch):
    """Weights that are ruined after some steps."""
    step, steps = torch.optim.AdamW.step, []

    def ruin(optimizer, *arguments):
        step(optimizer, *arguments)
        steps.append(1)
        for group in optimizer.param_groups if len(steps) > 4 else []:
            for weight in group["params"]:
                weight.data.mul_(1.5)

    monkeypatch.setattr(torch.optim.AdamW, "step", ruin)
    complete = train(evaluations=10)
    steps.clear()
    early = train(evaluations=10, patience=2)
    assert complete.best == early.best and complete.best["step"] in (3, 4)
    assert complete.curve[-1]["step"] == 10 and early.curve[-1]["step"] == complete.best["step"] + 2
    assert_same_weights(complete.model, early.model)


def test_weights_with_lowest_divergence_are_kept_although_perplexity_falls():
    """The teacher itself learns the text, and moves away from its predictions."""
    trained = train(student=make_tiny_model(), label_share=1.0, evaluations=5)
    rest = trained.curve[1:]
    assert trained.best["kl"] == min(point["kl"] for point in rest)
    assert trained.best["perplexity"] > min(point["perplexity"] for point in rest)
    assert divergence(trained.model, make_tiny_model()) == pytest.approx(trained.best["kl"], rel=1e-4)


def test_nonfinite_loss_stops_training():
    trained = train(learning_rate=1e30, max_grad_norm=0, evaluations=10)
    assert len(trained.curve) < 5 and not math.isfinite(trained.curve[-1]["kl"])


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_embeddings_and_lm_head_stay_frozen(name):
    student = prune_to_sizes(make_tiny_model(name))[0]
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    trained = train(student=student, teacher=make_tiny_model(name), max_tokens=96).model
    same = {name for name, parameter in trained.named_parameters() if torch.equal(parameter, before[name])}
    matrices = {trained.get_input_embeddings().weight, trained.get_output_embeddings().weight}
    positions = {one for key, one in trained.named_parameters() if "wpe" in key}
    assert same == {key for key, one in trained.named_parameters() if one in matrices | positions}


def test_trained_weights_are_rounded_to_model_dtype():
    trained = train(dtype=torch.bfloat16, max_tokens=96)
    assert {one.dtype for one in trained.model.parameters()} == {trained.model.config.dtype} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_lora_adapters_keep_divergence(name, tmp_path):
    pytest.importorskip("peft")
    student = FFPModelForCausalLM.from_pretrained(save_pruned_model(name, tmp_path / "pruned"))
    teacher, frozen = make_tiny_model(name), student.get_input_embeddings().weight.clone()
    trained = train(None, student, teacher, lora=4)
    assert divergence(trained.model, teacher) == pytest.approx(trained.best["kl"], rel=1e-4)
    assert trained.best["kl"] < trained.curve[0]["kl"]
    assert torch.equal(trained.model.get_input_embeddings().weight, frozen)
    assert not any("lora" in key for key in trained.model.state_dict())


@pytest.mark.slow
def test_training_disables_dropout():
    """The dense model, of which the loss is, drops nothing either."""
    curves = []
    for rate in (0.0, 0.5):
        rates = {"resid_pdrop": rate, "embd_pdrop": rate, "attn_pdrop": rate}
        student = prune_to_sizes(make_tiny_model("gpt2", **rates))[0]
        curves.append(train(student=student, teacher=make_tiny_model("gpt2"), max_tokens=96, learning_rate=1e-4).curve)
    assert curves[0] == curves[1]
