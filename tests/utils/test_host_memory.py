import sys

import psutil
import pytest

from optimum_ffp.utils import host_memory
from optimum_ffp.utils.host_memory import free_host_memory, limit_threads
from tests.helpers import run_python


# Content of /proc/self/cgroup, controller and file of the limit, and its group: of versions 2 and 1, and of a
# container, which sees its own group as the root.
GROUPS = [
    ("0::/\n", "", "memory.max", ""),
    ("0::/jobs/step_0\n", "", "memory.max", "jobs/step_0"),
    ("0::/jobs/step_0\n", "", "memory.max", "jobs"),
    ("0::/docker/0123\n", "", "memory.max", ""),
    ("5:cpu,cpuacct:/\n4:hugetlb,memory:/jobs\n0::/other\n", "memory", "memory.limit_in_bytes", "jobs"),
    (None, "", "memory.max", ""),
]


@pytest.fixture(autouse=True)
def cgroup_files(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "ROOT", tmp_path)


@pytest.mark.parametrize(("found", "controller", "file", "limited"), GROUPS)
def test_free_host_memory_respects_cgroup_limits(found, controller, file, limited, tmp_path):
    if found is not None:
        (tmp_path / "cgroup").write_text(found)
    limit = tmp_path / controller / limited / file
    limit.parent.mkdir(parents=True, exist_ok=True)
    limit.write_text("max\n")
    unlimited = free_host_memory()
    limit.write_text("1000000\n")
    assert free_host_memory() == 1_000_000 < unlimited


@pytest.mark.parametrize("name", ["anon", "total_rss"])
def test_free_host_memory_subtracts_usage_of_other_processes(name, tmp_path):
    own = psutil.Process().memory_info()
    used, limit = own.rss - own.shared, psutil.virtual_memory().total // 4
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    # Pages of files, which are given back when memory is asked for, don't count.
    (tmp_path / "memory.stat").write_text(f"{name} {used + 1_000_000_000}\nfile 5000000000\n")
    assert free_host_memory() == pytest.approx(limit - 1_000_000_000, abs=50_000_000)
    (tmp_path / "memory.stat").write_text(f"{name} {used // 2}\nfile 5000000000\n")
    assert free_host_memory() == limit


@pytest.mark.parametrize(
    ("quotas", "variable", "expected"),
    [
        ({"": "200000 100000"}, None, "2"),
        ({"": "max 100000", "jobs/step_0": "150000 100000"}, None, "2"),
        ({"": "50000 100000", "jobs": "400000 100000"}, None, "1"),
        ({"": "6400000 100000"}, None, "4"),
        ({}, None, None),
        ({"": "200000 100000"}, "3", "3"),
    ],
)
def test_thread_count_follows_smallest_cpu_quota(quotas, variable, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(4))
    (tmp_path / "cgroup").write_text("0::/jobs/step_0\n")
    for group, quota in quotas.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(f"{quota}\n")
    environment = {} if variable is None else {"OMP_NUM_THREADS": variable}
    monkeypatch.setattr("os.environ", environment)
    limit_threads()
    assert environment.get("OMP_NUM_THREADS") == expected


# A process of its own, whose heap nothing else has used: 256 MiB in pieces that glibc takes from the heap, of which
# every sixteenth stays, so that the rest are holes between them.
PROGRAM = """
import re
from pathlib import Path
from optimum_ffp.utils.host_memory import return_free_memory
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
pieces = [bytearray(2**16) for _ in range(4096)]
pieces = pieces[::16]
before = resident()
return_free_memory()
print(before, resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_heap_memory_is_returned_to_system():
    before, after = map(float, run_python("-c", PROGRAM).split())
    assert before - after > 100
