"""A copy of the working tree for containers and browsers to work in."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.contract.repository import ROOT, copy_files


def copy(folder: Path) -> Path:
    """Copy what could be committed, and the embedded default, to `folder`; not as root's."""
    copy_files(folder)
    for name in ("pyproject.toml", "poetry.lock"):
        # Older than whatever is installed: Make would otherwise install the copy into the
        # environment that a test lends it, and that would import the copy from then on.
        os.utime(folder / name, (0, 0))
    subprocess.run(["cp", "-a", "--reflink=auto", ROOT / ".offline", folder], check=True)
    if os.geteuid() == 0:
        subprocess.run(["chown", "--recursive", "1000:1000", folder], check=True)
    return folder


@contextmanager
def temporary() -> Iterator[Path]:
    """A copy that is removed afterwards."""
    with tempfile.TemporaryDirectory() as parent:
        yield copy(Path(parent) / "tree")
