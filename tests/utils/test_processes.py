import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.errors import FFPError
from optimum_ffp.utils import processes


@given(st.integers(0, 60), st.integers(1, 9))
def test_windows_are_shared_evenly_between_processes(windows, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "count", lambda: count)
        shares = []
        for rank in range(count):
            patch.setattr(processes, "rank", lambda rank=rank: rank)
            shares.append(range(windows)[processes.share(windows)])
    assert [window for share in shares for window in share] == list(range(windows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_device_index_with_several_processes_is_rejected(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FFPError, match="cuda:1"):
        processes.join("cuda:1")
