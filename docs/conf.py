"""How `make docs` turns these pages and the docstrings into a site (Sphinx, MyST); warnings are errors there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import pdadmm  # noqa: E402

project = "pdadmm"
version = release = pdadmm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pdadmm {version}"
html_copy_source = False
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": False}

LINK_OUT = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+)([^)]*)\)")
LINK = re.compile(r"\]\(([\w/-]+)\.md\)")
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


def contents(index: str) -> str:
    """Return the tables of contents that the index page's own sections and links make."""
    _, *parts = HEADING.split(index)
    tables = []
    for title, part in zip(parts[::2], parts[1::2]):
        pages = [page for page in LINK.findall(part) if (HERE / f"{page}.md").exists()]
        if pages:
            lines = "\n".join(pages)
            tables.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n")
    return "\n".join(tables)


def prepare(app, page: str, source: list[str]) -> None:
    """Give the index its contents, and name what lies outside of these pages by its place in the repository."""
    text = source[0]
    if page == root_doc:
        text += "\n" + contents(text)
    here = (HERE / page).parent

    def inside(match: re.Match) -> str:
        words, up, rest = match.groups()
        target = (here / up / rest.partition("#")[0]).resolve()
        if target.is_relative_to(HERE):
            return match[0]
        place = target.relative_to(HERE.parent)
        return f"`{place}`" if words in (str(place), up + rest, target.name) else f"{words} (`{place}`)"

    source[0] = LINK_OUT.sub(inside, text)


def as_written(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: show indented equations and tables as they are, and no mark-up but ``code``."""
    out: list[str] = []
    literal = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not literal and (not out or not out[-1].strip()):
            out += ["::", ""]
            literal = True
        elif line.strip() and not indented:
            literal = False
        out.append(line if indented or line.startswith((">>>", "...")) else escaped(line))
    lines[:] = out


def escaped(line: str) -> str:
    """Return a line of text in which nothing but ``code`` and `code` means anything to reStructuredText."""
    text, *rest = re.split(r"(``.*?``|`[^`]+`)", line)
    out = [re.sub(r"([|*_`])", r"\\\1", text)]
    for code, text in zip(rest[::2], rest[1::2]):
        out += [f"``{code.strip('`')}``", re.sub(r"([|*_`])", r"\\\1", text)]
    return "".join(out)


def setup(app) -> None:
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", as_written)
