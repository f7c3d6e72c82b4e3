"""Plant faults one at a time in a copy of the tree, and see that a test catches each.

python -m tests.faults                  all of them
python -m tests.faults --only NAME ...  some
python -m tests.faults --revision REV   in the tree of another commit
python -m tests.faults --list           their names, files and tests

A fault is caught if a test fails of it that passes without it, in the same copy. What was seen is
kept in results/faults.json: for each revision, the test that caught each fault, or nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.contract.repository import ROOT, copy_files
from tests.faults.catalogue import FAULTS
from tests.faults.planting import Fault, NotThere

RESULTS = ROOT / "results" / "faults.json"
NOW = "now"
PASSED, FAILED = 0, 1  # pytest's exit status; others are mistakes of the catalogue
LONGEST = 1800  # seconds; a fault may also let a test wait for ever


class CatalogueError(Exception):
    """The catalogue does not fit the tree: nothing is known of this fault."""


def copied(folder: Path, revision: str | None) -> Path:
    """Copy what a clone would hold, of now or of a commit, and lend it what is installed here."""
    if revision:
        command = ["git", "archive", revision]
        archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
    else:
        copy_files(folder)
    run = ["git", "-c", "user.name=faults", "-c", "user.email=faults@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "copy"]):
        subprocess.run([*run, *arguments], cwd=folder, check=True)
    with (folder / ".git" / "info" / "exclude").open("a", encoding="utf-8") as excluded:
        for name in (".venv", ".offline"):
            (folder / name).symlink_to(ROOT / name)
            excluded.write(f"/{name}\n")  # .gitignore knows them as folders only
    return folder


def environment(tree: Path) -> dict[str, str]:
    """Return the environment in which processes and kernels import the copy's `cookbook`."""
    return {
        **os.environ,
        "PYTHONPATH": str(tree),  # before what is installed, which is that of this tree
        "PYTHONDONTWRITEBYTECODE": "1",  # a change within the same second would not be noticed
    }


def tested(tree: Path, *tests: str) -> tuple[int, str]:
    """Run tests in the copy, with its own `cookbook`: pytest's exit status, and its last words."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment(tree),
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired as error:
        raise CatalogueError(f"{tests[0]} takes over {LONGEST} s") from error
    return done.returncode, (done.stdout + done.stderr)[-1500:]


@contextmanager
def planted(tree: Path, fault: Fault) -> Iterator[None]:
    """Plant a fault, and take it away again."""
    path = tree / fault.file
    try:
        before = path.read_bytes()
        path.write_text(fault.planted(before.decode("utf-8")), encoding="utf-8")
    except (OSError, NotThere) as error:
        raise CatalogueError(f"it cannot be planted: {error}") from error
    try:
        yield
    finally:
        path.write_bytes(before)


def there(tree: Path, fault: Fault) -> list[str]:
    """Return those of a fault's tests that a tree has."""
    found = []
    for test in fault.tests:
        path, _, name = test.partition("[")[0].partition("::")
        file = tree / path
        if file.exists() and f"def {name}(" in file.read_text(encoding="utf-8"):
            found.append(test)
    return found


def sound_together(tree: Path, faults: Sequence[Fault]) -> set[str]:
    """Return each fault's first test if all pass in one process, without a fault; else none."""
    tests = dict.fromkeys(test for fault in faults for test in there(tree, fault)[:1])
    return {*tests} if tests and tested(tree, *tests)[0] == PASSED else set()


def caught_by(tree: Path, fault: Fault, sound: set[str]) -> str | None:
    """Return the first of a fault's tests that fails of it, if one does.

    `sound` are tests that pass without a fault, which is tried for others.
    """
    for test in there(tree, fault):
        if test not in sound:
            status, said = tested(tree, test)
            if status != PASSED:
                raise CatalogueError(f"{test} ends with {status} without the fault\n{said}")
            sound.add(test)
        with planted(tree, fault):
            status, said = tested(tree, test)
        if status == FAILED:
            return test
        if status != PASSED:
            raise CatalogueError(f"{test} ends with {status} and not in a failure\n{said}")
    return None


def keep(revision: str, tried: Sequence[Fault], found: dict[str, str | None]) -> None:
    """Write what was seen of some faults beside what is known of others and other revisions."""
    from cookbook.profiles import device_name  # with torch, which a list of names can do without

    known: dict[str, Any] = {"caught": {}}
    if RESULTS.exists():
        known = json.loads(RESULTS.read_text(encoding="utf-8"))
    seen = {**known["caught"].get(revision, {})}
    for fault in tried:  # what is unknown now is not what it was
        seen.pop(fault.name, None)
    seen |= found
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device_name(),
        "system": platform.machine(),
        "caught": known["caught"]
        | {revision: {one.name: seen[one.name] for one in FAULTS if one.name in seen}},
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status is 1 if a fault was not caught, 2 if one is unknown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[one.name for one in FAULTS])
    parser.add_argument("--revision")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    chosen = [one for one in FAULTS if not options.only or one.name in options.only]
    if options.list:
        print("\n".join(f"{one.name} ({one.kind}): {one.file}, {one.tests[0]}" for one in chosen))
        return 0
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder) / "tree", options.revision)
        sound = sound_together(tree, chosen)
        for number, fault in enumerate(chosen, 1):
            started = time.monotonic()
            try:
                found[fault.name] = caught_by(tree, fault, sound)
                outcome = found[fault.name] or "NOT CAUGHT"
            except CatalogueError as error:
                outcome = f"UNKNOWN: {error}"
            print(f"{fault.name}: {outcome} ({time.monotonic() - started:.0f} s)", flush=True)
            keep(options.revision or NOW, chosen[:number], found)
    return 2 if len(found) < len(chosen) else int(None in found.values())


if __name__ == "__main__":
    sys.exit(main())
