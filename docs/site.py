"""Hooks of MkDocs: what pages link to outside of docs/ becomes part of the site.

Links are written for GitHub, relative to the file of their page.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).parent.parent
# Pages of the site by their file.
PAGES = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md"}
SOURCES = {name: source for source, name in PAGES.items()}
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`, and the records, pictures and other files that pages link to."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    linked = {source_of(page.src_uri, link) for page in files.documentation_pages() for link in links(page)}
    for path in sorted(linked - PAGES.keys()):
        if not path.startswith("docs/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the pages and files of the site."""

    def replaced(link: re.Match) -> str:
        path = source_of(page.file.src_uri, link[1])
        return f"]({PAGES.get(path, path.removeprefix('docs/'))}"

    return LINK.sub(replaced, markdown)


def links(page: File) -> list[str]:
    """Return the links of a page to other files."""
    return LINK.findall(page.content_string)


def source_of(page: str, link: str) -> str:
    """Return the path in the repository that a page links to."""
    folder = (ROOT / SOURCES.get(page, f"docs/{page}")).parent
    return (folder / link).resolve().relative_to(ROOT).as_posix()
