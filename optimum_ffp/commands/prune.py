"""`optimum-cli ffp prune`."""

import logging
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..config import FFPConfig, RecoveryConfig
from ..config.budgets import LIMITS
from ..config.fields import argument_name
from ..config.prune import OFFLOADS
from ..errors import FFPError
from ..utils.folders import expand
from ..utils.record import Record
from .arguments import HUB_OPTIONS, RUN_OPTIONS, add_shared, describe, load_options, output_name
from .launching import Command


if TYPE_CHECKING:
    from .records import Figures


logger = logging.getLogger(__name__)
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


class FFPPruneCommand(Command):
    """Remove attention heads and FFN channels from a causal language model."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        describe(parser, USAGE, DESCRIPTION, EXAMPLES)
        model = parser.add_argument_group("Model and output")
        model.add_argument("-m", "--model", required=True, help="Model to prune: Hub id, folder or .gguf file.")
        model.add_argument(
            "output",
            metavar="OUT",
            nargs="?",
            help="Folder to write, or the prefix of the folders if a budget option has several values; give it before "
            "such options. Default: named after the model.",
        )
        add_shared(model, *RUN_OPTIONS)
        groups = FFPConfig.add_arguments(parser)
        groups["Search"].add_argument(
            "--warm-start",
            metavar="MODEL",
            help="Start from the agent of another pruned model: folder, Hub id or ID@REVISION.",
        )
        add_shared(groups["Resources"], "--device", "--dtype", "--num-processes")
        groups["Resources"].add_argument(
            "--offload",
            default="auto",
            choices=("auto", *OFFLOADS),
            help="Where to keep the weights of layers that aren't running: none (on the device), host (in host "
            "memory), disk (in the checkpoint files), or auto (the first with enough memory, see --plan). Default: "
            "auto.",
        )
        add_shared(parser.add_argument_group("The Hub"), *HUB_OPTIONS)

    @staticmethod
    def execute(args: Namespace) -> None:
        """Check, lock, prune, save and push, with every requested budget; several share one agent."""
        swept, configs = read_configs(args)
        config, names = configs[0], [one.budget_name for one in configs]
        folders, front = output_folders(args, names), f"{output_name(args)}-ffp-pareto.png"

        from ..checkpoint.saving import load_agent
        from ..hub.naming import is_hub_id
        from ..hub.record import require_record
        from ..modeling.loading import LoadOptions, find_dense, shape_of
        from ..planning.estimate import refine
        from ..planning.make import make_plans
        from ..pruner import FFPPruner
        from ..utils import processes
        from ..utils.resume import saved_decision
        from .records import prune_records, write_records
        from .run import Run

        run = Run("prune", args, folders, names)
        request = processes.on_main(lambda: run.request_id(config, args.warm_start, names))
        options = LoadOptions(**load_options(args), base_model=config.base_model)
        dense_id = find_dense(args.model, options)[0]
        if not run.is_finished(request, [record and record.request for record in map(Record.read, folders)]):
            agent, shape = load_agent(args.warm_start), shape_of(args.model, options)
            plans, estimate = make_plans(
                configs,
                shape,
                options,
                local_processes=run.local_processes,
                decided=saved_decision(run.work_folder) if args.resume else None,
                warm_start=agent is not None,
            )
            if args.plan:
                estimate = refine(estimate, plans, shape, args.model, options)
            if not config.base_model and not is_hub_id(dense_id):
                logger.warning("the model is local, so its card names no base model or license; pass --base-model ID")
            models = [one for one in (config.policy, args.warm_start) if one]
            if not run.begin(estimate, config, models, {front: b"\x89PNG"} if swept else {}):
                return
            loading = asdict(options)
            pruner = FFPPruner.from_pretrained(args.model, plans[0], run.work_folder, args.report_to, **loading)
            for result, folder in zip(pruner.sweep(plans, agent, resume=True), folders):
                result.request = request
                pruner.save_pretrained(folder, args.overwrite, keep_work=folder != folders[-1])
        if processes.is_main():
            found = [*map(require_record, folders)]
            pairs = [prune_records(record, folder, dense_id) for record, folder in zip(found, folders)]
            records = [*(pruned for pruned, _ in pairs), pairs[0][1]]
            print_result(records, found[0], config, swept, front)
            write_records(args.json, records)
        run.upload()


def print_result(
    records: "Sequence[Figures]", record: Record, config: FFPConfig, swept: str | None, front: str
) -> None:
    """Print the summary of a prune, or the table of a sweep, whose plot is written to `front`."""
    from ..checkpoint.plots import write_front
    from .summary import summarize, sweep_table, warn_of_perplexity

    if swept:
        print(sweep_table(records))
        write_front(records, swept, record.provenance.perplexity, expand(front))
        print(f"Pareto front: {front}")
    else:
        pruned, dense = (str(one["model"]) for one in records)
        command = recovery_command(dense, config, record.provenance.revision, pruned)
        print(summarize(records, command + max_tokens_option(config, record, pruned)))
    warn_of_perplexity(records[:-1])


def max_tokens_option(config: FFPConfig, record: Record, folder: str) -> str:
    """Return the option for a recovery that reads text once; empty if its default does, or not all of it is local."""
    from ..data import DataRequest, training_windows
    from ..modeling.loading import LoadOptions, empty_model, load_tokenizer, read_pruned_config
    from ..recovery.plan import make_recovery_plan

    if not config.texts.is_local:
        return ""
    options, length = LoadOptions(), record.options["seq_len"]
    plan = make_recovery_plan(RecoveryConfig(dataset=config.dataset, text_column=config.text_column), folder, options)
    student, tokens = empty_model(read_pruned_config(folder, options)), int(plan.max_tokens)
    request = DataRequest.of(plan, length)
    passes = max(training_windows(load_tokenizer(folder, options), student, request, tokens // length)[1].values())
    return f" --max-tokens {tokens / passes:.0f}" if passes > 1 else ""


def read_configs(args: Namespace) -> tuple[str | None, list[FFPConfig]]:
    """Return the option with several values, if there is one, and a config for each of its values."""
    given = {name: values for name in LIMITS if (values := getattr(args, name))}
    if args.policy and (given.keys() - {"vocabulary"} or args.method):
        raise FFPError("--policy determines the sizes without a search; leave out the budget and --method")
    several = [name for name, values in given.items() if len(values) > 1]
    if len(several) > 1:
        options = " and ".join(map(argument_name, several))
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
        return [output_name(args)]
    if args.policy:
        return [f"{output_name(args)}-{expand(args.policy).name.removesuffix('.json')}"]
    folders = [f"{output_name(args)}-ffp-{name}" for name in names]
    if len({*folders}) < len(folders):
        raise FFPError(f"two budget values map to the same folder: {', '.join(folders)}; pass each only once")
    return folders


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
