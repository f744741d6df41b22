"""Options that several commands share, and the check that every given option is read."""

import os
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
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

from ..config.fields import CHOICES, OFFLOADS, Condition, Options
from ..utils.folders import expand


OPTIONS = {field.name: field for field in fields(Options)}
SEQ_LEN_DEFAULT = "the model's maximum length, up to 2048"
METAVARS = {int: "N", float: "X"}


def on_the_hub(model: str | None) -> bool:
    """Whether a model is given and is not a local file or folder."""
    return model is not None and not expand(model).exists()


ON_THE_HUB = Condition("with a --model on the Hub", lambda args: on_the_hub(args.model))
TO_THE_HUB = Condition("with --push-to-hub", lambda args: args.push_to_hub)


def add_option(group: ArgumentParser | _ArgumentGroup, name: str, *short: str, help: str, **options: Any) -> None:
    """Adds `--some-option`, with its default in the help, and the hidden alias `--some_option`."""
    if options.get("default") not in (None, ()):
        help += " Default: %(default)s."
    if "choices" not in options and options.get("type") in METAVARS:
        options.setdefault("metavar", METAVARS[options["type"]])
    dest = name.replace("-", "_")
    options.setdefault("dest", dest)
    group.add_argument(*short, f"--{name}", help=help, **options)
    if "-" in name:
        group.add_argument(f"--{dest}", help=SUPPRESS, **options)


def add_config_option(
    group: _ArgumentGroup,
    name: str,
    help: str,
    default: str | None = None,
    fields: Mapping[str, Field] = OPTIONS,
    **options: Any,
) -> None:
    """Adds an option of a config; the parsed value is `None` if it is not given.

    Args:
        group: Group to add it to.
        name: Name of the option, with dashes.
        help: Help text, without the default.
        default: Description of the default; the default value if `None`.
        fields: Fields of the config, by default of `FFPConfig`.
        options: Arguments of `add_argument` that replace those derived from the option's type.
    """
    field = fields[name.replace("-", "_")]
    kinds = [kind for kind in get_args(field.type) if kind in (int, float, str)]
    if bool in (field.type, *get_args(field.type)):
        options.setdefault("action", BooleanOptionalAction)
    else:
        options.setdefault("type", kinds[0] if kinds else field.type)
    if isinstance(field.default, tuple):
        options.setdefault("nargs", "+")
    if field.name in CHOICES and "choices" not in options:
        options.setdefault("metavar", f"{{{','.join(CHOICES[field.name])}}}")
    add_option(group, name, help=f"{help} Default: {default or _shown(field.default, name)}.", **options)


def _shown(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class StoreOnce(Action):
    """Stores a value that may be given as a positional argument or by name, but not both."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None):
        """Stores the value; a parser error if there is one already."""
        before = getattr(namespace, self.dest, None)
        if before is not None:
            parser.error(f"{self.metavar} is given twice, as {before} and {values}; leave out one")
        setattr(namespace, self.dest, values)


def fraction(text: str) -> float:
    """Parses one of several numbers; the error explains where an output folder goes."""
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is not a number; an output folder goes before the options (-m MODEL {text} --sparsity ...), or "
            f"is named by --output {text}"
        ) from None


def given_options(parser: ArgumentParser, args: Namespace) -> list[str]:
    """Names of the options whose values differ from their defaults."""
    return [name for name, value in vars(args).items() if value != parser.get_default(name)]


def output_name(args: Namespace) -> str:
    """The output folder, or the prefix of several; by default the name of the model or of its local folder."""
    path = expand(args.output or args.model)
    if path.name in ("", "..") or (path.exists() and not args.output):
        path = Path(os.path.abspath(path))
    return str(path) if args.output else path.name.removesuffix(".gguf")


def check_read(given: Iterable[str], read_when: Mapping[str, Condition], settings: Any) -> None:
    """Checks that every given option has an effect.

    Args:
        given: Names of the given options.
        read_when: Conditions of the options that are not always read.
        settings: Argument of the conditions.

    Raises:
        FFPError: If options have no effect with these settings; the message names all of them.
    """
    from ..errors import FFPError

    unread: dict[str, list[str]] = {}
    for name in given:
        if name in read_when and not read_when[name].holds(settings):
            unread.setdefault(read_when[name].words, []).append(f"--{name.replace('_', '-')}")
    if unread:
        found = "; ".join(f"{', '.join(options)} (used only {words})" for words, options in unread.items())
        raise FFPError(f"these options have no effect: {found}; leave them out, or change what they depend on")


def add_load_options(group: _ArgumentGroup) -> None:
    """Adds the options of `LoadOptions` except those of the Hub."""
    add_device_options(group)
    add_option(
        group,
        "offload",
        default="auto",
        choices=("auto", *OFFLOADS),
        help="Where the weights of layers are while they don't run: none (on the device), host (in host memory), disk "
        "(in the files of the checkpoint), or auto (the first of them that memory suffices for, by --plan).",
    )


def add_device_options(group: _ArgumentGroup, of: str = "the weights") -> None:
    """Adds `--device` and `--dtype`, the dtype `of` what is loaded."""
    add_option(
        group,
        "device",
        help="Device to run on: cpu, cuda, cuda:0, mps. Default: the accelerator if there is one, otherwise cpu.",
    )
    add_option(
        group,
        "dtype",
        default="auto",
        help=f"Dtype of {of}: auto (the checkpoint's), float32, bfloat16 or float16.",
    )


def add_num_processes(group: _ArgumentGroup) -> None:
    """Adds `--num-processes`."""
    add_option(
        group,
        "num-processes",
        type=int,
        help="Number of processes on this machine that share the work, one for each accelerator or share of the CPU. "
        "Default: 1, or those of accelerate launch or torchrun.",
    )


def add_output(group: _ArgumentGroup, result: str, default: str) -> None:
    """Adds the output folder, as a positional argument and as `--output`.

    Args:
        group: Group to add it to.
        result: What the model is that is written, for the help: "pruned".
        default: Description of the default.
    """
    group.add_argument(
        "output",
        metavar="OUT",
        nargs="?",
        default=SUPPRESS,
        action=StoreOnce,
        help=f"Folder to write the {result} model to.",
    )
    add_option(group, "output", metavar="OUT", action=StoreOnce, help=f"The same, by name. Default: {default}.")


def add_overwrite(group: _ArgumentGroup) -> None:
    """Adds `--overwrite` for a checkpoint."""
    add_option(
        group,
        "overwrite",
        action="store_true",
        help="Replace an existing checkpoint in OUT; other folders are never replaced.",
    )


def add_plan(group: _ArgumentGroup) -> None:
    """Adds `--plan`."""
    add_option(
        group,
        "plan",
        action="store_true",
        help="Only print the memory and disk that are needed and any problems found; exit code 2 if there are any. "
        "Too little memory is a warning, as it is estimated.",
    )


def add_report_to(group: _ArgumentGroup, what: str) -> None:
    """Adds `--report-to`, for `what` is logged."""
    add_option(
        group,
        "report-to",
        nargs="+",
        default=(),
        metavar="NAME",
        help=f"Log {what} to tensorboard, trackio or wandb. Default: none.",
    )


def add_private(group: _ArgumentGroup) -> None:
    """Adds `--private`."""
    add_option(
        group,
        "private",
        action="store_true",
        default=None,
        help="Make the repository private if it is created. Default: the owner's setting.",
    )


def add_token(group: _ArgumentGroup) -> None:
    """Adds `--token`."""
    add_option(group, "token", help="Access token for the Hub. Default: the one stored by `hf auth login`.")


def add_training_hub_options(group: _ArgumentGroup, naming: str = "") -> None:
    """Adds `--hub-model-id`, `--private`, `--trust-remote-code`, and the options of `add_hub_options`.

    Args:
        group: The group to add them to.
        naming: How several repositories are named.
    """
    add_option(group, "hub-model-id", metavar="ID", help=f"Repository to upload to{naming}. Default: the name of OUT.")
    add_private(group)
    add_hub_options(group)
    add_trust_remote_code(group)


def add_hub_options(group: _ArgumentGroup) -> None:
    """Adds `--revision` and `--token`."""
    add_option(group, "revision", help="Branch, tag or commit of the model on the Hub. Default: the main branch.")
    add_token(group)


def add_trust_remote_code(group: _ArgumentGroup) -> None:
    """Adds `--trust-remote-code`."""
    add_option(
        group,
        "trust-remote-code",
        action="store_true",
        help="Allow code in the tokenizer's repository to run. Code of the model's own never runs.",
    )


def add_text_column(group: _ArgumentGroup) -> None:
    """Adds `--text-column`."""
    add_option(
        group,
        "text-column",
        metavar="NAME",
        help="Dataset column with texts, or with conversations, which the chat template renders. "
        "Default: the first that exists of text, messages, conversations, content, document, or else prompt with "
        "completion.",
    )
