"""Imports only go down the layers, and checkpoints carry code that needs torch and transformers alone."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import optimum_ffp


ROOT = Path(optimum_ffp.__file__).parent
# Packages and single modules from the bottom up; those of one line don't import each other.
LAYERS = [
    {"errors", "version"},
    {"config"},
    {"allocation"},
    {"utils"},
    {"plan"},
    {"hub"},
    {"data", "modeling"},
    {"engine", "export"},
    {"vocabulary"},
    {"evaluation"},
    {"checkpoint", "compression"},
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


def test_imports_follow_layer_order():
    for path in FILES:
        package = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in {name.partition(".")[0] for name in imported(path)} - {package}:
            assert RANK[name] < RANK[package], f"{path.relative_to(ROOT)} imports {name}"


def test_modules_have_no_import_cycles():
    TopologicalSorter({module_name(path): imported(path) - {module_name(path)} for path in FILES}).prepare()


def test_every_top_level_module_has_layer():
    entries = [path for path in ROOT.iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert {path.stem for path in entries} == {"__init__", *RANK} and len(entries) <= 22


CODE_FILES = sorted((ROOT / "modeling").glob("modeling_ffp_*.py"))


def test_checkpoint_code_imports_only_torch_and_transformers():
    roots = set()
    for node in (node for path in CODE_FILES for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            roots.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            roots.add(node.module.split(".")[0])
    assert roots <= {"torch", "transformers", "copy"}


def test_package_never_uses_pickle():
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) pickle|torch\.(load|save)\b", text, re.MULTILINE)
