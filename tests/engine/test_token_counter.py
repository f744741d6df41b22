from types import SimpleNamespace

from optimum_ffp.engine.token_counter import TokenCounter
from optimum_ffp.utils import processes


def test_resumed_processes_share_previous_token_count(monkeypatch):
    entries = {}
    journal = SimpleNamespace(value=lambda name, compute: entries.get(name) or entries.setdefault(name, compute()))
    counter = TokenCounter(layers=4)
    counter.add(100)
    assert counter.value(journal, "entry", lambda: "result") == "result"
    for count in (2, 1):
        monkeypatch.setattr(processes, "count", lambda count=count: count)
        resumed = TokenCounter(layers=4)
        assert resumed.value(journal, "entry", lambda: "other") == "result"
        assert resumed.tokens == 100 / count
        # Measured by these processes.
        resumed.add(10)
        resumed.value(journal, f"by {count}", lambda: "")
    assert entries["by 2"][1] == 4 * (100 + 2 * 10)
