"""Which column of a data set is its text, and what a row of it says."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import FFPError


# Without a column named, the first of these that holds the right thing is read: texts or conversations.
TEXT_COLUMNS = ("text", "content", "document")
CHAT_COLUMNS = ("messages", "conversations")
KNOWN_COLUMNS = ("text", *CHAT_COLUMNS, "content", "document")
# ShareGPT's names of who speaks.
ROLES = {"human": "user", "gpt": "assistant"}

Row = str | list[dict[str, Any]]
"""A text, or a conversation: messages `{"role": ..., "content": ...}`."""


def choose_column(head: Sequence[Mapping[str, Any]], wanted: str | None, label: str) -> str:
    """The column to read.

    A name says what a column is, never its type alone: names of sources and ids are strings too.

    Args:
        head: The first rows.
        wanted: The column that the user has named, of texts or conversations.
        label: What the data is called in errors.

    Raises:
        FFPError: If there is no row, no such column, or none of a known name that holds text.
    """
    if not head:
        raise FFPError(f"{label} holds no text: it has no rows")
    names = list(dict.fromkeys(name for row in head for name in row))
    listed = ", ".join(names) or "none"
    if wanted and wanted not in names:
        raise FFPError(f"{label} has no column {wanted!r}; its columns are {listed}")
    for name in [wanted] if wanted else KNOWN_COLUMNS:
        value = next((row[name] for row in head if row.get(name) not in (None, [])), None)
        is_text = isinstance(value, str) and (wanted or name in TEXT_COLUMNS)
        if is_text or (_is_conversation(value) and (wanted or name in CHAT_COLUMNS)):
            return name
    if wanted:
        raise FFPError(f"column {wanted!r} of {label} holds neither texts nor conversations; its columns are {listed}")
    raise FFPError(
        f"{label} has the columns {listed}, and none of them is known to hold text ({', '.join(TEXT_COLUMNS)}) or "
        f"conversations ({', '.join(CHAT_COLUMNS)}); say which one does by --text-column NAME (text_column)"
    )


def read_column(rows: Iterable[Mapping[str, Any]], column: str, label: str) -> Iterator[Row]:
    """The texts or conversations of one column; rows that have none are left out.

    Raises:
        FFPError: If a row holds something else.
    """
    for number, row in enumerate(rows, 1):
        value = row.get(column)
        if isinstance(value, str):
            yield value
        elif _is_conversation(value):
            yield [_message(message) for message in value]
        elif value is not None and value != []:
            raise FFPError(f"column {column!r} of {label} holds neither a text nor a conversation in row {number}")


def length_of(row: Row) -> int:
    """Characters of a text or conversation."""
    return len(row) if isinstance(row, str) else sum(len(str(message["content"])) for message in row)


def join_rows(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, label: str) -> str:
    """One text: rows joined by blank lines, as perplexity on WikiText-2 is measured, chats in the template's words.

    Raises:
        FFPError: If there is no chat template to render a conversation by, or it refuses one.
    """
    return "\n\n".join(row if isinstance(row, str) else _render(row, tokenizer, label) for row in rows)


def _render(conversation: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, label: str) -> str:
    if not tokenizer.chat_template:
        raise FFPError(
            f"{label} holds conversations, and the tokenizer has no chat template to render them by; name a column of "
            "texts by --text-column NAME (text_column), or other data"
        )
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False)
    except Exception as error:  # A template is a program, with whatever errors its author thought of.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        begin = str(conversation[0]["content"])[:40]
        raise FFPError(f"{label}: the chat template refuses the conversation {begin!r}: {reason}") from None


def _is_conversation(value: Any) -> bool:
    keys = ({"role", "content"}, {"from", "value"})
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and any(pair <= message.keys() for pair in keys) for message in value)
    )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if "role" in message:
        # Tables fill in what only some messages have.
        return {name: value for name, value in message.items() if value is not None or name == "content"}
    return {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
