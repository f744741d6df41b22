"""Options shared by several commands, and name suggestions for unknown options."""

import hashlib
import logging
import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter, _ActionsContainer, _ArgumentGroup
from pathlib import Path
from typing import Any

from ..config.fields import METAVARS, suggest_name
from ..config.texts import TextConfig
from ..utils.folders import expand
from ..utils.json import to_json
from .errors import EXIT_CODES, USER_ERROR


logger = logging.getLogger(__name__)


def describe(parser: ArgumentParser, usage: str, description: str | None, examples: str) -> None:
    """Set the `--help` texts of a command, and make its parser report errors in one line with similar names.

    Also add `--log-level`, which all commands have.
    """
    parser.formatter_class, parser.usage = RawDescriptionHelpFormatter, usage
    parser.description, parser.epilog, parser.allow_abbrev = description, f"{examples}\n{EXIT_CODES}", False
    add_option(
        parser,
        "log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="Minimum severity of messages to show; debug also prints what --json writes.",
    )
    parser.error = lambda message: parser.exit(USER_ERROR, f"error: {message} (see {parser.prog} --help)\n")
    parse = parser.parse_known_args

    def parse_known_args(args=None, namespace=None):
        namespace, unknown = parse(args, namespace)
        for word in unknown:
            hint = suggest_name(word.partition("=")[0], [*parser._option_string_actions])
            parser.error(f"unrecognized argument {word}{hint}")
        return namespace, unknown

    parser.parse_known_args = parse_known_args


def add_option(group: _ActionsContainer, name: str, *short: str, help: str, **options: Any) -> None:
    """Add `--name` with its default in the help."""
    if options.get("default") not in (None, ()):
        help += " Default: %(default)s."
    if "choices" not in options and options.get("type") in METAVARS:
        options.setdefault("metavar", METAVARS[options["type"]])
    group.add_argument(*short, f"--{name}", help=help, **options)


def output_name(args: Namespace) -> str:
    """Return the output folder, or the prefix of several; by default the model name without its folder or owner."""
    path = expand(args.output or args.model)
    if path.name in ("", "..") or (path.exists() and not args.output):
        path = Path(os.path.abspath(path))
    return str(path) if args.output else path.name.removesuffix(".gguf")


def load_options(args: Namespace) -> dict[str, Any]:
    """Return the parsed options that are fields of `LoadOptions`."""
    names = ("device", "dtype", "offload", "trust_remote_code", "revision")
    return {name: getattr(args, name) for name in names if name in args}


def request_id(args: Namespace, config: TextConfig, *more: Any) -> str:
    """Return a digest of what a command is asked for, by which `--resume` recognizes a result of the same command."""
    # The others change neither the model nor the text, but for last digits.
    options = config.to_dict() | {"batch_size": None}
    request = [args.model, args.revision, args.dtype, options, config.hash_files(), *more]
    return hashlib.sha256(to_json(request).encode()).hexdigest()[:16]


def add_run_options(group: _ArgumentGroup) -> None:
    """Add OUT, `--overwrite`, `--resume`, `--plan`, `--json`, `--config` and `--report-to`."""
    group.add_argument(
        "output",
        metavar="OUT",
        nargs="?",
        help="Folder to write; give it before options with several values. With several budgets, the prefix of their "
        "folders. Default: named after the model.",
    )
    add_option(
        group,
        "overwrite",
        action="store_true",
        help="Replace an existing checkpoint in OUT; other folders are never replaced.",
    )
    add_option(group, "resume", action="store_true", help="Resume this command after an interruption.")
    add_option(
        group,
        "plan",
        action="store_true",
        help="Only print the required memory, disk and tokens, and any problems; exit with code 2 if there are any. "
        "Since memory is an estimate, too little of it is only a warning.",
    )
    add_json(group)
    add_option(
        group,
        "config",
        metavar="FILE",
        help="JSON file with options, such as the ffp_config.json of a result. It can set options that aren't listed "
        "here (docs/reference.md). Command-line options take precedence; --preset overrides every option that a "
        "preset sets.",
    )
    add_option(group, "report-to", nargs="+", default=(), metavar="NAME", help="Log to tensorboard, trackio or wandb.")


def add_json(group: _ArgumentGroup) -> None:
    """Add `--json`."""
    add_option(
        group,
        "json",
        metavar="FILE",
        help="Also write sizes, perplexities, times, peak memory and versions to this JSON file: a list with one flat "
        "object per model.",
    )


def add_device_options(group: _ArgumentGroup, target: str = "the weights", shared: bool = False) -> None:
    """Add `--device` and `--dtype`, the dtype of `target`, and `--num-processes` if several can share the work."""
    add_option(group, "device", help="Device to run on: cpu, cuda, cuda:0, mps. Default: the accelerator, if any.")
    dtypes = "auto (the checkpoint's), float32, bfloat16 or float16"
    add_option(group, "dtype", default="auto", help=f"Dtype of {target}: {dtypes}.")

    if shared:
        add_option(
            group,
            "num-processes",
            type=int,
            help="Number of processes on this machine, one per accelerator or share of the CPU. Default: 1, or the "
            "number started by accelerate launch or torchrun.",
        )


def warn_of_hub_options(args: Namespace) -> None:
    """Warn of options of uploads that nothing reads without `--push-to-hub`."""
    for name in ("hub_model_id", "private"):
        if getattr(args, name) is not None and not args.push_to_hub:
            logger.warning(f"--{name.replace('_', '-')} has no effect: only --push-to-hub reads it")


def add_hub_options(group: _ArgumentGroup) -> None:
    """Add `--revision` and `--trust-remote-code`."""
    add_option(group, "revision", help="Branch, tag or commit of the model on the Hub. Default: the main branch.")
    add_option(
        group,
        "trust-remote-code",
        action="store_true",
        help="Allow running the repository's tokenizer code. Model code is never run.",
    )


def add_private(group: _ArgumentGroup) -> None:
    """Add `--private`."""
    add_option(
        group,
        "private",
        action="store_true",
        default=None,
        help="Make a newly created repository private. Default: the owner's setting.",
    )


def add_hub_group(parser: ArgumentParser, naming: str = "") -> None:
    """Add upload options and `add_hub_options`; `naming` explains the names of several repositories."""
    group = parser.add_argument_group("The Hub")
    add_option(group, "push-to-hub", action="store_true", help="Upload the result to the Hub.")
    add_option(group, "hub-model-id", metavar="ID", help=f"Repository to upload to{naming}. Default: the name of OUT.")
    add_private(group)
    add_hub_options(group)
