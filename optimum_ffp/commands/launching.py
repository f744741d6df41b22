"""Start of a command, in one process or in several on this machine."""

import logging
import os
import sys
from argparse import Namespace

from optimum.commands.base import BaseOptimumCLICommand

from ..errors import FFPError
from .errors import one_line_errors


class Command(BaseOptimumCLICommand):
    """Base class of the commands, which implement `parse_args` and `execute`."""

    args: Namespace

    @staticmethod
    def execute(args: Namespace) -> None:
        """Run the command with its parsed arguments."""
        raise NotImplementedError

    def run(self) -> None:
        """Run `execute`, or restart the command in several processes with `accelerate launch` if asked for.

        An `FFPError` ends the command with one line and exit code 2.
        """
        count = None if getattr(self.args, "plan", False) else getattr(self.args, "num_processes", None)
        hint = "; run the same command with --resume to continue" if "resume" in self.args else ""
        with one_line_errors(self.args.log_level, f"interrupted{hint}", vars(self.args)):
            if count is not None and count < 1:
                raise FFPError(f"num_processes must be at least 1, found {count}")
            if count in (None, 1) or "WORLD_SIZE" in os.environ:
                self.execute(self.args)
                # Imports torch, as the command has already done.
                from ..utils import processes

                processes.leave()
            else:
                _launch(count)


def _launch(count: int) -> None:
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # `--multi_gpu` also starts processes on the CPU; port 0 selects a free port.
    options = f"--multi_gpu --num_processes {count} --num_machines 1 --main_process_port 0 --mixed_precision no"
    options += f" --dynamo_backend no --num_cpu_threads_per_process {max(1, torch.get_num_threads() // count)}"
    command = "-m", "optimum.commands.optimum_cli", *sys.argv[1:]
    # The failed process reports the error itself.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*options.split(), *command]))
    except ChildFailedError as error:
        sys.exit(max(1, *(failure.exitcode for failure in error.failures.values())))
    except SignalException as error:
        sys.exit(128 + error.sigval)
