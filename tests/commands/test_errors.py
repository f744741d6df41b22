"""Messages and errors of a command on a terminal."""

import io
import logging
import os

import pytest
from tqdm import tqdm

from optimum_ffp import FFPError
from optimum_ffp.commands.errors import one_line_errors


logger = logging.getLogger("optimum_ffp.tests")


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    stream.isatty, stream.fileno = lambda: True, lambda: 2
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((100, 30)))
    return stream


def test_error_is_printed_below_progress_bars(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with pytest.raises(SystemExit) as stop, one_line_errors():
        bar = tqdm(total=3, file=terminal)
        bar.update()
        raise FFPError("no such text")
    bar.refresh()
    assert stop.value.code == 2 and terminal.getvalue().rstrip().endswith("\nerror: no such text")


@pytest.mark.parametrize(("level", "shown"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_log_level_selects_messages(monkeypatch, level, shown):
    terminal = open_terminal(monkeypatch)
    with one_line_errors(level):
        logger.debug("tokens: 3")
        logger.info("Search: 1.0 s")
        logger.warning("little text")
    logger.warning("not shown after the command")
    assert terminal.getvalue().splitlines() == ["tokens: 3", "Search: 1.0 s", "warning: little text"][3 - shown :]
