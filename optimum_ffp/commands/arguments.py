"""Options that several commands share, and how they are spelled."""

from argparse import ArgumentParser, _ArgumentGroup
from typing import Any


def add_option(group: ArgumentParser | _ArgumentGroup, name: str, *short: str, **options: Any) -> None:
    """Adds `--some-option` and, for those who know it from other plugins, `--some_option`."""
    spellings = [f"--{name}", f"--{name.replace('-', '_')}"] if "-" in name else [f"--{name}"]
    group.add_argument(*short, *spellings, dest=name.replace("-", "_"), **options)


def add_load_options(group: ArgumentParser | _ArgumentGroup) -> None:
    """Options of `LoadOptions`."""
    add_device_options(group)
    add_option(group, "device-map", help="Device map for accelerate, such as auto; instead of --device.")
    add_option(
        group,
        "trust-remote-code",
        action="store_true",
        help="Let code of the tokenizer's repository run. Models that need code of their own can't be pruned.",
    )
    add_hub_options(group)


def add_device_options(group: ArgumentParser | _ArgumentGroup) -> None:
    """Where to run, and what in."""
    add_option(group, "device", help="Where to run: cpu, cuda, cuda:0, mps. Default: the accelerator if there is one.")
    add_option(group, "dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16 or float16.")


def add_hub_options(group: ArgumentParser | _ArgumentGroup) -> None:
    """Where a model is on the Hub."""
    add_option(group, "revision", help="Branch, tag or commit of the model on the Hub.")
    add_option(group, "token", help="Token of the Hub. Default: the one that `hf auth login` has stored.")
    add_option(group, "cache-dir", help="Where downloads are kept.")


def add_text_column(group: ArgumentParser | _ArgumentGroup) -> None:
    """Which column of a data set is read."""
    add_option(
        group,
        "text-column",
        metavar="NAME",
        help="Column to read where there are columns: of texts, or of conversations, which the chat template renders. "
        "Default: the first that is there of text, messages, conversations, content, document; no other is guessed.",
    )
