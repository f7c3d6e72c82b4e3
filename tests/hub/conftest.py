"""The loopback Hub for one session, and the environment that leads a notebook to it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub.repositories import write_repositories
from tests.hub.server import UNSET, LoopbackHub


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every repository, in a folder of this session (and of this worker, under pytest-xdist)."""
    return write_repositories(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def session_hub(repositories: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(repositories) as running:
        yield running


@pytest.fixture
def hub(session_hub: LoopbackHub) -> LoopbackHub:
    """The running Hub, with nothing asked of it yet."""
    session_hub.forget()
    return session_hub


@pytest.fixture
def own_hub(hub: LoopbackHub, repositories: Path, tmp_path: Path) -> Iterator[LoopbackHub]:
    """The Hub with copies of the test's own, which it may change. The address stays the same."""
    hub.root = Path(shutil.copytree(repositories, tmp_path / "hub")).resolve()
    yield hub
    hub.root = repositories.resolve()


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what clients keep, at one place: libraries read it when they are imported."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def lead_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caches: Path, shared_start: None
) -> Callable[[LoopbackHub, str], Path]:
    """A function that leads notebooks to a Hub, on a GPU profile for two steps.

    It returns the folder of the runs, which is the test's own. The caches are empty.
    """
    shutil.rmtree(caches)
    caches.mkdir()

    def lead(to: LoopbackHub, profile: str) -> Path:
        for name in (*UNSET, "COOKBOOK_MODEL", "COOKBOOK_DATASET", "COOKBOOK_PRECISION"):
            monkeypatch.delenv(name, raising=False)
        runs = tmp_path / "runs"
        cookbook = {
            "COOKBOOK_PROFILE": profile,
            "COOKBOOK_ALLOW_CPU": "1",
            "COOKBOOK_MAX_STEPS": "2",
            "COOKBOOK_SEED": "0",
            "COOKBOOK_RUNS": str(runs),
        }
        for name, value in {**to.environment(caches), **cookbook}.items():
            monkeypatch.setenv(name, value)
        return runs

    return lead
