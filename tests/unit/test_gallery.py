"""The gallery: pages that need no network, and an index that tells what was measured."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from scripts import gallery

pytestmark = pytest.mark.unit

DOT = "iVBORw0KGgo="  # the beginning of a PNG
# Attributes from which a browser loads; `href` does in <link>, <use> and <image>, not in <a>.
LOADS = {"src", "srcset", "data", "poster", "background", "xlink:href", "href"}
STYLE_LOADS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "0%| |"}
WIDGETS: dict[str, Any] = {"application/vnd.jupyter.widget-state+json": {"state": {"a": {}}}}
TEXT = """# Tune <it> & see

A weight $W$ and $W x + \\frac{\\alpha}{r} B A x$, but no $\\unknown{x}$.

$$\\hat{A} = \\frac{r - \\mathrm{mean}(r)}
{\\mathrm{std}(r)}$$

| wide | table |
| --- | --- |
| a | b |

The [folder](README.md), its [start](README.md#start), [elsewhere](https://example.org/README.md).
"""


class Page(HTMLParser):
    """What a page loads, links to and holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.loads: list[str] = []
        self._within = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        self._within = tag
        for name, value in found.items():
            if name in LOADS and (tag, name) != ("a", "href"):
                self.loads.append(value)
        self._style(found.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._within == "style":
            self._style(data)
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def _style(self, css: str) -> None:
        self.loads += [url or imported for url, imported in STYLE_LOADS.findall(css)]

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def external(self) -> list[str]:
        """What is loaded and is neither in the page itself nor beside it, and all scripts."""
        scripts = ["<script>"] * len(self.all("script"))
        return scripts + [url for url in self.loads if not url.startswith(("data:", "#"))]


def run(
    runs: Path,
    name: str = "Falcon",
    profile: str = "cpu",
    text: str = TEXT,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Write a run as `make notebook` leaves it; returns its folder."""
    folder = runs / "02-PEFT" / name / profile
    folder.mkdir(parents=True)
    outputs = [
        new_output("stream", name="stdout", text="x" * 500),
        new_output("display_data", data=WIDGET),
        new_output("display_data", data={"image/png": DOT, "text/plain": "<Figure>"}),
        new_output("display_data", data={"text/html": "<table><tr><td>cell</td></tr></table>"}),
        new_output("display_data", data={"text/markdown": "**loud** $x$"}),
    ]
    cell = new_code_cell("import this\nplot(this)", outputs=outputs)
    cell.metadata["execution"] = {"shell.execute_reply": "2025-11-22T10:04:05.1Z"}
    notebook = new_notebook(cells=[new_markdown_cell(text), cell, new_markdown_cell("# Later")])
    notebook.metadata["widgets"] = WIDGETS
    write(notebook, folder / f"{name}.ipynb")
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def measured(
    name: str = "held_out_loss", before: float = 3.0, after: float = 2.0
) -> dict[str, Any]:
    """Return the part of metrics.json that the gallery reads."""
    one = {"name": name, "before": before, "after": after, "higher_is_better": False}
    rouge = {"name": "rouge_l", "before": 0.3, "after": 0.2, "higher_is_better": True}
    forgetting = {"name": "general_text_loss", "before": 1.5, "after": 1.5}
    return {"metrics": [one, rouge], "forgetting": forgetting}


def pages(runs: Path) -> dict[str, Page]:
    """Build the gallery, which must meet no problem; returns its pages by path."""
    _, problems = gallery.build(runs)
    assert problems == []
    root = runs / "gallery"
    return {
        path.relative_to(root).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in root.rglob("*.html")
    }


def test_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    run(tmp_path, metrics=measured())
    found = pages(tmp_path)
    assert set(found) == {"index.html", "02-PEFT/Falcon/cpu.html"}
    for page in found.values():
        assert page.external() == []
        policies = [one for one in page.all("meta") if "http-equiv" in one]
        assert policies[0]["content"].startswith("default-src 'none';")


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://cdn.example/require.js"></script>',
        "<script>window.MathJax = {}</script>",
        '<link rel="stylesheet" href="//cdn.example/style.css">',
        '<img src="http://cdn.example/x.png">',
        '<img src="pictures/x.png">',
        "<style>@font-face { src: url(https://cdn.example/font.woff2) }</style>",
        "<style>@import 'https://cdn.example/style.css';</style>",
        '<p style="background: url( &quot;https://cdn.example/x.png&quot; )">x</p>',
        '<svg><use href="https://cdn.example/x.svg#a"></use></svg>',
    ],
)
def test_the_check_finds_what_is_planted(planted: str) -> None:
    assert len(Page(f"<html>{planted}</html>").external()) >= 1


def test_formulas_are_drawn(tmp_path: Path) -> None:
    run(tmp_path)
    page = pages(tmp_path)["02-PEFT/Falcon/cpu.html"]
    drawn = [one["aria-label"] for one in page.all("svg")]
    assert drawn[:2] == ["W", r"W x + \frac{\alpha}{r} B A x"]
    assert drawn[2].startswith(r"\hat{A} = \dfrac{r") and drawn[3:] == ["x"]
    assert all(len(one["d"]) > 50 for one in page.all("path"))
    assert "formula" in [one.get("class") for one in page.all("span")]
    assert "$" not in page.text
    assert r"but no \unknown{x}." in page.text  # its source, where there is no drawing


def test_a_drawing_fills_its_box_and_stands_on_the_line() -> None:
    for tex, ascent, descent in (("x", 0.5, 0.0), ("p", 0.5, 0.2), (r"\frac{a}{b}", 0.8, 0.38)):
        svg, path = (attributes for _, attributes in Page(gallery.formula(tex)).tags)
        left, top, width, height = map(float, svg["viewbox"].split())
        ends = [float(number) for number in re.findall(r"-?\d+", path["d"])]
        across, down = ends[::2], ends[1::2]
        assert min(across) == pytest.approx(left, abs=3) and min(down) == pytest.approx(top, abs=3)
        assert max(across) == pytest.approx(left + width, abs=3)
        assert max(down) == pytest.approx(top + height, abs=3)
        below = -float(re.findall(r"vertical-align:([-\d.]+)em", svg["style"])[0])
        assert below == pytest.approx(max(down) / 100, abs=0.03)
        assert below == pytest.approx(descent, abs=0.15) and -top / 100 > ascent - 0.1


@pytest.mark.parametrize("tex", ["", " ", r"\quad", r"\frac{1", "%", "a < b & c"])
def test_no_formula_stops_a_page(tex: str) -> None:
    assert gallery.formula(tex).startswith(("<svg ", "<code>"))


@pytest.mark.parametrize(
    "notebook", sorted(gallery.ROOT.glob("0?-*/*.ipynb")), ids=lambda path: path.stem
)
def test_every_formula_of_the_cookbook_is_drawn(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, str] = {}
    formula = gallery.formula
    monkeypatch.setattr(gallery, "formula", lambda tex: made.setdefault(tex, formula(tex)))
    run_folder = tmp_path / notebook.parent.name / notebook.stem / "cpu"
    run_folder.mkdir(parents=True)
    (run_folder / notebook.name).write_bytes(notebook.read_bytes())
    assert all(page.external() == [] for page in pages(tmp_path).values())
    assert [tex for tex, html in made.items() if not html.startswith("<svg")] == []


def test_the_index_lists_every_run(tmp_path: Path) -> None:
    for name, profile in (("Falcon", "cpu"), ("Falcon", "cpu.1"), ("A #1 & 50%", "gpu16")):
        run(tmp_path, name, profile, metrics=measured())
    (tmp_path / "02-PEFT/Falcon/cpu/before_after.png").write_bytes(b"picture")
    found = pages(tmp_path)
    index = found["index.html"]
    links = [unquote(urlsplit(one["href"]).path) for one in index.all("a")]
    assert sorted(links) == sorted(set(found) - {"index.html"}) and len(links) == 3
    text = " ".join(index.text.split())
    assert text.count("Tune <it> & see") == 3
    assert "profile cpu, 2025-11-22" in text and "profile gpu16, 2025-11-22" in text
    assert "held out losslower is better3.000 → 2.000better" in text
    assert "rouge lhigher is better0.300 → 0.200worse" in text
    assert "general text losslower is better1.500 → 1.500unchanged" in text
    assert [one["src"] for one in index.all("img")] == ["data:image/png;base64,cGljdHVyZQ=="]


def test_pages_are_readable_on_a_phone_and_aloud(tmp_path: Path) -> None:
    folder = run(tmp_path, metrics=measured())
    (folder / "before_after.png").write_bytes(b"picture")
    for page in pages(tmp_path).values():
        assert page.all("html") == [{"lang": "en"}]
        assert any(one.get("name") == "viewport" for one in page.all("meta"))
        assert len(page.all("title")) == len(page.all("main")) == 1 and page.all("h1")
        assert all(len(one["alt"]) > 10 for one in page.all("img")) and page.all("img")


def test_wide_tables_and_formulas_scroll_in_their_own_box(tmp_path: Path) -> None:
    run(tmp_path)
    page = pages(tmp_path)["02-PEFT/Falcon/cpu.html"]
    boxes = {"scroll": "table", "formula": "svg", "highlight": "pre"}
    scrolling = re.search(r"\n(.*) { overflow-x: auto; }", gallery.STYLE)
    for box, held in boxes.items():
        place = [one.get("class", "").split(" ")[0] for _, one in page.tags].index(box)
        assert page.tags[place + 1][0] == held
        assert scrolling and f".{box}" in scrolling[1]


def test_a_page_links_back_and_to_the_sources(tmp_path: Path) -> None:
    runs = tmp_path / "some runs"
    run(runs)
    folder = runs / "gallery/02-PEFT/Falcon"
    links = [one["href"] for one in pages(runs)["02-PEFT/Falcon/cpu.html"].all("a")]
    assert (folder / links[0]).resolve() == (runs / "gallery/index.html").resolve()
    readme, start, elsewhere = [one for one in links if "README" in one]
    assert (folder / unquote(readme)).samefile(gallery.ROOT / "02-PEFT/README.md")
    assert start == f"{readme}#start" and elsewhere == "https://example.org/README.md"


def test_outputs_are_shown_and_dead_progress_bars_are_not(tmp_path: Path) -> None:
    run(tmp_path)
    page = pages(tmp_path)["02-PEFT/Falcon/cpu.html"]
    assert "x" * 500 in page.text and "cell" in page.text and "loud" in page.text
    assert "0%" not in page.text
    assert [one["alt"] for one in page.all("img")] == ["Picture made by plot(this)"]


def test_titles_and_metric_names_are_escaped(tmp_path: Path) -> None:
    run(tmp_path, text="# <script>1</script>", metrics=measured("<b onclick=x>"))
    index = pages(tmp_path)["index.html"]
    page = (tmp_path / "gallery/02-PEFT/Falcon/cpu.html").read_text(encoding="utf-8")
    assert "<title>&lt;script&gt;1&lt;/script&gt; (cpu)</title>" in page
    assert index.all("script") == index.all("b") == []
    assert "<script>1</script>" in index.text and "<b onclick=x>" in index.text


@pytest.mark.parametrize("torn", ["", '{"metrics": [', "[]", "{}", '{"metrics": [{"name": 1}]}'])
def test_torn_metrics_are_named_and_the_rest_is_shown(
    torn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path, metrics=measured()) / "metrics.json"
    run(tmp_path, "Whole", metrics=measured())
    path.write_text(torn, encoding="utf-8")
    assert _main(tmp_path, monkeypatch) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{path} cannot be shown. ")
    index = Page((tmp_path / "gallery/index.html").read_text(encoding="utf-8"))
    assert len(index.all("article")) == 2 and index.text.count("3.000 → 2.000") == 1
    assert str(path) in index.text


@pytest.mark.parametrize("torn", ["", '{"cells": [', "[]", "{}", '{"nbformat": 4, "cells": [1]}'])
def test_a_torn_notebook_is_named_and_the_rest_is_shown(
    torn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path) / "Falcon.ipynb"
    run(tmp_path, "Whole")
    path.write_text(torn, encoding="utf-8")
    assert _main(tmp_path, monkeypatch) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{path} cannot be shown. ")
    index = Page((tmp_path / "gallery/index.html").read_text(encoding="utf-8"))
    assert [one["href"] for one in index.all("a")] == ["02-PEFT/Whole/cpu.html"]


def test_a_whole_gallery_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, metrics=measured())
    (folder / "Falcon.failed.ipynb").write_text("not shown", encoding="utf-8")
    assert _main(tmp_path, monkeypatch) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and str(tmp_path / "gallery/index.html") in shown.out


def test_no_run_yet_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(tmp_path, monkeypatch) == 2
    assert "Run one first: `make quickstart`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _main(runs: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COOKBOOK_RUNS", str(runs))
    return gallery.main()
