"""The recovery loss and its gradients equal those of whole logits, with at most one chunk of logits at a time."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

from optimum_ffp.compression.training.loss import DistillationLoss
from optimum_ffp.modeling.families import outer_matrices
from tests.helpers import DIVERSE_MODELS, VOCABULARY, make_tiny_model


CHUNK = 5


def make_student(name="llama"):
    """All but the embeddings and the head is trained."""
    student = make_tiny_model(name, seed=1).requires_grad_(True)
    for matrix in outer_matrices(student):
        matrix.requires_grad_(False)
    return student


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("optimum_ffp.compression.training.loss.POSITIONS", CHUNK)


@pytest.fixture
def ids(windows) -> torch.Tensor:
    return windows[:2, :12]


@pytest.mark.parametrize("name", DIVERSE_MODELS)
@pytest.mark.parametrize(("temperature", "label_share"), [(1.0, 0.0), (2.0, 0.3)])
def test_chunked_distillation_loss_and_gradients_equal_full_logits(name, temperature, label_share, ids):
    teacher, student = make_tiny_model(name), make_student(name)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    logits, target = (model(ids, use_cache=False).logits[:, :-1].flatten(0, 1) for model in (student, teacher))
    logs = [(one / temperature).log_softmax(-1) for one in (logits, target)]
    kl = kl_div(*logs, log_target=True, reduction="batchmean") * temperature**2
    nll = cross_entropy(logits, ids[:, 1:].flatten())
    expected = (1 - label_share) * kl + label_share * nll
    gradients = torch.autograd.grad(expected, parameters)

    student.forward = DistillationLoss(student, teacher, temperature, label_share)
    found = student(input_ids=ids)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found["measured"].mean(0).tolist() == pytest.approx([expected.item(), kl.item(), nll.item()], rel=1e-5)
    one, other = (
        torch.cat([gradient.flatten() for gradient in all_of])
        for all_of in (torch.autograd.grad(found["loss"], parameters), gradients)
    )
    assert cosine_similarity(one, other, 0) > 0.99999
    assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_distillation_loss_holds_at_most_one_chunk_of_logits(ids):
    """Of autograd's doings too: tensors with the vocabulary as last dimension that it saves or makes."""
    teacher, student, sizes = make_tiny_model(), make_student(), []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY and tensor.shape[-2] != student.config.hidden_size:
            sizes.append(tensor[..., 0].numel())
        return tensor

    student.forward = DistillationLoss(student, teacher)
    for head in [model.get_output_embeddings() for model in (student, teacher)]:
        head.forward = lambda hidden, run=head.forward: note(run(hidden))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        student(input_ids=ids)["loss"].backward()
    assert sizes and max(sizes) <= 2 * CHUNK


def test_student_lm_head_module_runs_once_for_fsdp(ids):
    """FSDP gathers the weights in its hooks, and frees them at the end of the backward pass of what they return."""
    teacher, student, calls = make_tiny_model(), make_student(), []
    head = student.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    head.register_forward_hook(lambda module, inputs, outputs: calls.append(outputs))
    student.forward = DistillationLoss(student, teacher)
    student(input_ids=ids)["loss"].backward()
    shape, (total, _) = calls
    assert shape == (2, 12, student.config.hidden_size) and total.requires_grad
    assert "forward" not in vars(head) and len(head._forward_hooks) == 1
