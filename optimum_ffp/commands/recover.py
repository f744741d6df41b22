"""`optimum-cli ffp recover`."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand

from .arguments import ON_THE_HUB, TO_THE_HUB, check_read, given_options, output_name
from .errors import one_line_endings
from .launching import run_in_processes
from .recover_options import parse_args_ffp_recover


if TYPE_CHECKING:
    from ..config import RecoveryConfig


READ_WHEN = {
    "revision": ON_THE_HUB,
    "hub_model_id": TO_THE_HUB,
    "private": TO_THE_HUB,
}
# After the name of a pruned model, for the folder of the recovered one.
RECOVERED = "-recovered"
LOAD_OPTIONS = ("device", "dtype", "trust_remote_code", "revision", "token")


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
            run_in_processes(None if self.args.plan else self.args.num_processes, lambda: recover(self.args))


def read_config(args: Namespace) -> "RecoveryConfig":
    """The config: that of `--config` if given, overridden by the options of the command line."""
    from ..config import RecoveryConfig

    given = {name: getattr(args, name, None) for name in RecoveryConfig.option_names()}
    given = {name: value for name, value in given.items() if value is not None}
    return RecoveryConfig(**given) if args.config is None else RecoveryConfig.from_file(args.config, **given)


def recover(args: Namespace) -> None:
    """Trains, saves, prints what came of it, and uploads; with `--plan` prints what that needs."""
    config, folder = read_config(args), f"{output_name(args)}{'' if args.output else RECOVERED}"

    from ..hub.upload import push_folder
    from ..modeling.auto import is_pruned
    from ..modeling.checks import check_unquantised
    from ..modeling.loading import LoadOptions, empty_model, read_any_config, read_pruned_config
    from ..planning.estimate import estimate_recovery
    from ..planning.preflight import find_problems
    from ..recovery.recovery import FFPRecovery
    from ..recovery.teacher import read_teacher, with_dataset
    from ..utils import processes
    from ..utils.resume import begin_work, work_folder_of
    from ..utils.tracking import check_trackers
    from .summary import recovery_summary, show_plan

    processes.join(args.device)
    check_trackers(args.report_to)
    options = LoadOptions(**{name: getattr(args, name) for name in LOAD_OPTIONS})
    student = empty_model(read_pruned_config(args.model, options))
    teacher, dense = read_teacher(args.model, args.teacher, options, read_any_config)
    check_unquantised(teacher, dense)
    config = with_dataset(config, args.model, options)
    count = max(processes.local_count(), args.num_processes or 1)
    estimate = estimate_recovery(student, empty_model(dense), config, options, count)
    repository, work = args.hub_model_id or Path(folder).name, work_folder_of(folder)
    uploads = [repository] if args.push_to_hub else []
    problems = find_problems(
        config,
        models=[args.model, teacher],
        folders=[folder],
        work_folder=work,
        disk=estimate.disk,
        overwrite=args.overwrite,
        resume=args.resume,
        repositories=uploads,
        token=args.token,
        trains_on=[estimate.machine.device],
    )
    if args.plan:
        show_plan(estimate, folder, [*problems])
        return
    if processes.is_main():
        for problem in problems:
            raise problem
        for warning in estimate.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        begin_work(work, args.resume)
    recovery = FFPRecovery.from_pretrained(
        args.model,
        config,
        args.teacher,
        work,
        args.report_to,
        **{name: getattr(args, name) for name in LOAD_OPTIONS},
    )
    record = recovery.recover(resume=args.resume)
    recovery.save_pretrained(folder, overwrite=args.overwrite)
    if processes.is_main():
        print(recovery_summary(record, folder, is_pruned(recovery.student.config)))
        if args.push_to_hub:
            print(f"uploaded: {push_folder(folder, repository, args.private, args.token)}")
