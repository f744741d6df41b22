"""A task of lm-eval with its data beside it."""

from pathlib import Path

import pytest

from tests.helpers import make_task


@pytest.fixture
def tasks_folder(tmp_path: Path) -> Path:
    make_task(tmp_path / "tasks")
    return tmp_path / "tasks"
