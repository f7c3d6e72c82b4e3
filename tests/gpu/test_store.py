"""Models are built together, kept while they are needed, and what cannot be built is said.

Real ones are built in the rehearsals.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.gpu import store
from tests.gpu.records import GIB
from tests.gpu.store import Models, NoRoom, NotBuilt

pytestmark = pytest.mark.unit

FALCON, OPT, QWEN = "tiiuae/falcon-7b", "facebook/opt-1.3b", "Qwen/Qwen3-14B"
Builder = Callable[[dict[str, dict[str, Any]], int], list[list[str]]]


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    """A function that lets a builder say things, and returns the list of what it is asked for."""

    def says(facts: dict[str, dict[str, Any]], status: int = 0) -> list[list[str]]:
        asked: list[list[str]] = []

        def run(command: Sequence[str], **_: Any) -> Any:
            names = [one for one in command[4:] if one != "--tiny"]
            asked.append(names)
            for name in names:
                (Path(command[3]) / Path(name).name).mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"name": name} | facts.get(name, {"parameters": 1})) for name in names
            ]
            said = "" if status else "a library speaks\n" + "\n".join(lines)
            return SimpleNamespace(
                returncode=status, stdout=said, stderr="Traceback\nValueError: no\n"
            )

        monkeypatch.setattr(subprocess, "run", run)
        return asked

    return says


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """A store with nothing in it, for models at full size."""
    return Models(tmp_path / "models", tiny=False, environment=dict(os.environ))


def let_there_be(free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk have so many GiB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * GIB))


def test_what_fits_is_built_together_and_kept_as_long_as_needed(
    builder: Builder, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = builder({}, 0)
    let_there_be(50, monkeypatch)
    folder, facts = models.get(FALCON, later=[QWEN, OPT, FALCON])
    assert asked == [[FALCON, OPT]], "Qwen3-14B has 28 GiB, for which room stays"
    assert folder.is_dir() and facts == {"parameters": 1}
    assert models.size(FALCON) == 0 < models.size(QWEN)
    models.get(OPT, later=[FALCON])
    assert len(asked) == 1, "it is there"
    models.get(FALCON)
    assert not (models.root / "opt-1.3b").exists(), "no later trial needs it"
    assert folder.is_dir()


def test_the_first_is_tried_however_little_room_there_is(
    builder: Builder, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = builder({QWEN: {"no_room": "building needs 31.6 GiB"}}, 0)
    let_there_be(10, monkeypatch)
    with pytest.raises(NoRoom, match="31.6 GiB"):
        models.get(QWEN, later=[OPT])
    assert asked == [[QWEN]]
    models.get(OPT)
    assert asked == [[QWEN], [OPT]]


def test_what_later_trials_need_makes_room(
    builder: Builder, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder({}, 0)
    let_there_be(50, monkeypatch)
    models.get(FALCON, later=[OPT])
    assert models.make_room(40 * GIB, QWEN) == 50 * GIB
    assert set(models.built) == {FALCON, OPT}, "there is room"
    assert models.make_room(70 * GIB, FALCON) == 50 * GIB, "which is too little"
    assert set(models.built) == {FALCON}


def test_a_builder_that_fails_is_heard(builder: Builder, models: Models) -> None:
    builder({}, 1)
    with pytest.raises(NotBuilt, match="building the model: ValueError: no"):
        models.get(OPT)


def test_models_go_into_memory_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, "MEMORY_DISK", tmp_path)
    monkeypatch.delenv("TMPDIR", raising=False)
    let_there_be(64, monkeypatch)
    assert store.scratch_folder([OPT, QWEN, "of another"]) == tmp_path
    let_there_be(60, monkeypatch)
    assert store.scratch_folder([QWEN]) != tmp_path, "no room for what a run writes"
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    assert store.scratch_folder([OPT]) != tmp_path, "a person has chosen"
