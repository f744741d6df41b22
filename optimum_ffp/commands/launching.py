"""Runs a command in several processes of this machine."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory


def run_in_processes(wanted: int | None, device: str | None, run: Callable[[], None], alone: bool = False) -> None:
    """Runs a command in the processes that there are, or starts the number that is wanted.

    Args:
        wanted: `--num-processes`.
        device: Device of the model, as in `LoadOptions`.
        run: The command.
        alone: Whether it runs in this process whatever is wanted.

    Raises:
        FFPError: As `check_processes`.
    """
    from ..utils.processes import started

    count = started() if wanted is None else wanted
    check_processes(count, device)
    launch(count) if count != started() and not alone else run()


def check_processes(count: int, device: str | None) -> None:
    """Checks that `--num-processes` agrees with the processes that there are, and with the devices.

    Args:
        count: Number of processes.
        device: Device of the model, as in `LoadOptions`.

    Raises:
        FFPError: If it does not.
    """
    import torch

    from ..errors import FFPError
    from ..utils.processes import check_device_of_several, started

    if count < 1:
        raise FFPError(f"num_processes must be at least 1, found {count}")
    if started() not in (1, count):
        raise FFPError(f"{started()} processes are started already; leave out --num-processes {count}")
    if count > 1:
        check_device_of_several(device)
    # Those that are started already may see one each.
    accelerators = 0 if device == "cpu" or started() > 1 else torch.accelerator.device_count()
    if accelerators and count > accelerators:
        raise FFPError(
            f"num_processes is {count}, and {accelerators} accelerators are visible, one for each process; lower it, "
            "or choose --device cpu"
        )


def launch(count: int) -> None:
    """Runs the command line of this process in `count` processes, by `accelerate launch`, and exits with its code.

    Args:
        count: Number of processes; each gets its share of the CPU, or an accelerator.
    """
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser

    from ..utils.processes import LAUNCHED

    # Fewer than the machine's cores where this process may use some of them alone.
    threads = max(1, torch.get_num_threads() // count)
    # `--multi_gpu` is what starts processes, on the CPU too; port 0 is any that is free.
    options = f"--multi_gpu --num_processes {count} --num_machines 1 --main_process_port 0 --mixed_precision no"
    options += f" --dynamo_backend no --num_cpu_threads_per_process {threads}"
    program = "-m", "optimum.commands.optimum_cli", *sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    # Without a folder for its logs torch leaves one among the temporary files.
    with TemporaryDirectory(prefix="optimum-ffp-") as folder:
        said = Path(folder, "said")
        said.touch()
        os.environ |= {LAUNCHED: str(said), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        words = [*options.split(), "--log_dir", folder, *program]
        _launch(partial(launch_command, launch_command_parser().parse_args(words)), count, said)


def _launch(command: Callable[[], None], count: int, said: Path) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from .errors import INTERRUPTED, USER_ERROR

    try:
        command()
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # The others are terminated, or have noticed it themselves.
        killed = [(rank, -code) for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
        for rank, number in killed[:1]:
            print(
                f"\nerror: process {rank + 1} of {count} was killed ({signal.Signals(number).name}), and the others "
                "ended with it; run the same command with --resume to continue",
                file=sys.stderr,
            )
        if not killed and (lost := said.read_text()):
            print(f"error: {lost}", file=sys.stderr)
        sys.exit(USER_ERROR if killed else max(codes.values()))
    except (SignalException, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
