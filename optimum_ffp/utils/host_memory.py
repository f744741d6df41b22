"""Host memory that there is for this process."""

from pathlib import Path

import psutil


# Memory limit of a container, in control groups of version 2 and 1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def free_host_memory() -> int:
    """Return the bytes of host memory available to this process, including those that it uses."""
    own = psutil.Process().memory_info().rss
    return min([psutil.virtual_memory().available + own, *_limits()])


def _limits() -> list[int]:
    found = [Path(path).read_text().strip() for path in LIMITS if Path(path).is_file()]
    return [int(limit) for limit in found if limit.isdecimal()]
