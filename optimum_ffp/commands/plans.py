"""What `--plan` prints."""

import sys
from collections.abc import Sequence
from typing import Protocol

from .errors import USER_ERROR


class Described(Protocol):
    """A plan."""

    def describe(self) -> str:
        """The plan as text of several lines."""


def process_count(wanted: int | None) -> int:
    """The processes of a run on this machine, if they are there, or that will be started.

    Args:
        wanted: `--num-processes`.
    """
    from ..utils import processes

    return processes.local_count() if processes.count() > 1 else wanted or 1


def show_plan(plan: Described, problems: Sequence[Exception]) -> None:
    """Print a plan and the problems that would stop it, and end with exit code 2 if there are any."""
    print(plan.describe())
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        sys.exit(USER_ERROR)
