"""What a Markdown text links to, which anchors it has, and which Make targets it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat
from markdown_it import MarkdownIt
from markdown_it.token import Token

PARSER = MarkdownIt("commonmark").enable("table")


def markdown_of(path: Path) -> str:
    """The Markdown of a .md file, or of a notebook's text cells."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def _tokens(markdown: str) -> Iterator[Token]:
    for token in PARSER.parse(markdown):
        yield token
        yield from token.children or []


def link_targets(markdown: str) -> list[str]:
    """Where links and images point, HTML `src` and `href` too."""
    found = []
    for token in _tokens(markdown):
        if token.type == "link_open":
            found.append(str(token.attrs["href"]))
        elif token.type == "image":
            found.append(str(token.attrs["src"]))
        elif token.type in {"html_inline", "html_block"}:
            found += re.findall(r"""\b(?:src|href)=["']([^"']+)""", token.content)
    return found


def anchors(markdown: str) -> set[str]:
    """The anchors that the usual renderers give the headings."""
    found: set[str] = set()
    tokens = PARSER.parse(markdown)
    for position, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        parts = tokens[position + 1].children or []
        text = "".join(part.content for part in parts if part.type in {"text", "code_inline"})
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        name, count = slug, 0
        while name in found:
            count += 1
            name = f"{slug}-{count}"
        found.add(name)
    return found


def broken_links(path: Path, root: Path) -> list[str]:
    """Relative links of a document to a file or an anchor that is not there."""
    complaints = []
    for target in link_targets(markdown_of(path)):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.is_relative_to(root.resolve()) or not file.exists():
            complaints.append(f"{path.name}: {target} does not exist")
        elif anchor and file.suffix in {".md", ".ipynb"}:
            if anchor.lower() not in anchors(markdown_of(file)):
                complaints.append(f"{path.name}: {target} has no such heading")
    return complaints


def named_targets(markdown: str) -> set[str]:
    """Make targets in code spans and code blocks (prose may "make sure" of what it likes)."""
    found: set[str] = set()
    for token in _tokens(markdown):
        if token.type in {"code_inline", "fence", "code_block"}:
            found |= targets_called(token.content)
    return found


def targets_called(shell: str) -> set[str]:
    """Make targets that lines of shell call, `make -j4 A=b one two` included."""
    found: set[str] = set()
    shell = re.sub(r'\b[A-Z_]+="[^"]*"', "", shell)  # a setting of several words
    for call in re.findall(r"(?:^|[;&|(]|\s)make((?:[ \t]+[^\s;&|)#`]+)+)", shell):
        words = [word.strip("\"',.") for word in call.split()]
        found |= {word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)}
    return found
