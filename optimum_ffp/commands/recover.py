"""`optimum-cli ffp recover`."""

import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, replace

from ..config import RecoveryConfig, RecoveryPlan
from .arguments import HUB_OPTIONS, RUN_OPTIONS, add_shared, describe, load_options, output_name
from .launching import Command


USAGE = "optimum-cli ffp recover -m MODEL [OUT] [--dataset DATASET] [--max-tokens N] [options]"
DESCRIPTION = """Train a pruned model to match the dense model's predictions, and write a folder in the same format as
the pruned model's."""
EXAMPLES = """examples:
  optimum-cli ffp recover -m out out-recovered --dataset my_text.jsonl --max-tokens 2M
  optimum-cli ffp recover -m out --dataset fineweb.jsonl:0.6,chats.jsonl:0.4 --lora 32 --teacher model.gguf
  accelerate launch --config_file fsdp2.yaml -m optimum.commands.optimum_cli ffp recover -m out --preset standard
"""


class FFPRecoverCommand(Command):
    """Train a pruned model to match the dense model's predictions."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        describe(parser, USAGE, DESCRIPTION, EXAMPLES)
        model = parser.add_argument_group("Models and output")
        model.add_argument("-m", "--model", required=True, help="Pruned model to train: Hub id or folder.")
        model.add_argument(
            "--teacher",
            metavar="MODEL",
            help="Dense model: Hub id, folder or .gguf file. Default: the model that MODEL was pruned from, on the "
            "Hub.",
        )
        model.add_argument("output", metavar="OUT", nargs="?", help="Folder to write. Default: named after the model.")
        add_shared(model, *RUN_OPTIONS)
        groups = RecoveryConfig.add_arguments(parser)
        add_shared(groups["Resources"], "--device", "--num-processes")
        groups["Resources"].add_argument(
            "--dtype",
            default="auto",
            help="Dtype of the dense model: auto (the checkpoint's), float32, bfloat16 or float16. The result has the "
            "dtype of the pruned model. Default: auto.",
        )
        add_shared(parser.add_argument_group("The Hub"), *HUB_OPTIONS)

    @staticmethod
    def execute(args: Namespace) -> None:
        """Check, lock, train, save and push."""
        config = RecoveryConfig.from_args(args)
        folder = output_name(args) + ("" if args.output else "-recovered")

        from ..data import window_length
        from ..hub.record import prune_record, require_record
        from ..modeling.checks import check_dequantizable
        from ..modeling.loading import LoadOptions, empty_model, read_any_config, read_pruned_config
        from ..planning.estimate import estimate_recovery, with_time
        from ..recovery.plan import make_recovery_plan
        from ..recovery.recovery import FFPRecovery
        from ..recovery.teacher import find_teacher
        from ..utils import processes
        from .records import recovery_records, write_records
        from .run import Run
        from .summary import summarize, warn_of_perplexity

        run, options = Run("recover", args, [folder]), LoadOptions(**load_options(args))
        student = empty_model(read_pruned_config(args.model, options))
        teacher, teacher_options = find_teacher(args.model, args.teacher, options)
        teacher_config = read_any_config(teacher, teacher_options)
        check_dequantizable(teacher, teacher_config)
        dense = empty_model(teacher_config)
        plan = make_recovery_plan(config, args.model, options)
        estimate = estimate_recovery(student, dense, plan, options, run.local_processes)
        if args.plan:
            estimate = with_time(estimate, student, window_length(plan.seq_len, student.config))
        # With the record of the pruned model, which may have been replaced since.
        request = processes.on_main(
            lambda: run.request_id(plan, teacher, require_record(args.model, **options.hub()).to_dict())
        )
        existing = prune_record(folder)
        if not run.is_finished(request, [step.request for step in existing.recovery[-1:]] if existing else []):
            if not run.begin(estimate, plan, [teacher]):
                return
            loading = asdict(options)
            recovery = FFPRecovery.from_pretrained(
                args.model, plan, args.teacher, run.work_folder, args.report_to, **loading
            )
            recovery.record = replace(recovery.recover(resume=args.resume), request=request)
            recovery.save_pretrained(folder, overwrite=args.overwrite)
        if processes.is_main():
            records = recovery_records(require_record(folder), folder, args.model, teacher, dense.num_parameters())
            print(summarize(records, evaluation_command(plan, folder, teacher, args.model)))
            warn_of_perplexity(records[:1])
            write_records(args.json, records)
        run.upload()


def evaluation_command(plan: RecoveryPlan, folder: str, teacher: str, pruned: str) -> str:
    """Return the command that compares a recovered model with the dense and the pruned one, on the same texts."""
    words = ["optimum-cli", "ffp", "evaluate", "-m", folder, "--baseline", teacher, pruned]
    # Text that the model writes can't be evaluated on.
    words += [] if plan.reported.includes_self else ["--dataset", ",".join(plan.reported.names)]
    if plan.text_column:
        words += ["--text-column", plan.text_column]
    return shlex.join(words)
