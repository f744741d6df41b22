"""Finds the text column of a dataset, or its two columns, and reads its rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..errors import FFPError, named_line


# Columns that are read by default: the first of `KNOWN_COLUMNS` that holds texts or conversations, respectively.
TEXT_COLUMNS = ("text", "content", "document")
CHAT_COLUMNS = ("messages", "conversations")
KNOWN_COLUMNS = ("text", *CHAT_COLUMNS, "content", "document")
# Read together where none of the others is there, as by TRL.
COMPLETION_COLUMNS = ("prompt", "completion")
# Roles of ShareGPT's format.
ROLES = {"human": "user", "gpt": "assistant"}


class Completion(NamedTuple):
    """A text in two parts, of which the first is given and the second is what a model is to write."""

    prompt: str
    completion: str


Row = str | Completion | list[dict[str, Any]]
"""A text, whole or in two parts, or a conversation as a list of messages `{"role": ..., "content": ...}`."""


def choose_columns(head: Sequence[Mapping[str, Any]], wanted: str | None, label: str) -> tuple[str, ...]:
    """Returns the names of the columns to read: one, or `COMPLETION_COLUMNS`.

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
    listed = ", ".join(names) or "none"
    if wanted and wanted not in names:
        raise FFPError(f"{label} has no column {wanted!r}; its columns are {listed}")
    for name in [wanted] if wanted else KNOWN_COLUMNS:
        value = next((row[name] for row in head if row.get(name) not in (None, [])), None)
        is_text = isinstance(value, str) and (wanted or name in TEXT_COLUMNS)
        if is_text or (_is_conversation(value) and (wanted or name in CHAT_COLUMNS)):
            return (name,)
    if wanted:
        raise FFPError(f"column {wanted!r} of {label} holds neither texts nor conversations; its columns are {listed}")
    if any(_row_of([row.get(name) for name in COMPLETION_COLUMNS]) for row in head):
        return COMPLETION_COLUMNS
    raise FFPError(
        f"{label} has the columns {listed}, and none of them is known to hold text ({', '.join(TEXT_COLUMNS)}, or "
        f"{' with '.join(COMPLETION_COLUMNS)}) or conversations ({', '.join(CHAT_COLUMNS)}); name the text column by "
        "--text-column NAME (text_column)"
    )


def read_columns(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], label: str) -> Iterator[Row]:
    """Yields the texts or conversations of the columns; rows without one are skipped.

    Raises:
        FFPError: If a row holds something else.
    """
    for number, row in enumerate(rows, 1):
        values = [row.get(name) for name in columns]
        if any(value is None or value == [] for value in values):
            continue
        found = _row_of(values)
        if found is None:
            names = " and ".join(map(repr, columns))
            raise FFPError(f"column {names} of {label} holds neither a text nor a conversation in row {number}")
        yield found


def length_of(row: Row) -> int:
    """Number of characters of a text or conversation."""
    if isinstance(row, list):
        return sum(len(str(message.get("content"))) for message in row)
    return len(row) if isinstance(row, str) else sum(map(len, row))


def join_rows(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, label: str) -> str:
    """Joins rows by blank lines, as is usual for perplexity on WikiText-2; the chat template renders conversations.

    Raises:
        FFPError: If there are conversations and no chat template, or the template fails.
    """
    return "\n\n".join(render_row(row, tokenizer, label) for row in rows)


def render_row(row: Row, tokenizer: PreTrainedTokenizerBase, label: str) -> str:
    """Returns a text as it is, its two parts joined, and a conversation as the chat template renders it.

    Raises:
        FFPError: As `join_rows`.
    """
    if isinstance(row, list):
        return _render(row, tokenizer, label)
    return row if isinstance(row, str) else "".join(row)


def _render(conversation: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, label: str) -> str:
    if not tokenizer.chat_template:
        raise FFPError(
            f"{label} holds conversations, and the tokenizer has no chat template to render them by; name a column of "
            "texts by --text-column NAME (text_column), or other data"
        )
    try:
        return apply_template(tokenizer, conversation)
    except Exception as error:  # A template is a program and may raise anything.
        begin = str(conversation[0].get("content"))[:40]
        raise FFPError(f"{label}: the chat template refuses the conversation {begin!r}: {named_line(error)}") from None


def apply_template(tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, Any]], **options: Any) -> str:
    """Renders a conversation by the chat template, which may raise anything.

    Templates of models that also take images may want content as a list of parts, and leave out a text that isn't.
    """
    text = tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    contents = [str(message.get("content") or "").strip() for message in conversation]
    if not any(contents) or any(content in text for content in contents if content):
        return text
    parts = [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in conversation
    ]
    return tokenizer.apply_chat_template(parts, tokenize=False, **options)


def _row_of(values: Sequence[Any]) -> Row | None:
    """The row of one column or of `COMPLETION_COLUMNS`; `None` if they hold something else."""
    if all(isinstance(value, str) for value in values):
        return values[0] if len(values) == 1 else Completion(*values)
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
