"""What `make check-data` found, as text for a terminal and as one page that needs nothing else."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2328, #e4e7ea);
  --soft: light-dark(#5a6570, #9aa5b0); --line: light-dark(#d9dee3, #333b43);
  --ground: light-dark(#fff, #14181c); --box: light-dark(#f4f6f8, #1c2228);
  --bar: light-dark(#30638e, #6aa5d8); --good: light-dark(#0a6b3d, #7fd3a0);
  --fair: light-dark(#8a5a00, #f0c065); --bad: light-dark(#a8261f, #ff9a90);
  --learned: light-dark(#fdebc0, #574514); }
* { box-sizing: border-box; }
body { font: 1rem/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 56rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p { margin: .4rem 0; }
.verdict { border-left: .4rem solid; border-radius: .25rem; background: var(--box);
  padding: .8rem 1rem; font-size: 1.3rem; font-weight: 650; line-height: 1.35; }
.good { border-color: var(--good); color: var(--good); }
.fair { border-color: var(--fair); color: var(--fair); }
.bad { border-color: var(--bad); color: var(--bad); font-size: 1.05rem; }
.warnings { padding-left: 1.25rem; margin: .75rem 0; }
.warnings li { margin: .3rem 0; }
.warnings li::marker { color: var(--fair); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0 0; }
dt { color: var(--soft); } dd { margin: 0; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1.5rem .35rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
td.figure { white-space: nowrap; }
figure { margin: 1.1rem 0; }
figcaption { font-weight: 600; margin-bottom: .35rem; }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .75rem;
  font-size: .88rem; font-variant-numeric: tabular-nums; align-items: center; }
.bars .of { text-align: right; color: var(--soft); white-space: nowrap; }
.bars .bar { display: flex; align-items: center; gap: .45rem; min-width: 0; }
.bars i { display: block; height: .95rem; min-width: 1px; background: var(--bar);
  border-radius: 0 .15rem .15rem 0; }
pre { background: var(--box); border-radius: .35rem; padding: .8rem 1rem; margin: .75rem 0;
  white-space: pre-wrap; font: .86rem/1.55 ui-monospace, Menlo, Consolas, monospace; }
code { font: .92em ui-monospace, Menlo, Consolas, monospace; background: var(--box);
  padding: .1em .3em; border-radius: .2rem; }
mark { background: var(--learned); color: inherit; border-radius: .15rem; padding: .05em 0; }
small { color: var(--soft); }
@media (max-width: 34rem) { th, td { padding-right: .9rem; } h2 { margin-top: 1.5rem; } }
@media print { :root { color-scheme: light; } }
"""
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head><body>{body}</body></html>
"""
LONGEST = 1500  # characters of an example that are shown


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column names them."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Bars:
    """Counts, to be drawn."""

    caption: str
    counts: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Examples:
    """Texts in runs, each with whether it is learned."""

    texts: Sequence[Sequence[tuple[str, bool]]]


_CODE = re.compile("`([^`]+)`")
Block = str | Table | Bars | Examples


@dataclass(frozen=True)
class Section:
    """A title and what stands under it."""

    title: str
    blocks: Sequence[Block]


class Found(Protocol):
    """What is shown."""

    subject: dict[str, str]
    sections: list[Section]
    warnings: list[str]
    refusal: str

    @property
    def verdict(self) -> str:
        """The first line."""


def _short(runs: Sequence[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """Yield runs with what is too much left out in the middle, so that their end is seen."""
    most = max(200, LONGEST // max(1, len(runs)))
    for text, on in runs:
        if len(text) > most:
            left = len(text) - most
            text = f"{text[: most // 2]} [... {left} characters ...] {text[-most // 2 :]}"
        yield text, on


# --- Terminal -------------------------------------------------------------------------------------


def as_text(found: Found) -> str:
    """Return the report for a terminal, the verdict first."""
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    lines = [found.verdict, *(f"  - {one}" for one in found.warnings), ""]
    lines.append("; ".join(f"{name}: {value}" for name, value in found.subject.items()))
    for section in found.sections:
        lines += ["", section.title]
        for block in section.blocks:
            lines += [f"  {line}" if line else "" for line in _lines(block, width - 2)]
    return "\n".join(lines)


def _lines(block: Block, width: int) -> Iterator[str]:
    if isinstance(block, str):
        yield from textwrap.wrap(block, width, break_long_words=False, break_on_hyphens=False)
    elif isinstance(block, Table):
        table = [list(block.head), *map(list, block.rows)]
        sizes = [max(len(row[n]) for row in table) for n in range(len(block.head))]
        for row in table:
            cells = (cell.ljust(size) for cell, size in zip(row, sizes))
            yield "   ".join(cells).rstrip()
    elif isinstance(block, Bars):
        yield f"{block.caption}:"
        most = max(count for _, count in block.counts)
        size = max(len(label) for label, _ in block.counts)
        for label, count in block.counts:
            yield f"{label:>{size}}  {'#' * -(-40 * count // max(1, most))} {count:,}".rstrip()
    else:
        yield "Examples; what is learned stands between \u27e6 and \u27e7:"
        for runs in block.texts:
            text = "".join(f"\u27e6{one}\u27e7" if on else one for one, on in _short(runs))
            yield from (f"| {line}".rstrip() for line in text.splitlines())
            yield ""


# --- Page -----------------------------------------------------------------------------------------


def as_html(found: Found) -> str:
    """Return the report as a page, all of it escaped; nothing is loaded from elsewhere."""
    kind = "bad" if found.refusal else "fair" if found.warnings else "good"
    title = f"Data check: {found.subject['data']}"
    body = [f"<h1>{escape(title)}</h1>"]
    verdict = escape(found.verdict[:1].upper() + found.verdict[1:])
    body.append(f'<div class="verdict {kind}">{verdict}</div>')
    if found.warnings:
        items = "".join(f"<li>{escape(one)}</li>" for one in found.warnings)
        body.append(f'<ul class="warnings">{items}</ul>')
    facts = (
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in found.subject.items()
    )
    body.append(f"<dl>{''.join(facts)}</dl>")
    for section in found.sections:
        blocks = "".join(map(_block, section.blocks))
        body.append(f"<section><h2>{escape(section.title)}</h2>{blocks}</section>")
    return PAGE.format(title=escape(title), style=STYLE, body="".join(body))


def _block(block: Block) -> str:
    if isinstance(block, str):
        text = _CODE.sub(r"<code>\1</code>", escape(block))
        return f"<p>{text}</p>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Bars):
        return _bars(block)
    legend = "<p><small>Read back from token ids; <mark>marked</mark> is learned.</small></p>"
    return legend + "".join(f"<pre>{_marked(runs)}</pre>" for runs in block.texts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in table.head)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _cell(text: str) -> str:
    kind = ' class="figure"' if text[:1].isdigit() and len(text) < 20 else ""
    return f"<td{kind}>{escape(text)}</td>"


def _bars(bars: Bars) -> str:
    most = max(1, *(count for _, count in bars.counts))
    lines = "".join(
        f'<span class="of">{escape(label)}</span><span class="bar">'
        f'<i style="width:{78 * count / most:.1f}%"></i>{count:,}</span>'
        for label, count in bars.counts
    )
    caption = f"<figcaption>{escape(bars.caption[:1].upper() + bars.caption[1:])}</figcaption>"
    return f'<figure>{caption}<div class="bars">{lines}</div></figure>'


def _marked(runs: Sequence[tuple[str, bool]]) -> str:
    return "".join(
        f"<mark>{escape(text)}</mark>" if on else escape(text) for text, on in _short(runs)
    )
