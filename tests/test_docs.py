"""What the documentation names is there: links, pages, files, and the options of every command."""

import argparse
import re
import runpy
import shlex
from pathlib import Path

import pytest

import optimum_ffp
from optimum_ffp.commands import FFPCommand


ROOT = Path(optimum_ffp.__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES]
# Those that may name what no longer exists, too.
ALL_PAGES = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("benchmarks/**/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
]
# Pages of figures, and of generated text.
LONG = {"reference.md", "results.md"}
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs a checkout")
on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """Where GitHub lets a link to a page point to."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path, program: str) -> list[list[str]]:
    """The words of every command of a page that begins so, fenced or indented."""
    lines = page.read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.match(rf" *{re.escape(program)}", line)]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@on_every_page
def test_mentioned_files_exist(page):
    for path in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", page.read_text()):
        assert (ROOT / path).exists() or (ROOT / "optimum_ffp" / path).exists(), path
    for program in ("python -m pytest ", ".venv/bin/python -m pytest "):
        for words in commands(page, program):
            assert all((ROOT / path).exists() for path in words[3:]), words


@on_every_page
def test_documented_commands_parse(page):
    parsers = {}
    for command in FFPCommand.SUBCOMMANDS:
        parsers[command.name] = argparse.ArgumentParser(exit_on_error=False)
        command.subcommand_class.parse_args(parsers[command.name])
    for _, _, name, *words in commands(page, "optimum-cli ffp "):
        parsers[name].parse_args(words)


@on_every_page
def test_documented_benchmark_commands_parse(page, monkeypatch):
    class Understood(Exception):
        pass

    def parse(parser: argparse.ArgumentParser) -> None:
        parser.parse_known_args()
        raise Understood

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for _, script, *words in commands(page, "python benchmarks/"):
        monkeypatch.setattr("sys.argv", [script, *words])
        with pytest.raises(Understood):
            runpy.run_path(str(ROOT / script), run_name="__main__")


def test_readme_is_short_and_links_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text) <= 7000
    for page in GUIDES:
        assert f"(docs/{page.name})" in text


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_guides_are_short_and_titled_by_question(page):
    text = page.read_text()
    assert text.splitlines()[0].endswith("?")
    assert len(text) <= 6000 or page.name in LONG


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_name_language(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)
    assert all(fences[::2]) and not any(fences[1::2])


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_generated_sections_are_up_to_date(page):
    updated = runpy.run_path(str(ROOT / "docs" / "generate.py"))["updated"]
    assert updated(page.read_text()) == page.read_text(), "run make style"


def test_mentioned_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([\w-]+)`", page.read_text())) <= targets
