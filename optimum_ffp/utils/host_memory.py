"""Host memory that there is for this process."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil


# Control group of this process, and where the memory limits of groups are, in version 2 and 1.
GROUP = Path("/proc/self/cgroup")
LIMITS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}
# What `memory.stat`, beside the limit, calls the memory of a group's processes that is no page of a file.
ANONYMOUS = ("anon", "total_rss")


def free_host_memory() -> int:
    """Return the bytes of host memory available to this process, including those that it uses."""
    process, memory = psutil.Process().memory_info(), psutil.virtual_memory()
    # Pages of mapped files are available already.
    used = process.rss - getattr(process, "shared", 0)
    return min([memory.available + used, memory.total, *_available(used)])


def _available(used: int) -> Iterator[int]:
    """Yield what the limit of each group leaves this process beside the others in it."""
    for path in _limit_files():
        limit = path.read_text().strip() if path.is_file() else ""
        if limit.isdecimal():
            yield int(limit) - max(0, _anonymous(path.with_name("memory.stat")) - used)


def _anonymous(path: Path) -> int:
    lines = path.read_text().splitlines() if path.is_file() else []
    counts = dict(line.split() for line in lines)
    return next((int(counts[name]) for name in ANONYMOUS if name in counts), 0)


def _limit_files() -> Iterator[Path]:
    """Yield the files of the limits of this process's group and of those that it is in."""
    lines = GROUP.read_text().splitlines() if GROUP.is_file() else []
    groups = {name: group for _, names, group in (line.split(":", 2) for line in lines) for name in names.split(",")}
    for name, (root, file) in LIMITS.items():
        # A container sees its own group as the root, whatever the path of the group is.
        group = PurePosixPath(groups.get(name, "/"))
        for one in (group, *group.parents):
            yield Path(root, *one.parts[1:], file)
