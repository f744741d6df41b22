from optimum_ffp.engine.token_counter import TokenCounter
from optimum_ffp.utils import processes
from optimum_ffp.utils.resume import Journal


def test_resumed_processes_share_previous_token_count(monkeypatch, tmp_path):
    counter = TokenCounter(layers=4)
    counter.add(100)
    assert Journal(tmp_path, counter=counter).value("entry", lambda: "result") == "result"
    for count in (2, 1):
        monkeypatch.setattr(processes, "count", lambda count=count: count)
        monkeypatch.setattr(processes, "rank", lambda: 0)
        monkeypatch.setattr(processes, "on_main", lambda compute: compute())
        resumed = TokenCounter(layers=4)
        journal = Journal(tmp_path, counter=resumed)
        assert journal.value("entry", lambda: "other") == "result"
        assert resumed.tokens == 100 / count
        # Measured by these processes.
        resumed.add(10)
        if count == 2:
            journal.value("by two", lambda: "")
    last = TokenCounter(layers=4)
    Journal(tmp_path, counter=last).value("by two", lambda: "other")
    assert last.tokens == 100 + 2 * 10
