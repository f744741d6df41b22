"""Tokens of texts and conversations, and which of them have a loss."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import FFPError
from .columns import Completion, Row, apply_template, length_of, render_row


logger = logging.getLogger(__name__)
# Rows that are tokenised together, and their characters.
ROWS, CHARACTERS_AT_ONCE = 256, 2**22


def encode_rows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, label: str, answers: Counter[str] | None = None
) -> Iterator[np.ndarray]:
    """Yields the tokens of every row and of the blank line after it; `-1 - id` for those without a loss.

    Args:
        rows: Texts or conversations.
        tokenizer: Tokenizer of the model.
        label: Name of the text in errors.
        answers: Counts the answers that are `found` and `missed`, which alone have a loss then, as completions have;
            texts have one in any case.
    """
    if answers is not None and not tokenizer.is_fast:
        raise FFPError(
            f"{label}: this tokenizer, written in Python, doesn't tell which tokens are of an answer; train on all "
            "tokens by --loss-on all (loss_on)"
        )
    for group in _groups(rows):
        texts = [render_row(row, tokenizer, label) for row in group]
        # verbose=False: no warning about texts longer than the model's context, which are cut into windows.
        options = {"add_special_tokens": False, "verbose": False, "return_offsets_mapping": answers is not None}
        encoded = tokenizer([f"{text}\n\n" for text in texts], **options)
        for index, (row, text) in enumerate(zip(group, texts)):
            tokens = np.array(encoded.input_ids[index], np.int32)
            if answers is not None and not isinstance(row, str):
                # The blank before an answer is often in its first token.
                begins, ends = np.array(encoded.offset_mapping[index]).reshape(-1, 2).T
                completion = isinstance(row, Completion)
                spans = [(len(row.prompt), len(text))] if completion else [*_answers(row, text, tokenizer, label)]
                inside = [(ends > span[0]) & (begins < span[1]) for span in spans if span]
                tokens = np.where(np.any(inside, 0), tokens, -1 - tokens) if inside else -1 - tokens
                answers.update("found" if span else "missed" for span in spans)
            yield tokens


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group, characters = [], 0
    for row in rows:
        group.append(row)
        characters += length_of(row)
        if len(group) == ROWS or characters >= CHARACTERS_AT_ONCE:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _answers(
    conversation: list[dict], text: str, tokenizer: PreTrainedTokenizerBase, label: str
) -> Iterator[tuple[int, int] | None]:
    """Yields where the assistant's messages begin and end in a rendered conversation; `None` if that can't be told.

    What ends a turn belongs to it, unless the template writes the message otherwise when others follow: then it is
    what the message says alone.
    """
    end = 0
    for number, message in enumerate(conversation):
        # An answer to nothing is not trained on.
        if message["role"] != "assistant" or not number:
            continue
        before, after = (render_row(conversation[:last], tokenizer, label) for last in (number, number + 1))
        opened = apply_template(tokenizer, conversation[:number], add_generation_prompt=True)
        if after.startswith(before) and text.startswith(after):
            begin, end = len(opened) if after.startswith(opened) else len(before), len(after)
            yield begin, end
            continue
        # After what opens the turn, so that a question with the same words is not taken for it.
        opening, content = opened.removeprefix(before), str(message.get("content") or "").strip()
        found = text.find(opening, end)
        end = end if found < 0 else found + len(opening)
        begin = text.find(content, end)
        if content and begin >= 0:
            end = begin + len(content)
            yield begin, end
        else:
            yield None


def check_answers(answers: Mapping[str, int], label: str) -> None:
    """Warns of answers without a loss; an error if that is all of them."""
    if not answers["missed"]:
        return
    if not answers["found"]:
        raise FFPError(
            f"{label}: the chat template rewrites every answer, so that the tokens of the answers can't be found; "
            "train on all tokens by --loss-on all (loss_on)"
        )
    # Not their number: a short text is read several times.
    share = answers["missed"] / (answers["found"] + answers["missed"])
    logger.warning(
        "%s: %.1f %% of the answers have no loss, since the chat template rewrites them", label, 100 * share
    )
