"""`optimum-cli ffp prune`."""

import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand

from ..options import AGENT, Condition
from ..options import READ_WHEN as OPTIONS_READ_WHEN
from .arguments import (
    ON_THE_HUB,
    SEQ_LEN_DEFAULT,
    StoreOnce,
    add_config_option,
    add_hub_options,
    add_load_options,
    add_option,
    add_text_column,
    check_read,
    fraction,
    given_options,
)
from .errors import USER_ERROR, one_line_endings


if TYPE_CHECKING:
    from ..config import FFPConfig

TO_THE_HUB = Condition("with --push-to-hub", lambda args: args.push_to_hub)
READ_WHEN = {
    "device": Condition("without --device-map", lambda args: args.device_map is None),
    "revision": ON_THE_HUB,
    "hub_model_id": TO_THE_HUB,
    "private": TO_THE_HUB,
}
LOAD_OPTIONS = ("device", "dtype", "device_map", "trust_remote_code", "revision", "token", "cache_dir")
EXAMPLES = """examples:
  optimum-cli ffp prune -m meta-llama/Llama-2-7b-hf --sparsity 0.2
  optimum-cli ffp prune -m Qwen/Qwen3-0.6B out --sparsity 0.2 0.3 --dataset my_text.jsonl
  optimum-cli ffp prune -m model.gguf out --dataset self --preset paper --search-steps 64
"""


def parse_args_ffp_prune(parser: ArgumentParser) -> None:
    """Adds the options of `optimum-cli ffp prune`."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.usage = "optimum-cli ffp prune -m MODEL [OUT] [options]"
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    add_option(required, "model", "-m", required=True, help="Hub id, folder, or .gguf file of the dense model.")

    output = parser.add_argument_group("Output")
    output.add_argument(
        "output", metavar="OUT", nargs="?", default=SUPPRESS, action=StoreOnce, help="Folder to write."
    )
    add_option(output, "output", metavar="OUT", action=StoreOnce, help="The same by name. Default: MODEL-ffp-PERCENT.")
    add_option(
        output,
        "overwrite",
        action="store_true",
        help="Replace the checkpoint that is there; other folders are never replaced.",
    )
    add_option(
        output,
        "resume",
        action="store_true",
        help="Go on from where this command was killed. The result is the same as if it had not been.",
    )
    add_option(
        output,
        "plan",
        action="store_true",
        help="Say what would be done, what it needs and what stands in the way, and end there; with exit code 2 if "
        "anything does.",
    )
    add_option(output, "push-to-hub", action="store_true", help="Upload the result.")
    add_option(output, "hub-model-id", metavar="ID", help="Repository to upload to. Default: the folder's name.")
    add_option(output, "private", action="store_true", default=None, help="Make a new repository private.")

    data = parser.add_argument_group("Data")
    add_config_option(
        data,
        "dataset",
        "Text to calibrate and search on: wikitext2, c4, a Hub id, a .txt/.jsonl/.parquet file, a folder with train, "
        "validation and test files, or self (text sampled from the model, which takes a while: choose fewer "
        "--num-samples).",
    )
    add_config_option(data, "eval-dataset", "Text to report perplexity on.", "the test split of --dataset")
    add_text_column(data)

    pruning = parser.add_argument_group("Pruning")
    add_config_option(
        pruning,
        "sparsity",
        "Fraction of the decoder blocks' parameters to remove. Several share one agent and give a Pareto front.",
        type=fraction,
        nargs="+",
    )
    add_config_option(
        pruning,
        "method",
        "How it is found what every layer keeps: ffp (a search that learns from the loss), no-search (what "
        "measurements of the single layers say), uniform (the same share everywhere), or, to compare with, the "
        "searches random and evolutionary.",
    )
    add_config_option(
        pruning,
        "preset",
        "Where values that are not given come from: default, or paper for those of the FastForward Pruning paper.",
    )
    add_option(
        pruning,
        "config",
        metavar="FILE",
        help="JSON file of settings, such as the ffp_config.json of a pruned model. Options given here win, --preset "
        "over all that it sets. Default: none.",
    )
    add_config_option(pruning, "seed", "Of everything random.")

    text = parser.add_argument_group("Advanced: how much text")
    add_config_option(text, "num-samples", "Calibration windows.")
    add_config_option(text, "search-samples", "Search windows.")
    add_config_option(text, "eval-samples", "Test windows.", "all")
    add_config_option(text, "seq-len", "Tokens a window.", SEQ_LEN_DEFAULT)
    add_config_option(text, "self-share", "Share of calibration and search windows that the model writes.")

    units = parser.add_argument_group("Advanced: what may be removed")
    add_config_option(
        units,
        "criterion",
        "How the importance of heads and channels within a layer is measured.",
        "fisher-obs, or obs with --no-grad",
    )
    add_config_option(units, "min-retention", "Smallest fraction of its heads or channels that a layer keeps.")
    add_config_option(units, "max-retention", "Largest fraction of its heads or channels that a layer keeps.")
    add_config_option(units, "rate-precision", "Grid that these fractions are rounded to.", "none")
    add_config_option(
        units,
        "ffn-multiple",
        "FFN widths are multiples of this.",
        "256 or 32, blocks of llama.cpp's types, where the model is wide enough, otherwise 1",
    )

    search = parser.add_argument_group("Advanced: search")
    add_config_option(
        search,
        "agent",
        "What searches with --method ffp: gradient follows the derivative of the loss, bandit needs no backward pass, "
        "ppo is the paper's.",
        "gradient, or bandit with --no-grad or --reward searched",
    )
    add_config_option(search, "search-steps", "Candidates to evaluate; one with a backward pass counts for three.")
    add_config_option(search, "update-samples", "Search windows that one update of the agent sees.")
    add_config_option(search, "candidates", "Candidates of one update of the agent.")
    add_config_option(
        search, "reward", "Whether candidates are judged as the search leaves them, or after ridge regression."
    )
    add_config_option(search, "mapping", "How scores of the agent become sizes of the layers.")
    add_config_option(
        search, "fisher-samples", "Calibration windows of the backward pass that measures what the loss feels."
    )
    add_config_option(
        search, "slope-samples", "With --no-grad, calibration windows on which pruning one layer is tried."
    )
    add_option(
        search,
        "warm-start",
        metavar="MODEL",
        help="Pruned model whose agent to go on from: folder, id or ID@REVISION. Default: the search begins anew.",
    )
    add_option(
        search,
        "report-to",
        nargs="+",
        default=(),
        metavar="NAME",
        help="Log the search live to tensorboard, trackio or wandb. Default: to none.",
    )

    ppo = parser.add_argument_group("Advanced: the paper's agent (--agent ppo)")
    add_config_option(ppo, "alpha-start", "Fraction of the sparsity and of the windows that the search begins with.")
    add_config_option(ppo, "learning-rate", "Step size of the optimizer.")
    add_config_option(ppo, "clip-range", "How far one update may move the agent.")
    add_config_option(ppo, "hidden-sizes", "Widths of its network's layers.")

    repair = parser.add_argument_group("Advanced: calibration")
    add_config_option(
        repair,
        "calibration",
        "How the weights that stay are repaired: layer by layer from what the pruned layers before produce, by ridge "
        "regression for every layer alone, or not at all.",
    )
    add_config_option(repair, "ridge-lambda", "Strength of the ridge regression's penalty.")
    add_config_option(repair, "ridge-lambda-relative", "Whether that is relative to the size of the layer's inputs.")
    add_config_option(repair, "dense-target", "Share of the dense model in what sequential calibration aims at.")
    add_config_option(
        repair,
        "sequential-lambda",
        "Pull of sequential calibration towards what ridge regression gives.",
        "chosen for every layer on held-out windows",
    )
    add_config_option(repair, "held-out-samples", "Search windows that sequential calibration is measured on.")

    resources = parser.add_argument_group("Advanced: resources")
    add_load_options(resources)
    add_config_option(resources, "batch-size", "Windows a forward pass.")
    add_config_option(
        resources,
        "grad",
        "Whether backward passes may be run. Without them less memory is needed, and the search knows less.",
    )
    add_config_option(
        resources, "search-dtype", "Type to evaluate candidates in: auto is bfloat16 where the hardware has it."
    )

    hub = parser.add_argument_group("Advanced: the Hub")
    add_hub_options(hub)
    add_option(
        hub,
        "trust-remote-code",
        action="store_true",
        help="Let code of the tokenizer's repository run. Models that need code of their own can't be pruned.",
    )


class FFPPruneCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp prune`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_prune(parser)

    def run(self) -> None:
        """Does what was asked for, or ends in one line with exit code 2."""
        with one_line_endings("interrupted; give the same command with --resume to go on from here"):
            check_read(given_options(self.parser, self.args), READ_WHEN, self.args)
            prune(self.args)


def read_config(args: Namespace) -> "FFPConfig":
    """The config of the file, if one is named, with the options that were given."""
    from ..config import FFPConfig

    given = {name: getattr(args, name, None) for name in FFPConfig.option_names() if name != "sparsity"}
    given = {name: value for name, value in given.items() if value is not None}
    if args.sparsity:
        given["sparsity"] = args.sparsity[0]
    config = FFPConfig.from_file(args.config, **given) if args.config is not None else FFPConfig(**given)
    # What a file holds, or Python is given, may serve several methods; what is typed is meant for this prune.
    typed = [*given] if args.warm_start is None else [*given, "warm_start"]
    check_read(typed, OPTIONS_READ_WHEN | {"warm_start": AGENT}, config)
    return config


def output_name(args: Namespace) -> str:
    """The output folder, or what several are named after: by default the model's name, a local one's as it lies."""
    path = Path(args.output or args.model).expanduser()
    if path.name in ("", "..") or (path.exists() and not args.output):
        path = Path(os.path.abspath(path))
    return str(path) if args.output else path.name.removesuffix(".gguf")


def output_folders(args: Namespace, sparsities: list[float]) -> list[str]:
    """One folder a sparsity: the one that was named, or one with the percentage in its name."""
    from ..errors import FFPError

    if args.output and len(sparsities) == 1:
        return [output_name(args)]
    folders = [f"{output_name(args)}-ffp-{100 * sparsity:g}" for sparsity in sparsities]
    twice = [folder for folder, count in Counter(folders).items() if count > 1]
    if twice:
        raise FFPError(f"two values of --sparsity have the same folder, {twice[0]}; give each once")
    return folders


def repository_names(args: Namespace, folders: list[str], sparsities: list[float]) -> list[str | None]:
    """The repository that each folder is uploaded to, or `None`."""
    if not args.push_to_hub:
        return [None] * len(folders)
    if args.hub_model_id and len(folders) > 1:
        return [f"{args.hub_model_id}-{100 * sparsity:g}" for sparsity in sparsities]
    return [args.hub_model_id or Path(folder).name for folder in folders]


def prune(args: Namespace) -> None:
    """Prunes at every sparsity that was asked for; several share one agent."""
    config = read_config(args)
    sparsities = args.sparsity or [config.sparsity]
    folders = output_folders(args, sparsities)

    from ..checkpoint.pareto import front_files
    from ..modeling.loading import LoadOptions, read_model_config
    from ..planning.plan import make_plan
    from ..planning.preflight import find_problems
    from ..utils.folders import FolderLock, resolve
    from ..utils.resume import holds_work
    from ..utils.tracking import check_trackers

    # Beside the output, so that it is on the same disk and found again by the same command.
    work = Path(f"{resolve(folders[0])}.work")
    front = front_files(f"{output_name(args)}-ffp-pareto") if len(sparsities) > 1 else {}
    # What a prune that was killed has saved already is its own to replace.
    overwrite = args.overwrite or (args.resume and holds_work(work))
    check_trackers(args.report_to)
    repositories = repository_names(args, folders, sparsities)
    options = {name: getattr(args, name) for name in LOAD_OPTIONS}
    model_config = read_model_config(args.model, LoadOptions(**options))
    plan = make_plan(model_config, config, sparsities, args.device, args.dtype, args.device_map)
    uploads = [*filter(None, repositories)]
    problems = find_problems(plan, config, folders, front, work, overwrite, args.resume, uploads, args.token)
    if args.plan:
        problems = [*problems]
        print("\n".join([plan.describe(), *(f"but: {problem}" for problem in problems)]))
        if problems:
            sys.exit(USER_ERROR)
        return
    with ExitStack() as locks:
        for path in (work, *folders, *front):
            locks.enter_context(FolderLock(resolve(path)))
        for problem in problems:
            raise problem
        for warning in plan.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        write_checkpoints(args, config, sparsities, folders, repositories, work, overwrite)


def write_checkpoints(
    args: Namespace,
    config: "FFPConfig",
    sparsities: list[float],
    folders: list[str],
    repositories: list[str | None],
    work: Path,
    overwrite: bool,
) -> None:
    """What `prune` does once nothing stands in the way."""
    # A plan doesn't have to wait for these.
    from ..checkpoint.pareto import ParetoFront
    from ..checkpoint.saving import load_agent
    from ..errors import FFPError
    from ..hub.upload import push_folder
    from ..pruner import FFPPruner
    from ..utils.resume import holds_work, remove_work
    from .summary import summary

    if args.resume and not holds_work(work):
        print(f"there is nothing to resume, {work} holds no state: starting anew", file=sys.stderr)
    if not args.resume:
        remove_work(work)
    agent = load_agent(args.warm_start, args.token, args.cache_dir) if args.warm_start is not None else None
    options = {name: getattr(args, name) for name in LOAD_OPTIONS}
    pruner = FFPPruner.from_pretrained(args.model, config, work, args.report_to, **options)
    several, front = len(sparsities) > 1, ParetoFront()
    failed = []
    results = pruner.sweep(sparsities, agent, resume=True) if several else [pruner.prune(None, agent, resume=True)]
    for result, folder, repo_id in zip(results, folders, repositories):
        pruner.save_pretrained(folder, overwrite=overwrite)
        print(summary(result, folder))
        if several:
            front.add(result)
        # An upload that fails must not cost the sparsities that are still to come.
        try:
            if repo_id:
                print(f"uploaded: {push_folder(folder, repo_id, args.private, args.token)}")
        except FFPError as error:
            failed.append(str(error))
    if several:
        print(f"Pareto front: {', '.join(map(str, front.write(f'{output_name(args)}-ffp-pareto')))}")
    if failed:
        raise FFPError("; ".join(failed))
