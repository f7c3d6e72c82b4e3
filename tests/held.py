"""A plugin of pytest: what a current record proves is left out, and told at the end."""

from __future__ import annotations

import json
import time
from collections import defaultdict

import pytest

from tests import proofs, times

LEFT_OUT = pytest.StashKey[int]()


def name_of(item: pytest.Item) -> str | None:
    """Return the recipe or area whose record proves what a test does, if one does."""
    mark = item.get_closest_marker("held")
    return str(mark.args[0]) if mark else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is held by a current record, but for the spot check.

    With `--proof` keep the tests of that area instead, whatever their marks.
    """
    area = config.getoption("--proof")
    checked = () if area else proofs.spot_check()

    def runs(item: pytest.Item) -> bool:
        name = name_of(item)
        if area:
            return name == area and not item.get_closest_marker("thorough")
        return name is None or name in checked or bool(proofs.stale(name))

    left_out = [item for item in items if not runs(item)]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = len(left_out)
    items[:] = [item for item in items if runs(item)]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """No test left to run is no failure where records hold the proof."""
    nothing = exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
    if nothing and session.config.getoption("--held") and session.config.stash.get(LEFT_OUT, 0):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Keep what the tests took, and say of recipes and areas what holds their proof."""
    if config.getoption("--proof"):
        _keep_passed(terminalreporter, config)
        return
    marks = config.getoption("markexpr").split(" or ")
    small = bool(config.getoption("numprocesses", None))
    if small or "recipes" in marks:  # a part of `make test`, and not some mark alone
        took = time.time() - terminalreporter._session_start.time
        times.keep("small" if small else "large", took, _seconds(terminalreporter))
    if "recipes" in marks:
        _tell(terminalreporter)


def _keep_passed(reporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the tests that passed, unless one was skipped, which proves nothing.

    What is only there to write another record may be skipped.
    """
    skips = [str(one.longrepr) for one in reporter.stats.get("skipped", [])]
    if all("COOKBOOK_RECORD" in why for why in skips):
        reports = [one for one in reporter.stats.get("passed", []) if one.when == "call"]
        seconds = {one.nodeid: round(one.duration, 1) for one in reports}
        config.getoption("--proof-to").write_text(json.dumps(seconds), encoding="utf-8")


def _seconds(reporter: pytest.TerminalReporter) -> dict[str, float]:
    """Return the seconds of each test, with what was prepared for it."""
    found: defaultdict[str, float] = defaultdict(float)
    for reports in reporter.stats.values():
        for one in reports:
            if hasattr(one, "duration"):
                found[one.nodeid] += one.duration
    return found


def _tell(reporter: pytest.TerminalReporter) -> None:
    """Write a line for each recipe and area: executed now, held by a record, or neither."""
    executed = {}
    for outcome in ("passed", "failed"):
        for report in reporter.stats.get(outcome, []):
            told = dict(report.user_properties)
            if "recipe" in told and report.when == "call":
                scores = told.get("scores", "no score")
                executed[told["recipe"]] = f"{scores}{', FAILED' * (outcome == 'failed')}"
    reporter.section("what holds the proof")
    for name in (*proofs.RECIPES, *proofs.AREAS):
        if name in executed:
            line = f"executed now: {executed[name]}"
        elif not (changed := proofs.stale(name)):
            line = proofs.held_by(name)
        elif name in proofs.AREAS:
            line = f"held by no record ({_short(changed)}): its tests are executed"
        else:
            line = f"NOT PROVEN: not executed, and held by no record ({_short(changed)})"
        reporter.write_line(f"{name}: {line}")


def _short(changed: tuple[str, ...]) -> str:
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return ", ".join(changed[:3]) + more
