"""What several tests of this folder start from."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import pytest

from tests.reliability import loading
from tests.reliability.loading import NOTEBOOKS, Recipe


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def recipe(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recipe]:
    """A recipe whose setup was executed."""
    datasets.disable_progress_bars()
    yield loading.ready(request.param, tmp_path_factory.mktemp("runs"))
    datasets.enable_progress_bars()
