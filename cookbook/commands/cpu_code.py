"""The part of a notebook's code that its profile `cpu` runs on a machine without a GPU.

A record of such a run depends on no more than that. What only a GPU runs can then be tuned without
training on a processor again, and what a processor runs cannot be changed unseen.
"""

import ast
import re
from functools import cache

_MIGHTY = {"globals", "setattr", "exec", "eval"}  # could give any name another value


@cache
def code_for_cpu(source: str, package: str = "") -> str:
    """Return a notebook's code as the profile `cpu` runs it.

    Branches that are never taken are gone: those on `config.profile`. So are the other profiles'
    columns, and rows of the table whose names occur neither in the rest of the code nor in
    `package`, the text of what it calls. Where more than one line says what `config` is all
    branches stay.
    """
    if _says_so_once(source):
        while (edit := _next_edit(source)) is not None:
            source = _replaced(source, *edit)
    return _own_column(source, package)


def _says_so_once(source: str) -> bool:
    """Tell whether one line alone says what `config` is: what could say otherwise makes it no."""
    said: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            said += [node.id] * (not isinstance(node.ctx, ast.Load) or node.id in _MIGHTY)
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            said += 2 * ["config"] * (node.attr == "profile")
        elif isinstance(node, ast.alias):
            said.append(node.asname or node.name)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            said += node.names
        elif isinstance(node, ast.arg):
            said.append(node.arg)
        else:  # functions, classes, exceptions, patterns
            said.append(str(getattr(node, "name", "")))
    return said.count("config") <= 1 and not _MIGHTY & set(said)


def _known(test: ast.expr) -> bool | None:
    """Return what a condition comes to without a GPU; None where that depends on more."""
    if isinstance(test, ast.Compare) and ast.unparse(test.left) == "config.profile":
        asked = {"== 'cpu'": True, "!= 'cpu'": False}
        return asked.get(ast.unparse(test).removeprefix("config.profile "))
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _known(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        first = _known(test.values[0])
        if first is not None and first == isinstance(test.op, ast.Or):  # the others are not asked
            return first
    return None


Edit = tuple[ast.AST, str]


def _next_edit(source: str) -> Edit | None:
    """Return the first thing to be replaced, and what by."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.IfExp) and (known := _known(node.test)) is not None:
            return node, _text(source, node.body if known else node.orelse)
        if isinstance(node, ast.BoolOp) and _known(node.values[0]) == isinstance(node.op, ast.And):
            rest = ast.BoolOp(node.op, node.values[1:]) if node.values[2:] else node.values[1]
            return node, ast.unparse(rest)
        if isinstance(node, ast.If) and (known := _known(node.test)) is not None:
            if not _text(source, node).startswith("elif"):  # part of a chain, which stays whole
                return node, _taken(source, node, known)
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Dict) and not (keyword.arg or keyword.value.keys):
                    return keyword, ""
    return None


def _taken(source: str, node: ast.If, known: bool) -> str:
    """Return the branch that is taken, as if no choice were there; nothing where there is none."""
    body = node.body if known else node.orelse
    if not body:
        return ""
    if isinstance(body[0], ast.If) and _text(source, body[0]).startswith("elif"):
        return _text(source, body[0]).removeprefix("el")
    before, after = _around(source, body[0])[0], _around(source, body[-1])[1]
    text = source.removeprefix(before).removesuffix(after)
    indent, deeper = "\n" + " " * node.col_offset, " " * (body[0].col_offset - node.col_offset)
    strings = (ast.Constant, ast.JoinedStr)
    inner = [one for part in body for one in ast.walk(part) if isinstance(one, strings)]
    if any(one.end_lineno != one.lineno for one in inner):  # whose lines are not to be moved
        return f"if True:{indent}{deeper}{text}"
    return text.replace(indent + deeper, indent)


def _text(source: str, node: ast.AST) -> str:
    return ast.get_source_segment(source, node) or ""


def _around(source: str, node: ast.AST) -> tuple[str, str]:
    """Return what stands before a node and after it. Python counts columns in bytes."""
    lines = source.encode().splitlines(keepends=True)
    assert isinstance(node, (ast.stmt, ast.expr, ast.keyword)) and node.end_lineno is not None
    before = [*lines[: node.lineno - 1], lines[node.lineno - 1][: node.col_offset]]
    after = [lines[node.end_lineno - 1][node.end_col_offset :], *lines[node.end_lineno :]]
    return b"".join(before).decode(), b"".join(after).decode()


def _replaced(source: str, node: ast.AST, by: str) -> str:
    before, after = _around(source, node)
    if isinstance(node, ast.expr):
        return _as_bare_as_it_can_be(before, by, after)
    if by or isinstance(node, ast.keyword):  # an argument goes with its comma
        return before + by + (after if by else re.sub(r"^\s*,", "", after))
    try:
        ast.parse(before + after)
    except SyntaxError:  # it was the only statement of a block
        return f"{before}pass{after}"
    return before + after


def _as_bare_as_it_can_be(before: str, by: str, after: str) -> str:
    """Return the code with brackets around what is put in only where they change what is meant."""
    in_brackets = f"{before}({by}){after}"
    meant = ast.dump(ast.parse(in_brackets))
    for bare in (
        re.sub(r"\(\s*\Z", "", before) + by + re.sub(r"\A\s*\)", "", after),
        before + by + after,
    ):
        try:
            if ast.dump(ast.parse(bare)) == meant:
                return bare
        except SyntaxError:
            continue
    return in_brackets


def _own_column(source: str, package: str) -> str:
    """Return the code with the column `cpu` alone, and in it only rows that something reads."""
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Dict):
            continue
        if _text(source, statement.targets[0]) != "SETTINGS":
            continue
        rest = _replaced(source, statement, "pass")
        names = (node for node in ast.walk(ast.parse(rest)) if isinstance(node, ast.Name))
        once = sum(node.id == "SETTINGS" for node in names) == 1
        chosen = once and re.search(
            r"^config = choose_profile\(\s*SETTINGS\s*,?\s*\)", rest, re.MULTILINE
        )
        if not chosen or re.search(r"\bvars\(config|\bconfig\.__dict__", rest):
            continue
        rest += package
        rows = [
            f'"{key}": ({_text(source, value.elts[0])},),'
            for key, value in _items(statement.value).items()
            if isinstance(value, ast.Tuple) and re.search(rf"\b{key}\b", rest)
            if _text(source, value.elts[0]) != "None"
        ]
        table = "\n".join(rows)
        return _replaced(source, statement.value, f"{{\n{table}\n}}")
    return source


def _items(table: ast.Dict) -> dict[str, ast.expr]:
    pairs = zip(table.keys, table.values)
    return {str(key.value): one for key, one in pairs if isinstance(key, ast.Constant)}
