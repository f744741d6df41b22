"""An option is said once: a field of a config, from which values are checked and `--help` is made."""

import json
import logging
import math
import os
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, _ArgumentGroup
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar, get_args, get_origin

from ..errors import FFPError


logger = logging.getLogger(__name__)
T = TypeVar("T", bound="Config")
METAVARS = {int: "N", float: "X"}


@dataclass(frozen=True)
class Option:
    """What is said of an option beside its type and its default.

    Attributes:
        help: What it is, without the default.
        group: Its group in `--help`. Without one, it is set by `--config FILE` or from Python alone.
        choices: The values that are allowed, or the package whose modules are the choices: `search.methods`.
        low: Least number.
        high: Largest number.
        presets: Its values with other presets than the default one.
        when: The option that it depends on, and the values of that one with which it is read.
        stage: What depends on it first: what is `measured` of the dense model, the `search` or the `calibration`.
        shown: The default in words.
        cli: Further arguments of `add_argument`.
    """

    help: str
    group: str | None = None
    choices: str | Sequence[str] = ()
    low: float = 0
    high: float = math.inf
    presets: Mapping[str, Any] = field(default_factory=dict)
    when: tuple[str, ...] = ()
    stage: str = "search"
    shown: str | None = None
    cli: Mapping[str, Any] = field(default_factory=dict)


def option(default: Any, help: str, group: str | None = None, paper: Any = None, **others: Any) -> Any:
    """Return the field of an option.

    Args:
        default: Its value if it isn't given; `None` for one that follows from others, or from the model.
        help: What it is, without the default.
        group: Its group in `--help`, if it is an option of the command line.
        paper: Its value with the preset `paper`.
        others: Further attributes of `Option`.
    """
    presets = {} if paper is None else {"presets": {"paper": paper}}
    return field(default=default, metadata=vars(Option(help, group, **presets, **others)))


def same_as(config: "type[Config]", name: str) -> Any:
    """Return a field like that of another config."""
    one = config.__dataclass_fields__[name]
    return field(default=one.default, metadata=one.metadata)


def named_options(cls: type[T]) -> type[T]:
    """Let a config dataclass take the values of its preset, say "did you mean", and document its options."""
    init = cls.__init__

    @wraps(init)
    def checked(self, **given: Any) -> None:
        for name in given.keys() - {*cls.option_names()}:
            raise FFPError(f"{cls.__name__} has no option {name}{did_you_mean(name, cls.option_names())}")
        init(self, **cls.preset_values(given.get("preset")) | given)

    cls.__init__ = checked
    documented = [f"    {one.name}: {one.metadata['help']} Default: {shown_default(one)}." for one in fields(cls)]
    cls.__doc__ = "\n".join([cls.__doc__ or "", "Args:", *documented])
    return cls


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the known name that is most like another, as the end of a message."""
    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


@dataclass(kw_only=True)
class Config:
    """Options as fields. `resolve()` gives those that follow others their values."""

    def __post_init__(self) -> None:
        for one in fields(self):
            setattr(self, one.name, _checked(one, getattr(self, one.name)))
        self.resolve().check()

    def check(self) -> None:
        """Check what no option can be checked for alone; all are resolved.

        Raises:
            FFPError: If options don't go together.
        """

    def derived(self) -> dict[str, Any]:
        """Return the defaults that follow other options."""
        return {}

    def resolve(self: T) -> T:
        """Return a copy where defaults that follow other options are values."""
        missing = {name: value for name, value in self.derived().items() if getattr(self, name) is None}
        return replace(self, **missing) if missing else self

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of all options."""
        return [one.name for one in fields(cls)]

    @classmethod
    def preset_values(cls, preset: Any) -> dict[str, Any]:
        """Return the values that a preset sets."""
        presets = {one.name: one.metadata["presets"] for one in fields(cls)}
        return {name: values[preset] for name, values in presets.items() if str(preset) in values}

    def of_stage(self, *stages: str) -> dict[str, Any]:
        """Return the options that these stages depend on first."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.metadata["stage"] in stages}

    def reads(self, name: str) -> bool:
        """Return whether an option has an effect, given the values of the others."""
        when = self.__dataclass_fields__[name].metadata["when"]
        return not when or getattr(self.resolve(), when[0]) in when[1:] and self.reads(when[0])

    def to_dict(self) -> dict[str, Any]:
        """Return all options, as they are saved."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def of_record(cls, record: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
        """Return the options of a record, also one of an earlier version."""
        return record

    @classmethod
    def from_file(cls: type[T], path: str | os.PathLike, **overrides: Any) -> T:
        """Read options from a JSON file, such as the `ffp_config.json` of a result.

        Args:
            path: Path of the file. What it has beside options is ignored, with a warning.
            overrides: Options that replace those of the file; `preset` replaces all that presets set.

        Raises:
            FFPError: If the file can't be read, or a value is not allowed.
        """
        options, known = cls.of_record(read_file(path), path), cls.option_names()
        for name in options.keys() - {*known}:
            logger.warning(f"{path}: {cls.__name__} has no option {name}, ignored{did_you_mean(name, known)}")
        set_by_presets = [one.name for one in fields(cls) if one.metadata["presets"] and "preset" in overrides]
        options = {name: options[name] for name in known if name in options and name not in set_by_presets}
        for name, value in (options | overrides).items():
            choices = cls.__dataclass_fields__[name].metadata["choices"]
            if name not in overrides and isinstance(choices, str) and "." in str(value):
                raise FFPError(f"{path}: {name} {value} is code, which a file can't choose; give it as an option")
        return cls(**options | overrides)

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> dict[str, _ArgumentGroup]:
        """Add the options that have a group to a parser; return the groups by their titles."""
        groups: dict[str, _ArgumentGroup] = {}
        for one in fields(cls):
            title = one.metadata["group"]
            if title is None:
                continue
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            help = f"{one.metadata['help']} Default: {shown_default(one)}.".replace("%", "%%")
            groups[title].add_argument(f"--{one.name.replace('_', '-')}", help=help, **_argument(one))
        return groups

    @classmethod
    def from_args(cls: type[T], args: Namespace) -> T:
        """Return the config of a command line: that of `--config` if given, with the options that are given."""
        given = {name: getattr(args, name, None) for name in cls.option_names()}
        given = {name: value for name, value in given.items() if value is not None}
        config = cls.from_file(args.config, **given) if args.config is not None else cls(**given)
        for name in given:
            if not config.reads(name):
                other, *values = config.__dataclass_fields__[name].metadata["when"]
                logger.warning(f"--{name.replace('_', '-')} has no effect: only {other} {', '.join(values)} reads it")
        return config


def read_file(path: str | os.PathLike) -> dict[str, Any]:
    """Read the JSON object of a file.

    Raises:
        FFPError: If there is none.
    """
    try:
        record = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FFPError(f"{path} can't be read as a config: {error}") from None
    if not isinstance(record, dict):
        raise FFPError(f"{path} must hold a JSON object of options, found {type(record).__name__}")
    return record


def choices_of(one: Field) -> tuple[str, ...]:
    """Return the choices of an option: `fisher_obs.py` is the choice `fisher-obs`."""
    choices = one.metadata["choices"]
    if not isinstance(choices, str):
        return tuple(choices)
    folder = Path(__file__).parents[1].joinpath(*choices.split("."))
    return tuple(sorted(module.name.replace("_", "-") for module in iter_modules([str(folder)])))


def shown_default(one: Field) -> str:
    """Return the default of an option in words."""
    if isinstance(one.default, tuple):
        return " ".join(map(str, one.default))
    number = isinstance(one.default, float)
    return one.metadata["shown"] or (f"{one.default:g}" if number else str(one.default).lower())


def _kinds(one: Field) -> tuple[type, ...]:
    return get_args(one.type) or (one.type,)


def _argument(one: Field) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option; without it, its value is `None`."""
    kinds = _kinds(one)
    if bool in kinds:
        return {"action": BooleanOptionalAction} | one.metadata["cli"]
    kind = str if str in kinds else kinds[0]
    choices = choices_of(one)
    metavar = f"{{{','.join(choices)}}}" if choices else METAVARS.get(kind)
    return {"type": kind, "metavar": metavar} | one.metadata["cli"]


def _checked(one: Field, value: Any) -> Any:
    """Return a value that is allowed, with paths as text and lists as tuples."""
    if value is None and one.default is None:
        return None
    if get_origin(one.type) is tuple:
        if not isinstance(value, (list, tuple)):
            raise FFPError(f"{one.name} must be a list, found {value!r}")
        return tuple(_check_number(one, int, element) for element in value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    kind = _kinds(one)[0]
    if one.metadata["choices"]:
        _check_choice(one, value)
    elif kind is bool and not isinstance(value, bool):
        raise FFPError(f"{one.name} must be true or false, found {value!r}")
    elif kind is str and not (isinstance(value, str) and value):
        raise FFPError(f"{one.name} must be a name, found {value!r}")
    elif kind in METAVARS:
        _check_number(one, kind, value)
    return value


def _check_choice(one: Field, value: Any) -> None:
    choices = choices_of(one)
    if value in choices:
        return
    elsewhere = isinstance(one.metadata["choices"], str) and "." in str(value)
    try:
        if elsewhere and find_spec(value):
            return
    except ImportError:
        pass
    raise FFPError(f"{one.name} {value!r} is not known; choose from {', '.join(choices)}")


def _check_number(one: Field, kind: type, value: Any) -> Any:
    low, high = one.metadata["low"], one.metadata["high"]
    right = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or not low <= value <= high:
        allowed = "an integer" if kind is int else "a number"
        between = f"of at least {low}" if high == math.inf else f"between {low} and {high}"
        raise FFPError(f"{one.name} must be {allowed} {between}, found {value!r}")
    return value
