"""Execute one notebook on this machine's profile.

`python -m cookbook.commands.run 02-PEFT/<name>.ipynb` is what `make notebook` calls.

The executed copy lands in the run's folder beside `metrics.json` and the pictures; the notebook in
the repository stays as it is.
"""

import argparse
import ast
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from filelock import FileLock, Timeout
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from cookbook.paths import as_typed, start_command
from cookbook.profiles import CookbookError, choose_profile
from cookbook.report import before_after_table, run_folder


def parameters(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Return the literals that the notebook's `parameters` cell assigns, such as `SETTINGS`."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return {
                target.id: ast.literal_eval(one.value)
                for one in ast.parse(cell.source).body
                if isinstance(one, ast.Assign)
                for target in one.targets
                if isinstance(target, ast.Name)
            }
    raise CookbookError("The notebook has no cell tagged `parameters` (see CONTRIBUTING.md).")


def with_settings(notebook: nbformat.NotebookNode, settings: Mapping[str, Any]) -> None:
    """Set settings of a notebook in all of its profiles, below its table."""
    cell = next(one for one in notebook.cells if "parameters" in one.metadata.get("tags", []))
    row = ", ".join(f'"{name}": ({value!r},) * 3' for name, value in settings.items())
    cell.source += f"\nSETTINGS |= {{{row}}}"


def recipe_of(path: Path) -> str:
    """Return `<folder>/<notebook>`, the recipe's name in every run and result."""
    return f"{path.resolve().parent.name}/{path.stem}"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have a run's folder alone; it is free again when this process ends, however it does.

    Raises `CookbookError` where another run is using it: both would write the same checkpoints.
    """
    holder = folder / "run.pid"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "run.lock")
        lock.acquire(blocking=False)
    except Timeout:
        number = holder.read_text(encoding="utf-8") if holder.exists() else "unknown"
        raise CookbookError(
            f"Another run is using {as_typed(folder)} (process {number}). "
            "Wait for it, or set COOKBOOK_RUNS to another folder."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise CookbookError(
            f"{as_typed(folder)} cannot be written or locked ({error}). "
            "Set COOKBOOK_RUNS to a folder where you may write."
        ) from error
    with lock:
        holder.write_text(str(os.getpid()), encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def execute(path: Path, timeout: int | None = None) -> Path:
    """Execute the notebook at `path` and return the run's folder.

    Settings are checked before a kernel starts. If a cell fails, what ran so far is kept as
    `<notebook>.failed.ipynb` and earlier results stay untouched. `timeout` is in seconds per cell.
    """
    notebook = nbformat.read(path, as_version=4)
    given = parameters(notebook)
    # A copy under another name, as in a sweep, writes where its own RECIPE says.
    recipe = given.get("RECIPE", recipe_of(path))
    folder = run_folder(recipe, choose_profile(given["SETTINGS"]))
    with held(folder):
        _execute(notebook, path, folder, timeout)
    return folder


def _execute(
    notebook: nbformat.NotebookNode, path: Path, folder: Path, timeout: int | None
) -> None:
    started = time.monotonic()

    def announce(cell: nbformat.NotebookNode, cell_index: int) -> None:
        heading = cell.source.splitlines()[0] if cell.source else ""
        if cell.cell_type == "markdown" and heading.startswith("#"):
            print(f"[{time.monotonic() - started:5.0f} s] {heading.lstrip('# ')}", flush=True)

    client = NotebookClient(
        notebook,
        timeout=timeout,
        resources={"metadata": {"path": str(path.resolve().parent)}},
        on_cell_start=announce,
        # Errors only: a warning on every start about loopback TCP, which is Jupyter's default.
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    failed = folder / f"{path.stem}.failed.ipynb"
    try:
        client.execute()
    except BaseException:  # an interrupt too: what ran so far is kept
        nbformat.write(notebook, failed)
        raise
    print(f"[{time.monotonic() - started:5.0f} s] done", flush=True)
    nbformat.write(notebook, folder / path.name)
    failed.unlink(missing_ok=True)


def report(folder: Path, name: str) -> str:
    """Return the before/after table of a finished run and where its files are."""
    shown = as_typed(folder)
    if not (folder / "metrics.json").is_file():
        return f"\nIt wrote no metrics.json. Executed notebook: {shown / name}"
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    pictures = ", ".join(sorted(path.name for path in folder.glob("*.png")))
    return (
        f"\n{content['recipe']} on profile {content['profile']}: {content['model']}\n\n"
        f"{before_after_table(content)}\n\n"
        f"Executed notebook: {shown / name}\nPictures:          {shown}/ ({pictures})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--timeout", type=int, help="seconds that one cell may take")
    options = parser.parse_args(arguments)
    start_command()
    if not options.notebook.is_file():
        print(f"{options.notebook} is no file. Notebooks: ls 0*/*.ipynb", file=sys.stderr)
        return 2
    try:
        folder = execute(options.notebook, options.timeout)
    except CookbookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except CellExecutionError as error:
        print(f"{error.ename}: {error.evalue}", file=sys.stderr)
        print("What ran so far is in the run's folder as *.failed.ipynb.", file=sys.stderr)
        return 1
    except DeadKernelError:
        print(
            "The kernel died: most often the machine ran out of memory. Lower "
            "`per_device_train_batch_size` in the notebook's SETTINGS table and run it again; "
            "training resumes from its last checkpoint.",
            file=sys.stderr,
        )
        return 1
    except CellTimeoutError as error:
        print(f"A cell took longer than {options.timeout} seconds: {error}", file=sys.stderr)
        return 1
    print(report(folder, options.notebook.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
