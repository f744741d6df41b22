"""Host memory available to this process."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil


# Control group of this process, and the files of memory limits in cgroup version 2 and 1.
GROUP = Path("/proc/self/cgroup")
LIMITS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}
# Names of anonymous memory in `memory.stat`, in cgroup version 2 and 1.
ANONYMOUS = ("anon", "total_rss")


def free_host_memory() -> int:
    """Return the bytes of host memory available to this process, including those that it uses."""
    process, memory = psutil.Process().memory_info(), psutil.virtual_memory()
    # Pages of mapped files already count as available.
    used = process.rss - getattr(process, "shared", 0)
    return min([memory.available + used, memory.total, *_available(used)])


def _available(used: int) -> Iterator[int]:
    """Yield the memory that each group's limit leaves to this process."""
    for path in _limit_files():
        limit = path.read_text().strip() if path.is_file() else ""
        if limit.isdecimal():
            yield int(limit) - max(0, _anonymous(path.with_name("memory.stat")) - used)


def _anonymous(path: Path) -> int:
    lines = path.read_text().splitlines() if path.is_file() else []
    counts = dict(line.split() for line in lines)
    return next((int(counts[name]) for name in ANONYMOUS if name in counts), 0)


def _limit_files() -> Iterator[Path]:
    """Yield the limit files of this process's group and its parents."""
    lines = GROUP.read_text().splitlines() if GROUP.is_file() else []
    groups = {name: group for _, names, group in (line.split(":", 2) for line in lines) for name in names.split(",")}
    for name, (root, file) in LIMITS.items():
        # A container sees its own group as the root, whatever the path of the group is.
        group = PurePosixPath(groups.get(name, "/"))
        for parent in (group, *group.parents):
            yield Path(root, *parent.parts[1:], file)
