"""Every notebook, whole, on own data of hardly any rows: what reads three rows may find one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.notebooks import NOTEBOOKS, complaint, execute, name_of
from tests.hub.server import LoopbackHub
from tests.reliability import files
from tests.reliability.loading import COLUMNS, FEWEST

pytestmark = pytest.mark.hub


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_the_fewest_rows_suffice_to_the_end(
    path: Path,
    hub: LoopbackHub,
    lead_to: Callable[[LoopbackHub, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    runs = lead_to(hub, "gpu16")
    mine = files.folder(tmp_path / "mine", COLUMNS[path.stem], FEWEST.get(path.stem, 1))
    monkeypatch.setenv("COOKBOOK_DATASET", str(mine))
    assert complaint(execute(path).nb) == ""
    assert (runs / name_of(path) / "gpu16-own" / "metrics.json").is_file()
