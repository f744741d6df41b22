"""The loss of recovery is that of whole logits, with the same gradients, and never has more logits than a piece."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from optimum_ffp.recovery.loss import UNLABELLED, DistillationLoss
from optimum_ffp.recovery.training import CHECKPOINTING
from tests.helpers import KINDS, VOCABULARY, make_tiny_model


PIECE = 5


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr("optimum_ffp.utils.lm_head.POSITIONS", PIECE)


@pytest.fixture
def labels(windows) -> torch.Tensor:
    labels = windows[:2, :12].clone()
    labels[0, 3:7] = UNLABELLED
    return labels


def expected_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    ids: torch.Tensor,
    labels: torch.Tensor,
    tau: float,
    share: float,
    weight: float = 0.0,
) -> torch.Tensor:
    """By the definition, with the logits of all positions."""
    outputs = [model(ids, use_cache=False, output_hidden_states=True) for model in (student, teacher)]
    found, wanted = (output.logits[:, :-1].float() for output in outputs)
    logs = [(logits / tau).log_softmax(-1).flatten(0, 1) for logits in (found, wanted)]
    targets = labels[:, 1:].flatten()
    known = targets != UNLABELLED
    kl = kl_div(*logs, log_target=True, reduction="none").sum(-1)[known].sum() * tau**2
    nll = cross_entropy(found.flatten(0, 1), targets, ignore_index=UNLABELLED, reduction="sum")
    states, references = (torch.stack(output.hidden_states[1:-1])[:, :, :-1].flatten(1, 2) for output in outputs)
    assert len(states) == student.config.num_hidden_layers - 1
    hidden = ((states - references).norm(dim=-1) / references.norm(dim=-1)).square()[:, known].mean(0).sum()
    return ((1 - share) * kl + share * nll + weight * hidden) / known.sum()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("tau", "share", "weight"), [(1.0, 0.0, 0.0), (2.0, 0.3, 5.0)])
def test_loss_and_gradients_are_those_of_whole_logits(name, tau, share, weight, labels, windows):
    teacher, student = make_tiny_model(name), make_tiny_model(name, seed=1).requires_grad_(True)
    ids, parameters = windows[:2, :12], dict(student.named_parameters())
    wanted = expected_loss(student, teacher, ids, labels, tau, share, weight)
    gradients = torch.autograd.grad(wanted, parameters.values())
    student.forward = DistillationLoss(student, teacher, tau, share, weight)
    found = student(input_ids=ids, labels=labels)
    assert found["tokens"] == (labels[:, 1:] != UNLABELLED).sum()
    assert float(found["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for one, other in zip(torch.autograd.grad(found["loss"], parameters.values()), gradients):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6 * largest)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_hidden_states_have_the_same_gradients_with_checkpointing(labels, windows):
    teacher, gradients = make_tiny_model(), []
    for checkpointing in (False, True):
        student = make_tiny_model(seed=1).requires_grad_(True).train()
        if checkpointing:
            names = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            next(getattr(student, name) for name in names if hasattr(student, name))(CHECKPOINTING)
        student.forward = DistillationLoss(student, teacher, hidden_weight=5.0)
        student(input_ids=windows[:2, :12], labels=labels)["loss"].backward()
        gradients.append([one.grad for one in student.parameters()])
    for one, other in zip(*gradients):
        assert torch.equal(one, other)


def test_an_evaluation_reads_no_hidden_states(labels, windows):
    teacher, student = make_tiny_model(), make_tiny_model(seed=1)
    losses = [DistillationLoss(student, teacher, hidden_weight=weight) for weight in (0.0, 5.0)]
    with torch.no_grad():
        plain, weighted = (loss(windows[:2, :12], labels) for loss in losses)
    assert plain == weighted


def test_a_number_of_labels_divides_the_sum(labels, windows):
    teacher, student = make_tiny_model(), make_tiny_model(seed=1)
    loss = DistillationLoss(student, teacher)
    own = loss(windows[:2, :12], labels)
    of_step = loss(windows[:2, :12], labels, num_items_in_batch=4)
    assert float(of_step["loss"]) == pytest.approx(float(own["kl"]) / 4)
    assert float(own["loss"]) == pytest.approx(float(own["kl"] / own["tokens"]))


def test_a_step_without_labels_changes_nothing(windows):
    teacher, student = make_tiny_model(), make_tiny_model(seed=1).requires_grad_(True)
    student.forward = DistillationLoss(student, teacher)
    for number in (None, 0, torch.tensor(0)):
        labels = torch.full_like(windows[:2], UNLABELLED)
        found = student(input_ids=windows[:2], labels=labels, num_items_in_batch=number)
        assert found["loss"] == found["tokens"] == 0
        gradients = torch.autograd.grad(found["loss"], list(student.parameters()))
        assert not any(gradient.any() for gradient in gradients)


def test_no_more_logits_than_those_of_a_piece(labels, windows):
    """Of autograd's doings too: tensors with the vocabulary as last dimension that it saves or makes."""
    teacher, student, sizes = make_tiny_model(), make_tiny_model(seed=1).requires_grad_(True), []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY and tensor.shape[-2] != student.config.hidden_size:
            sizes.append(tensor[..., 0].numel())
        return tensor

    student.forward = DistillationLoss(student, teacher)
    for head in [model.get_output_embeddings() for model in (student, teacher)]:
        head.forward = lambda hidden, run=head.forward: note(run(hidden))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        student(input_ids=windows[:2, :12], labels=labels)["loss"].backward()
    assert sizes and max(sizes) <= 2 * PIECE


def test_the_head_of_the_student_is_a_module_that_runs_once(labels, windows):
    """FSDP gathers the weights in its hooks, and frees them at the end of the backward pass of what they return."""
    teacher, student, calls = make_tiny_model(), make_tiny_model(seed=1).requires_grad_(True), []
    head = student.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    head.register_forward_hook(lambda module, inputs, outputs: calls.append(outputs[0]))
    student.forward = DistillationLoss(student, teacher)
    found = student(input_ids=windows[:2, :12], labels=labels)
    shape, total = calls
    assert shape == (2, 12, student.config.hidden_size) and total.requires_grad
    assert float(found["loss"]) == pytest.approx(float(total) / float(found["tokens"]))
    assert "forward" not in vars(head) and len(head._forward_hooks) == 1


def test_frozen_weights_get_no_gradient(labels, windows):
    teacher, student = make_tiny_model(), make_tiny_model(seed=1)
    trained = student.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    student.forward = DistillationLoss(student, teacher)
    student(input_ids=windows[:2, :12], labels=labels)["loss"].backward()
    assert [name for name, one in student.named_parameters() if one.grad is not None] == [
        "model.layers.0.mlp.up_proj.weight"
    ]
    assert trained.grad.abs().max() > 0


def test_gradients_of_pieces_are_added_up_in_float32(labels, windows):
    teacher, student = make_tiny_model().bfloat16(), make_tiny_model(seed=1).bfloat16()
    weight = student.get_output_embeddings().weight.requires_grad_(True)
    found = []
    for length in (1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("optimum_ffp.utils.lm_head.POSITIONS", length)
            loss = DistillationLoss(student, teacher)(windows[:8], windows[:8])["loss"]
            found += torch.autograd.grad(loss, weight)
    # Of 48 pieces, each of which is rounded by itself. Added up in bfloat16 they would differ by 0.0056.
    one, other = (gradient.float() for gradient in found)
    assert float((one - other).norm() / other.norm()) < 0.004
