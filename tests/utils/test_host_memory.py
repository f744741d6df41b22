from optimum_ffp.utils import host_memory
from optimum_ffp.utils.host_memory import free_host_memory


def test_containers_have_limits_of_their_own(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host_memory, "LIMITS", (str(limit), str(tmp_path / "nothing")))
    limit.write_text("max\n")
    unlimited = free_host_memory()
    limit.write_text("1000000\n")
    assert free_host_memory() == 1_000_000 < unlimited
