import pytest
import torch

from optimum_ffp import FFPError
from optimum_ffp.data import self_generated
from optimum_ffp.data.self_generated import find_opening, lacks_chats, sample_from_model
from tests.helpers import make_tiny_model, make_tokenizer, with_start_token


# Turns end with </s>; w10 and w11 are the roles, w9 is what a conversation begins with.
CHAT = (
    "w9 {% for message in messages %}{{ {'user': 'w10', 'assistant': 'w11'}[message.role] }} "
    "{{ message.content | trim }} </s> {% endfor %}"
)


def chat_tokenizer(template=CHAT):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def sample(count, length=12, seed=0, tokenizer=None):
    return sample_from_model(make_tiny_model(), tokenizer or make_tokenizer(), count, length, seed)


def test_generated_windows_differ_and_are_seeded(monkeypatch):
    monkeypatch.setattr(self_generated, "TOKENS_AT_ONCE", 3 * 12)
    windows = sample(7)
    assert windows.shape == (7, 12) and (windows[:, 0] == make_tokenizer().bos_token_id).all()
    assert len({tuple(row) for row in windows.tolist()}) == 7
    assert torch.equal(windows, sample(7)) and not torch.equal(windows, sample(7, seed=1))


def test_long_windows_are_concatenated_passages(monkeypatch):
    monkeypatch.setattr(self_generated, "PASSAGE", 5)
    # 13 tokens are three passages of five.
    windows = sample(4, 13)
    assert windows.shape == (4, 13) and (windows[:, ::5] == make_tokenizer().bos_token_id).all()


def test_generated_tokens_follow_model_distribution():
    # One token a window: how often each comes must be what the model gives after the start token.
    model, tokenizer = make_tiny_model(), make_tokenizer()
    # What a chat model's folder asks of generate, which is not what it was trained on.
    model.generation_config.temperature = 0.1
    drawn = sample_from_model(model, tokenizer, 4000, 2, 0)[:, 1]
    with torch.no_grad():
        expected = model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, 0].softmax(-1)
    found = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert (found - expected).abs().sum() < 0.2 and model.generation_config.temperature == 0.1


def test_generated_chats_begin_with_user_turn():
    opening = make_tokenizer().convert_tokens_to_ids(["w9", "w10"])
    assert (sample(5, tokenizer=chat_tokenizer())[:, :2] == torch.tensor(opening)).all()
    model = make_tiny_model()
    assert find_opening(model, with_start_token(chat_tokenizer()), 12) == [0, *opening]
    # Where it would take most of a passage, or can't be found, text begins with the start token.
    assert find_opening(model, chat_tokenizer(), 3) == [0]
    for template in ("w9 w10", "{{ raise_exception('no') }}"):
        assert find_opening(model, chat_tokenizer(template), 12) == [0]


def test_generation_without_start_token_uses_end_token():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    assert find_opening(make_tiny_model(), tokenizer, 12) == [tokenizer.eos_token_id]
    tokenizer.eos_token = None
    with pytest.raises(FFPError, match="start token"):
        sample(1, tokenizer=tokenizer)


def test_text_without_chats_is_recognized_by_special_tokens():
    model, tokenizer = make_tiny_model(), with_start_token(chat_tokenizer())
    tokenizer.add_tokens(["w9", "w10"], special_tokens=True)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w20 w21"}], return_tensors="pt", return_dict=False
    )
    plain = tokenizer("w20 w21 w22", return_tensors="pt").input_ids
    assert lacks_chats(plain, model, tokenizer)
    assert not lacks_chats(torch.cat([plain, chat[:, : plain.shape[1]]]), model, tokenizer)
    # Without special tokens in the template, and without a template.
    assert not lacks_chats(plain, model, chat_tokenizer()) and not lacks_chats(plain, model, make_tokenizer())
