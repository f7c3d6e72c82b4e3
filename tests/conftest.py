"""What all tests share: one start for small notebook runs, and what records hold."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture(autouse=True)
def _libraries_as_they_are() -> Iterator[None]:
    """A test that swaps Falcon's layers, as its notebook does, gives them back to those after it.

    Tests of a worker share one process: which of them comes next is not known.
    """
    yield
    if falcon := sys.modules.get("transformers.models.falcon.modeling_falcon"):
        assert falcon.FalconLinear.__name__ == "FalconLinear", "swapped and not given back"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: those of an archive may hold the time at which it was packed.

    Two processes that collected before and after the turn of a second had different tests then,
    and pytest-xdist gives up on that.
    """
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make test` and of `python -m tests.proofs record`."""
    parser.addoption("--held", action="store_true", help="leave out what a record proves")
    parser.addoption("--proof", help="the tests of this area alone, whatever their marks")
    parser.addoption("--proof-to", type=Path, help="write seconds by test here, if all passed")


def pytest_configure(config: pytest.Config) -> None:
    """Load what records hold where it is asked for: other runs need not import the package.

    As commands do, say where relative paths begin, and that text is UTF-8: kernels inherit it.
    """
    os.environ.setdefault("COOKBOOK_FROM", os.getcwd())
    os.environ.setdefault("PYTHONUTF8", "1")
    if offline := os.environ.get("COOKBOOK_OFFLINE"):
        os.environ["COOKBOOK_OFFLINE"] = os.path.abspath(os.path.expanduser(offline))
    if config.getoption("--held") or config.getoption("--proof"):
        from tests import held

        config.pluginmanager.register(held, "held")
