"""A bar on a terminal, a line elsewhere."""

import io
import logging
import re
import time

import pytest
from transformers.utils import logging as transformers_logging

from optimum_ffp.utils.progress import progress_bar, report_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def show(monkeypatch, caplog):
    """Returns what a stage of three updates draws and logs."""

    def show(stream: io.StringIO, description: str | None = "Search") -> tuple[str, list[str]]:
        monkeypatch.setattr("sys.stderr", stream)
        caplog.set_level(logging.INFO, "optimum_ffp")
        with progress_bar(3, description, "step") as bar:
            for _ in range(3):
                bar.update()
        return stream.getvalue(), caplog.messages

    transformers_logging.enable_progress_bar()
    # Commands of other tests set it.
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    yield show
    transformers_logging.disable_progress_bar()


def test_terminal_gets_progress_bar(show):
    drawn, logged = show(Terminal())
    assert "Search" in drawn and drawn.endswith("\n") and not logged


def test_non_terminal_gets_one_line_with_time(show):
    drawn, (line,) = show(io.StringIO())
    assert not drawn and re.fullmatch(r"\d\d:\d\d:\d\d Search: 0\.\d s", line)
    assert len(show(io.StringIO(), None)[1]) == 1


def test_non_terminal_gets_lines_during_long_stage(monkeypatch, caplog):
    monkeypatch.setattr("optimum_ffp.utils.progress.INTERVAL", 0.05)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    caplog.set_level(logging.INFO, "optimum_ffp")
    with progress_bar(24, "Training", "step") as bar:
        bar.update(12)
        time.sleep(0.3)
    *during, end = [line.partition(" ")[2] for line in caplog.messages]
    assert during[:2] == ["Training: step 12 of 24"] * 2 and end.startswith("Training: 0.")
    time.sleep(0.2)
    assert len(caplog.messages) == len(during) + 1


@pytest.mark.parametrize("switch", ["tqdm", "transformers"])
def test_progress_bars_can_be_disabled(show, monkeypatch, switch):
    if switch == "tqdm":
        monkeypatch.setenv("TQDM_DISABLE", "1")
    else:
        transformers_logging.disable_progress_bar()
    drawn, logged = show(Terminal())
    assert not drawn and len(logged) == 1


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_callback_gets_fraction_and_stage(show, stream):
    seen = []
    with report_progress(lambda *progress: seen.append(progress)):
        show(stream())
        show(stream(), None)
        with progress_bar(None, "Depth", "step") as bar:
            bar.update()
    show(stream())
    assert seen == [(1 / 3, "Search"), (2 / 3, "Search"), (1, "Search"), (None, "Depth")]


def test_callback_can_end_stage(show):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), report_progress(stop):
        show(io.StringIO())


def test_progress_bar_is_closed_on_error(show, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with pytest.raises(ValueError, match="broken"), progress_bar(3, "Search", "step"):
        raise ValueError("broken")
    assert terminal.getvalue().endswith("\n")
