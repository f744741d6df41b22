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
DESCRIPTION = """Remove attention heads and FFN channels of a causal language model, a different number per layer,
and adapt the remaining weights. The result is a folder that transformers loads."""
EXAMPLES = """examples:
  optimum-cli ffp prune -m meta-llama/Llama-2-7b-hf --sparsity 0.2
  optimum-cli ffp prune -m Qwen/Qwen3-0.6B out --sparsity 0.2 0.3 --dataset my_text.jsonl
  optimum-cli ffp prune -m model.gguf out --dataset self --preset paper --search-steps 64
"""


def parse_args_ffp_prune(parser: ArgumentParser) -> None:
    """Adds the options of `optimum-cli ffp prune`."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.usage = "optimum-cli ffp prune -m MODEL [OUT] [--sparsity X] [--dataset DATASET] [--push-to-hub] [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    add_option(required, "model", "-m", required=True, help="Dense model to prune: Hub id, folder or .gguf file.")

    common = parser.add_argument_group("Common options")
    common.add_argument(
        "output",
        metavar="OUT",
        nargs="?",
        default=SUPPRESS,
        action=StoreOnce,
        help="Folder to write the pruned model to.",
    )
    add_option(
        common, "output", metavar="OUT", action=StoreOnce, help="The same, by name. Default: MODEL-ffp-PERCENT."
    )
    add_config_option(
        common,
        "sparsity",
        "Fraction of the parameters of attention and FFN to remove, between 0 and 1. Several values write one folder "
        "each, and a plot of size against perplexity.",
        type=fraction,
        nargs="+",
        metavar="X",
    )
    add_config_option(
        common,
        "dataset",
        "Text to prune with, ideally like the text the model is used on: wikitext2, c4, a Hub id, a "
        ".txt/.jsonl/.parquet file (cut into train, validation and test), a folder with train, validation and test "
        "files, or self (text that the model generates, which is slow: lower --num-samples).",
    )
    add_option(common, "push-to-hub", action="store_true", help="Upload the result to the Hub.")

    output = parser.add_argument_group("Output")
    add_option(
        output,
        "overwrite",
        action="store_true",
        help="Replace an existing checkpoint in OUT; other folders are never replaced.",
    )
    add_option(
        output,
        "resume",
        action="store_true",
        help="Resume this command after it was interrupted. The result is the same as without the interruption.",
    )
    add_option(
        output,
        "plan",
        action="store_true",
        help="Only print the work, memory and disk that are needed and any problems found; exit code 2 if there are "
        "any.",
    )

    data = parser.add_argument_group("Data")
    add_config_option(
        data,
        "eval-dataset",
        "Text to report perplexity on, same choices as --dataset.",
        "the test split of --dataset",
        metavar="DATASET",
    )
    add_text_column(data)
    add_config_option(data, "seq-len", "Tokens per window; all text is cut into windows.", SEQ_LEN_DEFAULT)
    add_config_option(data, "num-samples", "Number of calibration windows, from the train split.")
    add_config_option(
        data, "search-samples", "Number of search windows, from the validation split, to compare candidates on."
    )
    add_config_option(data, "eval-samples", "Number of test windows, from the test split.", "all")
    add_config_option(
        data,
        "self-share",
        "Share of the calibration and search windows, 0 to 1, that the model generates itself. Helps on text unlike "
        "--dataset.",
    )

    pruning = parser.add_argument_group("Pruning")
    add_config_option(
        pruning,
        "method",
        "How the number of heads and channels per layer is chosen: ffp (a search guided by the loss), no-search (from "
        "measurements of single layers), uniform (the same fraction in every layer), or the baselines random and "
        "evolutionary.",
    )
    add_config_option(
        pruning,
        "preset",
        "Values of the options that are not given: default, or paper for those of the FastForward Pruning paper.",
    )
    add_option(
        pruning,
        "config",
        metavar="FILE",
        help="JSON file of options, such as the ffp_config.json of a pruned model. Options of the command line "
        "override it; --preset overrides every option that presets set. Default: none.",
    )
    add_config_option(
        pruning,
        "criterion",
        "How heads and channels are ranked within a layer: fisher-obs (backward elimination, weighted by the Fisher "
        "matrix), obs (backward elimination), flap or wanda.",
        "fisher-obs, or obs with --no-grad",
    )
    add_config_option(
        pruning,
        "fisher-samples",
        "Number of calibration windows for the backward pass that estimates the Fisher matrix.",
    )
    add_config_option(
        pruning,
        "slope-samples",
        "Number of calibration windows per trial of pruning a single layer, which replaces the Fisher matrix with "
        "--no-grad.",
    )
    add_config_option(pruning, "min-retention", "Smallest fraction of heads, or of FFN channels, to keep in a layer.")
    add_config_option(pruning, "max-retention", "Largest fraction of heads, or of FFN channels, to keep in a layer.")
    add_config_option(pruning, "rate-precision", "Step that these fractions are rounded to.", "no rounding")
    add_config_option(
        pruning,
        "ffn-multiple",
        "Round FFN widths to multiples of this number of channels.",
        "256 or 32 (block sizes of llama.cpp) if the model is wide enough, otherwise 1",
    )
    add_config_option(pruning, "seed", "Random seed.")

    search = parser.add_argument_group("Search")
    add_config_option(
        search,
        "agent",
        "Search algorithm of --method ffp: gradient (follows the gradient of the loss), bandit (Thompson sampling, no "
        "backward pass) or ppo (the paper's).",
        "gradient, or bandit with --no-grad or --reward pruned",
    )
    add_config_option(
        search,
        "search-steps",
        "Number of candidates (pruned models) to evaluate; one with a backward pass counts as three.",
    )
    add_config_option(search, "candidates", "Number of candidates per update of the agent.")
    add_config_option(search, "update-samples", "Number of search windows per update of the agent.")
    add_config_option(
        search,
        "reward",
        "When candidates are evaluated: pruned (before their weights are adapted) or compensated (after ridge "
        "regression).",
    )
    add_config_option(
        search,
        "mapping",
        "How the agent's score per layer becomes the size of the layer: curves (from the estimated loss of every "
        "size), greedy (Algorithm 1 of the paper) or water-filling.",
    )
    add_config_option(
        search,
        "search-dtype",
        "Dtype to evaluate candidates in: auto (bfloat16 if the hardware supports it) or model (that of the weights).",
    )
    add_option(
        search,
        "warm-start",
        metavar="MODEL",
        help="Start from the agent of another pruned model: folder, Hub id or ID@REVISION. Default: none.",
    )
    add_option(
        search,
        "report-to",
        nargs="+",
        default=(),
        metavar="NAME",
        help="Log the search to tensorboard, trackio or wandb. Default: none.",
    )

    ppo = parser.add_argument_group("The paper's agent (with --agent ppo)")
    add_config_option(
        ppo, "alpha-start", "Fraction of the sparsity and of the search windows that the search starts with, 0 to 1."
    )
    add_config_option(ppo, "learning-rate", "Learning rate of PPO.")
    add_config_option(ppo, "clip-range", "Clip range of PPO: limits the change of the agent per update.")
    add_config_option(ppo, "hidden-sizes", "Widths of the hidden layers of the agent's network.", metavar="N")

    repair = parser.add_argument_group("Calibration")
    add_config_option(
        repair,
        "calibration",
        "How the remaining weights are adapted: sequential (layer by layer, to the outputs of the pruned layers "
        "before), ridge (every layer alone, by ridge regression) or none.",
    )
    add_config_option(repair, "ridge-lambda", "Penalty λ of ridge regression.")
    add_config_option(
        repair,
        "ridge-lambda-relative",
        "Whether λ is relative to the mean diagonal of the layer's Gram matrix, or absolute.",
    )
    add_config_option(
        repair,
        "dense-target",
        "Share of the dense model's output in the target of sequential calibration, 0 to 1.",
    )
    add_config_option(
        repair,
        "sequential-lambda",
        "Penalty λ of sequential calibration on the distance from the ridge solution.",
        "the best one per layer on held-out windows",
    )
    add_config_option(
        repair,
        "held-out-samples",
        "Number of search windows that the error of sequential calibration is measured on.",
    )

    resources = parser.add_argument_group("Resources")
    add_load_options(resources)
    add_config_option(resources, "batch-size", "Windows per forward pass.")
    add_config_option(
        resources,
        "grad",
        "Whether to run backward passes. Without them, less memory is needed and the search has less information.",
    )

    hub = parser.add_argument_group("The Hub")
    add_option(hub, "hub-model-id", metavar="ID", help="Repository to upload to. Default: the name of OUT.")
    add_option(
        hub,
        "private",
        action="store_true",
        default=None,
        help="Make the repository private if it is created. Default: the owner's setting.",
    )
    add_hub_options(hub)
    add_option(
        hub,
        "trust-remote-code",
        action="store_true",
        help="Allow code in the tokenizer's repository to run. Models with code of their own can't be pruned.",
    )


class FFPPruneCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp prune`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_prune(parser)

    def run(self) -> None:
        """Runs the command; an `FFPError` ends it with one line and exit code 2."""
        with one_line_endings("interrupted; run the same command with --resume to continue"):
            check_read(given_options(self.parser, self.args), READ_WHEN, self.args)
            prune(self.args)


def read_config(args: Namespace) -> "FFPConfig":
    """The config: that of `--config` if given, overridden by the options of the command line."""
    from ..config import FFPConfig

    given = {name: getattr(args, name, None) for name in FFPConfig.option_names() if name != "sparsity"}
    given = {name: value for name, value in given.items() if value is not None}
    if args.sparsity:
        given["sparsity"] = args.sparsity[0]
    config = FFPConfig.from_file(args.config, **given) if args.config is not None else FFPConfig(**given)
    # Only options on the command line must be read: a file may hold options of other methods.
    typed = [*given] if args.warm_start is None else [*given, "warm_start"]
    check_read(typed, OPTIONS_READ_WHEN | {"warm_start": AGENT}, config)
    return config


def output_name(args: Namespace) -> str:
    """The output folder, or the prefix of several; by default the name of the model or of its local folder."""
    path = Path(args.output or args.model).expanduser()
    if path.name in ("", "..") or (path.exists() and not args.output):
        path = Path(os.path.abspath(path))
    return str(path) if args.output else path.name.removesuffix(".gguf")


def output_folders(args: Namespace, sparsities: list[float]) -> list[str]:
    """One folder per sparsity: the output folder, or one with the percentage in its name."""
    from ..errors import FFPError

    if args.output and len(sparsities) == 1:
        return [output_name(args)]
    folders = [f"{output_name(args)}-ffp-{100 * sparsity:g}" for sparsity in sparsities]
    twice = [folder for folder, count in Counter(folders).items() if count > 1]
    if twice:
        raise FFPError(f"two values of --sparsity have the same folder, {twice[0]}; give each once")
    return folders


def repository_names(args: Namespace, folders: list[str], sparsities: list[float]) -> list[str | None]:
    """Repository per folder, or `None` without `--push-to-hub`."""
    if not args.push_to_hub:
        return [None] * len(folders)
    if args.hub_model_id and len(folders) > 1:
        return [f"{args.hub_model_id}-{100 * sparsity:g}" for sparsity in sparsities]
    return [args.hub_model_id or Path(folder).name for folder in folders]


def prune(args: Namespace) -> None:
    """Prunes at every requested sparsity; several share one agent."""
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

    # Next to the output: on the same disk, and found again by the same command.
    work = Path(f"{resolve(folders[0])}.work")
    front = front_files(f"{output_name(args)}-ffp-pareto") if len(sparsities) > 1 else {}
    # A resumed prune may replace the checkpoints that it has saved itself.
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
        print("\n".join([plan.describe(), *(f"problem: {problem}" for problem in problems)]))
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
    """Prunes and saves, after all checks have passed."""
    # Imported here: `--plan` doesn't need them.
    from ..checkpoint.pareto import ParetoFront
    from ..checkpoint.saving import load_agent
    from ..errors import FFPError
    from ..hub.upload import push_folder
    from ..pruner import FFPPruner
    from ..utils.resume import holds_work, remove_work
    from .summary import summary

    if args.resume and not holds_work(work):
        print(f"there is nothing to resume, {work} holds no state: starting from the beginning", file=sys.stderr)
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
        # A failed upload must not stop the remaining sparsities.
        try:
            if repo_id:
                print(f"uploaded: {push_folder(folder, repo_id, args.private, args.token)}")
        except FFPError as error:
            failed.append(str(error))
    if several:
        print(f"Pareto front: {', '.join(map(str, front.write(f'{output_name(args)}-ffp-pareto')))}")
    if failed:
        raise FFPError("; ".join(failed))
