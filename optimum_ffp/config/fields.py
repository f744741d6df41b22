"""Declare each option once, as a dataclass field: validation, `--help` and the tables of the docs are made from it."""

import dataclasses
import json
import logging
import math
import os
import re
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, _ArgumentGroup
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from functools import wraps
from importlib.util import find_spec
from inspect import cleandoc, formatannotation
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from ..errors import FFPError
from .budgets import QUANTITIES, format_value, parse_quantity
from .choices import KINDS, built_in_choices, built_in_options, is_module, options_of


logger = logging.getLogger(__name__)
T = TypeVar("T", bound="Config")
METAVARS = {int: "N", float: "X"}
# Field of a config with the options of its choices, such as those of a search agent, by name.
CHOICE_OPTIONS = "choice_options"


def option(
    default: Any,
    help: str,
    group: str | None = None,
    *,
    choices: tuple[str, ...] = (),
    low: float = 0,
    high: float = math.inf,
    stage: str = "search",
    for_experts: bool = True,
    default_text: str | None = None,
    cli: Mapping[str, Any] | None = None,
    **presets: Any,
) -> Any:
    """Return a dataclass field for an option.

    Args:
        default: Default value; `None` if it is derived from other options or from the model.
        help: Description, without the default.
        group: Argument group in `--help`; without one, only `--config FILE` and Python set the option.
        choices: Allowed values; those of the options in `KINDS` are modules.
        low: Minimum of a number.
        high: Maximum of a number.
        stage: First stage that depends on the option: `measured` (of the dense model), `search` or `calibration`.
        for_experts: Whether the option has a meaning for a mixture of experts.
        default_text: Description of a default that is derived.
        cli: Additional arguments of `add_argument`.
        presets: Values by preset, such as `paper=32`; `from_file` with a preset resets these options.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": choices,
        "low": low,
        "high": high,
        "stage": stage,
        "for_experts": for_experts,
        "default_text": default_text,
        "cli": cli or {},
        "presets": presets,
    }
    return dataclasses.field(default=default, metadata=metadata)


def same_as(config: "type[Config]", name: str, **changes: Any) -> Any:
    """Return a copy of another config's field, with changes of its metadata."""
    field = config.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata={**field.metadata, **changes})


def named_options(cls: type[T]) -> type[T]:
    """Apply presets in the constructor of a config, suggest names for unknown options, and document all options."""
    init = cls.__init__

    @wraps(init)
    def init_with_preset(self: T, **options: Any) -> None:
        own, of_choices = cls.option_names(), cls.choice_fields(options)
        for name in options.keys() - {*own, *of_choices, CHOICE_OPTIONS}:
            raise FFPError(f"{cls.__name__} has no option {name}{suggest_name(name, {*own, *of_choices})}")
        values = cls.preset_values(options.get("preset")) | options
        if chosen := {name: check_value(of_choices[name], values.pop(name)) for name in of_choices.keys() & options}:
            values[CHOICE_OPTIONS] = chosen
        init(self, **values)

    cls.__init__ = init_with_preset
    arguments = [f"    {field.name}: {describe_option(field)}" for field in cls.option_fields()]
    cls.__doc__ = "\n".join([cleandoc(cls.__doc__ or ""), "", "Args:", *arguments])
    return cls


def suggest_name(name: str, known: Collection[str]) -> str:
    """Return a suggestion to append to an error message; empty if no known name is similar."""
    matches = get_close_matches(name, known, 1)
    return f"; did you mean {matches[0]}?" if matches else ""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base class of configs, whose fields are options."""

    # Options of a file that an override replaces along with its own: they exclude each other, or depend on each other.
    replaces: ClassVar[Mapping[str, Sequence[str]]] = {}

    def __post_init__(self) -> None:
        for field in self.option_fields():
            object.__setattr__(self, field.name, check_value(field, getattr(self, field.name)))
        self.check()

    def check(self) -> None:
        """Raise `FFPError` if options are incompatible."""

    @property
    def ignored(self) -> dict[str, str]:
        """Options that have no effect, with the condition on which they have one."""
        return {}

    @classmethod
    def option_fields(cls) -> list[Field]:
        """Return the fields of all options."""
        return [field for field in fields(cls) if "help" in field.metadata]

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of all options."""
        return [field.name for field in cls.option_fields()]

    @classmethod
    def choice_fields(cls, options: Mapping[str, Any]) -> dict[str, Field]:
        """Return the fields of the choices' options by name, including those of modules that `options` names."""
        kinds = [name for name in cls.option_names() if name in KINDS]
        owners = [owner for kind in kinds for owner in built_in_options(kind).values()]
        named = [(kind, options[kind]) for kind in kinds if is_module(kind, options.get(kind))]
        owners += filter(None, (options_of(kind, name) for kind, name in named))
        return {field.name: field for owner in owners for field in owner.option_fields()}

    @classmethod
    def all_fields(cls) -> list[Field]:
        """Return the fields of all options, including those of the choices."""
        return [*cls.option_fields(), *cls.choice_fields({}).values()]

    @classmethod
    def preset_values(cls, preset: Any) -> dict[str, Any]:
        """Return the options that a preset sets, with their values."""
        presets = {field.name: field.metadata["presets"] for field in cls.option_fields()}
        return {name: values[preset] for name, values in presets.items() if str(preset) in values}

    def for_stages(self, *stages: str) -> dict[str, Any]:
        """Return the options whose first dependent stage is one of these."""
        chosen = (field.name for field in self.option_fields() if field.metadata["stage"] in stages)
        return {name: getattr(self, name) for name in chosen}

    def to_dict(self) -> dict[str, Any]:
        """Return all options in JSON-ready form."""
        values = {name: getattr(self, name) for name in self.option_names()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def options_from_record(cls, record: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
        """Return the options in a record."""
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
        record = read_file(path)
        replaced = {other for name in overrides for other in (name, *cls.replaces.get(name, ()))}
        if "preset" in overrides:
            replaced |= {field.name for field in cls.all_fields() if field.metadata["presets"]}
        options = cls.options_from_record(record, path)
        options = {name: value for name, value in options.items() if name not in replaced}
        for field in cls.option_fields():
            value: Any = options.get(field.name)
            if is_module(field.name, value):
                raise FFPError(
                    f"{path} needs {field.name} {value}, which a file alone can't select; install the package "
                    f"{value.partition('.')[0]} and pass {argument_name(field.name)} {value} ({field.name}=...)"
                )
        known = {*cls.option_names(), *cls.choice_fields(options | overrides)}
        # The record of a result has other entries too.
        for name in () if "ffp_version" in record else options.keys() - known:
            logger.warning(f"{path}: {cls.__name__} has no option {name}, ignored{suggest_name(name, known)}")
        return cls(**{name: value for name, value in options.items() if name in known} | overrides)

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> dict[str, _ArgumentGroup]:
        """Add the options that have a group to a parser, and return the argument groups by title."""
        shown = [field for field in cls.all_fields() if field.metadata["group"]]
        names = {field.name for field in shown}
        titles = dict.fromkeys(field.metadata["group"] for field in shown)
        groups = {title: parser.add_argument_group(title) for title in titles}
        for field in shown:
            help = name_arguments(describe_option(field), names).replace("%", "%%")
            groups[field.metadata["group"]].add_argument(argument_name(field.name), help=help, **_argument(field))
        return groups

    @classmethod
    def from_args(cls: type[T], args: Namespace, **overrides: Any) -> T:
        """Return the config for parsed arguments: options of the command line override `--config FILE`."""
        names = (field.name for field in cls.all_fields())
        given = {name: value for name in names if (value := getattr(args, name, None)) is not None} | overrides
        file = getattr(args, "config", None)
        config = cls(**given) if file is None else cls.from_file(file, **given)
        for name in given.keys() & config.ignored.keys():
            logger.warning(f"{argument_name(name)} is ignored unless {config.ignored[name]}")
        return config


def argument_name(name: str) -> str:
    """Return the name of an option on the command line."""
    return f"--{name.replace('_', '-')}"


def name_arguments(text: str, names: Collection[str]) -> str:
    """Return a text in which options have their names on the command line: `--seq-len` for `seq_len`."""
    known = "|".join(name for name in names if "_" in name)
    return re.sub(rf"(?<![\w./-])({known})(?![\w/=])", lambda match: argument_name(match[0]), text) if known else text


def describe_option(field: Field) -> str:
    """Return the help of an option, with its default and the values of presets."""
    values = [f"{preset}: {_format(field, value)}" for preset, value in field.metadata["presets"].items()]
    presets = f" ({', '.join(values)})" if values else ""
    return f"{field.metadata['help']} Default: {format_default(field)}{presets}."


def format_default(field: Field) -> str:
    """Return the default of an option as text."""
    return field.metadata["default_text"] or _format(field, field.default)


def _format(field: Field, value: Any) -> str:
    if field.name in QUANTITIES and isinstance(value, int):
        return format_value(field.name, value)
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def expand(path: str | os.PathLike) -> Path:
    """Return the path with `~` expanded. Unlike `Path.expanduser`, leave `~` of unknown users as it is."""
    return Path(os.path.expanduser(path))


def read_file(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object from a file. Raises `OSError` if it can't be read, and `FFPError` if it holds no object."""
    try:
        record = json.loads(expand(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FFPError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise FFPError(f"{path} must hold a JSON object, found {type(record).__name__}")
    return record


def checked(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass's fields, read from JSON. Raises `TypeError` if one has another type."""
    for field in fields(cls):
        hints = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        kinds: Any = tuple(get_origin(hint) or hint for hint in hints)
        if field.name in values and not isinstance(values[field.name], (*kinds, int) if float in kinds else kinds):
            raise TypeError(f"{field.name} must be {formatannotation(field.type)}, found {values[field.name]!r:.40}")
    return values


def choices_of(field: Field) -> tuple[str, ...]:
    """Return the choices of an option."""
    return built_in_choices(field.name) if field.name in KINDS else field.metadata["choices"]


def _types(field: Field) -> tuple[Any, ...]:
    return get_args(field.type) or (field.type,)


def _argument(field: Field) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option. Options that aren't given are `None`."""
    types, choices = _types(field), choices_of(field)
    if bool in types:
        return {"action": BooleanOptionalAction}
    argument_type = str if str in types else types[0]
    metavar = "N" if field.name in QUANTITIES else METAVARS.get(argument_type)
    if choices:
        metavar = f"{{{','.join(choices)}}}"
    return {"type": argument_type, "metavar": metavar} | field.metadata["cli"]


def check_value(field: Field, value: Any) -> Any:
    """Validate a value, and return it with paths as strings, lists as tuples and quantities as numbers."""
    if value is None and type(None) in get_args(field.type):
        return None
    if get_origin(field.type) is tuple:
        if not isinstance(value, (list, tuple)):
            raise FFPError(f"{field.name} must be a list, found {value!r}")
        return tuple(_check_type(field, element) for element in value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if field.name in QUANTITIES and isinstance(value := parse_quantity(field.name, value), str):
        return value
    return _check_type(field, value)


def _check_type(field: Field, value: Any) -> Any:
    value_type = _types(field)[0]
    if choices := choices_of(field):
        is_valid, expected = _is_choice(field, value), f"one of {', '.join(choices)}"
    elif value_type is bool:
        is_valid, expected = isinstance(value, bool), "true or false"
    elif value_type is str:
        is_valid, expected = isinstance(value, str) and value, "a name"
    elif value_type in METAVARS:
        is_valid, expected = _check_number(field, value)
    else:
        is_valid, expected = isinstance(value, (dict, str)) and value, "a file or its content"
    if not is_valid:
        raise FFPError(f"{field.name} must be {expected}, found {value!r}")
    return value


def _is_choice(field: Field, value: Any) -> bool:
    if not is_module(field.name, value):
        return value in choices_of(field)
    try:
        return find_spec(value) is not None
    except ImportError:
        return False


def _check_number(field: Field, value: Any) -> tuple[bool, str]:
    """Return whether a number is allowed, and which ones are."""
    low, high, is_integer = field.metadata["low"], field.metadata["high"], _types(field)[0] is int
    is_number = isinstance(value, int if is_integer else (int, float)) and not isinstance(value, bool)
    interval = f"of at least {low}" if high == math.inf else f"between {low} and {high}"
    is_valid = is_number and math.isfinite(value) and low <= value <= high
    return is_valid, f"{'an integer' if is_integer else 'a number'} {interval}"
