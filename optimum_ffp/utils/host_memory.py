"""Host memory and CPU time available to this process."""

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil


# Control group of this process, and the folder of all groups.
GROUP, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Files of limits by controller of cgroup version 1; version 2 has no folders by controller.
MEMORY_LIMITS, CPU_QUOTA = {"": "memory.max", "memory": "memory.limit_in_bytes"}, "cpu.max"
# Names of anonymous memory in `memory.stat`, in cgroup version 2 and 1.
ANONYMOUS = ("anon", "total_rss")


def used_host_memory() -> int:
    """Return the bytes of host memory that this process uses, without pages of mapped files: these can be dropped."""
    process = psutil.Process().memory_info()
    return process.rss - getattr(process, "shared", 0)


def free_host_memory() -> int:
    """Return the bytes of host memory available to this process, including those that it uses."""
    used, memory = used_host_memory(), psutil.virtual_memory()
    return min([memory.available + used, memory.total, *_available(used)])


def return_free_memory() -> None:
    """Return freed host memory to the operating system; no-op with other C libraries than glibc."""
    # Freed tensors fragment its heap, by up to the size of the model.
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def limit_threads() -> None:
    """Set `OMP_NUM_THREADS`, if it isn't set, to the CPU quota of cgroup version 2, before torch is imported."""
    # Afterwards, `torch.set_num_threads` would make batched solves of MKL fail.
    quotas = [text.split() for path in _group_files("", CPU_QUOTA) if (text := _read(path))]
    if cpus := [math.ceil(int(quota) / int(period)) for quota, period in quotas if quota != "max"]:
        os.environ.setdefault("OMP_NUM_THREADS", str(min(*cpus, len(os.sched_getaffinity(0)))))


def _available(used: int) -> Iterator[int]:
    """Yield the memory that each group's limit leaves to this process."""
    for path in (path for controller, file in MEMORY_LIMITS.items() for path in _group_files(controller, file)):
        limit = _read(path).strip()
        if limit.isdecimal():
            counts = dict(line.split() for line in _read(path.with_name("memory.stat")).splitlines())
            anonymous = next((int(counts[name]) for name in ANONYMOUS if name in counts), 0)
            yield int(limit) - max(0, anonymous - used)


def _group_files(controller: str, file: str) -> Iterator[Path]:
    """Yield the paths of a file in this process's group and its parents; version 2 has no `controller`."""
    lines = (line.split(":", 2) for line in _read(GROUP).splitlines())
    groups = {name: group for _, names, group in lines for name in names.split(",")}
    # A container sees its own group as the root, whatever the path of the group is.
    group = PurePosixPath(groups.get(controller, "/"))
    for parent in (group, *group.parents):
        yield Path(ROOT, controller, *parent.parts[1:], file)


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
