"""A working tree of its own for each session of container and browser tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import engine, lab, trees


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree; it belongs to no root."""
    return trees.copy(tmp_path_factory.mktemp("containers") / "tree")


@pytest.fixture
def chromium() -> str:
    """The command of a browser; in CI there has to be one."""
    command = lab.browser()
    if command is None:
        if os.environ.get("CI"):
            pytest.fail(f"no browser here: install one of {', '.join(lab.BROWSERS)}")
        pytest.skip(f"no browser here: install one of {', '.join(lab.BROWSERS)}")
    return command


@pytest.fixture(scope="session")
def project(tree: Path) -> Iterator[engine.Project]:
    """The tree with names of its own in Docker; what was made under them is removed in the end."""
    if reason := engine.missing():
        pytest.skip(f"no container engine: {reason}")
    # A short training: the recipes' own tests look at what is learned.
    settings = {"JUPYTER_PORT": str(engine.free_port()), "COOKBOOK_MAX_STEPS": "20"}
    made = engine.Project.of(tree, f"cookbook-test-{uuid.uuid4().hex[:8]}").with_settings(
        **settings
    )
    yield made
    made.remove()
    assert made.leftovers() == {}, "these are left for a person to remove"


@pytest.fixture(scope="session")
def first_build(project: engine.Project) -> engine.Build:
    """The image `dev`, built as a person builds it."""
    return project.build()
