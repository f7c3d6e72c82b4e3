"""What a recorded run depended on, and whether the repository still is what was run.

A record under `results/recipes` carries digests of its notebook's code, of the parts of `cookbook`
that this code uses, of its group's locked packages and of the embedded products that it reads.
While they are equal to today's, the record is current: what the run proved still holds.
"""

import ast
import hashlib
import io
import json
import re
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbformat

from cookbook.commands import cpu_code
from cookbook.offline.manifest import PRODUCTS
from cookbook.profiles import ROOT

Digests = dict[str, str]
Place = tuple[str, str]  # a module, and a name in it or nothing for its other lines
# How the embedded products are built is told apart, by product.
APART = ("cookbook.offline",)
SOURCES = ("cookbook.offline.manifest", "cookbook.offline.sources")  # told by fingerprints
# What other people's data and models go through. The runs recorded here have the embedded ones, so
# that they depend on none of it; a test sees that they call none of it.
GIVEN: tuple[Place, ...] = (
    ("cookbook.data", "_given_splits"),
    ("cookbook.files", "_binary"),
    ("cookbook.files", "_csv_rows"),
    ("cookbook.files", "_named_by_card"),
    ("cookbook.files", "read"),
    ("cookbook.files", "_saved"),
    ("cookbook.files", "_texts"),
    ("cookbook.forms", "as_pairs"),
    ("cookbook.hub", "_Failure"),
    ("cookbook.hub", "_model"),
    ("cookbook.models", "_given_model"),
    ("cookbook.preferences", "pair_splits"),
    ("cookbook.preferences", "thumb_splits"),
    ("cookbook.profiles", "_named"),
)
# Settings of a comparison that leave each of its cells as it is.
HOW_MUCH = ("methods", "rates_at_most", "seeds", "learning_rates")
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.ENDMARKER}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def digest(*parts: str) -> str:
    """Return the first half of the parts' SHA-256, marked as one: it is no secret."""
    return "sha256:" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def code_of(source: str) -> str:
    """Return Python code without what does not run: comments, docstrings, blank space.

    A comma counts. Indents stay, as words. Python 3.12 and newer cut f-strings into pieces and
    3.11 does not; here each is one piece on all.
    """
    silent = {(one.lineno, one.col_offset) for one in _docstrings(ast.parse(source))}
    lines = source.splitlines(keepends=True)
    found: list[str] = []
    opened: list[tuple[int, int]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            opened.append(token.start)
        elif kind == "FSTRING_END":
            start = opened.pop()
            if not opened:
                found.append(_between(lines, start, token.end))
        elif kind in ("INDENT", "DEDENT"):
            found.append(kind)
        elif not opened and token.type not in _SILENT and token.start not in silent:
            found.append(token.string)
    return "\n".join(found)


def _docstrings(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *_DEFINITIONS)) and ast.get_docstring(node) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            yield first.value


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    chosen = lines[start[0] - 1 : end[0]]
    chosen[-1] = chosen[-1][: end[1]]
    chosen[0] = chosen[0][start[1] :]
    return "".join(chosen)


@dataclass
class _Module:
    """The definitions of a module, what its other lines do, and where its names come from."""

    name: str
    source: str
    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    body: list[ast.stmt] = field(default_factory=list)
    imported: dict[str, Place] = field(default_factory=dict)  # name -> module, its name there


def _read(name: str, source: str) -> _Module:
    module = _Module(name, source)
    tree = ast.parse(source)
    for statement in tree.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            continue
        names = _names(statement)
        for name in names:
            module.defined.setdefault(name, []).append(statement)
        if not names:
            module.body.append(statement)
    for node in ast.walk(tree):  # those inside of functions too
        if isinstance(node, ast.ImportFrom):
            for one in node.names:
                module.imported[one.asname or one.name] = (node.module or "", one.name)
        elif isinstance(node, ast.Import):
            for one in node.names:
                whole = one.name if one.asname else one.name.partition(".")[0]
                module.imported[one.asname or whole] = (whole, "")
    return module


def _names(statement: ast.stmt) -> list[str]:
    """Return what a statement of a module defines."""
    if isinstance(statement, _DEFINITIONS):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        targets = [statement.target]
    inner = (node for target in targets for node in ast.walk(target))
    return [node.id for node in inner if isinstance(node, ast.Name)]


def _modules(root: Path) -> dict[str, _Module]:
    """Return the package's modules by their full names."""
    found = {}
    for path in sorted((root / "cookbook").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        found[name] = _read(name, path.read_text(encoding="utf-8"))
    return found


class Package:
    """The parts of `cookbook` and what each of them uses."""

    def __init__(self, root: Path = ROOT) -> None:
        self._modules = _modules(root)
        self.text = "\n".join(module.source for module in self._modules.values())
        self._known: dict[Place, tuple[str, list[Place]]] = {}

    def used_by(
        self, source: str, apart: tuple[str, ...] = APART, without: tuple[Place, ...] = ()
    ) -> Digests:
        """Return `module.name` -> digest for all that some code uses, directly or through others.

        A module's lines that define nothing count as soon as a name of it is used; of a module that
        is handed on as a whole, everything does. Modules below `apart` are left out, and so are the
        places `without`, with what only they use.
        """
        script = _read("", source)
        script.defined, script.body = {}, ast.parse(source).body
        waiting = [*self._references(script, script.body), ("cookbook", "")]
        found: dict[Place, str] = {}
        while waiting:
            module, name = place = waiting.pop()
            if place in found or place in without or module.startswith(apart):
                continue
            found[place], uses = self._part(place)
            waiting += [*uses, (module, "")]
        return {
            f"{module.removeprefix('cookbook.')}{'.' if name else ''}{name}": value
            for (module, name), value in sorted(found.items())
            if name or self._modules[module].body[1:]  # more than a docstring
        }

    def _part(self, place: Place) -> tuple[str, list[Place]]:
        """Return the digest of a part of the package, and the parts that it names."""
        if place not in self._known:
            module, name = place
            one = self._modules[module]
            statements = one.defined[name] if name else one.body
            self._known[place] = self._digest(one, statements), self._references(one, statements)
        return self._known[place]

    def _digest(self, module: _Module, statements: list[ast.stmt]) -> str:
        texts = []
        for one in statements:
            decorated = getattr(one, "decorator_list", [])
            first = min([one.lineno, *(line.lineno for line in decorated)])
            lines = module.source.splitlines(keepends=True)[first - 1 : one.end_lineno]
            texts.append(code_of("".join(lines)))
        # What is imported from elsewhere under the same name makes another thing of the same line.
        for name in sorted({node.id for node in _walk(statements) if isinstance(node, ast.Name)}):
            source, imported = module.imported.get(name, ("", ""))
            if source and source.partition(".")[0] != "cookbook":
                texts.append(f"{source}:{imported}:{name}")
        return digest(*texts)

    def _references(self, module: _Module, statements: list[ast.stmt]) -> list[Place]:
        """Return the parts of the package that some statements name."""
        found: list[Place] = []
        of_module: set[int] = set()
        for node in _walk(statements):  # an attribute comes before the name that it is of
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (whole := self._module_of(module, node.value.id)) is not None:
                    found += self._resolved(whole, node.attr)
                    of_module.add(id(node.value))
            elif isinstance(node, ast.Name) and id(node) not in of_module:
                if node.id in module.defined:
                    found.append((module.name, node.id))
                elif (whole := self._module_of(module, node.id)) is not None:
                    found += self._everything(whole)
                elif node.id in module.imported:
                    found += self._resolved(*module.imported[node.id])
        return found

    def _module_of(self, module: _Module, name: str) -> str | None:
        """Return the module of the package that a name stands for, if it does."""
        source, imported = module.imported.get(name, ("", ""))
        whole = f"{source}.{imported}" if imported else source
        return whole if whole in self._modules else None

    def _resolved(self, module: str, name: str) -> list[Place]:
        if f"{module}.{name}" in self._modules:
            return self._everything(f"{module}.{name}")
        if module not in self._modules:
            return []
        if name in self._modules[module].defined:
            return [(module, name)]
        if name in self._modules[module].imported:  # passed on by a package's __init__
            return self._resolved(*self._modules[module].imported[name])
        return self._everything(module)

    def _everything(self, module: str) -> list[Place]:
        return [(module, name) for name in ("", *self._modules[module].defined)]


def _walk(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for one in statements:
        yield from ast.walk(one)


@cache
def package(root: Path = ROOT) -> Package:
    """Return the package's parts, read once until `forget` is called."""
    return Package(root)


@cache
def _lock(root: Path) -> list[dict[str, Any]]:
    content = tomllib.loads((root / "poetry.lock").read_text(encoding="utf-8"))
    return list(content["package"])


def forget() -> None:
    """Read package and lock anew for the next digests: they may have been changed meanwhile."""
    package.cache_clear()
    _lock.cache_clear()


def notebook_code(notebook: nbformat.NotebookNode) -> str:
    """Return the code of a notebook's cells, one after the other."""
    return "\n".join(str(cell.source) for cell in notebook.cells if cell.cell_type == "code")


def code_digest(notebook: nbformat.NotebookNode) -> str:
    """Return the digest of a notebook's code, executed or not."""
    return digest(code_of(notebook_code(notebook)))


def code_for_cpu(notebook: nbformat.NotebookNode, root: Path = ROOT) -> str:
    """Return what the profile `cpu` runs of a notebook's code where there is no GPU."""
    return cpu_code.code_for_cpu(notebook_code(notebook), package(root).text)


def locked(groups: Iterable[str], root: Path = ROOT) -> str:
    """Return the digest of the versions that the lock has for the core and some groups."""
    wanted = {"main", *groups}
    chosen = [one for one in _lock(root) if wanted & set(one["groups"])]
    return digest(*sorted(f"{one['name']}=={one['version']}" for one in chosen))


def products(text: str, root: Path = ROOT) -> Digests:
    """Return name -> digest of the embedded products that some code names."""
    found = {}
    for product in PRODUCTS:
        if re.search(rf"(?<![\w-]){re.escape(product.name)}(?![\w-])", text):
            call = f"from cookbook.offline.builders import {product.build.__name__} as f\nf"
            parts = package(root).used_by(call, apart=SOURCES)
            found[product.name] = digest(product.fingerprint, *map("=".join, parts.items()))
    return found


def digests(recipe: str, root: Path = ROOT, gpu: bool = False) -> dict[str, Any]:
    """Return the digests of all that a run of a recipe (`02-PEFT/Falcon-7B-LoRA`) depends on.

    The run is one of the profile `cpu` without a GPU; with `gpu` it may be any run.
    """
    notebook = nbformat.read(root / f"{recipe}.ipynb", as_version=4)
    source = notebook_code(notebook) if gpu else code_for_cpu(notebook, root)
    groups = re.findall(r'check_environment\("([\w-]+)"\)', source)
    used = package(root).used_by(source, without=() if gpu else GIVEN)
    # The forgetting check's text is read by the package, not named in the notebook.
    read = source + (" general-text" if "data.general_text" in used else "")
    return {
        "notebook": digest(code_of(source)),
        "cookbook": used,
        "packages": locked(groups, root),
        "products": products(read, root),
    }


def cell_digests(recipe: str, root: Path = ROOT, gpu: bool = False) -> dict[str, Any]:
    """Return the digests of what a cell of a recipe's whole comparison depends on.

    That is the notebook up to its search for rates, without the settings that say how much of it is
    run, and what it uses of the package, but for what plans a training, keeps a cell or shows it.
    With `gpu` the cells may be of any profile.
    """
    notebook = nbformat.read(root / f"{recipe}.ipynb", as_version=4)
    searches = ["sweeps.search_rate(" in cell.source for cell in notebook.cells]
    notebook.cells = notebook.cells[: searches.index(True)]
    source = notebook_code(notebook) if gpu else code_for_cpu(notebook, root)
    apart = tuple(f"cookbook.{name}" for name in ("comparing", "figures", "planner", "sweeps"))
    tree = ast.parse(source)
    tree.body = [one for one in tree.body if _names(one) != ["WHOLE"]]
    for one in tree.body:
        if _names(one) == ["SETTINGS"]:
            assert isinstance(one, ast.Assign) and isinstance(one.value, ast.Dict)
            rows = zip(one.value.keys, one.value.values)
            kept = [row for row in rows if ast.literal_eval(row[0] or "") not in HOW_MUCH]
            one.value = ast.Dict([key for key, _ in kept], [value for _, value in kept])
    source = ast.unparse(tree)
    return {
        "notebook": digest(code_of(source)),
        "cookbook": package(root).used_by(source, (*APART, *apart), () if gpu else GIVEN),
        "packages": locked(re.findall(r"check_environment\('([\w-]+)'\)", source), root),
        "products": products(source + " general-text", root),
    }


def changes(recorded: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Return the names of what differs, such as `notebook` or `cookbook.data.load_splits`."""
    found = []
    for kind in sorted(recorded.keys() | present.keys()):
        old, new = recorded.get(kind), present.get(kind)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{kind}.{name}" for name in changes(old, new)]
        elif old != new:
            found.append(kind)
    return found


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record with a digest of all of it, by which a later edit shows."""
    return {**content, "seal": seal_of(content)}


def seal_of(content: dict[str, Any]) -> str:
    """Return the seal that a record with this content has."""
    rest = {key: value for key, value in content.items() if key != "seal"}
    return digest(json.dumps(rest, sort_keys=True))
