import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import optimum_ffp
from optimum_ffp.card import template_path


ROOT = Path(optimum_ffp.__file__).parent.parent


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
