"""`optimum-cli ffp prune`."""

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import FFPConfig
from ..config.budgets import LIMITS
from ..config.prune import OFFLOADS
from ..errors import FFPError
from ..utils.folders import expand
from ..utils.record import Record
from . import arguments
from .launching import Command


if TYPE_CHECKING:
    from ..checkpoint.result import PruningResult
    from .records import Figures


USAGE = "optimum-cli ffp prune -m MODEL [OUT] [--params N] [--dataset DATASET] [--push-to-hub] [options]"
DESCRIPTION = """Remove attention heads and FFN channels from a causal language model, with a different number per
layer, and adapt the remaining weights. The resulting folder can be loaded by transformers."""
EXAMPLES = """examples:
  optimum-cli ffp prune -m meta-llama/Llama-2-7b-hf --params 5B
  optimum-cli ffp prune -m Qwen/Qwen3-8B out --memory 12GiB --context 32k --sequences 4
  optimum-cli ffp prune -m Qwen/Qwen3-8B out --speedup 1.3 --workload 1024+200x8
  optimum-cli ffp prune -m Qwen/Qwen3-0.6B out --sparsity 0.2 0.3 --dataset my_text.jsonl
  optimum-cli ffp prune -m model.gguf out --dataset self --preset paper --search-steps 64
"""
LOAD_OPTIONS = ("device", "dtype", "offload", "trust_remote_code", "revision")


class FFPPruneCommand(Command):
    """Remove attention heads and FFN channels from a causal language model."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        arguments.describe(parser, USAGE, DESCRIPTION, EXAMPLES)
        model = parser.add_argument_group("Model and output")
        arguments.add_option(model, "model", "-m", required=True, help="Model to prune: Hub id, folder or .gguf file.")
        arguments.add_run_options(model)
        groups = FFPConfig.add_arguments(parser)
        arguments.add_option(
            groups["Search"],
            "warm-start",
            metavar="MODEL",
            help="Start from the agent of another pruned model: folder, Hub id or ID@REVISION.",
        )
        arguments.add_device_options(groups["Resources"], shared=True)
        arguments.add_option(
            groups["Resources"],
            "offload",
            default="auto",
            choices=("auto", *OFFLOADS),
            help="Where to keep the weights of layers that aren't running: none (on the device), host (in host "
            "memory), disk (in the checkpoint files), or auto (the first with enough memory, see --plan).",
        )
        arguments.add_hub_group(parser, "; ID-10 and so on for several budgets")

    @staticmethod
    def execute(args: Namespace) -> None:
        """Check, lock, prune, save and push, with every requested budget; several share one agent."""
        swept, configs = read_configs(args)
        config, names = configs[0], [one.budget_name for one in configs]
        folders = output_folders(args, names)
        repositories = repository_names(args, folders, names)
        arguments.warn_of_hub_options(args)

        from ..checkpoint.saving import load_agent
        from ..modeling.loading import LoadOptions, shape_of
        from ..planning.make import make_plans
        from ..planning.preflight import find_problems
        from ..pruner import FFPPruner
        from ..utils import processes
        from ..utils.resume import saved_decision, work_folder_of
        from ..utils.tracking import check_trackers
        from .records import check_json, prune_records, write_records
        from .summary import begin, end_finished, show_plan, upload

        # Before anything that depends on the device of this process.
        processes.join(args.device)
        check_trackers(args.report_to)
        check_json(args.json)
        work = work_folder_of(folders[0])
        request = processes.on_main(lambda: arguments.request_id(args, config, args.warm_start, names))
        is_finished = {record and record.request for record in map(Record.read, folders)} == {request}
        if args.resume and not args.overwrite and processes.from_main(is_finished):
            end_finished(folders, work, [] if args.plan else repositories, args.private)
            return
        agent = load_agent(args.warm_start)
        front = f"{arguments.output_name(args)}-ffp-pareto.png"
        options = LoadOptions(**{name: getattr(args, name) for name in LOAD_OPTIONS}, base_model=config.base_model)
        plans, estimate = make_plans(
            configs,
            shape_of(args.model, options),
            options,
            local_processes=max(processes.local_count(), args.num_processes or 1),
            decided=saved_decision(work) if args.resume else None,
            warm_start=agent is not None,
        )
        found = find_problems(
            config,
            models=[args.model, *filter(None, (config.policy, args.warm_start))],
            folders=folders,
            disk=estimate.disk,
            overwrite=args.overwrite,
            resume=args.resume,
            files={front: b"\x89PNG"} if swept else {},
            repositories=repositories,
        )
        if args.plan:
            show_plan("prune", estimate, folders[0], found, args.json)
            return
        begin(estimate, found, work, args.resume)
        pruner = FFPPruner.from_pretrained(args.model, plans[0], work, args.report_to, **asdict(options))
        records, results = [], []
        for result, folder in zip(pruner.sweep(plans, agent, resume=True), folders):
            result.request = request
            results = [result]
            pruner.save_pretrained(folder, args.overwrite, keep_work=folder != folders[-1])
            if processes.is_main():
                # The last record is that of the dense model.
                records = [*records[:-1], *prune_records(result, folder)]
        if processes.is_main():
            print_result(results[0], records, config, swept, front)
            write_records(args.json, records)
        upload(folders, repositories, args.private)


def print_result(
    result: "PruningResult", records: "Sequence[Figures]", config: FFPConfig, swept: str | None, front: str
) -> None:
    """Print the summary of a prune, or the table of a sweep, whose plot is written to `front`."""
    from ..checkpoint.plots import write_front
    from ..hub.naming import without_folders
    from .summary import summarize, sweep_table, warn_of_high_perplexity

    if swept:
        print(sweep_table(records))
        write_front(records, swept, without_folders(result.test.describe()), expand(front))
        print(f"Pareto front: {front}")
    else:
        command = recovery_command(result.base_model, config, result.revision, str(records[0]["model"]))
        print(summarize(records, command))
    warn_of_high_perplexity(records[:-1])


def read_configs(args: Namespace) -> tuple[str | None, list[FFPConfig]]:
    """Return the option with several values, if there is one, and a config for each of its values."""
    given = {name: values for name in LIMITS if (values := getattr(args, name))}
    if args.policy and (given or args.method):
        raise FFPError("--policy determines the sizes without a search; leave out the budget and --method")
    several = [name for name, values in given.items() if len(values) > 1]
    if len(several) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in several)
        raise FFPError(f"only one budget option can have several values, found {options}")
    for name, (first, *_) in given.items():
        setattr(args, name, first)
    if not several:
        return None, [FFPConfig.from_args(args)]
    swept = several[0]
    return swept, [FFPConfig.from_args(args, **{swept: value}) for value in given[swept]]


def output_folders(args: Namespace, names: list[str]) -> list[str]:
    """Return one folder per budget: the output folder, or one with the name of the budget."""
    if args.output and len(names) == 1:
        return [arguments.output_name(args)]
    if args.policy:
        return [f"{arguments.output_name(args)}-{expand(args.policy).name.removesuffix('.json')}"]
    folders = [f"{arguments.output_name(args)}-ffp-{name}" for name in names]
    if len({*folders}) < len(folders):
        raise FFPError(f"two budget values map to the same folder: {', '.join(folders)}; pass each only once")
    return folders


def repository_names(args: Namespace, folders: list[str], names: list[str]) -> list[str]:
    """Return the repository of each folder; none without `--push-to-hub`."""
    if not args.push_to_hub:
        return []
    if args.hub_model_id and len(folders) > 1:
        return [f"{args.hub_model_id}-{name}" for name in names]
    return [args.hub_model_id or Path(folder).name for folder in folders]


def recovery_command(dense: str, config: FFPConfig, revision: str | None, folder: str) -> str:
    """Return the command that recovers a pruned model, with the options that its record lacks."""
    words = ["optimum-cli", "ffp", "recover", "-m", folder, f"{folder}-recovered"]
    if revision is None:
        words += ["--teacher", dense]
    if not all(text.hub_dataset for text in config.texts):
        words += ["--dataset", config.dataset]
    if config.text_column:
        words += ["--text-column", config.text_column]
    return shlex.join(words)
