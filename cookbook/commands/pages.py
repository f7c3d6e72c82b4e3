"""The executed notebook of a record as a Markdown page, which GitHub shows as it stands.

A page lies beside the record of seed 0 and is named after the profile, `cpu.md`: each profile may
have one, and no second README hides the list of records. Its pictures are `cpu-<cell>.png`. Its
first line holds the record's seal, the digest of the notebook's code, and one of the page itself
with its pictures. Text can be rewoven from the notebook; outputs are what was recorded.
"""

import ast
import base64
import hashlib
import importlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from itertools import count, groupby
from pathlib import Path
from string import ascii_lowercase
from textwrap import TextWrapper
from typing import Any

from nbformat import NotebookNode

from cookbook.commands import cpu_code, proof
from cookbook.profiles import ROOT

MOST_LINES = 30  # of one output; what is longer is folded
WIDE = 110  # letters: as many as GitHub shows in a line, which it does not break
WRAP = TextWrapper(WIDE, replace_whitespace=False, break_on_hyphens=False).wrap
WIDGET = "application/vnd.jupyter.widget-view+json"  # progress bars, which would stand at 0 %
HEAD = re.compile(r"<!-- executed (\{.*\}) -->\n")
CELL = re.compile(r"^<!-- cell \d+: (\w+) -->\n", re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)")
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
PROGRESS = re.compile(r"\d%\|.*\||\d\S* \[\d\d:\d\d, .*\]$")  # as tqdm writes it
# Code stays as it is; before a target: of Markdown, of a definition, of HTML.
LINK = re.compile(
    r"(`+)(?!`).*?(?<!`)\1(?!`)"
    r"|(\]\(<?|^ {0,3}\[[^\]\n]+\]:[ ]+<?|\b(?:src|href)=[\"'])([^\s()<>\"'#]+)",
    re.DOTALL | re.MULTILINE,
)
# Tags within a text that GitHub keeps and shows. A mark it may drop, and styles it always does.
INLINE = {name: [name] for name in ("b", "i", "em", "strong", "code")} | {"mark": ["strong", "ins"]}
# Where a name of many parts may be broken, or a table would be as wide as two.
PARTS, BREAK = re.compile(r"(?<=[._(/,=-])|(?<=[a-z])(?=[A-Z])"), "\N{ZERO WIDTH SPACE}"


def write(executed: NotebookNode, content: dict[str, Any], record: Path) -> Path:
    """Write the page of an executed notebook beside its record and return where it is.

    `content` is that of the record, sealed, at the path `record`.
    """
    folder, profile = record.parent, content["profile"]
    for old in pictures(folder, profile):
        old.unlink()
    heading, outputs = "", []
    for number, cell in enumerate(executed.cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.+)", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
        elif cell.cell_type == "code":
            target = folder / f"{profile}-{number}"
            outputs.append("\n\n".join(_blocks(cell, target, _words(heading))))
    page = folder / f"{profile}.md"
    head = {
        "record": record.name,
        "seal": content["seal"],
        "notebook": content["digests"]["notebook"],
    }
    text = _composed(head, _about(content, record), _woven(executed, outputs, page))
    page.write_text(_sealed(text, folder), encoding="utf-8")
    return page


def pictures(folder: Path, profile: str) -> list[Path]:
    """Return the pictures of a profile's page."""
    named = re.compile(rf"{re.escape(profile)}-\d+[a-z]?\.png")
    return sorted(path for path in folder.glob("*.png") if named.fullmatch(path.name))


def head_of(page: Path) -> dict[str, str]:
    """Return what a page's first line holds: `record`, `seal`, `notebook` and `page`."""
    found = HEAD.match(page.read_text(encoding="utf-8"))
    return json.loads(found[1]) if found else {}


def seal_of(page: Path) -> str:
    """Return the digest that a page with this content and these pictures has."""
    sealed = HEAD.match(_sealed(page.read_text(encoding="utf-8"), page.parent))
    return str(json.loads(sealed[1])["page"]) if sealed else ""


def is_of(page: Path, notebook: NotebookNode) -> bool:
    """Tell whether a notebook's code is still what a page was executed from."""
    on_cpu = proof.digest(proof.code_of(proof.code_for_cpu(notebook)))
    return head_of(page).get("notebook") in (on_cpu, proof.code_digest(notebook))


def rewoven(page: Path, notebook: NotebookNode) -> str | None:
    """Return a page with a notebook's text and its own outputs.

    Comments and what only a GPU runs are text here, and cells of text may come and go. None where
    other code was changed, and where the page itself was: nobody knows what its outputs are of.
    """
    head, *rest = CELL.split(page.read_text(encoding="utf-8"))
    codes = [_parted(body) for kind, body in zip(rest[::2], rest[1::2]) if kind == "code"]
    sources = [str(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    if head_of(page).get("page") != seal_of(page) or not is_of(page, notebook):
        return None
    same = [_same(was, source) for (was, _), source in zip(codes, sources)]
    if len(codes) != len(sources) or not all(same):
        return None
    about = HEAD.sub("", head).strip()
    cells = _woven(notebook, [outputs for _, outputs in codes], page)
    return _sealed(_composed(head_of(page), about, cells), page.parent)


def relinked(markdown: str, origin: Path, folder: Path) -> str:
    """Return Markdown of a file in `origin` with links that are right in `folder`."""

    def moved(found: re.Match[str]) -> str:
        _, before, target = found.groups()
        if target is None or re.match(r"[a-z][a-z0-9+.-]*:|/", target, re.IGNORECASE):
            return found[0]
        return before + Path(os.path.relpath(origin / target, folder)).as_posix()

    return LINK.sub(moved, markdown)


def _about(content: dict[str, Any], record: Path) -> str:
    hardware = content["hardware"]
    notebook = Path(os.path.relpath(ROOT / f"{content['recipe']}.ipynb", record.parent)).as_posix()
    return (
        f"> Executed with profile `{content['profile']}` on {hardware['device']}, "
        f"{hardware['precision']}, seed {content['seed']}, {content['date']}, in "
        f"{content['notebook_seconds'] / 60:.1f} minutes. [The notebook]({notebook}), "
        f"[the record of this run]({record.name})."
    )


def _woven(notebook: NotebookNode, outputs: list[str], page: Path) -> list[tuple[str, str]]:
    """Return (kind, Markdown) of a notebook's cells, with one of `outputs` below each of code."""
    origin, rest = ROOT / page.parts[-3], iter(outputs)
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found.append(("markdown", relinked(cell.source, origin, page.parent)))
        elif cell.cell_type == "code":
            found.append(("code", f"{_fenced(cell.source, 'python')}\n\n{next(rest)}"))
    return found


def _composed(head: dict[str, str], about: str, cells: list[tuple[str, str]]) -> str:
    parts = [f"<!-- executed {json.dumps(head)} -->", about]
    for number, (kind, body) in enumerate(cells):
        parts += [f"<!-- cell {number}: {kind} -->", body.strip("\n")]
    return "\n\n".join(parts) + "\n"


def _sealed(text: str, folder: Path) -> str:
    """Return a page with the digest of itself, and of its pictures, in its first line."""
    if not (found := HEAD.match(text)):
        return text
    head = json.loads(found[1])
    head.pop("page", None)
    rest = text[found.end() :]
    shown = [folder / name for name in re.findall(r"!\[[^]]*\]\(([\w-]+\.png)\)", rest)]
    drawn = [hashlib.sha256(one.read_bytes()).hexdigest() for one in shown if one.exists()]
    head["page"] = proof.digest(json.dumps(head), rest, *drawn)
    return f"<!-- executed {json.dumps(head)} -->\n{rest}"


def _parted(body: str) -> tuple[str, str]:
    """Return the source and the outputs of a cell of code on a page."""
    body = body.strip("\n") + "\n"
    fence, _, rest = body.partition("python\n")
    source, _, outputs = rest.partition(f"\n{fence}\n")
    return source, outputs.strip("\n")


def _same(was: str, source: str) -> bool:
    """Tell whether two cells are the same code, of which a GPU's part may differ."""
    if proof.code_of(was) == proof.code_of(source):
        return True
    ran = [proof.code_of(cpu_code.code_for_cpu(one)) for one in (was, source)]
    return ran[0] == ran[1]


def _blocks(cell: NotebookNode, target: Path, heading: str) -> Iterator[str]:
    """Return the Markdown of a cell's outputs; pictures are written to `target` + `.png`."""
    shown = [one for one in cell.outputs if WIDGET not in one.get("data", {})]
    numbers = count()
    for stream, group in groupby(shown, key=lambda one: one.get("name")):
        if stream:
            yield from _stream(stream, "".join(one.text for one in group))
            continue
        for one in group:
            data = one.get("data", {"text/plain": "\n".join(one.get("traceback", []))})
            if "image/png" in data:
                suffix = ("", *ascii_lowercase[1:])[next(numbers)]
                path = target.with_name(f"{target.name}{suffix}.png")
                path.write_bytes(_small(base64.b64decode(data["image/png"])))
                yield f"![{heading}: picture{_maker(cell.source)}]({path.name})"
            elif "text/html" in data:
                yield _html(_public(data["text/html"]))
            elif "text/markdown" in data:
                yield _public(data["text/markdown"])
            else:
                yield from _stream("stdout", data.get("text/plain", ""))


def _stream(name: str, text: str) -> Iterator[str]:
    """Return printed text as a terminal would leave it, folded if it is long."""
    lines = ANSI.sub("", _public(text)).replace("\r\n", "\n").split("\n")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
    if name == "stderr":
        lines = [line for line in lines if not PROGRESS.search(line)]
    lines = [part for line in lines for part in (WRAP(line) if len(line) > WIDE else [line])]
    text = UNSEEN.sub("\N{REPLACEMENT CHARACTER}", "\n".join(lines).strip("\n"))
    if text:
        number = text.count("\n") + 1
        block = _fenced(text, "text")
        yield block if number <= MOST_LINES else _folded(f"{number} lines of output", block)


def _fenced(text: str, language: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def _folded(summary: str, block: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{block}\n\n</details>"


def _public(text: str) -> str:
    """Return an output without the folders of the machine that it was made on."""
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/tmp\w+", "runs", text)
    for place, word in ((ROOT, "."), (Path.home(), "~")):
        if len(place.parts) > 1:
            text = re.sub(rf"(?<![\w.]){re.escape(str(place))}(?![\w.-])", word, text)
    return text


def _words(heading: str) -> str:
    """Return a heading as the text of a picture: without what Markdown would read."""
    return re.sub(r"[\[\]`*$\\]", "", heading)


def _maker(source: str) -> str:
    """Return who made a cell's picture, if its last line is a call."""
    last = ast.parse(source).body[-1]
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        return f" made by {ast.unparse(last.value.func)}"
    return ""


def _small(png: bytes) -> bytes:
    """Return a picture with a palette of 256 colours, a third of the size, where Pillow is there.

    Matplotlib brings it; by its name, since it is no package that the cookbook asks for.
    """
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError:
        return png
    packed = io.BytesIO()
    picture = pillow.open(io.BytesIO(png)).convert("RGBA")
    white = pillow.new("RGBA", picture.size, "white")
    flat = pillow.alpha_composite(white, picture).convert("RGB")
    flat.quantize(256, dither=pillow.Dither.NONE).save(packed, "PNG", optimize=True)
    return min(png, packed.getvalue(), key=len)


class _Reader(HTMLParser):
    """Reads the tables, the marked examples and the text of an output, without its styles."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self._text: list[str] = []
        self._rows: list[list[str]] = []
        self._of_texts = False
        self._dropped = ""  # the tag whose end ends what is left out

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "progress"):  # Trainer's bar, with the count in the same box
            self._dropped = self._dropped or {"progress": "div"}.get(tag, tag)
        elif tag in ("table", "pre", "p", "div") and not self._rows:
            self._paragraph()
            self._of_texts = "fixed" in str(dict(attrs).get("style"))  # a `SideBySide`
        elif tag == "tr":
            self._rows.append([])
        elif tag == "br":
            self._text.append("\n")
        elif tag in INLINE:
            self._text += [f"<{name}>" for name in INLINE[tag]]

    def handle_endtag(self, tag: str) -> None:
        if tag == self._dropped:
            self._dropped = ""
        elif tag in ("td", "th") and self._rows:
            self._rows[-1].append(f"<{tag}>{self._taken()}</{tag}>")
        elif tag == "table":
            rows, self._rows = self._rows, []
            shown = _table(_side_by_side(rows)) if self._of_texts else _figures(rows)
            self.blocks.append(shown)
        elif tag == "pre":
            self.blocks.append(_table([[f"<td><code>{self._taken()}</code></td>"]]))
        elif tag in INLINE:
            self._text += [f"</{name}>" for name in reversed(INLINE[tag])]

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            data = re.sub(r"\S{20,}", lambda word: PARTS.sub(BREAK, word[0]), data)
            self._text.append(escape(UNSEEN.sub("", data)))

    def _taken(self) -> str:
        """Return what was read, on one line: an empty one would end a table in Markdown."""
        text, self._text = "".join(self._text).replace(BREAK, "&#8203;").strip(), []
        text = text.replace("$", "<span>$</span>")  # no formula
        blanks = re.compile("^ {1,8}", re.MULTILINE)
        text = blanks.sub(lambda found: "&nbsp;" * len(found[0]), text)
        return re.sub(r"[ \t]*\n", "<br>", text)

    def _paragraph(self) -> None:
        if text := self._taken():
            self.blocks.append(f"<p>{text}</p>")

    def close(self) -> None:
        super().close()
        self._paragraph()


def _html(text: str) -> str:
    """Return HTML as GitHub shows it."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return "\n\n".join(reader.blocks).replace("</table>\n\n<table>\n", "")


def _side_by_side(rows: list[list[str]]) -> list[list[str]]:
    """Return a table of texts with columns of the same width, or with one text below the other.

    The latter for three and more that do not fit side by side on a phone. Where there are several
    of each, the first one heads the others.
    """
    names = rows[0]
    letters = [max(map(len, column)) - len("<td></td>") for column in zip(*rows, strict=True)]
    if len(names) < 3 or sum(letters) <= 40:
        share = f'<th width="{100 // len(names)}%">'
        return [[name.replace("<th>", share) for name in names], *rows[1:]]
    found = []
    for texts in rows[1:]:
        if rows[2:]:
            texts[0] = texts[0].replace("<td>", "<td><strong>").replace("</td>", "</strong></td>")
        found += [list(pair) for pair in zip(names, texts, strict=True)]
    return found


def _table(rows: list[list[str]]) -> str:
    """Return the HTML of a table, a row on each line."""
    lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table>\n{lines}\n</table>"


def _figures(rows: list[list[str]]) -> str:
    """Return a table of figures, folded if it is long: its rows are twice as high as lines."""
    if len(rows) <= MOST_LINES // 2:
        return _table(rows)
    names = ", ".join(re.findall("<th>(.*?)</th>", "".join(rows[0])))
    return _folded(f"{len(rows) - 1} rows: {names}", _table(rows))
