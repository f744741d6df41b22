"""What `--plan` prints."""

import sys
from collections.abc import Iterable, Sequence
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


def show_plans(plans: Iterable[Described], problems: Sequence[Exception]) -> None:
    """Prints plans and what stands in their way, and ends with exit code 2 if anything does."""
    print("\n\n".join(plan.describe() for plan in plans))
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        sys.exit(USER_ERROR)
