"""`optimum-cli ffp prune`."""

import os
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand

from .arguments import add_load_options, add_option, add_text_column
from .ending import one_line_endings


if TYPE_CHECKING:
    from ..config import FFPConfig

LOAD_OPTIONS = ("device", "dtype", "device_map", "trust_remote_code", "revision", "token", "cache_dir")
EXAMPLES = """examples:
  optimum-cli ffp prune -m meta-llama/Llama-2-7b-hf --sparsity 0.2
  optimum-cli ffp prune -m Qwen/Qwen3-0.6B out --sparsity 0.2 0.3 --dataset my_text.jsonl
  optimum-cli ffp prune -m model.gguf out --dataset self --preset paper --search-steps 64
"""


def parse_args_ffp_prune(parser: ArgumentParser) -> None:
    """Adds the options of `optimum-cli ffp prune`."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    add_option(required, "model", "-m", required=True, help="Hub id, folder, or .gguf file of the dense model.")

    output = parser.add_argument_group("Output")
    output.add_argument("output", nargs="?", help="Folder to write. Default: MODEL-ffp-PERCENT.")
    add_option(output, "overwrite", action="store_true", help="Replace the folder if it exists.")
    add_option(
        output,
        "resume",
        action="store_true",
        help="Go on from where this command was killed. The result is the same as if it had not been.",
    )
    add_option(output, "plan", action="store_true", help="Say what would be done and what it needs, and end there.")
    add_option(output, "push-to-hub", action="store_true", help="Upload the result.")
    add_option(output, "hub-model-id", help="Repository to upload to. Default: the folder's name.")
    add_option(output, "private", action="store_true", default=None, help="Make a new repository private.")

    prune = parser.add_argument_group("Pruning")
    add_option(
        prune,
        "sparsity",
        type=float,
        nargs="+",
        help="Fraction of the decoder blocks' projections to remove. Several share one agent and give a Pareto front.",
    )
    add_option(prune, "config", metavar="FILE", help="JSON file of FFPConfig's knobs; options given here win.")
    add_option(prune, "preset", help="default, or paper for the paper's numbers.")
    add_option(
        prune, "method", help="How the policy is found: ffp, or a baseline: prior, random, evolutionary, uniform."
    )
    add_option(prune, "agent", help="Of method ffp: pathwise, bandit (no backward pass), or ppo as in the paper.")
    add_option(prune, "criterion", help="Importance of heads and channels: fisher-obs, obs, flap or wanda.")
    add_option(
        prune,
        "grad",
        action=BooleanOptionalAction,
        help="Whether a backward pass may be run. Without one, pruning single units scales the loss curves.",
    )
    add_option(prune, "mapping", help="From scores to a policy: curves, water-filling or greedy.")
    add_option(prune, "reward", help="Reward candidates as searched, or calibrated.")
    add_option(prune, "calibration", help="sequential, ridge or none.")
    add_option(prune, "ridge-lambda", type=float, help="Ridge coefficient.")
    add_option(
        prune,
        "ridge-lambda-relative",
        action=BooleanOptionalAction,
        help="Whether it is relative to the mean diagonal of the Gram matrix.",
    )
    add_option(prune, "dense-target", type=float, help="Share of the dense model in the sequential target.")
    add_option(
        prune,
        "sequential-lambda",
        type=float,
        help="Pull of sequential calibration towards ridge. Default: chosen for every unit on held-out windows.",
    )
    add_option(prune, "held-out-samples", type=int, help="Search windows that sequential calibration is measured on.")
    add_option(prune, "min-retention", type=float, help="Smallest fraction that a unit keeps.")
    add_option(prune, "max-retention", type=float, help="Largest fraction that a unit keeps.")
    add_option(prune, "rate-precision", type=float, help="Grid that retentions are rounded to.")
    add_option(
        prune,
        "ffn-multiple",
        type=int,
        help="FFN widths are multiples of this (256 or 32 where the model is wide enough).",
    )

    search = parser.add_argument_group("Search")
    add_option(search, "search-steps", type=int, help="Candidate evaluations.")
    add_option(search, "search-samples", type=int, help="Search windows at full fidelity.")
    add_option(search, "update-samples", type=int, help="Search windows of one update of the agent.")
    add_option(search, "search-dtype", help="auto (bfloat16 where it is native) or model.")
    add_option(search, "alpha-start", type=float, help="Fraction of sparsity and windows that PPO starts with.")
    add_option(search, "learning-rate", type=float, help="Of PPO.")
    add_option(search, "clip-range", type=float, help="Of PPO.")
    add_option(search, "hidden-sizes", type=int, nargs="+", help="Layers of PPO's MLP.")
    add_option(search, "candidates", type=int, help="Candidates of one update of the agent.")
    add_option(search, "warm-start", help="Pruned checkpoint whose agent to go on from: folder, id or ID@REVISION.")
    add_option(search, "seed", type=int, help="Of everything random.")

    add_option(
        search, "report-to", nargs="+", default=(), help="Log the search live to tensorboard, trackio or wandb."
    )

    data = parser.add_argument_group("Data")
    add_option(
        data,
        "dataset",
        help="wikitext2, c4, a Hub id, a .txt/.jsonl/.parquet file, a folder with train, validation and test files, "
        "or self (text sampled from the model, which takes a while: choose fewer --num-samples).",
    )
    add_option(data, "eval-dataset", help="Text to report on, if not that of --dataset.")
    add_text_column(data)
    add_option(data, "self-share", type=float, help="Share of calibration and search windows that the model writes.")
    add_option(data, "num-samples", type=int, help="Calibration windows.")
    add_option(data, "fisher-samples", type=int, help="Calibration windows of the backward pass.")
    add_option(data, "slope-samples", type=int, help="Calibration windows of every probe, with --no-grad.")
    add_option(data, "seq-len", type=int, help="Tokens a window.")
    add_option(data, "eval-samples", type=int, help="Test windows. Default: all.")
    add_option(data, "batch-size", type=int, help="Windows a forward pass.")

    add_load_options(parser.add_argument_group("Loading"))


class FFPPruneCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp prune`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_prune(parser)

    def run(self) -> None:
        """Does what was asked for, or ends in one line with exit code 2."""
        with one_line_endings("interrupted; give the same command with --resume to go on from here"):
            prune(self.args)


def read_config(args: Namespace) -> "FFPConfig":
    """The config of the file, if one is named, with the options that were given."""
    from ..config import FFPConfig

    given = {name: getattr(args, name, None) for name in FFPConfig.knob_names() if name != "sparsity"}
    given = {name: value for name, value in given.items() if value is not None}
    if args.sparsity:
        given["sparsity"] = args.sparsity[0]
    return FFPConfig.from_file(args.config, **given) if args.config else FFPConfig(**given)


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
        raise FFPError(f"--sparsity: two would be written to {twice[0]}; give each once")
    return folders


def repository_names(args: Namespace, folders: list[str], sparsities: list[float]) -> list[str | None]:
    """The repository that each folder is uploaded to, or `None`."""
    from ..errors import FFPError

    if not args.push_to_hub:
        if args.hub_model_id or args.private:
            raise FFPError("--hub-model-id and --private say how to upload; add --push-to-hub, or leave them out")
        return [None] * len(folders)
    if args.hub_model_id and len(folders) > 1:
        return [f"{args.hub_model_id}-{100 * sparsity:g}" for sparsity in sparsities]
    return [args.hub_model_id or Path(folder).name for folder in folders]


def prune(args: Namespace) -> None:
    """Prunes at every sparsity that was asked for; several share one agent."""
    config = read_config(args)
    sparsities = args.sparsity or [config.sparsity]
    folders = output_folders(args, sparsities)

    from ..checks import find_problems
    from ..folders import FolderLock, resolve
    from ..journal import holds_work
    from ..loading import LoadOptions, read_model_config
    from ..pareto import front_files
    from ..plan import make_plan
    from ..tracking import check_trackers

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
        print("\n".join([plan.describe(), *(f"but: {problem}" for problem in problems)]))
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
    from ..checkpoint import load_agent
    from ..errors import FFPError
    from ..hub import push_folder
    from ..journal import holds_work, remove_work
    from ..pruner import FFPPruner
    from .report import summary

    if args.resume and not holds_work(work):
        print(f"there is nothing to resume, {work} holds no state: starting anew", file=sys.stderr)
    if not args.resume:
        remove_work(work)
    agent = load_agent(args.warm_start, args.token, args.cache_dir) if args.warm_start else None
    options = {name: getattr(args, name) for name in LOAD_OPTIONS}
    pruner = FFPPruner.from_pretrained(args.model, config, work, args.report_to, **options)
    several = len(sparsities) > 1
    failed = []
    results = pruner.sweep(sparsities, agent, resume=True) if several else [pruner.prune(None, agent, resume=True)]
    for result, folder, repo_id in zip(results, folders, repositories):
        pruner.save_pretrained(folder, overwrite=overwrite)
        print(summary(result, folder))
        # An upload that fails must not cost the sparsities that are still to come.
        try:
            if repo_id:
                print(f"uploaded: {push_folder(folder, repo_id, args.private, args.token)}")
        except FFPError as error:
            failed.append(str(error))
    if several:
        print(f"Pareto front: {', '.join(map(str, pruner.front.write(f'{output_name(args)}-ffp-pareto')))}")
    if failed:
        raise FFPError("; ".join(failed))
