"""Options shared by several commands, and name suggestions for unknown options."""

import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter, _ArgumentGroup
from pathlib import Path
from typing import Any

from ..config.fields import suggest_name
from ..utils.folders import expand
from .errors import EXIT_CODES, USER_ERROR


SHARED: dict[str, dict[str, Any]] = {
    "--overwrite": {
        "action": "store_true",
        "help": "Replace an existing checkpoint in OUT; other folders are never replaced.",
    },
    "--resume": {"action": "store_true", "help": "Resume this command after an interruption."},
    "--plan": {
        "action": "store_true",
        "help": "Only print the required memory, disk, tokens and time, and any problems; exit with code 2 if there "
        "are problems. Too little memory is only a warning, since it is an estimate.",
    },
    "--json": {
        "metavar": "FILE",
        "help": "Also write sizes, perplexities, times, peak memory and versions to this JSON file: a list with one "
        "flat object per model.",
    },
    "--config": {
        "metavar": "FILE",
        "help": "JSON file with options, such as the ffp_config.json of a result. It can also set options that aren't "
        "listed here (see docs/reference.md). Command-line options take precedence; --preset overrides every option "
        "that a preset sets.",
    },
    "--report-to": {"nargs": "+", "default": (), "metavar": "NAME", "help": "Log to tensorboard, trackio or wandb."},
    "--device": {"help": "Device to run on: cpu, cuda, cuda:0, mps. Default: the accelerator, if any."},
    "--dtype": {
        "default": "auto",
        "help": "Dtype of the weights: auto (the checkpoint's), float32, bfloat16 or float16. Default: auto.",
    },
    "--num-processes": {
        "type": int,
        "metavar": "N",
        "help": "Number of processes on this machine, one per accelerator or share of the CPU. Default: 1, or the "
        "number started by accelerate launch or torchrun.",
    },
    "--push-to-hub": {"action": "store_true", "help": "Upload the result to the Hub."},
    "--hub-model-id": {
        "metavar": "ID",
        "help": "Repository to upload to, or the prefix of several, one per budget. Default: the name of OUT.",
    },
    "--private": {
        "action": "store_true",
        "default": None,
        "help": "Make a newly created repository private. Default: the owner's setting.",
    },
    "--revision": {"help": "Branch, tag or commit of the model on the Hub. Default: the main branch."},
    "--trust-remote-code": {
        "action": "store_true",
        "help": "Allow running the repository's tokenizer code. Model code is never run.",
    },
}
RUN_OPTIONS = ("--overwrite", "--resume", "--plan", "--json", "--config", "--report-to")
HUB_OPTIONS = ("--push-to-hub", "--hub-model-id", "--private", "--revision", "--trust-remote-code")


def add_shared(group: _ArgumentGroup, *names: str, **changes: Any) -> None:
    """Add options of `SHARED`, with changes of the arguments of `add_argument`."""
    for name in names:
        group.add_argument(name, **SHARED[name] | changes)


def describe(parser: ArgumentParser, usage: str, description: str | None, examples: str) -> None:
    """Set the `--help` texts of a command, add `--log-level`, and report errors in one line with similar names."""
    parser.formatter_class, parser.usage = RawDescriptionHelpFormatter, usage
    parser.description, parser.epilog, parser.allow_abbrev = description, f"{examples}\n{EXIT_CODES}", False
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="Minimum severity of messages to show; debug also prints what --json writes. Default: info.",
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
