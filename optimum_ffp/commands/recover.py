"""`optimum-cli ffp recover`."""

import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import RecoveryConfig
from . import arguments
from .launching import Command


if TYPE_CHECKING:
    from ..recovery.recovery import FFPRecovery


USAGE = "optimum-cli ffp recover -m MODEL [OUT] [--dataset DATASET] [--max-tokens N] [options]"
DESCRIPTION = """Train a pruned model to match the dense model's predictions, and write a folder in the same format as
the pruned model's."""
EXAMPLES = """examples:
  optimum-cli ffp recover -m out out-recovered --dataset my_text.jsonl --max-tokens 2M
  optimum-cli ffp recover -m out --dataset fineweb.jsonl:0.6,chats.jsonl:0.4 --lora 32 --teacher model.gguf
  accelerate launch --config_file fsdp2.yaml -m optimum.commands.optimum_cli ffp recover -m out --preset standard
"""
# Suffix of the default output folder.
RECOVERED = "-recovered"
LOAD_OPTIONS = ("device", "dtype", "trust_remote_code", "revision")


class FFPRecoverCommand(Command):
    """Train a pruned model to match the dense model's predictions."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        arguments.describe(parser, USAGE, DESCRIPTION, EXAMPLES)
        model = parser.add_argument_group("Models and output")
        arguments.add_option(model, "model", "-m", required=True, help="Pruned model to train: Hub id or folder.")
        arguments.add_option(
            model,
            "teacher",
            metavar="MODEL",
            help="Dense model: Hub id, folder or .gguf file. Default: the model that MODEL was pruned from, on the "
            "Hub.",
        )
        arguments.add_run_options(model)
        groups = RecoveryConfig.add_arguments(parser)
        target = "the dense model (the result has the dtype of the pruned model)"
        arguments.add_device_options(groups["Resources"], target, shared=True)
        arguments.add_hub_group(parser)

    @staticmethod
    def execute(args: Namespace) -> None:
        """Check, lock, train, save and push."""
        config = RecoveryConfig.from_args(args)
        folder = arguments.output_name(args) + ("" if args.output else RECOVERED)
        arguments.warn_of_hub_options(args)

        from ..hub.record import prune_record, require_record
        from ..modeling.checks import check_dequantizable
        from ..modeling.loading import LoadOptions, empty_model, read_any_config, read_pruned_config
        from ..planning.estimate import estimate_recovery
        from ..planning.preflight import find_problems
        from ..recovery.plan import make_recovery_plan
        from ..recovery.recovery import FFPRecovery
        from ..recovery.teacher import find_teacher
        from ..utils import processes
        from ..utils.profiling import StageMeter
        from ..utils.resume import work_folder_of
        from ..utils.tracking import check_trackers
        from .records import check_json, recovery_records, write_records
        from .summary import begin, end_finished, show_plan, summarize, upload

        processes.join(args.device)
        check_trackers(args.report_to)
        check_json(args.json)
        options = LoadOptions(**{name: getattr(args, name) for name in LOAD_OPTIONS})
        student = empty_model(read_pruned_config(args.model, options))
        teacher, teacher_options = find_teacher(args.model, args.teacher, options)
        dense = read_any_config(teacher, teacher_options)
        check_dequantizable(teacher, dense)
        plan = make_recovery_plan(config, args.model, options)
        count = max(processes.local_count(), args.num_processes or 1)
        estimate = estimate_recovery(student, empty_model(dense), plan, options, count)
        repository, work = args.hub_model_id or Path(folder).name, work_folder_of(folder)
        uploads = [repository] if args.push_to_hub else []
        # With the record of the pruned model, which may have been replaced since.
        request = processes.on_main(
            lambda: arguments.request_id(args, plan, teacher, require_record(args.model, **options.hub()).to_dict())
        )
        existing = prune_record(folder)
        is_finished = existing is not None and [one.request for one in existing.recovery][-1:] == [request]
        if args.resume and not args.overwrite and processes.from_main(is_finished):
            end_finished([folder], work, [] if args.plan else uploads, args.private)
            return
        found = find_problems(
            plan,
            models=[args.model, teacher],
            folders=[folder],
            disk=estimate.disk,
            overwrite=args.overwrite,
            resume=args.resume,
            repositories=uploads,
        )
        if args.plan:
            show_plan("recover", estimate, folder, found, args.json)
            return
        begin(estimate, found, work, args.resume)
        loading = asdict(options)
        recovery = FFPRecovery.from_pretrained(args.model, plan, args.teacher, work, args.report_to, **loading)
        meter = StageMeter()
        with meter.stage("recovery"):
            recovery.record = replace(recovery.recover(resume=args.resume), request=request)
        recovery.save_pretrained(folder, overwrite=args.overwrite)
        if processes.is_main():
            records = recovery_records(recovery, folder, meter)
            print(summarize(records, evaluation_command(recovery, folder, args.model)))
            write_records(args.json, records)
        upload([folder], uploads, args.private)


def evaluation_command(recovery: "FFPRecovery", folder: str, pruned: str) -> str:
    """Return the command that compares a recovered model with the dense and the pruned one, on the same texts."""
    tests = ",".join(test["dataset"] for test in recovery.finished.tests)
    words = ["optimum-cli", "ffp", "evaluate", "-m", folder, "--baseline", recovery.teacher_id, pruned]
    # Text that the model writes can't be evaluated on.
    words += ["--dataset", tests] if tests != "self" else []
    if recovery.plan.text_column:
        words += ["--text-column", recovery.plan.text_column]
    return shlex.join(words)
