"""Programs that models write for tasks such as HumanEval and MBPP."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import FFPError
from . import sandbox


# Seconds that a program may take.
TIMEOUT = 10


def pass_at_1(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Score the completion of a function by running its tests: a `process_results` of lm-eval.

    Args:
        doc: A row in the format of HumanEval: `prompt`, the head of a function, its name `entry_point`, and `test`,
            which defines `check(candidate)`.
        results: What the model wrote after the prompt.

    Returns:
        `pass_at_1`: 1 if the tests pass, otherwise 0.

    Raises:
        FFPError: If this system can't keep a program from the network.
    """
    program = f"{doc['prompt']}{results[0]}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(runs(program))}


def runs(program: str) -> bool:
    """Return whether a Python program ends in time and without an error.

    It runs as the current user, who should have nothing to hide, in a process without network, environment variables
    or more memory and disk than it needs. Raises `FFPError` if this system can't keep it from the network.
    """
    with TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", Path(sandbox.__file__)],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.communicate(program.encode(), TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # With all processes that it has started, if there are any.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode == sandbox.UNAVAILABLE:
        raise FFPError("programs that a model wrote run without network on Linux only (x86-64 or ARM64)")
    return process.returncode == 0
