"""Errors of others in one line."""

import pytest

from optimum_ffp.errors import one_line


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
def test_the_first_line_without_tokens(error, line, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stored")
    assert one_line(error, "hf_given\n") == line
