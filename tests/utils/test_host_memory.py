import psutil
import pytest

from optimum_ffp.utils import host_memory
from optimum_ffp.utils.host_memory import free_host_memory


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


@pytest.mark.parametrize(("found", "controller", "file", "limited"), GROUPS)
def test_groups_have_limits_of_their_own(found, controller, file, limited, tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "LIMITS", {controller: (str(tmp_path), file)})
    if found is not None:
        (tmp_path / "cgroup").write_text(found)
    limit = tmp_path / limited / file
    limit.parent.mkdir(parents=True, exist_ok=True)
    limit.write_text("max\n")
    unlimited = free_host_memory()
    limit.write_text("1000000\n")
    assert free_host_memory() == 1_000_000 < unlimited


@pytest.mark.parametrize("name", ["anon", "total_rss"])
def test_other_processes_of_a_group_take_of_its_memory(name, tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "LIMITS", {"": (str(tmp_path), "memory.max")})
    own = psutil.Process().memory_info()
    used, limit = own.rss - own.shared, psutil.virtual_memory().total // 4
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    # Pages of files, which are given back when memory is asked for, don't count.
    (tmp_path / "memory.stat").write_text(f"{name} {used + 1_000_000_000}\nfile 5000000000\n")
    assert free_host_memory() == pytest.approx(limit - 1_000_000_000, abs=50_000_000)
    (tmp_path / "memory.stat").write_text(f"{name} {used // 2}\nfile 5000000000\n")
    assert free_host_memory() == limit
