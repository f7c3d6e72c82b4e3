"""Instruction pairs read from the documentation of Python's own standard library.

The source files are parsed, never imported. Licence: PSF-2.0.
"""

import ast
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

Example = dict[str, str]

SHORTEST_ANSWER = 60  # characters
LONGEST_ANSWER = 300  # characters; longer docstrings end after the last whole sentence
LONGEST_SIGNATURE = 160  # characters

# Demonstrations, tests and jokes are no documentation.
_NOT_DOCUMENTATION = {"antigravity", "idlelib", "pydoc_data", "test", "this", "turtledemo"}
# Systems package these apart from Python, or not at all; turtle says every sentence twice.
_NOT_EVERYWHERE = {"ensurepip", "tkinter", "turtle", "venv"}
# Gone in 3.12 or 3.13: without them every version gives nearly the same examples.
_REMOVED = {"aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt"}
_REMOVED |= {"distutils", "imghdr", "imp", "lib2to3", "mailcap", "msilib", "nis", "nntplib"}
_REMOVED |= {
    "ossaudiodev",
    "pipes",
    "smtpd",
    "sndhdr",
    "spwd",
    "sunau",
    "telnetlib",
    "uu",
    "xdrlib",
}
LEFT_OUT = _NOT_DOCUMENTATION | _NOT_EVERYWHERE | _REMOVED

_SIGNATURE = re.compile(r"^[\w.]+\(.*\)( ->.*)?$")
# Indented, a mark of lists, tables and examples, a heading, or an argument with its description.
NO_PROSE = re.compile(r"[ \t]|>>>|\.\.|[-*=+|@:]|Usage|\S+ --? |\S+( \S+)?:( |$)|.*(---|===)")
_NO_SENTENCE = re.compile(
    r":$|->|XXX|TODO|<\w+>|\w+\(.*\) = | = \w+\(|^Internal|https?:|__doc__|docstring"
)
_BEGINNING = re.compile(r"[A-Z][\w'-]*[ ,]|[\"'`(]")
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)\s+(?=[A-Z\"'`(])")

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_documentation() -> list[Example]:
    """Return one example per documented public name of the standard library.

    Each has `prompt` (a question with name and signature), `completion` (the leading prose of the
    docstring) and `group` (the top-level module, for splits that share no module).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    examples: list[Example] = []
    for path in standard_library_files():
        module = path.relative_to(root).with_suffix("").parts[0]
        examples.extend(_examples_of(path, root, module))
    return examples


def standard_library_files() -> list[Path]:
    """Return the source files of Python's public modules, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(name for name in sys.stdlib_module_names - LEFT_OUT if name[0] != "_")
    return [path for module in modules for path in _source_files(root, module)]


def _source_files(root: Path, module: str) -> list[Path]:
    package = root / module
    if not package.is_dir():
        return [path for path in [root / f"{module}.py"] if path.is_file()]
    files = sorted(package.rglob("*.py"))
    return [path for path in files if not {"test", "tests"} & set(path.relative_to(package).parts)]


def _examples_of(path: Path, root: Path, module: str) -> Iterator[Example]:
    dotted = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    if any(part.startswith("_") for part in dotted.split(".")):
        return
    tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for name, node in _public_definitions(tree.body, dotted):
        answer = leading_prose(ast.get_docstring(node) or "")
        if len(answer) >= SHORTEST_ANSWER and "deprecated" not in answer.lower():
            question = f"What does `{_signature(name, node)}` do in Python?"
            yield {"prompt": question, "completion": answer, "group": module}


def _public_definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, _Definition]]:
    for node in body:
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from _public_definitions(node.body, name)


def _signature(name: str, node: _Definition) -> str:
    """Return `module.name(arguments)` without `self` and `cls`, cut at a whole argument."""
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    if any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list):
        return name
    arguments = re.sub(r"^(self|cls)(, (/, )?|$)", "", ast.unparse(node.args))
    if len(arguments) > LONGEST_SIGNATURE:
        arguments = arguments[:LONGEST_SIGNATURE].rpartition(", ")[0] + ", ..."
    return f"{name}({arguments})"


def leading_prose(docstring: str) -> str:
    """Return the docstring's first whole sentences, at most `LONGEST_ANSWER` characters.

    It ends before the first example, list, table, heading or indented block, and before a sentence
    that only leads over to one. A signature on the first line is left out, and so is the markup of
    reStructuredText. Empty where the docstring does not begin with prose.
    """
    sentences: list[str] = []
    for sentence in _sentences(inspect.cleandoc(docstring)):
        longer = [*sentences, sentence]
        if len(" ".join(longer)) > LONGEST_ANSWER or _NO_SENTENCE.search(sentence):
            break
        sentences = longer
    answer = " ".join(sentences)
    return answer if _BEGINNING.match(answer) else ""


def _sentences(text: str) -> Iterator[str]:
    blocks = re.split(r"\n\s*\n", text)
    if _SIGNATURE.match(blocks[0].partition("\n")[0]):
        blocks[0] = blocks[0].partition("\n")[2]
    for block in filter(None, blocks):
        if any(NO_PROSE.match(line) for line in block.splitlines()):
            return
        paragraph = without_markup(" ".join(block.split()))
        if paragraph[-1].isalnum() or paragraph[-1] in ")]'`\"":
            paragraph += "."
        yield from SENTENCE_END.split(paragraph)


def without_markup(text: str) -> str:
    """Return a text without the roles and marks of reStructuredText."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"(?<![\w*])\*(\w+)\*(?![\w*])", r"\1", text)
