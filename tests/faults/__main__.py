"""Plant faults one at a time in a copy of the tree, and see that a test catches each.

python -m tests.faults                  all of them
python -m tests.faults --only NAME ...  some
python -m tests.faults --revision REV   in the tree of another commit
python -m tests.faults --list           their names, files and tests

What was seen is kept in results/faults.json: for each revision, the test that caught each fault, or
nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cookbook.profiles import ROOT, device_name
from tests.contract.repository import copy_files
from tests.faults.catalogue import FAULTS, Fault

RESULTS = ROOT / "results" / "faults.json"
PASSED, FAILED = 0, 1  # pytest's exit status; others are mistakes of the catalogue


def copied(folder: Path, revision: str | None) -> Path:
    """Copy what a clone would hold, of now or of a commit, and lend it what is installed here."""
    if revision:
        archive = subprocess.run(
            ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
    else:
        copy_files(folder)
    for name in (".venv", ".offline"):
        (folder / name).symlink_to(ROOT / name)
    run = ["git", "-c", "user.name=faults", "-c", "user.email=faults@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "copy"]):
        subprocess.run([*run, *command], cwd=folder, check=True)
    return folder


def tested(tree: Path, test: str) -> int:
    """Run a test in the copy, with its own `cookbook`, and return pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",  # a change within the same second would not be noticed
    }
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return done.returncode


def caught(tree: Path, fault: Fault) -> bool:
    """Plant a fault, run its test, and take the fault away again."""
    path = tree / fault.file
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(fault.plant(before), encoding="utf-8")
        status = tested(tree, fault.test)
    finally:
        path.write_text(before, encoding="utf-8")
    return status == FAILED


def keep(revision: str, found: dict[str, str | None]) -> None:
    """Write what was seen beside what is known of other revisions and faults."""
    known: dict[str, Any] = {"seen": {}}
    if RESULTS.exists():
        known = json.loads(RESULTS.read_text(encoding="utf-8"))
    known["seen"].setdefault(revision, {}).update(found)
    known |= {"date": datetime.now(UTC).date().isoformat(), "device": device_name()}
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--revision")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    chosen = [one for one in FAULTS if not options.only or one.name in options.only]
    if options.list:
        print("\n".join(f"{one.name}: {one.file}, {one.test}" for one in chosen))
        return 0
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder) / "tree", options.revision)
        for fault in chosen:
            started = time.monotonic()
            there = (tree / fault.test.partition("::")[0]).exists()
            if there and (status := tested(tree, fault.test)) != PASSED:
                print(f"{fault.name}: {fault.test} ends with {status} without the fault")
                return 2
            seen = there and caught(tree, fault)
            found[fault.name] = fault.test if seen else None
            took = time.monotonic() - started
            print(
                f"{fault.name}: {fault.test if seen else 'NOT CAUGHT'} ({took:.0f} s)", flush=True
            )
        shutil.rmtree(tree, ignore_errors=True)
    keep(options.revision or "now", found)
    return int(None in found.values())


if __name__ == "__main__":
    sys.exit(main())
