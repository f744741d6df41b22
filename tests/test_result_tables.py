"""The tables of the pages against the records, and the differences in them against a direct computation."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


ROOT = Path(__file__).parent.parent


@pytest.fixture
def tables(tmp_path):
    """Runs the script on a copy of the pages and records."""
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/results.md"):
        shutil.copy(ROOT / page, tmp_path / page)

    def run(*options: str) -> subprocess.CompletedProcess:
        words = [sys.executable, tmp_path / "benchmarks" / "tables.py", *options]
        return subprocess.run(words, capture_output=True, text=True)

    return run


def test_wrong_table_cell_is_detected_and_corrected(tables, tmp_path):
    assert tables("--check").returncode == 0
    page = tmp_path / "docs" / "results.md"
    right = page.read_text()
    page.write_text(re.sub(r"\| 24\.15 \| 28\.49 \|", "| 24.15 | 28.48 |", right, count=1))
    found = tables("--check")
    assert found.returncode == 1 and len(found.stderr.splitlines()) == 1
    assert "methods" in found.stderr and "zero-shot" not in found.stderr
    assert tables().returncode == 0 and page.read_text() == right


def test_table_row_without_record_is_omitted(tables, tmp_path):
    for record in ("frontier", "divergence"):
        (tmp_path / "benchmarks" / "results" / f"smollm2-{record}-whole-model-20.json").unlink()
    assert tables().returncode == 0
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| 20 %: no search, layers" in (ROOT / "docs" / "results.md").read_text()
    assert "| 20 %: no search, layers" not in page and "| `--method uniform --calibration ridge` | 26.99" in page


def test_results_of_selected_windows_are_matched_by_number(tables, tmp_path):
    numbers = [*range(1, 11), *range(82, 149)]
    record = {"model": "ffp-20-seed0", "numbers": numbers, "losses": [0.01 * number for number in numbers]}
    record |= {"divergence": [0.1 * number for number in numbers], "agreement": [0.005 * number for number in numbers]}
    record = [record, {"model": "short", "numbers": [1, 3, 10], "losses": [1, 2, 3]}]
    page, cells = tmp_path / "docs" / "results.md", re.compile(r"\n\| 20 %: \*\*the default\*\* \| (.*) \|\n")
    before = cells.search(page.read_text())[1].split(" | ")
    (tmp_path / "benchmarks" / "results" / "smollm2-divergence-default.json").write_text(json.dumps(record))
    assert tables().returncode == 0
    # The mean of 82 to 148 is 115. Windows 1 to 10 are those of the prune.
    after = cells.search(page.read_text())[1].split(" | ")
    assert after[:2] == [before[0], "3.16"] and after[3:5] == ["11.5000", "57.5 %"]


def test_difference_and_its_error_match_jackknife():
    difference = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))["difference"]
    draws = np.random.default_rng(0)
    theirs = draws.normal(3, 0.3, 200)
    ours = theirs + draws.normal(0.5, 0.1, 200)

    def percent(windows) -> float:
        return 100 * (np.exp(ours[windows].mean()) / np.exp(theirs[windows].mean()) - 1)

    jackknife = np.array([percent(np.arange(200) // 8 != left_out) for left_out in range(25)])
    value, error = re.fullmatch(r"\+([\d.]+) ± ([\d.]+) %", difference([ours - theirs])).groups()
    assert float(value) == pytest.approx(percent(slice(None)), abs=0.01)
    assert float(error) == pytest.approx(24**0.5 * jackknife.std(), rel=0.01)


def test_change_of_divergence_is_relative_to_the_other_model():
    cells = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    pool = cells["Pool"](["smollm2-divergence-fast", "smollm2-divergence-policies-20"])
    row = {"model": "no-search-20-seed0", "file": "smollm2-divergence-fast", "of": "divergence"}
    cell = cells["change"](pool, row | {"than": {"file": "smollm2-divergence-policies-20"}}, 82, 148)
    ours, theirs = (
        np.array(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())[1]["divergence"][-67:])
        for name in ("smollm2-divergence-fast", "smollm2-divergence-policies-20")
    )
    assert cell.strip("*").split(" ± ")[0] == f"{100 * (ours.mean() / theirs.mean() - 1):+.1f}"
    assert cell.startswith("**")


def test_difference_over_seeds_is_the_mean_of_their_differences():
    cells = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    pool, row = cells["Pool"](["smollm2-agents"]), {"method": "ffp", "than": {"method": "no-search"}}
    records = json.loads((ROOT / "benchmarks" / "results" / "smollm2-agents.json").read_text())
    by_method = {method: [] for method in ("ffp", "no-search")}
    for record in records:
        if record["method"] in by_method:
            by_method[record["method"]].append(record["losses"]["calibrated"][0])
    ours, theirs = (np.array(losses).mean() for losses in by_method.values())
    cell = cells["against"](pool, row | {"seeds": [0, 1, 2]}, 1, 160)
    assert cell.strip("*").split(" ± ")[0] == f"{100 * (np.exp(ours - theirs) - 1):+.2f}"
    assert cells["against"](pool, row | {"seeds": [0, 1, 7]}, 1, 160) == ""
