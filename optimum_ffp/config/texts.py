"""Texts as values: a mix is parsed once, and opens, describes and publishes its texts. Imports nothing heavy."""

import glob
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FFPError, convert_errors, named_line, one_line


if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset


# Short names of texts on the Hub: repository and configuration.
NAMED = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "c4": ("allenai/c4", "en"),
}
# Suffixes of files that are read, before `.gz`, and the builder of `datasets` that reads them.
BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SPLITS = ("train", "validation", "test")
# Column of the lines of a .txt file, with their line breaks.
LINES = "lines of a .txt file"
ALTERNATIVES = "name a local .txt, .json, .jsonl or .parquet file, or a folder with train, validation and test"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True)
class Text:
    """A text, and its share of a mix.

    Attributes:
        name: `wikitext2`, `c4`, a Hub id (`ID` or `ID:CONFIG`), a file, a folder, or `self`: what the model writes.
        share: Its share of the windows.
    """

    name: str
    share: float = 1.0

    @property
    def is_self(self) -> bool:
        """Whether the model writes the text."""
        return self.name == "self"

    @property
    def path(self) -> Path:
        """Path of a local text."""
        return Path(self.name).expanduser()

    @property
    def builder(self) -> str | None:
        """The builder of `datasets` that reads a file of this suffix, if one does."""
        return BUILDERS.get(Path(self.name.lower().removesuffix(".gz")).suffix)

    @property
    def is_local(self) -> bool:
        """Whether the name is that of a file or folder, which need not exist."""
        if self.is_self or self.name in NAMED and not self.path.exists():
            return False
        return bool(self.builder) or self.path.exists() or not HUB_NAME.fullmatch(self.name)

    @property
    def hub_source(self) -> tuple[str, str | None]:
        """Repository and configuration on the Hub."""
        name, _, config = self.name.partition(":")
        repository, default = NAMED.get(name, (name, None))
        return repository, config or default

    @property
    def hub_dataset(self) -> tuple[str, str | None] | None:
        """Repository and configuration on the Hub; `None` of what is not there for sure."""
        return self.hub_source if "/" in self.hub_source[0] and not self.is_local else None

    @property
    def published(self) -> str:
        """The name without local folders."""
        return (self.path.absolute().name or self.name) if self.is_local else self.name

    def describe(self) -> str:
        """Return the name for people."""
        return "text sampled from the model itself" if self.is_self else self.published

    def open(self, token: str | None = None) -> "dict[str, Dataset | IterableDataset]":
        """Open the text by `datasets`, as streams: nothing is copied into its cache.

        Args:
            token: Access token of the Hub.

        Returns:
            Rows by split: of train, validation and test if there are all three, else of the first one and of test, if
            there is one. A file is a split by its name, and lines of a .txt file are rows of the column `LINES`.

        Raises:
            FFPError: If there is no such text, or it can't be read.
        """
        from datasets import DatasetDict, load_from_disk

        if self.is_local and not self.path.exists():
            raise FFPError(f"there is no file or folder {self.name}; {ALTERNATIVES}")
        if self.path.is_file() and not self.path.stat().st_size:
            raise FFPError(f"{self.name} holds no text")
        with self.reading(token):
            if any((self.path / name).is_file() for name in ("state.json", "dataset_dict.json")):
                saved = load_from_disk(str(self.path)).with_format(None)
                found = saved if isinstance(saved, DatasetDict) else {self.path.name: saved}
            else:
                found = self._builder(token).as_streaming_dataset()
        if self.path.is_file():
            return {self.path.name: found["train"]}
        if all(split in found for split in SPLITS):
            return {split: found[split] for split in SPLITS}
        first = next((split for split in (*SPLITS[:2], *found) if split in found and split != "test"), "test")
        return {split: found[split] for split in dict.fromkeys((first, "test")) if split in found}

    def reading(self, token: str | None = None) -> AbstractContextManager[None]:
        """Return a context in which errors of `datasets` say in one line that the text can't be read."""
        return convert_errors(partial(self._describe_error, token))

    def _builder(self, token: str | None) -> "DatasetBuilder":
        from datasets import Features, Value, load_dataset_builder

        if self.path.is_file() and self.builder is None:
            raise FFPError(f"{self.name} is not a {', '.join(BUILDERS)} file; convert it, or give it such a suffix")
        if self.path.is_file():
            builder = load_dataset_builder(self.builder, data_files=glob.escape(str(self.path)))
        elif self.is_local:
            builder = load_dataset_builder(str(self.path))
        else:
            builder = load_dataset_builder(*self.hub_source, token=token)
        if builder.name == "text":
            builder.config.keep_linebreaks = True
            builder.config.features = builder.info.features = Features({LINES: Value("string")})
        return builder

    def _describe_error(self, token: str | None, error: Exception) -> str:
        from huggingface_hub import constants

        if self.is_local:
            return f"{self.name} can't be read: {named_line(error)}"
        reason = "offline mode is on" if constants.HF_HUB_OFFLINE else one_line(error, token)
        if reason.startswith("Config name is missing"):
            # The names are in the second line.
            reason = f"{one_line(str(error).partition(chr(10))[2], token)}, as {self.name}:NAME"
        return f"dataset {self.name!r} can't be read from the Hub ({reason}); {ALTERNATIVES}, or self to prune"


@dataclass(frozen=True)
class TextMix:
    """One text, or several with their shares."""

    texts: tuple[Text, ...]

    @classmethod
    def parse(cls, dataset: str) -> "TextMix":
        """Parse texts separated by commas, each with its share after a colon, or all without for equal shares.

        What exists as a file or folder is one text, whatever its name. Hub ids have configurations after a colon, and
        paths a drive before one: only a number after the last colon is a share.

        Raises:
            FFPError: If a text is named twice, or the shares are incomplete, not above 0, or don't add up to 1.
        """
        if Path(dataset).expanduser().exists():
            return cls((Text(dataset),))
        parts = [re.fullmatch(r"(.*?)(?::(\d+\.?\d*|\.\d+))?", part.strip()) for part in dataset.split(",")]
        names, shares = [part[1] for part in parts], [part[2] and float(part[2]) for part in parts]
        if "" in names or len(set(names)) < len(names):
            raise FFPError(f"dataset {dataset!r} must name every text once, separated by commas")
        if shares == [None] * len(shares):
            shares = [1 / len(shares)] * len(shares)
        # Thirds may be written as 0.33.
        if not all(shares) or abs(sum(shares) - 1) > 0.011:
            raise FFPError(
                f"dataset {dataset!r} must give every text a share above 0, together 1, as in "
                "wikitext2:0.7,c4:0.3, or none for equal shares"
            )
        return cls(tuple(Text(name, share / sum(shares)) for name, share in zip(names, shares)))

    def __iter__(self) -> Iterator[Text]:
        return iter(self.texts)

    def __str__(self) -> str:
        return self._join([text.name for text in self])

    @property
    def names(self) -> list[str]:
        """Names of the texts."""
        return [text.name for text in self]

    @property
    def written(self) -> bool:
        """Whether the model writes one of the texts."""
        return "self" in self.names

    @property
    def reported(self) -> "TextMix":
        """The texts that perplexity is reported on: those that the model doesn't write, if there are any."""
        return TextMix(tuple(text for text in self if not text.is_self) or self.texts)

    @property
    def published(self) -> str:
        """The mix as it is parsed, without local folders."""
        names = [text.published for text in self]
        # Files of two folders may have the same name.
        earlier = [names[:number].count(name) for number, name in enumerate(names)]
        return self._join([f"{name}-{count + 1}" if count else name for name, count in zip(names, earlier)])

    def describe(self) -> str:
        """Return the texts, and the shares of several, for people."""
        if len(self.texts) == 1:
            return self.texts[0].describe()
        return ", ".join(f"{100 * text.share:.3g} % {text.describe()}" for text in self)

    def divide(self, total: int) -> dict[str, int]:
        """Divide a number of windows by the shares: at least one for each name, rounded where they are left over."""
        counts = dict.fromkeys(self.names, min(1, total))
        for _ in range(total - sum(counts.values())):
            counts[max(self, key=lambda text: total * text.share - counts[text.name]).name] += 1
        return counts

    def _join(self, names: list[str]) -> str:
        if len({text.share for text in self}) == 1:
            return ",".join(names)
        return ",".join(f"{name}:{text.share:.6g}" for name, text in zip(names, self))
