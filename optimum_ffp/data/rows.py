"""Rows of a dataset as pieces of text: the column is found, and conversations are rendered by the chat template."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config.texts import LINES, NAMED, Text
from ..errors import FFPError, named_line


# Columns that are read by default: the first that hold texts or conversations. A prompt and its completion, which are
# read together, are named as by TRL.
KNOWN_COLUMNS = (
    *(("text",), ("messages",), ("conversations",), ("content",), ("document",)),
    ("prompt", "completion"),
)
# Roles of ShareGPT's format.
ROLES = {"human": "user", "gpt": "assistant"}
# First rows, by which the column is found.
HEAD = 256
# Rows are joined by blank lines, as is usual for perplexity on WikiText-2.
BETWEEN_ROWS = "\n\n"

Row = str | list[dict[str, Any]]
"""A text, or a conversation as a list of messages `{"role": ..., "content": ...}`."""


def read_pieces(
    rows: Iterable[Mapping[str, Any]],
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str | None = None,
    token: str | None = None,
) -> Iterator[str]:
    """Yield pieces of text, which make up the text if they are joined.

    A .txt file is read as it is; of one like those of WikiText-2, whose lines begin with a space, a line is a row, as
    on the Hub.

    Args:
        rows: Rows of a split of the text.
        text: The text.
        tokenizer: Tokenizer with the chat template for conversations.
        text_column: Column to read; one of a known name if `None`.
        token: Access token of the Hub, which errors don't show.

    Raises:
        FFPError: If the text can't be read, or conversations can't be rendered.
    """
    with text.reading(token):
        rows = iter(rows)
        head = [*islice(rows, HEAD)]
        rows = chain(head, rows)
        if head and LINES in head[0]:
            plain = any(not row[LINES].startswith(" ") for row in head if row[LINES].strip())
            for row in rows:
                yield row[LINES] if plain else (row[LINES] if row[LINES].strip() else "") + BETWEEN_ROWS
            return
        columns = choose_columns(head, None if text.name in NAMED else text_column, text.name)
        for number, row in enumerate(rows, 1):
            values = [row.get(name) for name in columns]
            if any(value is None or value == [] for value in values):
                continue
            found = _join(values)
            if found is None:
                names = " and ".join(map(repr, columns))
                raise FFPError(
                    f"column {names} of {text.name} holds neither a text nor a conversation in row {number}"
                )
            yield render(found, tokenizer, text.name) + BETWEEN_ROWS


def check_text(text: Text, text_column: str | None = None, token: str | None = None) -> None:
    """Check that a text can be opened, and that the first rows of every split have text.

    Raises:
        FFPError: If they haven't.
    """
    for rows in text.open(token).values():
        with text.reading(token):
            head = [*islice(rows, HEAD)]
        if not head or LINES not in head[0]:
            choose_columns(head, None if text.name in NAMED else text_column, text.name)


def choose_columns(head: Sequence[Mapping[str, Any]], wanted: str | None, label: str) -> tuple[str, ...]:
    """Return the names of the columns to read together.

    Other columns of strings than those of known names are not guessed: they may be ids or sources.

    Args:
        head: The first rows.
        wanted: Column named by the user, with texts or conversations; a known one if `None`.
        label: Name of the data in errors.

    Raises:
        FFPError: If there are no rows, no such column, or no column of a known name with text.
    """
    if not head:
        raise FFPError(f"{label} holds no text: it has no rows")
    names = list(dict.fromkeys(name for row in head for name in row))
    for columns in [(wanted,)] if wanted else KNOWN_COLUMNS:
        if any(_join([row.get(name) for name in columns]) for row in head):
            return columns
    if wanted:
        raise FFPError(
            f"{label} has no column {wanted!r} of texts or conversations; its columns are {', '.join(names)}"
        )
    known = ", ".join(map(" with ".join, KNOWN_COLUMNS))
    raise FFPError(
        f"{label} has the columns {', '.join(names)}, and none that is known to hold text ({known}); name the text "
        "column by --text-column NAME (text_column)"
    )


def render(row: Row, tokenizer: PreTrainedTokenizerBase, label: str) -> str:
    """Return a text as it is, and a conversation as the chat template renders it.

    Raises:
        FFPError: If there is no chat template, or it fails.
    """
    if isinstance(row, str):
        return row
    if not tokenizer.chat_template:
        raise FFPError(
            f"{label} holds conversations, and the tokenizer has no chat template to render them by; name a column of "
            "texts by --text-column NAME (text_column), or other data"
        )
    try:
        return apply_template(tokenizer, row)
    except Exception as error:  # A template is a program and may raise anything.
        begin = str(row[0].get("content"))[:40]
        raise FFPError(f"{label}: the chat template refuses the conversation {begin!r}: {named_line(error)}") from None


def apply_template(tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, Any]]) -> str:
    """Render a conversation by the chat template, which may raise anything.

    Templates of models that also take images may want content as a list of parts, and leave out a text that isn't.
    """
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    contents = [str(message.get("content") or "").strip() for message in conversation]
    if not any(contents) or any(content in text for content in contents if content):
        return text
    parts = [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in conversation
    ]
    return tokenizer.apply_chat_template(parts, tokenize=False)


def _join(values: Sequence[Any]) -> Row | None:
    """The row of columns that are read together; `None` if they hold something else."""
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    if all(map(_is_conversation, values)):
        return [_message(message) for message in chain(*values)]
    return None


def _is_conversation(value: Any) -> bool:
    keys = ({"role", "content"}, {"from", "value"})
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and any(pair <= message.keys() for pair in keys) for message in value)
    )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if "role" in message:
        # Tables have `None` for keys that only some messages have.
        return {name: value for name, value in message.items() if value is not None or name == "content"}
    return {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
