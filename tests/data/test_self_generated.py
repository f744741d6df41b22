import pytest
import torch

from optimum_ffp import FFPError
from optimum_ffp.data import self_generated
from optimum_ffp.data.self_generated import sample_from_model
from tests.helpers import make_tiny_model, make_tokenizer


def sample(model, count, seed=0):
    return sample_from_model(model, make_tokenizer(), count, 12, seed)


@pytest.mark.slow
def test_every_window_is_another_text_of_the_same_seed(monkeypatch):
    monkeypatch.setattr(self_generated, "TOKENS_AT_ONCE", 3 * 12)
    model = make_tiny_model()
    windows = sample(model, 7)
    assert windows.shape == (7, 12) and (windows[:, 0] == make_tokenizer().bos_token_id).all()
    assert len({tuple(row) for row in windows.tolist()}) == 7
    assert torch.equal(windows, sample(model, 7)) and not torch.equal(windows, sample(model, 7, seed=1))


def test_long_windows_are_put_together_from_passages(monkeypatch):
    monkeypatch.setattr(self_generated, "PASSAGE", 5)
    windows = sample(make_tiny_model(), 4)
    # 12 tokens are three passages of four.
    assert windows.shape == (4, 12) and (windows[:, ::4] == make_tokenizer().bos_token_id).all()
    assert len({tuple(row) for row in windows.view(-1, 4).tolist()}) == 12


def test_the_text_is_as_likely_as_the_model_says():
    # One token a window: how often each comes must be what the model gives after the start token.
    model, tokenizer = make_tiny_model(), make_tokenizer()
    # What a chat model's folder asks of generate, which is not what it was trained on.
    model.generation_config.temperature = 0.1
    drawn = sample_from_model(model, tokenizer, 4000, 2, 0)[:, 1]
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, 0]
    logits[tokenizer.bos_token_id] = -torch.inf
    expected = logits.softmax(-1)
    found = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert (found - expected).abs().sum() < 0.2


def test_documents_begin_where_others_end_and_nowhere_else():
    model, tokenizer = make_tiny_model(), make_tokenizer()
    # A second end token, as chat models have one for their turns.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    windows = sample(model, 200)
    ended = torch.isin(windows[:, :-1], torch.tensor([tokenizer.eos_token_id, 7]))
    assert ended.any()
    assert torch.equal(windows[:, 1:] == tokenizer.bos_token_id, ended)


def test_a_token_that_starts_and_ends_documents_comes_as_it_likes():
    model, tokenizer = make_tiny_model(), make_tokenizer()
    tokenizer.bos_token = None
    windows = sample_from_model(model, tokenizer, 200, 12, 0)
    ends = windows[:, 1:-1] == tokenizer.eos_token_id
    assert ends.any() and not (windows[:, 2:] == tokenizer.eos_token_id)[ends].all()


@pytest.mark.slow
def test_fewer_windows_at_once_where_memory_runs_out(monkeypatch):
    model, sizes = make_tiny_model(), []
    generate = model.generate

    def limited(prompt, **options):
        sizes.append(len(prompt))
        if len(prompt) > 10:
            raise RuntimeError("CUDA out of memory.")
        return generate(prompt, **options)

    monkeypatch.setattr(model, "generate", limited)
    assert sample(model, 20).shape == (20, 12)
    assert sizes == [20, 10, 10]


def test_a_tokenizer_needs_something_to_begin_with():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(FFPError, match="neither a start nor an end token"):
        sample_from_model(make_tiny_model(), tokenizer, 2, 12, 0)
