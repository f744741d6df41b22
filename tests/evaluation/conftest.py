"""A task of lm-eval with its data beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import make_text


CHOICES = 4
METRICS = ("acc", "acc_norm")


def make_task(folder: Path, name: str = "tiny", samples: int = 9, **changes: Any) -> list[dict[str, Any]]:
    """Writes a task of multiple choice, and returns its samples."""
    folder.mkdir(exist_ok=True)
    words = iter(make_text(samples * 30, seed=3).split())
    rows = [
        {
            "question": " ".join(next(words) for _ in range(6)),
            "choices": [" ".join(next(words) for _ in range(1 + choice % 3)) for choice in range(CHOICES)],
            "label": index % CHOICES,
        }
        for index in range(samples)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in METRICS],
        "metadata": {"version": 7.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | changes))
    return rows


@pytest.fixture
def tasks_folder(tmp_path: Path) -> Path:
    make_task(tmp_path / "tasks")
    return tmp_path / "tasks"
