"""Every notebook on its GPU profiles, unmodified, for two steps against the loopback Hub.

Ids, client calls, tokenizers, templates, quantization, target modules and arguments are those of
the headline run; the models are tiny and random, so nothing is said about learning. A record holds
the runs of a recipe while nothing that they depend on changed: see `tests.proofs`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from tests.hub.notebooks import (
    DISTRIBUTED,
    NOTEBOOKS,
    PROFILES,
    as_if_launched,
    complaint,
    deprecations,
    execute,
    name_of,
    printed,
    settings_of,
)
from tests.hub.repositories import REPOSITORIES
from tests.hub.server import LoopbackHub
from tests.reliability import files
from tests.reliability.loading import COLUMNS, FEWEST

pytestmark = pytest.mark.hub

RECIPES = [
    pytest.param(path, id=name_of(path), marks=pytest.mark.held(f"hub/{name_of(path)}"))
    for path in NOTEBOOKS
]
TOKEN = "hf_" + "0123456789" * 4  # of nobody


def _fetched(hub: LoopbackHub, repository: str) -> set[str]:
    """Return the files of a repository that were downloaded."""
    start = f"/{repository}/resolve/"
    paths = [path for method, path in hub.requests if method == "GET" and path.startswith(start)]
    return {path.removeprefix(start).partition("/")[2] for path in paths}


def _wanted(hub: LoopbackHub, model: str) -> set[str]:
    """Return the weights of a model, or its configuration where it is trained from none."""
    weights = {path.name for path in (hub.root / "models" / model).glob("*.safetensors")}
    return weights or {"config.json"}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", RECIPES)
def test_the_notebook_runs_against_the_hub(
    path: Path,
    profile: str,
    hub: LoopbackHub,
    lead_to: Callable[[LoopbackHub, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = lead_to(hub, profile)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if (name_of(path), profile) == (DISTRIBUTED, "gpu16"):
        as_if_launched(monkeypatch)  # with the other profile it starts processes itself
    settings = settings_of(path, profile)
    result = execute(path)
    runs.mkdir(exist_ok=True)
    nbformat.write(result.nb, runs / path.name)  # to be read in pytest's temporary folder
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    assert not deprecations(result.nb)

    metrics = runs / name_of(path) / profile / "metrics.json"
    content = json.loads(metrics.read_text(encoding="utf-8"))
    assert content["train"]["steps"] == 2
    # The profile's own names, so nothing was replaced on the way.
    assert content["model"] == settings["model"]
    assert content["dataset"] == settings["dataset"]

    # The weights came through the client and not from somewhere on this machine.
    assert _wanted(hub, settings["model"]) <= _fetched(hub, settings["model"])
    assert _fetched(hub, f"datasets/{settings['dataset']}")
    assert not hub.unknown

    written = [file for file in runs.rglob("*") if file.is_file()]
    assert metrics in written and runs / path.name in written
    assert [file for file in written if TOKEN.encode() in file.read_bytes()] == []

    if any("BitsAndBytesConfig" in cell.source for cell in result.nb.cells):
        layers = REPOSITORIES[f"models/{settings['model']}"].linear_layers
        assert f"{layers} linear layers in 4 bits" in printed(result.nb)


@pytest.mark.parametrize("path", RECIPES)
def test_the_fewest_rows_suffice_to_the_end(
    path: Path,
    hub: LoopbackHub,
    lead_to: Callable[[LoopbackHub, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Own data of hardly any rows: what reads three rows may find one."""
    runs = lead_to(hub, "gpu16")
    mine = files.folder(tmp_path / "mine", COLUMNS[path.stem], FEWEST.get(path.stem, 1))
    monkeypatch.setenv("COOKBOOK_DATASET", str(mine))
    assert complaint(execute(path).nb) == ""
    assert (runs / name_of(path) / "gpu16-own" / "metrics.json").is_file()
