"""What `make test` leaves out, and what it says in the end."""

from __future__ import annotations

import gzip
from types import SimpleNamespace
from typing import Any

import pytest

from tests import held, proofs

pytestmark = pytest.mark.unit

ONE, TWO, THREE = proofs.RECIPES[:3]


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of all but one recipe and one area are current; the second is the spot check."""
    changed = {THREE: ("notebook",), "kills": ("cookbook.training.guarded",)}
    monkeypatch.setattr(proofs, "stale", lambda name: changed.get(name, ()))
    monkeypatch.setattr(proofs, "spot_check", lambda: (TWO, proofs.against_the_hub(TWO)))
    monkeypatch.setattr(proofs, "held_by", lambda name: "held by a record")


def item(name: str | None, *marks: str) -> Any:
    """A test with the mark `held`, or without."""
    found: dict[str, Any] = {mark: SimpleNamespace(args=()) for mark in marks}
    if name:
        found["held"] = SimpleNamespace(args=(name,))
    return SimpleNamespace(get_closest_marker=found.get)


def left(items: list[Any], **options: str) -> tuple[list[Any], int]:
    """Return what is run of some tests, and the number of those left out."""
    config: Any = SimpleNamespace(
        getoption={"--proof": None, "--held": True, **options}.get,
        hook=SimpleNamespace(pytest_deselected=lambda items: None),
        stash=pytest.Stash(),
    )
    held.pytest_collection_modifyitems(config, items)
    return items, config.stash[held.LEFT_OUT]


def test_what_a_current_record_holds_is_left_out_but_for_the_spot_check() -> None:
    one, two, three, kills, loading, other = tests = [
        item(name) for name in (ONE, TWO, THREE, "kills", "loading", None)
    ]
    assert left(tests.copy()) == ([two, three, kills, other], 2)
    hub = [item(proofs.against_the_hub(name)) for name in (ONE, TWO)]
    assert left(hub.copy()) == (hub[1:], 1)


def test_an_area_is_recorded_by_its_tests_alone() -> None:
    tests = [item("loading", "slow"), item("loading", "thorough"), item("kills"), item(None)]
    assert left(tests.copy(), **{"--proof": "loading"}) == (tests[:1], 3)


@pytest.mark.parametrize(
    ("code", "left_out", "ends"), [(5, 3, 0), (5, 0, 5), (1, 3, 1), (0, 3, 0), (2, 3, 2)]
)
def test_only_an_empty_run_of_held_tests_is_no_failure(code: int, left_out: int, ends: int) -> None:
    config = SimpleNamespace(getoption=lambda _: True, stash=pytest.Stash())
    config.stash[held.LEFT_OUT] = left_out
    session: Any = SimpleNamespace(config=config, exitstatus=code)
    held.pytest_sessionfinish(session, code)
    assert session.exitstatus == ends


def told(**reports: list[Any]) -> dict[str, str]:
    """Return name -> what is said of it."""
    lines: list[str] = []
    reporter: Any = SimpleNamespace(
        stats=reports, section=lambda _: None, write_line=lambda line: lines.append(line)
    )
    held._tell(reporter)
    return dict(line.split(": ", 1) for line in lines)


def test_each_recipe_and_area_has_a_line() -> None:
    ran = [("recipe", TWO), ("scores", "loss 3.0 -> 2.0")]
    lines = told(passed=[SimpleNamespace(user_properties=ran, when="call")])
    assert set(lines) == {*proofs.RECIPES, *proofs.AREAS}
    assert lines[ONE] == "held by a record"
    assert lines[TWO] == "executed now: loss 3.0 -> 2.0"
    assert lines[THREE].startswith("NOT PROVEN") and "(notebook)" in lines[THREE]
    assert lines["kills"].startswith("held by no record")


def test_a_recipe_that_did_not_learn_and_one_for_which_no_time_was_left() -> None:
    scores = [("recipe", THREE), ("scores", "loss 3.0 -> 3.0")]
    lines = told(failed=[SimpleNamespace(user_properties=scores, when="call")])
    assert lines[THREE] == "executed now: loss 3.0 -> 3.0, FAILED"
    late = SimpleNamespace(user_properties=[("recipe", TWO)], when="call")
    assert told(skipped=[late])[TWO] == "held by a record", "the spot check, and its record"


@pytest.mark.parametrize("packed", [gzip.compress(b"{}"), gzip.compress(b"[]")])
def test_the_names_of_tests_do_not_depend_on_the_time(
    packed: bytes, request: pytest.FixtureRequest
) -> None:
    inside = request.node.name.partition("[")[2]
    assert inside in (f"{len(packed)} bytes{number}]" for number in (0, 1))
