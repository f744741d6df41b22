"""Windows in pieces, and the losses and gradients of a model that reads them, against the same with Python loops."""

import pytest
import torch

from optimum_ffp.compression.training.loss import DistillationLoss
from optimum_ffp.evaluation import window_losses
from optimum_ffp.vocabulary.trimmed import TrimmedVocabulary
from tests.helpers import DIVERSE_MODELS, VOCABULARY, make_tiny_model


SIZE = 64


@pytest.fixture
def spelled() -> list[list[int]]:
    """Pieces of every token of the dense model; every other token is kept."""
    generator = torch.Generator().manual_seed(2)
    pieces = torch.randint(SIZE, (VOCABULARY, 3), generator=generator).tolist()
    return [[index // 2] if index % 2 == 0 else pieces[index][: 2 + index % 4 // 3] for index in range(VOCABULARY)]


@pytest.fixture
def vocabulary(spelled) -> TrimmedVocabulary:
    rows = [pieces + [-1] * (3 - len(pieces)) for pieces in spelled]
    return TrimmedVocabulary(torch.arange(0, VOCABULARY, 2), torch.tensor(rows))


def make_student(name: str):
    return make_tiny_model(name, seed=1, vocab_size=SIZE)


def predictions(model, window, spelled):
    """Yield each piece that a model predicts in a window: its log-probabilities, the piece, and its token's place."""
    pieces = [(piece, place) for place, token in enumerate(window.tolist()) for piece in spelled[token]]
    logs = model(torch.tensor([[piece for piece, _ in pieces]]), use_cache=False).logits[0].log_softmax(-1)
    for index, (piece, place) in enumerate(pieces):
        if place:
            yield logs[index - 1], piece, place, pieces[index - 1][1] == place


def test_expanded_windows_are_pieces_in_order_with_the_end_of_every_token(windows, vocabulary, spelled):
    tokens, ends = vocabulary.expand(windows)
    for window, row, row_ends in zip(windows.tolist(), tokens.tolist(), ends.tolist()):
        written = [piece for token in window for piece in spelled[token]]
        assert row[: len(written)] == written and not any(row[len(written) :])
        assert [end + 1 for end in row_ends] == [
            sum(map(len, map(spelled.__getitem__, window[: k + 1]))) for k in range(24)
        ]


def test_loss_of_window_is_that_of_all_pieces_per_token(windows, vocabulary, spelled):
    model = make_student("llama")
    expected = [
        -sum(logs[piece] for logs, piece, *_ in predictions(model, one, spelled)).item() / 23 for one in windows
    ]
    for batch_size in (1, 4):
        measured = window_losses(model, windows, batch_size, vocabulary=vocabulary)
        assert measured.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label_share", [0.0, 0.3])
@pytest.mark.parametrize("name", DIVERSE_MODELS)
def test_first_piece_has_the_probability_of_all_tokens_that_begin_with_it(
    name, label_share, windows, vocabulary, spelled, monkeypatch
):
    monkeypatch.setattr("optimum_ffp.compression.training.loss.POSITIONS", 7)
    teacher, student, windows = make_tiny_model(name), make_student(name).requires_grad_(True), windows[:2]
    rows = []
    for window in windows:
        probabilities = teacher(window[None], use_cache=False).logits[0].softmax(-1)
        kl, nll = 0.0, 0.0
        for logs, piece, place, inner in predictions(student, window, spelled):
            target = torch.zeros(SIZE)
            for token, pieces in enumerate(spelled):
                target[pieces[0]] += probabilities[place - 1, token].detach()
            if inner:
                target = torch.eye(SIZE)[piece]
            kl = kl + (torch.special.xlogy(target, target) - target * logs).sum()
            nll = nll - logs[piece]
        rows.append(torch.stack([(1 - label_share) * kl + label_share * nll, kl, nll]) / 23)
    expected = torch.stack(rows)
    parameters = [*student.parameters()]
    gradients = torch.autograd.grad(expected[:, 0].mean(), parameters, allow_unused=True)

    student.forward = DistillationLoss(student, teacher, label_share=label_share, vocabulary=vocabulary)
    found = student(input_ids=windows)
    assert found["loss"].item() == pytest.approx(expected[:, 0].mean().item(), rel=1e-5)
    assert torch.allclose(found["measured"], expected.detach(), rtol=1e-5)
    found_gradients = torch.autograd.grad(found["loss"], parameters, allow_unused=True)
    assert [one is None for one in found_gradients] == [one is None for one in gradients]
    one, other = (
        torch.cat([each.flatten() for each in all_of if each is not None]) for all_of in (found_gradients, gradients)
    )
    assert (one - other).abs().max() < 1e-5 * other.abs().max()
