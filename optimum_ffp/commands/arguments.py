"""Options that several commands share, how they are spelled, and what is said of those that nothing reads."""

from argparse import (
    SUPPRESS,
    Action,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    Namespace,
    _ArgumentGroup,
)
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from ..options import CHOICES, Condition, Options


OPTIONS = {field.name: field for field in fields(Options)}
SEQ_LEN_DEFAULT = "what the model has positions for, up to 2048"
METAVARS = {int: "N", float: "X"}


def on_the_hub(model: str | None) -> bool:
    """Whether a model that was named is none of this machine's files."""
    return model is not None and not Path(model).expanduser().exists()


ON_THE_HUB = Condition("with a --model on the Hub", lambda args: on_the_hub(args.model))


def add_option(group: ArgumentParser | _ArgumentGroup, name: str, *short: str, help: str, **options: Any) -> None:
    """Adds `--some-option` with its default and, for those who know it from other plugins, `--some_option` unseen."""
    if options.get("default") not in (None, ()):
        help += " Default: %(default)s."
    if "choices" not in options and options.get("type") in METAVARS:
        options.setdefault("metavar", METAVARS[options["type"]])
    dest = name.replace("-", "_")
    options.setdefault("dest", dest)
    group.add_argument(*short, f"--{name}", help=help, **options)
    if "-" in name:
        group.add_argument(f"--{dest}", help=SUPPRESS, **options)


def add_config_option(group: _ArgumentGroup, name: str, help: str, default: str | None = None, **options: Any) -> None:
    """Adds an option for an option of `FFPConfig`, which stays `None` if it isn't given.

    Args:
        group: Where to add it.
        name: Of the option.
        help: What it is.
        default: What happens if it isn't given, if that takes more than the value.
        options: Of `add_argument`, where they don't follow from the option's type.
    """
    field = OPTIONS[name.replace("-", "_")]
    kinds = [kind for kind in get_args(field.type) if kind in (int, float, str)]
    if field.type is bool:
        options.setdefault("action", BooleanOptionalAction)
    else:
        options.setdefault("type", kinds[0] if kinds else field.type)
    if isinstance(field.default, tuple):
        options.setdefault("nargs", "+")
    if field.name in CHOICES:
        options.setdefault("metavar", f"{{{','.join(CHOICES[field.name])}}}")
    add_option(group, name, help=f"{help} Default: {default or _shown(field.default, name)}.", **options)


def _shown(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class StoreOnce(Action):
    """Stores a value that may be given by place or by name, but not both."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None):
        """Stores it, or ends with a line that has both."""
        before = getattr(namespace, self.dest, None)
        if before is not None:
            parser.error(f"{self.metavar} is given twice, as {before} and {values}; leave out one")
        setattr(namespace, self.dest, values)


def fraction(text: str) -> float:
    """A number that an option may be followed by more of."""
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is not a number; an output folder goes before the options (-m MODEL {text} --sparsity ...), or "
            f"is named by --output {text}"
        ) from None


def given_options(parser: ArgumentParser, args: Namespace) -> list[str]:
    """Names of the options that have another value than their default."""
    return [name for name, value in vars(args).items() if value != parser.get_default(name)]


def check_read(given: Iterable[str], read_when: Mapping[str, Condition], settings: Any) -> None:
    """Raises `FFPError` that names all options which were given, but which nothing reads with these settings.

    Args:
        given: Names of what was given.
        read_when: Conditions of those that are not always read.
        settings: What the conditions are of.
    """
    from ..errors import FFPError

    unread: dict[str, list[str]] = {}
    for name in given:
        if name in read_when and not read_when[name].holds(settings):
            unread.setdefault(read_when[name].words, []).append(f"--{name.replace('_', '-')}")
    if unread:
        found = "; ".join(f"{', '.join(options)} (read only {words})" for words, options in unread.items())
        raise FFPError(f"nothing would read {found}; leave out what isn't meant, or change what it depends on")


def add_load_options(group: _ArgumentGroup) -> None:
    """Options of `LoadOptions`, but for those of the Hub."""
    add_device_options(group)
    add_option(
        group, "device-map", metavar="MAP", help="Device map of accelerate, such as auto. Default: none, one device."
    )


def add_device_options(group: _ArgumentGroup) -> None:
    """Where to run, and what in."""
    add_option(group, "device", help="Where to run: cpu, cuda, cuda:0, mps. Default: the accelerator if there is one.")
    add_option(
        group,
        "dtype",
        default="auto",
        help="Type of the weights: auto (the checkpoint's), float32, bfloat16 or float16.",
    )


def add_hub_options(group: _ArgumentGroup) -> None:
    """Where a model is on the Hub."""
    add_option(group, "revision", help="Branch, tag or commit of the model on the Hub. Default: its main branch.")
    add_option(group, "token", help="Token of the Hub. Default: the one that `hf auth login` has stored.")
    add_option(group, "cache-dir", metavar="DIR", help="Where downloads are kept. Default: the Hub's own cache.")


def add_text_column(group: _ArgumentGroup) -> None:
    """Which column of a data set is read."""
    add_option(
        group,
        "text-column",
        metavar="NAME",
        help="Column to read where there are columns: of texts, or of conversations, which the chat template renders. "
        "Default: the first that is there of text, messages, conversations, content, document; no other is guessed.",
    )
