import pytest
import torch

from optimum_ffp import FFPError
from optimum_ffp.data import self_generated
from optimum_ffp.data.self_generated import find_form, has_start_token, sample_from_model
from tests.helpers import make_tiny_model, make_tokenizer, with_start_token


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


# Turns end with </s>, whose token is 1; w10 and w11 are the roles, w9 is what a conversation begins with.
CHAT = (
    "w9 {% for message in messages %}{{ {'user': 'w10', 'assistant': 'w11'}[message.role] }} "
    "{{ message.content | trim }} </s> {% endfor %}"
)


def chat_tokenizer(template=CHAT):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_the_model_writes_both_turns_of_conversations():
    model = make_tiny_model()
    windows = sample_from_model(model, chat_tokenizer(), 300, 40, 0)
    assert torch.equal(windows, sample_from_model(model, chat_tokenizer(), 300, 40, 0))
    assert windows[:, :2].tolist() == [[9, 10]] * 300
    answered = again = 0
    for row in windows.tolist():
        # After each end: first the answer's opening, then that of the next conversation.
        ends = [index for index, token in enumerate(row) if token == 1]
        for number, end in enumerate(ends):
            expected = [9, 10] if number % 2 else [11]
            found = row[end + 1 : end + 1 + len(expected)]
            assert found == expected[: len(found)]
        answered, again = answered + (len(ends) > 0), again + (len(ends) > 1)
    assert answered > again > 0 and not (windows == 0).any()


def test_the_first_word_of_a_question_is_as_likely_as_the_model_says():
    model, tokenizer = make_tiny_model(), chat_tokenizer()
    drawn = sample_from_model(model, tokenizer, 4000, 4, 0)[:, 2]
    with torch.no_grad():
        logits = model(torch.tensor([[9, 10]])).logits[0, -1]
    logits[tokenizer.bos_token_id] = -torch.inf
    expected = logits.softmax(-1)
    found = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert (found - expected).abs().sum() < 0.2


@pytest.mark.parametrize("writes", [True, False], ids=["template", "tokenizer"])
def test_a_conversation_has_one_start_token(writes):
    tokenizer = with_start_token(chat_tokenizer("{{ bos_token }} " + CHAT if writes else CHAT))
    form = find_form(make_tiny_model(), tokenizer, 24)
    assert form.opening == [0, 9, 10] and form.turns == [({1}, [11]), ({1}, [0, 9, 10])]


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('a system prompt is missing') }}",
        "{{ messages[0].content }} </s>",
        # The end of a turn is a word, which comes in the middle of text too.
        "w9 {% for message in messages %}{{ message.content }} w12 {% endfor %}",
        # Nothing would be left of the passage.
        "w9 " * 8 + CHAT,
    ],
    ids=["none", "fails", "no answer", "words", "long"],
)
def test_without_a_conversation_text_begins_with_the_start_token(template):
    form = find_form(make_tiny_model(), chat_tokenizer(template), 16)
    assert form.opening == [0] and form.turns == [({1}, [0])]


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
    # Nor has text that isn't written one.
    assert not has_start_token(torch.empty(0, 12, dtype=torch.long), tokenizer)


def test_special_tokens_without_an_embedding_are_not_written():
    """As a chat tokenizer has them that was saved with a base model."""
    tokenizer = chat_tokenizer()
    assert find_form(make_tiny_model(), tokenizer, 24).is_conversation
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "<|end|>")
    form = find_form(make_tiny_model(), tokenizer, 24)
    assert not form.is_conversation and form.opening == [tokenizer.bos_token_id]
    tokenizer.bos_token = "<|end|>"
    with pytest.raises(FFPError, match=r"no embedding for the start token '<\|end\|>'"):
        find_form(make_tiny_model(), tokenizer, 24)
