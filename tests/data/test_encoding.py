"""Which tokens of conversations and completions have a loss."""

from collections import Counter
from types import SimpleNamespace

import pytest

from optimum_ffp import FFPError
from optimum_ffp.data.columns import Completion
from optimum_ffp.data.encoding import encode_rows
from tests.helpers import make_byte_level_tokenizer, make_tokenizer


CHATML = (
    "{% for message in messages %}<s> {{ message.role }} {{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)
# As Qwen3's: thoughts are written in the last turn alone.
THINKING = (
    "{% for message in messages %}<s> {{ message.role }} "
    "{% if loop.last and message.role == 'assistant' %}thoughts {% endif %}{{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)
TURNS = [
    {"role": role, "content": content}
    for role, content in (
        *(("system", "w9"), ("user", "w3 w4"), ("assistant", " w3 ")),
        *(("user", "w5 w3"), ("assistant", "w5 w6"), ("user", "w7"), ("assistant", "w8")),
    )
]


def ids_of(text: str) -> list[int]:
    return make_tokenizer()(text, add_special_tokens=False).input_ids


def with_loss(template: str, answers: Counter, turns: list[dict] = TURNS) -> list[str]:
    """Words of a conversation, those without a loss as a dot."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    (tokens,) = encode_rows([turns], tokenizer, "chats", answers)
    words = tokenizer.convert_ids_to_tokens([max(token, 0) for token in tokens.tolist()])
    return ["." if token < 0 else word for token, word in zip(tokens.tolist(), words)]


def test_answers_are_found_where_a_template_rewrites_earlier_ones():
    usual, found = Counter(), Counter()
    masked = " ".join(with_loss(CHATML, usual))
    assert masked == ". . . . . . . . . . . w3 </s> . . . . . . . w5 w6 </s> . . . . . . w8 </s>"
    # Of the last one thoughts and the end of the turn count too, which are as they would be written.
    thinking = " ".join(with_loss(THINKING, found))
    assert thinking == ". . . . . . . . . . . w3 . . . . . . . . w5 w6 . . . . . . . <unk> w8 </s>"
    assert usual == found == {"found": 3}


def test_of_a_prompt_with_its_completion_the_completion_has_a_loss():
    answers, tokenizer = Counter(), make_tokenizer()
    (tokens,) = encode_rows([Completion("w3 w4 ", "w5 w6")], tokenizer, "pairs", answers)
    masked = [-1 - token for token in ids_of("w3 w4")] + ids_of("w5 w6")
    assert tokens.tolist()[: len(masked)] == masked and (tokens[len(masked) :] < 0).all()
    (tokens,) = encode_rows([Completion("w3 w4 ", "w5 w6")], tokenizer, "pairs", None)
    assert (tokens >= 0).all()


def test_a_row_without_tokens_has_none():
    rows = [Completion("", ""), Completion("w3 ", "w4")]
    assert [len(tokens) for tokens in encode_rows(rows, make_tokenizer(), "pairs", Counter())] == [0, 2]


def test_the_first_word_of_a_completion_has_a_loss_with_the_blank_that_the_prompt_ends_with():
    answers, tokenizer = Counter(), make_byte_level_tokenizer()
    (tokens,) = encode_rows([Completion("the quick ", "fox")], tokenizer, "pairs", answers)
    kept = tokenizer.decode([token for token in tokens.tolist() if token >= 0])
    assert kept == " fox" and answers == {"found": 1}


def test_answers_need_a_tokenizer_that_tells_where_tokens_begin():
    tokenizer = SimpleNamespace(is_fast=False)
    with pytest.raises(FFPError, match="pairs: this tokenizer, written in Python, doesn't tell .* --loss-on all"):
        [*encode_rows([Completion("w3 w4 ", "w5")], tokenizer, "pairs", Counter())]
