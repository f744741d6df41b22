"""Conversion of dataset rows to pieces of text: choice of the column, and rendering of conversations."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from ..config.texts import LINES, NAMED, Text
from ..errors import FFPError, named_line


# Columns to read by default: the first that contain texts or conversations. A prompt and its completion, named as in
# TRL, are read together.
KNOWN_COLUMNS = (("text",), ("messages",), ("conversations",), ("content",), ("document",), ("prompt", "completion"))
PROMPT_COLUMNS = (("prompt",), ("messages",), ("conversations",), ("question",), ("instruction",), ("text",))
# Roles of ShareGPT's format.
ROLES = {"human": "user", "gpt": "assistant"}
# Number of rows to choose the column by.
HEAD = 256
# Rows are joined by blank lines, as is usual for perplexity on WikiText-2.
ROW_SEPARATOR = "\n\n"

Row = str | list[dict[str, Any]]
"""A text, or a conversation as a list of messages `{"role": ..., "content": ...}`."""


def read_pieces(
    rows: Iterable[Mapping[str, Any]],
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str | None = None,
    token: str | None = None,
) -> Iterator[str]:
    """Yield pieces of text, whose concatenation is the text.

    A .txt file is read unchanged, unless all lines begin with a space as in WikiText-2; then lines are rows, as on the
    Hub.

    Args:
        rows: Rows of a split of the text.
        text: The text.
        tokenizer: Tokenizer with the chat template for conversations.
        text_column: Column to read; one of a known name if `None`.
        token: Access token of the Hub, which is removed from errors.

    Raises:
        FFPError: If the text can't be read, or conversations can't be rendered.
    """
    with text.reading(token):
        rows = iter(rows)
        head = [*islice(rows, HEAD)]
        rows = chain(head, rows)
        if head and LINES in head[0]:
            is_plain = any(not row[LINES].startswith(" ") for row in head if row[LINES].strip())
            for row in rows:
                yield row[LINES] if is_plain else (row[LINES] if row[LINES].strip() else "") + ROW_SEPARATOR
            return
        for row in _joined(head, rows, text, text_column):
            yield render(row, tokenizer, text.name) + ROW_SEPARATOR


def read_prompts(
    rows: Iterable[Mapping[str, Any]], text: Text, text_column: str | None = None, token: str | None = None
) -> Iterator[Row]:
    """Yield the prompts of a text: its texts, the lines of a .txt file, or conversations up to the last user turn.

    Arguments and errors are those of `read_pieces`.
    """
    with text.reading(token):
        rows = iter(rows)
        head = [*islice(rows, HEAD)]
        rows = chain(head, rows)
        is_lines = bool(head) and LINES in head[0]
        for row in (row[LINES].strip() for row in rows) if is_lines else _joined(head, rows, text, text_column):
            if not isinstance(row, str):
                users = [number for number, message in enumerate(row, 1) if message["role"] == "user"]
                row = row[: users[-1] if users else 0]
            if row:
                yield row


def _joined(
    head: Sequence[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]], text: Text, text_column: str | None
) -> Iterator[Row]:
    columns = choose_columns(head, text, text_column)
    for number, row in enumerate(rows, 1):
        values = [row.get(name) for name in columns]
        if None in values or [] in values:
            continue
        if (joined := _join(values)) is None:
            wrong = f"column {_quoted(columns)} of {text.name} contains neither a text nor a conversation"
            raise FFPError(f"{wrong} in row {number}")
        yield joined


def check_text(text: Text, text_column: str | None = None) -> None:
    """Raise `FFPError` if a text can't be opened, or the first rows of a split contain no text."""
    for rows in text.open().values():
        with text.reading():
            head = [*islice(rows, HEAD)]
        if not head or LINES not in head[0]:
            choose_columns(head, text, text_column)


def choose_columns(head: Sequence[Mapping[str, Any]], text: Text, text_column: str | None) -> tuple[str, ...]:
    """Return the names of the columns to read together: the user's, or known ones.

    Unknown columns are never guessed, since strings may be ids or sources. Raises `FFPError` if there is none of them
    with text in the first rows.
    """
    if not head:
        raise FFPError(f"{text.name} contains no text: it has no rows")
    names = list(dict.fromkeys(name for row in head for name in row))
    # Texts with a short name have a known column.
    known = PROMPT_COLUMNS if text.is_answers else KNOWN_COLUMNS
    candidates = [(text_column,)] if text_column and text.source.partition(":")[0] not in NAMED else known
    for columns in candidates:
        if any(_join([row.get(name) for name in columns]) for row in head):
            return columns
    for columns in candidates:
        if set(columns) <= set(names):
            types = {type(row.get(name)).__name__.replace("NoneType", "null") for row in head for name in columns}
            raise FFPError(
                f"column {_quoted(columns)} of {text.name} contains {' and '.join(sorted(types))} instead of texts "
                "or conversations; convert its values to text, or choose another column with --text-column NAME "
                "(text_column)"
            )
    usual = f"known to contain text ({', '.join(map(' with '.join, known))})"
    raise FFPError(
        f"{text.name} has the columns {', '.join(names)}, none of which is "
        f"{repr(text_column) if text_column else usual}; choose the column with --text-column NAME (text_column)"
    )


def render(row: Row, tokenizer: PreTrainedTokenizerBase, label: str, **options: Any) -> str:
    """Render a conversation with the chat template and its options; return a text unchanged.

    Raises `FFPError` if the template rejects the conversation, or there is none.
    """
    if isinstance(row, str):
        return row
    if not tokenizer.chat_template:
        raise FFPError(
            f"{label} contains conversations, but the tokenizer has no chat template; choose a column of texts with "
            "--text-column NAME (text_column), or other data"
        )
    try:
        return apply_template(tokenizer, row, **options)
    except Exception as error:  # Templates are programs and may raise any exception.
        begin = str(row[0].get("content"))[:40]
        raise FFPError(f"{label}: the chat template rejects the conversation {begin!r}: {named_line(error)}") from None


def apply_template(tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, Any]], **options: Any) -> str:
    """Render a conversation with the chat template and its options, which may raise any exception.

    Templates of vision-language models may expect content as a list of parts, and silently drop strings.
    """
    apply = cast(Callable[..., str], partial(tokenizer.apply_chat_template, tokenize=False, **options))
    text = apply(conversation)
    contents = [str(message.get("content") or "").strip() for message in conversation]
    if not any(contents) or any(content in text for content in contents if content):
        return text
    parts = copy.deepcopy(conversation)
    for message in parts:
        if isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    return apply(parts)


def _quoted(columns: Iterable[str]) -> str:
    return " and ".join(map(repr, columns))


def _join(values: Sequence[Any]) -> Row | None:
    """Join columns that are read together; return `None` if they contain neither texts nor conversations."""
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    if all(map(_is_conversation, values)):
        return [_message(message) for message in chain(*values)]
    return None


def _is_conversation(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        return False
    return all({"role", "content"} <= message.keys() or {"from", "value"} <= message.keys() for message in value)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if "role" in message:
        # Arrow tables have `None` for keys that only some messages have.
        return {name: value for name, value in message.items() if value is not None or name == "content"}
    return {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
