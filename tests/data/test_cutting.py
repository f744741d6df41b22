from types import SimpleNamespace

import pytest
import torch
from tokenizers import processors

from optimum_ffp.data.cutting import cut_blocks, cut_windows, find_start_token
from optimum_ffp.errors import FFPError
from tests.helpers import make_text, make_tiny_model, make_tokenizer, with_start_token


START = 0


def cut(blocks, length, start=None, tokenizer=None):
    return torch.stack([*cut_windows(blocks, tokenizer or make_tokenizer(), make_tiny_model(), length, "text", start)])


def test_start_token_is_one_that_tokenizer_adds():
    plain, ending = make_tokenizer(), make_tokenizer()
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ending.eos_token_id)]
    )
    assert plain.bos_token_id == START and find_start_token(plain) is None and find_start_token(ending) is None
    assert find_start_token(with_start_token(make_tokenizer())) == START
    assert find_start_token(with_start_token(make_tokenizer()), "never") is None


@pytest.mark.parametrize("words", [45, 46, 59, 60])
def test_windows_have_start_token_and_lose_no_text(words):
    text = make_text(words)
    expected = [int(word[1:]) for word in text.split()]
    # 15 tokens of text a window.
    windows = cut(cut_blocks([text], 20), 16, START, with_start_token(make_tokenizer()))
    assert windows.shape == (words // 15, 16) and (windows[:, 0] == START).all()
    assert windows[:, 1:].flatten().tolist() == expected[: words // 15 * 15]
    assert cut([text], 16).flatten().tolist() == expected[: words // 16 * 16]


def test_start_token_already_in_text_is_not_duplicated():
    """Chat templates write it themselves, here at the first token of windows and elsewhere."""
    words = make_text(100).split()
    rows = [" ".join(words[start : start + 20]) for start in range(0, 100, 20)]
    windows = cut([" ".join(words[:10]), *(f"<s> {row}" for row in rows)], 8, START)
    assert (windows[:, 0] == START).all() and (windows[:, 1] != START).all()


@pytest.mark.parametrize(
    "pieces", [["one two  three\n\n four"], ["one ", "two", "  three\n\n", " four"], ["x" * 99], []]
)
@pytest.mark.parametrize("characters", [1, 5, 1000])
def test_blocks_concatenate_to_text_without_splitting_words(pieces, characters):
    blocks = [*cut_blocks(pieces, characters)]
    assert "".join(blocks) == "".join(pieces)
    if len(pieces) == 1:
        assert " ".join(blocks).split() == pieces[0].split()


def test_text_is_encoded_lazily():
    read = []

    def blocks():
        for number in range(100):
            read.append(number)
            yield "w3 w4 w5 w6 "

    windows = cut_windows(blocks(), make_tokenizer(), make_tiny_model(), 8, "text")
    assert next(windows).tolist() == [3, 4, 5, 6] * 2 and len(read) == 2


def test_token_beyond_embedding_is_rejected():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["new"])
    with pytest.raises(FFPError, match="'new'"):
        cut(["w3 new w4"], 2, tokenizer=tokenizer)


def test_tokenizer_without_output_is_rejected():
    def empty(block, **options):
        return SimpleNamespace(input_ids=[])

    with pytest.raises(FFPError, match="tokenizer"):
        cut(["some text"], 8, tokenizer=empty)
