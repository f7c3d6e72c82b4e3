"""The files of a tiny model with two adapters, for all tests of serving."""

from __future__ import annotations

import pytest

from tests.serving.tiny_gguf import Tiny, write_adapter, write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The files of a tiny model and two adapters."""
    folder = tmp_path_factory.mktemp("tiny")
    adapters = (folder / "a.gguf", folder / "b.gguf")
    write_model(folder / "model.gguf")
    for seed, path in enumerate(adapters, 1):
        write_adapter(path, seed)
    return Tiny(folder / "model.gguf", adapters)
