"""Render executed notebooks to HTML, with an index page: `python -m scripts.gallery`.

The pages load nothing from elsewhere: formulas are drawn by matplotlib, pictures are embedded, and
a content policy stops the browser from fetching what some output may ask for.
"""

import base64
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

ROOT = Path(__file__).resolve().parents[1]  # as in `profiles`, which imports torch
WIDGET = "application/vnd.jupyter.widget-view+json"
MATH = FontProperties(size=100, math_fontfamily="dejavuserif")  # 100 units are one em
STYLE = """
:root { color-scheme: light dark; --box: rgb(127 127 127 / 0.1); --line: rgb(127 127 127 / 0.4); }
body { font: 1rem/1.6 system-ui, sans-serif; overflow-wrap: break-word; max-width: 60rem;
  margin: 0 auto; padding: 1rem 1rem 4rem; }
h1, h2 { line-height: 1.25; margin: 2rem 0 0.75rem; }
small { display: block; font-weight: 400; opacity: 0.8; }
svg { overflow: visible; fill: currentColor; }
img, p > svg { max-width: 100%; }
img { height: auto; background: #fff; border-radius: 4px; }
pre, code { font: 0.875rem/1.5 ui-monospace, Menlo, Consolas, monospace; margin: 0; }
table { border-collapse: collapse; font-size: 0.9375rem; line-height: 1.4; }
th, td { border-bottom: 1px solid var(--line); padding: 0.35rem 0.75rem 0.35rem 0;
  text-align: left; vertical-align: top; }
.formula { display: block; text-align: center; padding: 0.5rem; }
.formula, .scroll, .output_subarea, .highlight, .text_cell_render > pre { overflow-x: auto; }
.highlight, .text_cell_render > pre { background: var(--box); padding: 0.75rem; }
.output_subarea { border-left: 3px solid var(--line); margin: 0.5rem 0 1rem; padding: 0.5rem; }
.anchor-link, .prompt { display: none; }
.highlight [class^="c"] { opacity: 0.75; }
.highlight [class^="k"], .highlight .ow { color: light-dark(#7a3aa8, #cfa6ff); }
.highlight [class^="s"], .better { color: light-dark(#0a5f38, #8fdba8); }
.highlight [class^="m"], .worse { color: light-dark(#a0370a, #ffab85); }
article { border: 1px solid var(--line); border-radius: 8px; margin: 1rem 0; padding: 0 1rem 1rem;
  display: flex; flex-wrap: wrap; gap: 0 2rem; }
article > * { flex: 1 1 18rem; align-self: start; min-width: 0; margin-top: 1rem; }
article h3 { line-height: 1.25; margin: 0; }
article table { width: 100%; margin-top: 0.75rem; font-variant-numeric: tabular-nums; }
article td, thead th { white-space: nowrap; }
@media (max-width: 45rem) { .output_html table[style*="table-layout"] { min-width: 40rem; } }"""
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{style}</style></head><body>{body}</body></html>"""
INTRO = """<h1>Executed notebooks</h1>
<p>What every run measured before and after training; its title opens the whole notebook.</p>"""
EMPTY = "There is no executed notebook in {} yet. Run one first: `make quickstart`."


def formula(tex: str) -> str:
    """Return a formula as SVG in the text's size and colour, or its source if it has no drawing."""
    try:
        outline = TextPath((0, 0), "$" + tex.replace("\n", " ") + "$", prop=MATH)
    except (ValueError, AttributeError):  # a command unknown to matplotlib; nothing but blanks
        return f"<code>{escape(tex)}</code>"
    drawn = ""
    for points, code in outline.iter_segments(simplify=False):
        ends = " ".join(f"{x:.0f} {-y:.0f}" for x, y in points.reshape(-1, 2))  # SVG's y goes down
        drawn += "Z" if code == Outline.CLOSEPOLY else "MLQC"[int(code) - 1] + ends
    left, low, wide, high = outline.get_extents().bounds
    box = f'aria-label="{escape(tex)}" viewBox="{left:.0f} {-low - high:.0f} {wide:.0f} {high:.0f}"'
    size = f"width:{wide / 100:.2f}em;height:{high / 100:.2f}em;vertical-align:{low / 100:.2f}em"
    return f'<svg role="img" {box} style="{size}"><path d="{drawn}"/></svg>'


class Renderer(IPythonRenderer):
    """Markdown with drawn formulas, tables that scroll in a box, and links that find the sources.

    A notebook's links are relative to its source in `path`, and not to its page in `folder`.
    """

    folder: Path

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return '<span class="formula">' + formula(body.replace(r"\frac", r"\dfrac")) + "</span>"

    def table(self, text: str) -> str:
        return f'<div class="scroll"><table>\n{text}</table></div>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        file, mark, section = url.partition("#")
        target = os.path.join(self.path, unquote(file))
        if file and os.path.exists(target):
            url = quote(os.path.relpath(target, self.folder)) + mark + section
        return super().link(text, url, title)


def render(path: Path, page: Path) -> tuple[str, str]:
    """Write the executed notebook at `path` as a page; return its title, its profile and date."""
    notebook = nbformat.read(path, as_version=4)
    folder, title, profile = path.parts[-4:-1]
    renderer = Renderer(escape=False, embed_images=True, path=str(ROOT / folder))
    renderer.folder = page.parent
    date = ""
    for cell in reversed(notebook.cells):  # the first heading has the last word
        if cell.cell_type == "markdown":
            lines = cell.source.splitlines()
            title = next((line[2:].strip() for line in lines if line.startswith("# ")), title)
        elif cell.cell_type == "code":
            date = max(date, cell.metadata.get("execution", {}).get("shell.execute_reply", ""))
            # Without Jupyter, progress bars would stand at 0 % for good.
            cell.outputs = [one for one in cell.outputs if WIDGET not in one.get("data", {})]
            cell.metadata.setdefault("alt", "Picture made by " + cell.source.rpartition("\n")[2])
    notebook.metadata.pop("widgets", None)
    exporter = HTMLExporter(template_name="basic")
    exporter.register_filter("markdown2html", MarkdownWithMath(renderer).render)
    body, _ = exporter.from_notebook_node(notebook)
    about = f"profile {profile}, {date[:10]}".removesuffix(", ")
    home = f'<a href="../../index.html">All executed notebooks</a><small>{escape(about)}</small>'
    write(page, f"{title} ({profile})", f"<nav>{home}</nav><main>{body}</main>")
    return title, about


def write(page: Path, title: str, body: str) -> None:
    """Write one page in the common frame."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(PAGE.format(title=escape(title), style=STYLE, body=body), encoding="utf-8")


def figures(metrics: Path) -> str:
    """Return a run's metrics before and after as a table, the forgetting check among them."""
    content = json.loads(metrics.read_text(encoding="utf-8"))
    rows = ""
    for one in [*content["metrics"], content["forgetting"] | {"higher_is_better": False}]:
        gain = (one["after"] - one["before"]) * (1 if one["higher_is_better"] else -1)
        word = "better" if gain > 0 else "worse" if gain < 0 else "unchanged" if gain == 0 else "?"
        name = escape(one["name"].replace("_", " "))  # as in the picture; can be wrapped
        wanted = f"<small>{'higher' if one['higher_is_better'] else 'lower'} is better</small>"
        rows += f'<tr><th scope="row">{name}{wanted}</th>'
        rows += f'<td>{one["before"]:.3f} → {one["after"]:.3f}</td><td class="{word}">{word}</td>'
    heads = "".join(f'<th scope="col">{x}</th>' for x in ("Metric", "Before → after", "Change"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


@contextmanager
def reported(path: Path, problems: list[str]) -> Iterator[None]:
    """Turn whatever is wrong with one file into one line, so that the others are rendered."""
    try:
        yield
    except Exception as error:  # hand-made files fail in ways that nobody listed
        reason = " ".join(str(error).split())[:200]
        problems.append(f"{path} cannot be shown. {type(error).__name__}: {reason}")


def build(root: Path) -> tuple[int, list[str]]:
    """Render `<folder>/<notebook>/<profile>/<notebook>.ipynb` below `root`, and the index.

    Returns how many notebooks were found, and what was wrong with some.
    """
    paths = [path for path in sorted(root.glob("*/*/*/*.ipynb")) if path.parts[-3] == path.stem]
    problems: list[str] = []
    cards: dict[str, str] = {}
    for path in paths:
        folder, name, profile = path.parts[-4:-1]
        link = f"{folder}/{name}/{profile}.html"
        metrics, picture = path.with_name("metrics.json"), path.with_name("before_after.png")
        with reported(path, problems):
            title, about = render(path, root / "gallery" / link)
            card = f'<h3><a href="{quote(link)}">{escape(title)}</a></h3>{escape(about)}'
            with reported(metrics, problems):
                card += figures(metrics) if metrics.exists() else ""
            card = f"<div>{card}</div>"
            if picture.is_file():
                data = base64.b64encode(picture.read_bytes()).decode()
                alt = escape(f"Bars before and after training: {title}, {about}")
                card += f'<img alt="{alt}" src="data:image/png;base64,{data}">'
            cards[folder] = cards.get(folder, "") + f"<article>{card}</article>"
    body = INTRO + "".join(f"<h2>{escape(folder)}</h2>{runs}" for folder, runs in cards.items())
    body += "".join(f'<p class="worse">{escape(problem)}</p>' for problem in problems)
    if paths:
        write(root / "gallery" / "index.html", "Executed notebooks", f"<main>{body}</main>")
    return len(paths), problems


def main() -> int:
    """Exit status: 0, 1 where a file could not be shown, 2 where nothing has been executed yet."""
    root = Path(os.environ.get("COOKBOOK_RUNS") or ROOT / "runs")
    found, problems = build(root)
    if not found:
        print(EMPTY.format(root), file=sys.stderr)
        return 2
    print(f"Gallery: {root / 'gallery' / 'index.html'} (executed notebooks: {found})")
    print("".join(f"{problem}\n" for problem in problems), end="", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
