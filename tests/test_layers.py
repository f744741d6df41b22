"""Imports only go down the layers, and checkpoints carry code that needs torch and transformers alone."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import optimum_ffp


ROOT = Path(optimum_ffp.__file__).parent
# Packages and single modules from the bottom up; those of one line don't import each other.
LAYERS = [
    {"errors", "version"},
    {"options"},
    {"allocation", "config", "utils"},
    {"hub"},
    {"data", "modeling"},
    {"engine"},
    {"checkpoint", "compression", "evaluation"},
    {"analysis", "recovery"},
    {"search"},
    {"planning"},
    {"pruner"},
    {"commands"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_name(path: Path) -> str:
    """A file's name within this package, with dots; that of a folder for its `__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, by their names within it."""
    inside = path.relative_to(ROOT).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*inside[: len(inside) - node.level], *(node.module or "").split(".")]
            found.update([".".join(base)] if node.module else [".".join([*base[:-1], one.name]) for one in node.names])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in {name.partition(".")[0] for name in imported(path)} - {own}:
        assert RANK[name] < RANK[own], f"{own} imports {name}"


def test_no_module_of_a_package_imports_one_that_imports_it():
    TopologicalSorter({module_name(path): imported(path) - {module_name(path)} for path in FILES}).prepare()


def test_the_top_of_the_package_is_a_table_of_contents():
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert {path.stem for path in entries} == {"__init__", *RANK} and len(entries) <= 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


CODE_FILES = sorted((ROOT / "modeling").glob("modeling_ffp_*.py"))


@pytest.mark.parametrize("path", CODE_FILES, ids=lambda path: path.name)
def test_checkpoint_code_needs_torch_and_transformers_alone(path):
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            roots.add(node.module.split(".")[0])
    assert roots <= {"torch", "transformers", "copy"}


def test_nothing_is_ever_pickled():
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) pickle|torch\.(load|save)\b", text, re.MULTILINE)


TESTS = Path(__file__).parent
# Modules and packages whose tests are elsewhere.
TESTED_IN = {
    "analysis.criteria": "analysis/test_importance.py",
    "checkpoint.gguf": "checkpoint/gguf/test_gguf.py",
    "checkpoint.pushing": "hub/test_upload.py",
    "commands.arguments": "commands/test_prune.py",
    "commands.errors": "commands/test_prune.py",
    "commands.evaluate_options": "commands/test_evaluate.py",
    "commands.recover_options": "commands/test_recover.py",
    "commands.summary": "commands/test_prune.py",
    "compression.calibration": "test_pruner.py",
    "data.request": "data/test_loading.py",
    "data.sources": "data/test_loading.py",
    "evaluation.record": "evaluation/test_table.py",
    "modeling.families": "modeling/families/test_families.py",
    "options": "test_config.py",
    "planning.preflight": "commands/test_plan.py",
}
# A module of fewer lines is one call of another, or a record.
LINES = 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_mirror(path):
    name, relative = module_name(path), path.relative_to(ROOT)
    package = name.rpartition(".")[0]
    elsewhere = TESTED_IN.get(name) or TESTED_IN.get(package)
    if path.name == "__init__.py" or relative.match("modeling_ffp_*.py") or len(path.read_text().splitlines()) < LINES:
        return
    mirror = TESTS / (elsewhere or relative.with_name(f"test_{path.name}"))
    assert mirror.is_file(), f"{relative} has no {mirror.relative_to(TESTS)}"


@pytest.mark.parametrize("name", TESTED_IN)
def test_an_exception_is_one_and_is_tested(name):
    path = ROOT.joinpath(*name.split("."))
    assert path.is_dir() or path.with_suffix(".py").is_file()
    assert (TESTS / TESTED_IN[name]).is_file()
    assert not (TESTS / path.relative_to(ROOT)).with_name(f"test_{path.name}.py").is_file()
