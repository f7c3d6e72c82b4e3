"""Models with random weights, built when needed and kept while a later trial needs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cookbook.profiles import ROOT
from tests.gpu import models
from tests.gpu.architectures import ARCHITECTURES
from tests.gpu.process import last_line
from tests.gpu.records import GIB

SPARE_DISK = 6 * GIB  # beside the weights: adapters, checkpoints, the data set
MEMORY_DISK = Path("/dev/shm")  # files in memory: what is written there is read again at once


class NoRoom(Exception):
    """This machine cannot hold it; the message says why."""


class NotBuilt(Exception):
    """Building it failed; the message says how."""


def scratch_folder(names: Iterable[str]) -> Path:
    """Return where models and runs go: in memory where the largest fits, else the usual place.

    `TMPDIR` decides where it is set.
    """
    largest = max((ARCHITECTURES[one].size for one in names if one in ARCHITECTURES), default=0)
    if "TMPDIR" not in os.environ and MEMORY_DISK.is_dir():
        if shutil.disk_usage(MEMORY_DISK).free > 2 * largest + SPARE_DISK:
            return MEMORY_DISK
    return Path(tempfile.gettempdir())


@dataclass
class Models:
    """The model folders below `root`, by name."""

    root: Path
    tiny: bool
    environment: dict[str, str]
    built: dict[str, dict[str, Any]] = field(default_factory=dict)

    def size(self, name: str) -> int:
        """Bytes that building a model would add."""
        return 0 if self.tiny or name in self.built else ARCHITECTURES[name].size

    def make_room(self, needed: int, name: str) -> int:
        """Forget models that only later trials need, until `needed` bytes are free; return how many
        are.
        """
        for other in [one for one in self.built if one != name]:
            if shutil.disk_usage(self.root.parent).free >= needed:
                break
            self._forget_all_but({*self.built} - {other})
        return shutil.disk_usage(self.root.parent).free

    def get(self, name: str, later: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
        """Return a model's folder, and its `parameters` and `seconds` of building.

        What is built is built together with as many of those needed later as the disk holds. Raises
        NoRoom or NotBuilt.
        """
        self._forget_all_but({name, *later})
        if name not in self.built:
            self._build(self._that_fit([name, *later]))
        facts = self.built.get(name)
        if facts is None:
            raise NotBuilt(f"{name} was not built")
        if "no_room" in facts:
            raise NoRoom(self.built.pop(name)["no_room"])
        return models.folder_of(name, self.root), facts

    def _that_fit(self, names: Sequence[str]) -> list[str]:
        self.root.mkdir(parents=True, exist_ok=True)
        # Room stays for the largest of them, which a run may also write once more, merged.
        free = shutil.disk_usage(self.root).free - SPARE_DISK - max(map(self.size, names))
        chosen: list[str] = []
        for name in dict.fromkeys(names):
            if name not in self.built and (not chosen or self.size(name) <= free):
                free -= self.size(name)
                chosen.append(name)
        return chosen

    def _forget_all_but(self, names: set[str]) -> None:
        for name in self.built.keys() - names:
            shutil.rmtree(models.folder_of(name, self.root), ignore_errors=True)
            del self.built[name]

    def _build(self, names: Sequence[str]) -> None:
        command = [sys.executable, "-m", "tests.gpu.models", str(self.root), *names]
        command += ["--tiny"] if self.tiny else []
        print(f"Building with random weights: {', '.join(names)}", flush=True)
        process = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        for line in process.stdout.splitlines():
            if line.startswith("{"):
                facts = json.loads(line)
                self.built[facts.pop("name")] = facts
        if process.returncode and names[0] not in self.built:
            raise NotBuilt(f"building the model: {last_line(process.stderr.splitlines())}")
