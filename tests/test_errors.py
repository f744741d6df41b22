"""Errors of others in one line."""

import pytest

from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.errors import FFPError, convert_errors, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  It failed.\nHere is why."), "It failed"),
        (RuntimeError(), "RuntimeError"),
        ("", ""),
        (
            ValueError("Illegal header value b'Bearer hf_given\\n', nor hf_stored"),
            "Illegal header value b'Bearer ***\\n', nor ***",
        ),
    ],
)
def test_one_line_keeps_first_line_and_hides_tokens(error, line, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stored")
    assert one_line(error, "hf_given\n") == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(13, "Permission denied", "/locked/x"),
            "/locked/x can't be read or written: Permission denied",
        ),
        (OSError(36, "File name too long", "x" * 9), "xxxxxxxxx can't be read or written: File name too long"),
        (PermissionError("a library's own words"), "a library's own words"),
    ],
)
def test_os_errors_are_one_line_without_traceback(error, line, capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {line}\n"


def test_convert_errors_wraps_foreign_errors_only():
    with pytest.raises(FFPError, match="^x.txt: broken$") as raised, convert_errors(lambda error: f"x.txt: {error}"):
        raise OSError("broken")
    assert raised.value.__suppress_context__
    own = FFPError("no text")
    with pytest.raises(FFPError) as raised, convert_errors(lambda error: "not this"):
        raise own
    assert raised.value is own
    with pytest.raises(KeyboardInterrupt), convert_errors(lambda error: "not this"):
        raise KeyboardInterrupt
