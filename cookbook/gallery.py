"""Render executed notebooks to HTML, with an index page: `python -m cookbook.gallery`."""

import json
import os
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter

GALLERY = "gallery"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Executed notebooks</title>
<style>
body {{ font-family: sans-serif; margin: 2rem auto; max-width: 60rem; }}
table {{ border-collapse: collapse; }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.4rem 0.8rem; text-align: left; }}
td.figures {{ font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<h1>Executed notebooks</h1>
<table>
<tr><th>Notebook</th><th>Folder</th><th>Profile</th><th>Before and after</th></tr>
{rows}
</table>
</body>
</html>
"""


@dataclass(frozen=True)
class Run:
    """One executed notebook: `runs/<folder>/<notebook>/<profile>/<notebook>.ipynb`."""

    folder: str
    name: str
    profile: str
    path: Path

    @property
    def page(self) -> Path:
        """Where its HTML goes, below the gallery."""
        return Path(self.folder) / self.name / f"{self.profile}.html"


def find_runs(root: Path) -> list[Run]:
    """The executed notebooks below `root`, by folder, name and profile."""
    return [
        Run(folder=path.parts[-4], name=path.stem, profile=path.parts[-2], path=path)
        for path in sorted(root.glob("*/*/*/*.ipynb"))
        if path.parts[-3] == path.stem
    ]


def title_of(notebook: nbformat.NotebookNode, default: str) -> str:
    """The notebook's own title: its first `# ...` line."""
    for cell in notebook.cells:
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
            if line.startswith("# "):
                return str(line[2:].strip())
    return default


def figures(run: Run) -> list[str]:
    """One line for each metric in the run's metrics.json; none where it has no such file."""
    path = run.path.parent / "metrics.json"
    if not path.is_file():
        return []
    metrics: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return [f"{m['name']}: {m['before']:.3f} → {m['after']:.3f}" for m in metrics]


def render(run: Run, gallery: Path) -> str:
    """Write one notebook as a page of its own; returns its row of the index, HTML."""
    notebook = nbformat.read(run.path, as_version=4)
    exporter = HTMLExporter(embed_images=True)
    title = title_of(notebook, run.name)
    body, _ = exporter.from_notebook_node(
        notebook, resources={"metadata": {"name": title, "path": str(run.path.parent)}}
    )
    page = gallery / run.page
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(body, encoding="utf-8")
    link = f'<a href="{escape(run.page.as_posix())}">{escape(title)}</a>'
    lines = "<br>".join(escape(line) for line in figures(run)) or "not recorded"
    return (
        f"<tr><td>{link}</td><td>{escape(run.folder)}</td><td>{escape(run.profile)}</td>"
        f'<td class="figures">{lines}</td></tr>'
    )


def build(root: Path) -> Path | None:
    """Render every run below `root`; returns the index page, or None where there is no run."""
    runs = find_runs(root)
    if not runs:
        return None
    gallery = root / GALLERY
    rows = [render(run, gallery) for run in runs]
    index = gallery / "index.html"
    index.write_text(PAGE.format(rows="\n".join(rows)), encoding="utf-8")
    return index


def main() -> int:
    """Exit status: 0, or 2 where no notebook has been executed yet."""
    root = Path(os.environ.get("COOKBOOK_RUNS") or "runs")
    index = build(root)
    if index is None:
        print(
            f"There is no executed notebook in {root}/ yet. Run one first: `make quickstart`, or "
            "`make notebook NB=02-PEFT/Falcon-7B-LoRA.ipynb`.",
            file=sys.stderr,
        )
        return 2
    print(f"Gallery: {index} ({len(find_runs(root))} notebooks)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
