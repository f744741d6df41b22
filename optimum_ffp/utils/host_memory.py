"""Host memory that there is for this process."""

from pathlib import Path

import psutil


# Memory limit of a container, in control groups of version 2 and 1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def free_host_memory() -> int:
    """Return the bytes of host memory available to this process, including those that it uses."""
    own, memory = psutil.Process().memory_info(), psutil.virtual_memory()
    # Pages of mapped files are available already.
    used = own.rss - getattr(own, "shared", 0)
    return min([memory.available + used, memory.total, *_limits()])


def _limits() -> list[int]:
    found = [Path(path).read_text().strip() for path in LIMITS if Path(path).is_file()]
    return [int(limit) for limit in found if limit.isdecimal()]
