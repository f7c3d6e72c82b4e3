"""One recipe on a thousand files of any content, in a process of its own.

Apart from the command: a process that is spawned does not import the `__main__` of a package.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import datasets
import torch

from tests.reliability import loading

FILES = 1000


def outcomes_of(notebook: Path) -> tuple[str, dict[str, int]]:
    """Return a recipe's name, and how many of the files it used and how many it refused."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as runs:
        recipe = loading.ready(notebook, Path(runs))
        outcomes = loading.fuzz(recipe, FILES, same_every_time=False)
    return recipe.name, dict(sorted(outcomes.items()))
