"""`optimum-cli ffp recover`."""

import sys
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimum.commands.base import BaseOptimumCLICommand

from ..options import Condition
from .arguments import ON_THE_HUB, TO_THE_HUB, check_read, given_options
from .errors import USER_ERROR, one_line_endings
from .launching import run_in_processes
from .recover_options import parse_args_ffp_recover


if TYPE_CHECKING:
    from ..checkpoint.recovered import RecoveryRecord
    from ..recovery.config import RecoveryConfig

READ_WHEN = {
    "revision": ON_THE_HUB,
    "hub_model_id": TO_THE_HUB,
    "private": TO_THE_HUB,
    "keep_adapter": Condition("with --lora", lambda args: args.lora),
}
# After the name of a pruned model, for the folder of the recovered one.
RECOVERED = "-recovered"
LOAD_OPTIONS = ("device", "dtype", "revision", "token", "cache_dir")


class FFPRecoverCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp recover`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_recover(parser)

    def run(self) -> None:
        """Runs the command; an `FFPError` ends it with one line and exit code 2."""
        with one_line_endings("interrupted; run the same command with --resume to continue"):
            check_read(given_options(self.parser, self.args), READ_WHEN, self.args)
            run = show_plan if self.args.plan else recover
            run_in_processes(self.args.num_processes, self.args.device, lambda: run(self.args), alone=self.args.plan)


def read_config(args: Namespace) -> "RecoveryConfig":
    """The config of the command line."""
    from ..recovery.config import RecoveryConfig

    given = {name: getattr(args, name) for name in RecoveryConfig.option_names()}
    return RecoveryConfig(**{name: value for name, value in given.items() if value is not None})


def show_plan(args: Namespace) -> None:
    """Prints what the training needs and what stands in its way, with exit code 2 if anything does."""
    from ..errors import FFPError
    from ..evaluation import prune_record
    from ..modeling.loading import LoadOptions, read_model_config
    from ..options import read_mix
    from ..planning.preflight import check_dataset
    from ..planning.recovery import plan_recovery
    from ..recovery.teacher import read_teacher

    config, options = read_config(args), LoadOptions(**{name: getattr(args, name) for name in LOAD_OPTIONS})
    parameters = prune_record(args.model, **options.hub()).get("provenance", {}).get("parameters", {}).get("pruned")
    if parameters is None:
        raise FFPError(f"{args.model} has no record of its size in ffp_config.json; name a checkpoint of optimum-ffp")
    _, dense = read_teacher(args.model, args.teacher, options, read_model_config)
    plan = plan_recovery(dense, parameters, config, args.device, args.num_processes or 1)
    print(plan.describe())
    problems = plan.warnings
    for name in dict.fromkeys([*read_mix(config.dataset), *read_mix(config.eval_dataset or config.dataset)]):
        try:
            check_dataset(name, config.text_column)
        except FFPError as problem:
            problems = [*problems, str(problem)]
            print(f"problem: {problem}")
    if problems:
        sys.exit(USER_ERROR)


def recover(args: Namespace) -> None:
    """Trains, saves, prints what came of it, and uploads."""
    config, folder = read_config(args), args.output or f"{Path(args.model).expanduser().name}{RECOVERED}"

    from ..hub.upload import check_push, push_folder
    from ..utils import processes
    from ..utils.tracking import check_trackers

    processes.join(args.device)
    check_trackers(args.report_to)
    repository = args.hub_model_id or Path(folder).name
    if args.push_to_hub and processes.is_main():
        check_push(repository, args.token)
    recover_into(folder, config, args, args.model, args.teacher)
    if processes.is_main() and args.push_to_hub:
        print(f"uploaded: {push_folder(folder, repository, args.private, args.token)}")
    processes.leave()


def recover_into(
    folder: str, config: "RecoveryConfig", args: Namespace, model: str, teacher: str | None, **options: Any
) -> None:
    """Recovers a pruned model into a folder, and prints what came of it.

    Args:
        folder: Folder to write.
        config: Options of the recovery.
        args: `overwrite`, `resume` and `report_to` of the command, and how models are loaded (`LOAD_OPTIONS`).
        model: The pruned model.
        teacher: The dense model; the one that it was pruned from if `None`.
        options: Load options that replace those of the command.
    """
    from ..recovery.recovery import FFPRecovery
    from ..utils import processes
    from ..utils.folders import FolderLock, check_apart, check_output, resolve
    from ..utils.resume import check_work_folder, holds_work, remove_work

    work = Path(f"{resolve(folder)}.work")
    with ExitStack() as locks:
        resumes = processes.on_main(lambda: args.resume and holds_work(work))
        if processes.is_main():
            check_apart(folder, filter(None, (model, teacher)))
            check_output(folder, args.overwrite)
            check_work_folder(work, args.resume, overwrite=True)
            for path in (work, folder):
                locks.enter_context(FolderLock(resolve(path)))
            if not args.resume:
                remove_work(work)
        options = {name: getattr(args, name) for name in LOAD_OPTIONS} | options
        recovery = FFPRecovery.from_pretrained(model, config, teacher, work, args.report_to, **options)
        record = recovery.recover(resume=resumes)
        recovery.save_pretrained(folder, overwrite=args.overwrite)
        if processes.is_main():
            print(summary(record, folder))


def summary(record: "RecoveryRecord", folder: str) -> str:
    """The table that is printed at the end."""
    from ..hub.naming import dataset_name
    from .summary import describe_windows, load_lines, table

    first, last = record.curve[0], record.kept
    rows = [
        ("trained on", f"{record.tokens:,} tokens of {dataset_name(record.options['dataset'])}"),
        ("steps", f"{last['step']} of {record.windows_per_step} windows of {record.window_length} tokens"),
        *((f"passes over {dataset_name(name)}", f"{count:.2f}") for name, count in record.passes.items() if count > 1),
        ("divergence, held out", f"{first['kl']:.4f} -> {last['kl']:.4f} nats per token"),
        ("perplexity, held out", f"{first['perplexity']:.4f} -> {last['perplexity']:.4f}"),
        ("held out", describe_windows(record.held_out)),
    ]
    for test, found in zip(record.tests, record.perplexities):
        place = f" on {dataset_name(test['dataset'])}" if len(record.tests) > 1 else ""
        rows += [(f"perplexity{place}, {name}", f"{value:.4f}") for name, value in found.items()]
        rows.append(("measured on", describe_windows(test)))
    rows += [
        ("tokens of the training", f"{record.all_tokens:,}, in forward passes of a model"),
        ("time of the training", f"{record.seconds:.1f} s"),
        ("saved in", folder),
    ]
    return "\n".join([*table(rows), *load_lines(folder)])
