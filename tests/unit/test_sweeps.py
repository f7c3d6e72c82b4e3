"""Trials are measured once, survive a kill, and never touch the rows that score the choice."""

import json
import math
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
from datasets import Dataset, DatasetDict

from cookbook import data, sweeps
from cookbook.profiles import CookbookError

pytestmark = pytest.mark.unit


def valley(bottom: float) -> Callable[[float], float]:
    """A loss that is least at one rate."""
    return lambda rate: abs(math.log10(rate / bottom))


@pytest.mark.parametrize("begin", [1e-5, 3e-4, 1e-3, 1e-1])
@pytest.mark.parametrize("bottom", [3e-4, 1e-3, 1e-2])
def test_a_search_ends_at_the_same_rate_wherever_it_begins(
    begin: float, bottom: float, tmp_path: Path
) -> None:
    study = sweeps.open_study(tmp_path, "valley")
    assert sweeps.search_rate(study, begin, valley(bottom), most=12) == bottom
    rates = sorted(settings[sweeps.RATE] for settings, _ in sweeps.tried(study))
    assert rates[0] < bottom < rates[-1], "the best lies between two others"
    steps = [later / earlier for earlier, later in zip(rates, rates[1:])]
    assert all(2.9 < step < 3.4 for step in steps)


def test_a_search_stops_after_the_most_rates(tmp_path: Path) -> None:
    study = sweeps.open_study(tmp_path, "slope")
    assert sweeps.search_rate(study, 1e-3, lambda rate: -rate, most=5) == 3e-2
    assert len(sweeps.tried(study)) == 5


def test_a_rate_off_the_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither 1 nor 3"):
        sweeps.search_rate(sweeps.open_study(tmp_path, "x"), 2e-4, valley(1e-3), most=5)


def test_a_killed_sweep_goes_on_and_repeats_what_was_under_way(tmp_path: Path) -> None:
    grid = [{"r": 4, "rate": 1e-3}, {"r": 8, "rate": 1e-3}, {"r": 16, "rate": 1e-3}]
    measured: list[int] = []

    def killed(settings: sweeps.Settings) -> float:
        if settings["r"] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(settings["r"])

    def measure(settings: sweeps.Settings) -> float:
        measured.append(settings["r"])
        return float(settings["r"])

    def begin() -> None:
        sweeps.try_all(sweeps.open_study(tmp_path, "grid"), grid, killed)

    process = get_context("fork").Process(target=begin)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = sweeps.open_study(tmp_path, "grid")
    running = again.get_trials(states=[optuna.trial.TrialState.RUNNING])
    assert [one.params["r"] for one in running] == [8]
    sweeps.try_all(again, grid, measure)
    assert sorted(measured) == [8, 16], "the first was measured before the kill"
    assert sorted(value for _, value in sweeps.tried(again)) == [4.0, 8.0, 16.0]
    sweeps.try_all(again, grid, measure)
    assert len(measured) == 2, "what was tried is not tried again"


def test_what_fails_is_passed_over_and_tried_again_later(tmp_path: Path) -> None:
    fails = [True]

    def measure(settings: sweeps.Settings) -> float:
        if settings["kind"] == "b" and fails[0]:
            raise CookbookError("out of memory")
        return 1.0

    grid = [{"kind": "a"}, {"kind": "b"}, {"kind": "c"}]
    study = sweeps.open_study(tmp_path, "grid", minimize=False)
    with pytest.raises(CookbookError):
        sweeps.try_all(study, grid, measure)
    sweeps.try_all(study, grid, measure, passed_over=(CookbookError,))
    assert [settings["kind"] for settings, _ in sweeps.tried(study)] == ["a", "c"]
    fails[0] = False
    sweeps.try_all(study, grid, measure, passed_over=(CookbookError,))
    assert {settings["kind"] for settings, _ in sweeps.tried(study)} == {"a", "b", "c"}


def test_trials_at_once_are_each_measured_once(tmp_path: Path) -> None:
    grid = [{"on": on, "rate": rate} for on in (False, True) for rate in (1e-4, 1e-3)]
    study = sweeps.open_study(tmp_path, "grid")
    sweeps.try_all(study, grid, lambda settings: settings["rate"], at_once=2)
    found = [settings for settings, _ in sweeps.tried(study)]
    assert len(found) == 4 and all(one in found for one in grid)


def test_without_optuna_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(CookbookError, match="make install-sweep"):
        sweeps.open_study(tmp_path, "x")


def test_what_is_kept_is_measured_once(tmp_path: Path) -> None:
    count: list[int] = []
    path = tmp_path / "cells" / "one.json"

    def measure() -> dict[str, int]:
        count.append(1)
        return {"value": len(count)}

    assert [sweeps.kept(path, measure), sweeps.kept(path, measure)] == [{"value": 1}] * 2
    assert json.loads(path.read_text(encoding="utf-8")) == {"value": 1}


def test_what_is_kept_of_another_rate_is_measured_again(tmp_path: Path) -> None:
    path, asked = tmp_path / "one.json", []

    def at(rate: float) -> float:
        def measure() -> dict[str, Any]:
            asked.append(rate)
            return {"learning_rate": rate, "losses": [rate]}

        return float(sweeps.kept(path, measure, learning_rate=rate)["losses"][0])

    assert [at(1e-3), at(1e-3), at(3e-3), at(3e-3)] == [1e-3, 1e-3, 3e-3, 3e-3]
    assert asked == [1e-3, 3e-3]


def test_one_of_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CookbookError, match="Run it without"):
        sweeps.kept(tmp_path / "one.json", dict)
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> DatasetDict:
    """What `load_splits` gives from now on, before rows are kept apart."""
    rows = [{"text": f"row {n} about {n * n}", "kind": ""} for n in range(100)]
    held = [{"text": f"held out {n}", "kind": "new" if n % 2 else "old"} for n in range(20)]
    splits = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(held))
    general = DatasetDict(test=Dataset.from_list(held))
    monkeypatch.setattr(
        data, "load_splits", lambda source, *_, **__: general if "general" in source else splits
    )
    return splits


def test_rows_kept_apart_score_and_the_test_split_does_not(
    loaded: DatasetDict, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps.keep_rows_apart()
    splits = data.load_splits("my.jsonl")
    assert len(splits["test"]) == 10 and sweeps.APART in capsys.readouterr().out
    train, test = ({*one["text"]} for one in (splits["train"], splits["test"]))
    assert train | test == {*loaded["train"]["text"]} and not train & test
    assert not test & {*loaded["test"]["text"]}
    assert (
        data.load_splits("my.jsonl")["test"]["text"] == splits["test"]["text"]
    ), "the same each time"
    assert "train" not in data.load_splits("offline:general-text"), "the forgetting check stays"


def test_an_embedded_set_of_kinds_has_some_of_each(loaded: DatasetDict) -> None:
    sweeps.keep_rows_apart()
    assert sorted(data.load_splits("offline:problems")["test"]["kind"]) == ["new"] * 5 + ["old"] * 5
    assert {*data.load_splits("my.jsonl")["test"]["kind"]} == {""}, "a reader's columns are theirs"
