"""Re-run recipes over seeds, keep what they measured, and rewrite the tables drawn from it.

`python -m cookbook.commands.record` runs every notebook with seeds 0 to 2, writes the executed one
of seed 0 as a page, and rewrites the generated tables of the READMEs. `--tables` only rewrites the
tables; `--pages` also the text of the pages, from today's notebooks.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import nbformat
import torch

from cookbook import comparing
from cookbook.commands import pages, proof
from cookbook.commands.run import parameters, recipe_of, with_settings
from cookbook.paths import start_command
from cookbook.profiles import (
    ROOT,
    CookbookError,
    choose_profile,
    columns,
    compute_dtype,
    device_name,
)
from cookbook.report import cells, others

RESULTS = ROOT / "results" / "recipes"
CELLS, DIGESTS = comparing.RECORDED, "digests.json"
_OF_RECORDS = ("recipe", "profile", "device", "precision", "code", "date", "seal")
_COSTS = ("bytes", "peak_memory_bytes", "tokens_per_second")  # of a format, beside its quality
TABLE = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end generated -->)", re.DOTALL)

Run = dict[str, Any]


def notebooks() -> list[Path]:
    """Return the cookbook's notebooks, in the order of their folders."""
    return sorted(ROOT.glob("[0-9][0-9]-*/*.ipynb"))


def result_path(content: Run) -> Path:
    """Return where a result is kept: recipe, profile, hardware, precision and seed name it."""
    hardware = content["hardware"]
    many = hardware["threads"] if content["profile"] == "cpu" else hardware["count"]
    where = _on(content["profile"], many, hardware["device"], hardware["precision"])
    return RESULTS / str(content["recipe"]) / f"{where}-seed{content['seed']}.json"


def _on(profile: str, many: int, device: str, precision: str) -> str:
    """Return what a record's name says of a profile and of the hardware under it."""
    return f"{profile}-{many}x-{in_file_names(device)}-{precision}"


def in_file_names(device: str) -> str:
    """Return a device's name as it stands in the names of records."""
    return re.sub(r"[^a-z0-9.]+", "-", device.lower()).strip("-")


def record(notebook: Path, seed: int) -> Path:
    """Run one notebook with one seed in a folder of its own and keep its result.

    The result carries the digests of what was run. Raises CookbookError where that was changed
    meanwhile: nobody could say what the figures belong to.
    """
    recipe = recipe_of(notebook)
    with tempfile.TemporaryDirectory() as runs:
        environment = os.environ | {"COOKBOOK_SEED": str(seed), "COOKBOOK_RUNS": runs}
        command = [sys.executable, "-m", "cookbook.commands.run", str(notebook.absolute())]
        before = proof.code_digest(nbformat.read(notebook, as_version=4))
        # Other profiles, and a GPU, run what the digests for a processor leave out.
        gpu = torch.cuda.is_available() or (os.environ.get("COOKBOOK_PROFILE") or "cpu") != "cpu"
        digests, started = proof.digests(recipe, gpu=gpu), time.monotonic()
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
        seconds = round(time.monotonic() - started, 1)
        source = next(Path(runs, recipe).glob("*/metrics.json"))
        executed = nbformat.read(source.with_name(notebook.name), as_version=4)
        proof.forget()
        changed = proof.changes(digests, proof.digests(recipe, gpu=gpu))
        if changed or proof.code_digest(executed) != before:
            what = ", ".join(changed) or "notebook"
            raise CookbookError(f"{recipe} was changed while it ran ({what}): record it again.")
        content = json.loads(source.read_text(encoding="utf-8")) | {
            "date": datetime.now(UTC).date().isoformat(),
            "digests": digests,
            "notebook_seconds": seconds,
            "imports_seconds": imports_seconds(executed),
        }
        content = proof.sealed(content)
        target = result_path(content)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, sort_keys=True)
        target.write_text(text + "\n", encoding="utf-8")
        for picture in source.parent.glob("*.png") if seed == 0 else ():
            shutil.copy(picture, target.parent / f"{content['profile']}-{picture.name}")
        _keep_for_reading(source.parent, seed)
        if seed == 0:
            pages.write(executed, content, target)
    return target


def record_whole(notebook: Path) -> list[Path]:
    """Run all that a notebook's `WHOLE` asks for, and keep each of its cells as a record.

    Cells of today's code are not run again, neither those on record nor those of a run that was
    killed: the next call goes on from there.
    """
    copy = nbformat.read(notebook, as_version=4)
    given = parameters(copy)
    recipe, profile = recipe_of(notebook), choose_profile(given["SETTINGS"]).profile
    with_settings(copy, given["WHOLE"])
    folder, target = ROOT / "runs" / "whole" / recipe / profile, CELLS / _folder_of_cells(profile)
    digests = _present(recipe, target)
    _begin_whole(folder, target, digests)
    own = {"COOKBOOK_RUNS": str(folder.parents[2]), "COOKBOOK_PROFILE": profile}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, notebook.parent.name, notebook.name)
        path.parent.mkdir()
        nbformat.write(copy, path)
        command = [sys.executable, "-m", "cookbook.commands.run", str(path)]
        try:
            subprocess.run(command, check=True, env=os.environ | own, cwd=ROOT)
        finally:
            kept = keep_cells(folder / "cells", target, recipe, digests)
    return kept


def _begin_whole(folder: Path, target: Path, digests: dict[str, Any]) -> None:
    """Make a run's folder ready for a comparison to begin, or to go on with the cells there are."""
    of, code = folder / DIGESTS, _code_of(digests)
    if not of.is_file() or json.loads(of.read_text(encoding="utf-8")) != digests:
        shutil.rmtree(folder, ignore_errors=True)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)  # what is finished would move aside
    of.write_text(json.dumps(digests, sort_keys=True), encoding="utf-8")
    for path in target.glob(comparing.CELLS):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["code"] == code:
            cell = {key: value for key, value in content.items() if key not in _OF_RECORDS}
            (folder / "cells" / path.name).write_text(json.dumps(cell), encoding="utf-8")


def _folder_of_cells(profile: str) -> str:
    many = torch.get_num_threads() if profile == "cpu" else torch.cuda.device_count()
    return _on(profile, many, device_name(), _precision())


def _precision() -> str:
    return str(compute_dtype()).removeprefix("torch.")


def _code_of(digests: dict[str, Any]) -> str:
    """Return one digest of all that a comparison's cells depend on."""
    return proof.digest(json.dumps(digests, sort_keys=True))


def cell_folders() -> list[Path]:
    """Return the folders of recorded comparisons, one for each profile and hardware."""
    return sorted(path.parent for path in CELLS.glob(f"*/{DIGESTS}"))


def _present(recipe: str, folder: Path) -> dict[str, Any]:
    """Return today's digests of what a folder's cells depend on; its name tells the profile."""
    return proof.cell_digests(recipe, gpu=not folder.name.startswith("cpu-"))


def keep_cells(source: Path, target: Path, recipe: str, digests: dict[str, Any]) -> list[Path]:
    """Keep a comparison's cells as records, beside what they depended on; return their paths.

    Cells of other code go. Raises CookbookError where the code was changed meanwhile.
    """
    proof.forget()
    if changed := proof.changes(digests, _present(recipe, target)):
        raise CookbookError(f"{recipe} was changed while it ran ({', '.join(changed)}).")
    told = {
        "recipe": recipe,
        "profile": target.name.partition("-")[0],
        "device": device_name(),
        "precision": _precision(),
        "code": _code_of(digests),
    }
    target.mkdir(parents=True, exist_ok=True)
    for path in target.glob(comparing.CELLS):
        if json.loads(path.read_text(encoding="utf-8"))["code"] != told["code"]:
            path.unlink()
    text = json.dumps(proof.sealed(digests), indent=1, sort_keys=True)
    (target / DIGESTS).write_text(text + "\n", encoding="utf-8")
    for path in source.glob(comparing.CELLS):
        if not (target / path.name).exists():
            cell = json.loads(path.read_text(encoding="utf-8")) | told
            content = proof.sealed(cell | {"date": datetime.now(UTC).date().isoformat()})
            text = json.dumps(content, sort_keys=True) + "\n"
            (target / path.name).write_text(text, encoding="utf-8")
    return sorted(target.glob(comparing.CELLS))


def stale_cells(folder: Path) -> list[str]:
    """Return what changed since the cells of a folder were recorded."""
    recorded = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    del recorded["seal"]
    recipe = json.loads(next(folder.glob(comparing.CELLS)).read_text(encoding="utf-8"))["recipe"]
    return proof.changes(recorded, _present(recipe, folder))


def imports_seconds(executed: nbformat.NotebookNode) -> float:
    """Return the seconds from a notebook's first cell to the end of its cell of imports."""
    cells = [cell for cell in executed.cells if cell.cell_type in ("code", "markdown")]
    heading = next(n for n, cell in enumerate(cells) if cell.source.startswith("## Imports"))
    ran = [cell.metadata.execution for cell in cells if cell.cell_type == "code"]
    last = next(cell.metadata.execution for cell in cells[heading:] if cell.cell_type == "code")
    ends = ran[0]["iopub.execute_input"], last["shell.execute_reply"]
    first, done = (datetime.fromisoformat(end) for end in ends)
    return round((done - first).total_seconds(), 1)


def _keep_for_reading(run: Path, seed: int) -> None:
    """Copy the executed notebook, metrics and pictures of a run, without its weights."""
    recipe, profile = "/".join(run.parts[-3:-1]), run.name
    kept = ROOT / "runs" / recipe / f"{profile}-seed{seed}"
    kept.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.ipynb", "*.png", "metrics.json"):
        for path in run.glob(pattern):
            shutil.copy(path, kept / path.name)


def recorded_runs(recipe: str | None = None) -> list[Run]:
    """Return the recorded runs, of one recipe or of all, in a fixed order."""
    paths = sorted((RESULTS / recipe if recipe else RESULTS).rglob("*-seed*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _compared(recipe: str) -> list[tuple[list[str], Run]]:
    """Return what changed since each of a recipe's `cpu` runs was recorded, and the run."""
    present = proof.digests(recipe)
    runs = [run for run in recorded_runs(recipe) if run["profile"] == "cpu" and "digests" in run]
    return [(proof.changes(run["digests"], present), run) for run in runs]


def current(recipe: str) -> Run | None:
    """Return a recorded run of what the repository holds today, None where there is none.

    One seed is enough, as it is for the recipe's test: the margins come from all that are recorded.
    """
    return next((run for changed, run in _compared(recipe) if not changed), None)


def stale(recipe: str) -> list[str]:
    """Return what changed since a recipe was recorded, nothing where a record is current."""
    found = [changed for changed, _ in _compared(recipe)]
    return min(found, key=len, default=["no record with digests"])


def learning_margin(runs: Sequence[Run], metric: str) -> float:
    """Return by how much a run must improve `metric`: half the smallest recorded improvement.

    Half, because machines round differently; the smallest of several seeds, because one seed may
    be lucky. Raises ValueError with fewer than three recorded seeds.
    """
    gains = [improvement(one) for run in runs for one in run["metrics"] if one["name"] == metric]
    if len(gains) < 3:
        raise ValueError(f"{metric}: {len(gains)} recorded seeds, 3 are needed (`make record`).")
    return min(gains) / 2


def improvement(one: dict[str, Any]) -> float:
    """Return how much better a metric got, positive when it did."""
    gain = float(one["after"]) - float(one["before"])
    return gain if one["higher_is_better"] else -gain


def measured_on(run: Run) -> str:
    """Return device and precision of a run."""
    return f"{run['hardware']['device']}, {run['hardware']['precision']}"


def _groups(runs: Iterable[Run]) -> dict[tuple[str, str, str], list[Run]]:
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run["recipe"], run["profile"], measured_on(run)].append(run)
    return groups


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of its columns' names and its rows."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def overview_table(runs: Sequence[Run]) -> str:
    """Return the README's table: each recipe's first metric on a processor, and its page.

    It is the mean over the seeds of the device with the most of them, of several the newest: a
    group is as old as its oldest run.
    """
    by_recipe: dict[str, list[list[Run]]] = defaultdict(list)
    for (recipe, profile, _), group in _groups(runs).items():
        if profile == "cpu":
            by_recipe[recipe].append(group)
    rows = []
    for recipe, groups in by_recipe.items():
        chosen = max(
            groups, key=lambda group: (len(group), min(run.get("date", "") for run in group))
        )
        title, model, teaches = _headline(recipe)
        name, arrow, before, after = _first_metric(chosen)
        page = RESULTS / recipe / "cpu.md"
        link = f"[read it executed]({page.relative_to(ROOT).as_posix()})" if page.exists() else ""
        score = f"{name} {arrow} {before:.3f} → **{after:.3f}**"
        rows.append([f"[{title}]({recipe}.ipynb)", f"`{model}`", teaches, score, link])
    return _table(["recipe", "headline model", "what it teaches", "before → after", ""], rows)


def summary_table(runs: Sequence[Run]) -> str:
    """Return a technique README's short table: the first metric and the minutes on each device."""
    rows = []
    for (recipe, profile, hardware), group in _groups(runs).items():
        name, arrow, before, after = _first_metric(group)
        seconds = [run["notebook_seconds"] for run in group if "notebook_seconds" in run]
        minutes = f"{fmean(seconds) / 60:.1f}" if seconds else "not recorded"
        page = RESULTS / recipe / f"{profile}.md"
        seal = pages.head_of(page)["seal"] if page.exists() else None
        mine = seal in [run.get("seal", "") for run in group]
        link = f"[read it executed](../{page.relative_to(ROOT).as_posix()})" if mine else ""
        where, scores = f"`{profile}`, {hardware}", [f"{before:.3f}", f"**{after:.3f}**"]
        rows.append([where, str(len(group)), minutes, f"{name} {arrow}", *scores, link])
    return _table(["measured on", "seeds", "minutes", "metric", "before", "after", ""], rows)


def _first_metric(group: Sequence[Run]) -> tuple[str, str, float, float]:
    """Return the first metric's name in words, where better is, and its means before and after."""
    main = [run["metrics"][0] for run in group]
    before, after = (fmean(one[end] for one in main) for end in ("before", "after"))
    arrow = "↑" if main[0]["higher_is_better"] else "↓"
    return main[0]["name"].replace("_", " "), arrow, before, after


def _headline(recipe: str) -> tuple[str, str, str]:
    """Return a notebook's title, the model of its smallest GPU profile, and what it teaches.

    The last is the first sentence below the title, or what stands before its colon.
    """
    notebook = nbformat.read(ROOT / f"{recipe}.ipynb", as_version=4)
    title, *paragraphs = str(notebook.cells[0].source).split("\n\n")
    sentences = (" ".join(text.split()) for text in paragraphs if re.match(r"[\w`\"']", text))
    teaches = re.split(r"[.:;](?:\s|$)", next(sentences, ""))[0].replace("|", r"\|")
    teaches = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", teaches)  # links are the notebook's
    model = columns(parameters(notebook)["SETTINGS"])["gpu16"]["model"]
    return title.partition("\n")[0].removeprefix("# "), str(model), teaches


def comparison_table(runs: Sequence[Run]) -> str:
    """Return what each way of training cost on each device, a mean over the seeds."""
    rows = []
    for hardware, way, group in _over_seeds(runs, lambda run: run["comparison"]):
        mean = _means([run["comparison"][way] for run in group])
        weights, seconds = f"{mean['weights_trained']:,.0f}", f"{mean['seconds']:.0f}"
        memory = f"{mean['peak_memory_bytes'] / 2**30:.1f} GiB"
        rows.append([hardware, way, weights, seconds, memory, f"{mean['general_text_loss']:.3f}"])
    titles = ["measured on", "way", "weights trained", "train, seconds", "peak memory"]
    return _table([*titles, "general-text loss after"], rows)


def serving_table(runs: Sequence[Run]) -> str:
    """Return what each format of an export cost and gave on each device, over the seeds."""
    rows = []
    for hardware, name, group in _over_seeds(runs, _formats_by_size):
        found = [run["serving"]["formats"][name] for run in group]
        mean = _means([{key: one[key] for key in _COSTS} for one in found])
        costs = [
            mean["bytes"] / 2**20,
            mean["peak_memory_bytes"] / 2**20,
            mean["tokens_per_second"],
        ]
        loss = _range([one["loss"][0] for one in found], "+.4f")
        equal = sum(one["equal_answers"] for one in found)
        asked = sum(run["serving"]["word_for_word"][1] for run in group)
        shown = [f"{one:.0f}" for one in costs]
        rows.append([hardware, f"`{name}`", *shown, loss, f"{equal} of {asked} answers"])
    titles = ["measured on", "format", "file, MiB", "memory, MiB", "tokens/s, one request"]
    return _table([*titles, "loss beside float32", "as transformers in float32"], rows)


def _formats_by_size(run: Run) -> list[str]:
    formats = run["serving"]["formats"]
    return sorted(formats, key=lambda name: -formats[name]["bytes"])


# What a run counts (as [equal, of]) -> what a reader is told of it.
_SAME = {
    "word_for_word": "in float32, word for word as transformers",
    "under_load": "two adapters and the base under load, letter for letter as alone",
    "under_load_nearest": "under load, nearest to what their own model had said",
}


def same_answers_table(runs: Sequence[Run]) -> str:
    """Return how many answers were the same on each device, summed over the seeds."""
    rows = []
    for hardware, name, group in _over_seeds(runs, lambda run: _SAME):
        equal, asked = (sum(run["serving"][name][at] for run in group) for at in (0, 1))
        rows.append([hardware, _SAME[name], f"{equal} of {asked}"])
    return _table(["measured on", "answers", "how many"], rows)


def at_once_table(runs: Sequence[Run]) -> str:
    """Return what several requests at once gave on each device, over the seeds."""
    rows = []
    for hardware, count, group in _over_seeds(runs, lambda run: run["serving"]["at_once"]):
        found = [run["serving"]["at_once"][count] for run in group]
        speed = _range([one["tokens_per_second"] for one in found], ".0f")
        rows.append([hardware, count, speed, _range([one["seconds"] for one in found], ".2f")])
    titles = ["measured on", "requests at once", "tokens/s, all together", "seconds an answer"]
    return _table(titles, rows)


def _over_seeds(
    runs: Sequence[Run], names: Callable[[Run], Iterable[str]]
) -> Iterator[tuple[str, str, list[Run]]]:
    """Yield each device, with each of the names that its runs have, and those runs."""
    for (_, _, hardware), group in _groups(runs).items():
        for name in names(group[0]):
            yield hardware, name, group


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: fmean(one[key] for one in found) for key in found[0]}


def _range(values: Sequence[float], form: str) -> str:
    """Return the mean of some values, and the least and the most of them where they differ."""
    mean, least, most = (format(value, form) for value in (fmean(values), min(values), max(values)))
    return mean if least == most else f"{mean} ({least} to {most})"


def methods_table() -> str:
    """Return the comparison of methods: a table for each device, each method's means in a row."""
    tables = []
    for folder in cell_folders():
        cells = comparing.read(folder)
        found = comparing.by_method(cells)
        columns, *rows = comparing.rows(found, comparing.given_loss(found))
        columns[0] += f" ({cells[0]['device']}, {cells[0]['precision']})"
        tables.append(_table(columns, [[f"`{row[0]}`", *row[1:]] for row in rows]))
    return "\n\n".join(tables)


def recipe_table(runs: Sequence[Run]) -> str:
    """Return a technique README's table: every seed with its interval, and the forgetting check."""
    rows = []
    for run in runs:
        train = run["train"]
        speed = f"{train['steps']}, {train['tokens_per_second']:.0f}"
        for one in [*run["metrics"], run["forgetting"]]:
            known = ", ".join(f"{name} {value:.3f}" for _, name, value in others(one)) or "-"
            measured = [measured_on(run), str(run["seed"]), one["name"]]
            rows.append([*measured, *cells(one), known, speed])
    titles = ["measured on", "seed", "metric", "before [95 % CI]", "after [95 % CI]"]
    return _table([*titles, "stages and baselines", "steps, tokens/s"], rows)


def filled(text: str, table_of: Callable[[str], str | None]) -> str:
    """Return a Markdown text with its generated tables written anew; None leaves one as it is."""

    def table(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        content = table_of(name)
        return match[0] if content is None else f"{opening}{content}\n{closing}"

    return TABLE.sub(table, text)


def with_tables(text: str) -> str:
    """Return a Markdown text with its generated tables filled from `results/`."""
    return filled(text, _table_of)


def _table_of(name: str) -> str:
    if name == "overview":
        return overview_table(recorded_runs())
    if name == "methods":
        return methods_table()
    recipe, _, kind = name.partition("#")
    runs = recorded_runs(recipe)
    if not runs:
        raise ValueError(f"A generated table names {recipe}, which has no recorded run.")
    tables = {
        "comparison": comparison_table,
        "summary": summary_table,
        "serving": serving_table,
        "same-answers": same_answers_table,
        "at-once": at_once_table,
    }
    return tables.get(kind, recipe_table)(runs)


def documents() -> list[Path]:
    """Return the Markdown files that may hold generated tables."""
    return [ROOT / "README.md", *sorted(ROOT.glob("[0-9][0-9]-*/README.md"))]


def rewrite_tables() -> None:
    """Rewrite the generated tables of all documents."""
    for path in documents():
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


def rewrite_pages(paths: Iterable[Path]) -> list[str]:
    """Rewrite the text of the notebooks' pages; return the recipes that have to be recorded."""
    outdated = []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        for page in sorted((RESULTS / recipe_of(path)).glob("*.md")):
            if (text := pages.rewoven(page, notebook)) is None:
                outdated.append(recipe_of(path))
            else:
                page.write_text(text, encoding="utf-8")
    return outdated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all notebooks if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true", help="only rewrite the tables")
    parser.add_argument("--pages", action="store_true", help="only rewrite pages and tables")
    options = parser.parse_args(arguments)
    start_command()
    outdated = []
    if options.pages:
        outdated = rewrite_pages(options.notebooks or notebooks())
    elif not options.tables:
        for notebook in options.notebooks or notebooks():
            if "WHOLE" in parameters(nbformat.read(notebook, as_version=4)):
                print(f"recorded {len(record_whole(notebook))} cells", flush=True)
            for seed in options.seeds:
                print(f"recorded {record(notebook, seed).relative_to(ROOT)}", flush=True)
    rewrite_tables()
    for recipe in outdated:
        print(f"{recipe}: the page is of other code, or was edited: record it.", file=sys.stderr)
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
