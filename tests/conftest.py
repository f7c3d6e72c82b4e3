"""What all tests share: one start for small notebook runs, and what records hold."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import proofs, times

HELD = pytest.StashKey[int]()
KERNEL = Path(__file__).parent / "start" / "kernel.py"


@pytest.fixture(scope="session")
def _nursery() -> Iterator[Path]:
    """A folder with a kernel specification and the sockets of this session's nurseries."""
    # Short: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="nursery-"))
    specification = folder / "kernels" / "python3" / "kernel.json"
    specification.parent.mkdir(parents=True)
    argv = [sys.executable, "-S", str(KERNEL), "{connection_file}"]
    content = {"argv": argv, "display_name": "Python 3", "language": "python"}
    specification.write_text(json.dumps(content), encoding="utf-8")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shared_start(_nursery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks that a test executes get a kernel forked from a process that has the libraries.

    A kernel of its own starts and imports for some ten seconds; see tests/start.
    """
    monkeypatch.setenv("JUPYTER_PATH", str(_nursery))
    monkeypatch.setenv("COOKBOOK_TEST_NURSERY", str(_nursery))
    monkeypatch.setenv("COOKBOOK_TEST_OWNER", str(os.getpid()))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make test` and of `python -m tests.proofs record`."""
    parser.addoption("--held", action="store_true", help="leave out what a record proves")
    parser.addoption("--proof", help="the tests of this area alone, whatever their marks")
    parser.addoption("--proof-to", type=Path, help="write seconds by test here, if all passed")


def area_of(item: pytest.Item) -> str | None:
    """Return the recipe or area whose record proves what a test does, if one does."""
    mark = item.get_closest_marker("held")
    return str(mark.args[0]) if mark else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is held by a current record, but for one recipe: the spot check."""
    area = config.getoption("--proof")
    if area:
        kept = [one for one in items if area_of(one) == area and not _thorough(one)]
    elif config.getoption("--held"):
        checked = proofs.spot_check()
        kept = [one for one in items if not _is_held(area_of(one), checked)]
    else:
        return
    config.hook.pytest_deselected(items=[one for one in items if one not in kept])
    config.stash[HELD] = len(items) - len(kept)
    items[:] = kept


def _thorough(item: pytest.Item) -> bool:
    return item.get_closest_marker("thorough") is not None


def _is_held(name: str | None, checked: str | None) -> bool:
    return name is not None and name != checked and not proofs.stale(name)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """No test left to run is no failure where records hold the proof."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(HELD, 0):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say of each recipe and area whether it was executed now, or what holds its proof."""
    by_outcome = terminalreporter.stats
    target = config.getoption("--proof-to")
    skips = [str(one.longrepr) for one in by_outcome.get("skipped", [])]
    # What is only there to write another record proves nothing and may be skipped, no more.
    if target and all("COOKBOOK_RECORD" in why for why in skips):
        reports = [one for one in by_outcome.get("passed", []) if one.when == "call"]
        seconds = {one.nodeid: round(one.duration, 1) for one in reports}
        target.write_text(json.dumps(seconds), encoding="utf-8")
    if not config.getoption("--held"):
        return
    small = bool(config.getoption("numprocesses", None))
    reports = [one for found in by_outcome.values() for one in found if hasattr(one, "duration")]
    by_test: defaultdict[str, float] = defaultdict(float)
    for one in reports:
        by_test[one.nodeid] += one.duration
    if config.getoption("markexpr").count(" or "):  # a part of `make test`, not some mark alone
        took = time.time() - terminalreporter._session_start.time
        times.keep("small" if small else "large", took, by_test)
    if small:
        return
    scores = {
        dict(report.user_properties)["recipe"]: dict(report.user_properties).get("scores")
        for outcome in ("passed", "failed", "skipped")
        for report in by_outcome.get(outcome, [])
        if "recipe" in dict(report.user_properties)
    }
    skipped = {dict(one.user_properties).get("recipe") for one in by_outcome.get("skipped", [])}
    terminalreporter.section("what holds the proof")
    for name in (*proofs.RECIPES, *proofs.AREAS):
        if name in scores:
            line = f"executed now: {scores[name] or 'FAILED'}"
            if name in skipped:
                line = "NOT PROVEN: no time was left, record it"
        elif changed := proofs.stale(name):
            line = f"not current ({', '.join(changed[:3])}), its tests are executed"
        else:
            line = proofs.held_by(name)
        terminalreporter.write_line(f"{name}: {line}")
