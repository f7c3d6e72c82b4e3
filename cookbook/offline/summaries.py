"""Documents with their one-line summaries, read from the docstrings of installed packages.

A docstring opens with one sentence that sums up what follows, so the opening is the summary and the
paragraphs after it are the document. The source files are parsed, never imported.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from cookbook.offline import documentation

Pair = dict[str, str]

DOCUMENT_WORDS = range(20, 81)
SUMMARY_WORDS = range(4, 26)

_SECTION = re.compile(
    r"^(Arg|Argument|Parameter|Return|Yield|Raise|Example|Note|Attribute|Warning|Reference|Input|"
    r"Output|Keyword|Shape|See Also|Usage)\b.*:?\s*$",
    re.IGNORECASE,
)
_NO_TEXT = re.compile(r"https?:|\S = |`{2}|\$|[^\x00-\x7f]")


def of_standard_library() -> list[Pair]:
    """Return the pairs found in Python's own library."""
    files = documentation.standard_library_files()
    return [pair for path in files for pair in _pairs_in(path)]


def of_package(name: str) -> list[Pair]:
    """Return the pairs found in an installed package, without its tests."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"{name} is not installed as a package: run `make install`.")
    root = Path(spec.submodule_search_locations[0])
    files = (
        path for path in sorted(root.rglob("*.py")) if not _is_left_out(path.relative_to(root))
    )
    return [pair for path in files for pair in _pairs_in(path)]


def _is_left_out(path: Path) -> bool:
    # `models` holds hundreds of copies of the same sentences, and most of the time to read.
    return not {"test", "tests", "testing", "models"}.isdisjoint(path.parts)


def _pairs_in(path: Path) -> Iterator[Pair]:
    tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            pair = split_docstring(ast.get_docstring(node) or "")
            if pair:
                yield pair


def split_docstring(docstring: str) -> Pair | None:
    """Return `document` and `summary` of a docstring, or None where it has no such shape."""
    first, *rest = _paragraphs(inspect.cleandoc(docstring)) or [""]
    document = " ".join(rest)
    usable = (
        len(first.split()) in SUMMARY_WORDS
        and len(document.split()) in DOCUMENT_WORDS
        and first.endswith(".")
        and len(documentation.SENTENCE_END.split(first)) == 1
        and all(text[0].isupper() and not _NO_TEXT.search(text) for text in (first, document))
        and document.endswith((".", "!", ")", "`"))
    )
    return {"document": document, "summary": first} if usable else None


def _paragraphs(text: str) -> list[str]:
    """Return the leading paragraphs of prose, up to the first list, example or section."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        if any(documentation.NO_PROSE.match(line) or _SECTION.match(line) for line in lines):
            break
        found.append(documentation.without_markup(" ".join(block.split())))
    return [paragraph for paragraph in found if paragraph]
