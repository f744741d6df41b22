import json

import pytest
import torch
from tokenizers import processors

from optimum_ffp.data import DataRequest, DataSplits, cut_rows, find_start_token, load_windows
from optimum_ffp.errors import FFPError
from tests.helpers import make_text, make_tiny_model, make_tokenizer, with_start_token


START = 0
REQUEST = DataRequest(length=16, calibration=8, search=3, test=None, seed=0)


def test_what_the_tokenizer_adds_decides_and_not_what_it_has():
    plain, ending = make_tokenizer(), make_tokenizer()
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ending.eos_token_id)]
    )
    assert plain.bos_token_id == START and find_start_token(plain) is None and find_start_token(ending) is None
    assert find_start_token(with_start_token(make_tokenizer())) == START
    assert find_start_token(with_start_token(make_tokenizer()), "never") is None


@pytest.mark.parametrize("words", [45, 46, 59, 60])
def test_every_window_has_the_start_token_and_no_text_is_lost(words):
    text = make_text(words)
    cut = cut_rows([text], with_start_token(make_tokenizer()), make_tiny_model(), 16, "text", START)
    # 15 tokens of text a window.
    assert cut.shape == (words // 15, 16) and (cut[:, 0] == START).all()
    expected = [int(word[1:]) for word in text.split()]
    assert cut[:, 1:].flatten().tolist() == expected[: words // 15 * 15]
    without = cut_rows([text], make_tokenizer(), make_tiny_model(), 16, "text")
    assert without.flatten().tolist() == expected[: words // 16 * 16]


def test_a_start_token_that_the_text_has_is_not_doubled(tmp_path):
    """Chat templates write it themselves, here at the first token of windows and elsewhere."""
    tokenizer = with_start_token(make_tokenizer())
    tokenizer.chat_template = "{{ bos_token }} {% for message in messages %}{{ message.content }}{% endfor %}"
    words = make_text(600).split()
    rows = [" ".join(words[start : start + 20]) for start in range(0, 600, 20)]
    lines = [json.dumps({"messages": [{"role": "user", "content": row}]}) for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    request = DataRequest(length=21, calibration=8, search=3, test=None, seed=0)
    data = load_windows(str(tmp_path / "train.jsonl"), None, tokenizer, make_tiny_model(), request)
    # A conversation is as long as a window, so that nothing is to be added.
    numbers = [[START, *(int(word[1:]) for word in row.split())] for row in rows]
    assert data.test.tokens.tolist() == numbers[-len(data.test) :] and data.test.start_token
    cut = cut_rows([" ".join(words[:10])] + [f"<s> {row}" for row in rows], tokenizer, make_tiny_model(), 8, "", START)
    assert (cut[:, 0] == START).all() and (cut[:, 1] != START).all()


def test_every_role_has_it_and_says_so(data_folder):
    def load(option):
        request = DataRequest(length=16, calibration=8, search=3, test=None, seed=0, start_token=option)
        tokenizer = with_start_token(make_tokenizer())
        return load_windows(str(data_folder), None, tokenizer, make_tiny_model(), request)

    data, without = load("auto"), load("never")
    for role in ("calibration", "search", "test"):
        windows = getattr(data, role)
        assert (windows.tokens[:, 0] == START).all() and windows.length == 16
        assert windows.describe()["start_token"] is True and getattr(without, role).describe()["start_token"] is False
        assert windows.first(2).start_token
    assert not (without.test.tokens == START).any()
    again = DataSplits.from_list(json.loads(json.dumps(data.to_list())))
    assert torch.equal(again.test.tokens, data.test.tokens) and again.test.start_token


def test_a_start_token_that_the_model_does_not_know(data_folder):
    with pytest.raises(FFPError, match="for which the model has no embedding"):
        cut_rows([make_text(50)], make_tokenizer(), make_tiny_model(), 16, "text", 128)
