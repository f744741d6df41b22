"""Declare each option once, as a dataclass field: validation, `--help` and the tables of the docs are made from it."""

import dataclasses
import json
import logging
import math
import os
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, _ArgumentGroup
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, fields, replace
from difflib import get_close_matches
from functools import wraps
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar, get_args, get_origin

from ..errors import FFPError
from .budgets import QUANTITIES, parse_quantity


logger = logging.getLogger(__name__)
T = TypeVar("T", bound="Config")
METAVARS = {int: "N", float: "X"}


def option(
    default: Any,
    help: str,
    group: str | None = None,
    *,
    choices: str | Sequence[str] = (),
    low: float = 0,
    high: float = math.inf,
    when: tuple[str, ...] = (),
    stage: str = "search",
    default_text: str | None = None,
    cli: Mapping[str, Any] | None = None,
    **presets: Any,
) -> Any:
    """Return a dataclass field for an option.

    Args:
        default: Default value; `None` if it is derived from other options or from the model.
        help: Description, without the default.
        group: Argument group in `--help`; without one, only `--config FILE` and Python set the option.
        choices: Allowed values, or the package whose modules are the choices, such as `search.methods`.
        low: Minimum of a number.
        high: Maximum of a number.
        when: Another option, followed by the values of it for which this one is read; without values, the options of
            which one must be given, such as `("memory or kv_cache",)`.
        stage: First stage that depends on the option: `measured` (of the dense model), `search` or `calibration`.
        default_text: Description of the default, if the value doesn't say enough.
        cli: Additional arguments of `add_argument`.
        presets: Values by preset, such as `paper=32`; `from_file` with a preset resets these options.
    """
    metadata = {"help": help, "group": group, "choices": choices, "low": low, "high": high, "when": when}
    metadata |= {"stage": stage, "default_text": default_text, "cli": cli or {}, "presets": presets}
    return dataclasses.field(default=default, metadata=metadata)


def same_as(config: "type[Config]", name: str) -> Any:
    """Return a copy of another config's field."""
    field = config.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


def named_options(cls: type[T]) -> type[T]:
    """Apply presets in the constructor of a config, suggest names for unknown options, and document all options."""
    init = cls.__init__

    @wraps(init)
    def init_with_preset(self, **options: Any) -> None:
        for name in options.keys() - {*cls.option_names()}:
            raise FFPError(f"{cls.__name__} has no option {name}{suggest_name(name, cls.option_names())}")
        init(self, **cls.preset_values(options.get("preset")) | options)

    cls.__init__ = init_with_preset
    arguments = [
        f"    {field.name}: {field.metadata['help']} Default: {format_default(field)}." for field in fields(cls)
    ]
    cls.__doc__ = "\n".join([cleandoc(cls.__doc__ or ""), "", "Args:", *arguments])
    return cls


def suggest_name(name: str, known: Collection[str]) -> str:
    """Return a suggestion to append to an error message; empty if no known name is similar."""
    matches = get_close_matches(name, known, 1)
    return f"; did you mean {matches[0]}?" if matches else ""


@dataclass(kw_only=True)
class Config:
    """Base class of configs, whose fields are options. `resolve()` fills in derived defaults.

    Attributes:
        replaces: Options of a file that an override replaces along with its own, since they exclude each other or the
            default of one depends on the other.
    """

    replaces = {}

    def __post_init__(self) -> None:
        for field in fields(self):
            setattr(self, field.name, _checked(field, getattr(self, field.name)))
        self.resolve().check()

    def check(self) -> None:
        """Check combinations of options, after derived defaults are filled in.

        Raises:
            FFPError: If options are incompatible.
        """

    def derived(self) -> dict[str, Any]:
        """Return the defaults that are derived from other options."""
        return {}

    def resolve(self: T) -> T:
        """Return the config with derived defaults filled in."""
        missing = {name: value for name, value in self.derived().items() if getattr(self, name) is None}
        return replace(self, **missing) if missing else self

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of all options."""
        return [field.name for field in fields(cls)]

    @classmethod
    def preset_values(cls, preset: Any) -> dict[str, Any]:
        """Return the options that a preset sets, with their values."""
        presets = {field.name: field.metadata["presets"] for field in fields(cls)}
        return {name: values[preset] for name, values in presets.items() if str(preset) in values}

    def for_stages(self, *stages: str) -> dict[str, Any]:
        """Return the options whose first dependent stage is one of these."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.metadata["stage"] in stages}

    def reads(self, name: str) -> bool:
        """Return whether an option has an effect with the current values of the others."""
        when = self.__dataclass_fields__[name].metadata["when"]
        if len(when) == 1:
            return any(getattr(self, other) is not None for other in when[0].split(" or "))
        # An option without a value yet, such as the calibration, may get any.
        return not when or getattr(self.resolve(), when[0]) in (None, *when[1:]) and self.reads(when[0])

    def to_dict(self) -> dict[str, Any]:
        """Return all options in JSON-ready form."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def options_from_record(cls, record: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
        """Return the options in a record, including one of an earlier version."""
        return record

    @classmethod
    def from_file(cls: type[T], path: str | os.PathLike, **overrides: Any) -> T:
        """Read options from a JSON file, such as the `ffp_config.json` of a result.

        Args:
            path: Path of the file. Unknown keys are ignored with a warning.
            overrides: Options that take precedence over the file, also over options that depend on them or that they
                exclude (`replaces`). `preset` overrides every option that presets set.

        Raises:
            FFPError: If the file can't be read, or a value is not allowed.
        """
        options, known = cls.options_from_record(read_file(path), path), cls.option_names()
        for name in options.keys() - {*known}:
            logger.warning(f"{path}: {cls.__name__} has no option {name}, ignored{suggest_name(name, known)}")
        replaced = {other for name in overrides for other in (name, *cls.replaces.get(name, ()))}
        replaced |= {field.name for field in fields(cls) if field.metadata["presets"] and "preset" in overrides}
        options = {name: options[name] for name in known if name in options and name not in replaced}
        for name, value in options.items():
            if _is_module(cls.__dataclass_fields__[name], value):
                raise FFPError(f"{path}: {name} {value} is code, which a file can't select; pass it as an option")
        return cls(**options | overrides)

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> dict[str, _ArgumentGroup]:
        """Add the options that have a group to a parser, and return the argument groups by title."""
        groups: dict[str, _ArgumentGroup] = {}
        for field in fields(cls):
            title = field.metadata["group"]
            if title is None:
                continue
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            help = f"{field.metadata['help']} Default: {format_default(field)}.".replace("%", "%%")
            groups[title].add_argument(f"--{field.name.replace('_', '-')}", help=help, **_argument(field))
        return groups

    @classmethod
    def from_args(cls: type[T], args: Namespace) -> T:
        """Return the config for parsed arguments: options of the command line override `--config FILE`."""
        given = {name: value for name in cls.option_names() if (value := getattr(args, name, None)) is not None}
        file = getattr(args, "config", None)
        config = cls(**given) if file is None else cls.from_file(file, **given)
        for name in given:
            if not config.reads(name):
                other, *values = config.__dataclass_fields__[name].metadata["when"]
                read = f"if {other} is {' or '.join(', '.join(values).rsplit(', ', 1))}" if values else f"with {other}"
                logger.warning(f"--{name.replace('_', '-')} has no effect: it is only read {read}")
        return config


def expand(path: str | os.PathLike) -> Path:
    """Return the path with `~` expanded. Unlike `Path.expanduser`, leave `~` of unknown users as it is."""
    return Path(os.path.expanduser(path))


def read_file(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        OSError: If it can't be read.
        FFPError: If it holds no object.
    """
    try:
        record = json.loads(expand(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FFPError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise FFPError(f"{path} must hold a JSON object, found {type(record).__name__}")
    return record


def choices_of(field: Field) -> tuple[str, ...]:
    """Return the choices of an option. A module `fisher_obs.py` is the choice `fisher-obs`."""
    choices = field.metadata["choices"]
    if not isinstance(choices, str):
        return tuple(choices)
    folder = Path(__file__).parents[1].joinpath(*choices.split("."))
    return tuple(sorted(module.name.replace("_", "-") for module in iter_modules([str(folder)])))


def format_default(field: Field) -> str:
    """Return the default of an option as text."""
    if isinstance(field.default, tuple) and field.default:
        return " ".join(map(str, field.default))
    number = isinstance(field.default, float)
    return field.metadata["default_text"] or (f"{field.default:g}" if number else str(field.default).lower())


def _types(field: Field) -> tuple[type, ...]:
    return get_args(field.type) or (field.type,)


def _argument(field: Field) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option. Options that aren't given are `None`."""
    types = _types(field)
    if bool in types:
        return {"action": BooleanOptionalAction} | field.metadata["cli"]
    argument_type = str if str in types else types[0]
    choices = choices_of(field)
    metavar = f"{{{','.join(choices)}}}" if choices else METAVARS.get(argument_type)
    return {"type": argument_type, "metavar": metavar} | field.metadata["cli"]


def _checked(field: Field, value: Any) -> Any:
    """Validate a value, and return it with paths as strings, lists as tuples and quantities as numbers."""
    if value is None and type(None) in get_args(field.type):
        return None
    if get_origin(field.type) is tuple:
        if not isinstance(value, (list, tuple)):
            raise FFPError(f"{field.name} must be a list, found {value!r}")
        return tuple(_check_type(field, element) for element in value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if field.name in QUANTITIES:
        value = parse_quantity(field.name, value)
    _check_type(field, value)
    return value


def _check_type(field: Field, value: Any) -> Any:
    value_type = _types(field)[0]
    if field.metadata["choices"]:
        _check_choice(field, value)
    elif value_type is bool and not isinstance(value, bool):
        raise FFPError(f"{field.name} must be true or false, found {value!r}")
    elif value_type is str and not (isinstance(value, str) and value):
        raise FFPError(f"{field.name} must be a name, found {value!r}")
    elif get_origin(value_type) is dict and not (isinstance(value, (dict, str)) and value):
        raise FFPError(f"{field.name} must be a file or what it holds, found {value!r}")
    elif value_type in METAVARS:
        _check_number(field, value_type, value)
    return value


def _is_module(field: Field, value: Any) -> bool:
    """Return whether a value is the dotted name of a module, where the choices are modules."""
    return isinstance(field.metadata["choices"], str) and isinstance(value, str) and "." in value


def _check_choice(field: Field, value: Any) -> None:
    choices = choices_of(field)
    if value in choices:
        return
    with suppress(ImportError):
        if _is_module(field, value) and find_spec(value):
            return
    raise FFPError(f"{field.name} {value!r} is not known; choose from {', '.join(choices)}")


def _check_number(field: Field, number_type: type, value: Any) -> Any:
    low, high = field.metadata["low"], field.metadata["high"]
    valid = isinstance(value, (int, float) if number_type is float else int) and not isinstance(value, bool)
    if not valid or not math.isfinite(value) or not low <= value <= high:
        expected = "an integer" if number_type is int else "a number"
        interval = f"of at least {low}" if high == math.inf else f"between {low} and {high}"
        raise FFPError(f"{field.name} must be {expected} {interval}, found {value!r}")
    return value
