"""A server beside a notebook: `make serve` in a process of its own, until a block ends."""

import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from cookbook.profiles import ROOT, CookbookError
from cookbook.serving.engine import end

_AT = re.compile(r" at (http://\S+/v1) ")
END_WAIT = 20  # seconds for a server that was told to end


@dataclass(frozen=True)
class Running:
    """A server that answers: where, behind which key, and under which process's number."""

    url: str
    key: str
    process: int

    def peak_memory_bytes(self) -> int:
        """Return the most memory that llama.cpp's process has held, mapped files included."""
        return max(map(_peak, psutil.Process(self.process).children(recursive=True)), default=0)


def _peak(process: psutil.Process) -> int:
    """Return a process's largest resident set; where the kernel does not tell, the present one."""
    status = Path(f"/proc/{process.pid}/status")
    text = status.read_text(encoding="ascii") if status.exists() else ""
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else int(process.memory_info().rss)


@contextmanager
def running(*arguments: str | Path) -> Iterator[Running]:
    """Serve until the block ends; `arguments` are those of `cookbook.commands.serve`.

    It takes any free port, and a key of its own. Raises `CookbookError` with what the server said
    where it does not start.
    """
    key = secrets.token_urlsafe()
    command = [sys.executable, "-m", "cookbook.commands.serve", *map(str, arguments)]
    environment = {**os.environ, "COOKBOOK_API_KEY": key, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,  # an interrupt of the notebook ends the block, which ends it
        )
        try:
            yield Running(_url(process, log), key, process.pid)
        finally:
            end(process, END_WAIT)


def _url(process: "subprocess.Popen[str]", log: IO[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := _AT.search(line):
            return found[1]
    process.wait()
    log.seek(0)
    said = log.read().strip().splitlines() or [f"exit status {process.returncode}"]
    raise CookbookError(f"The server did not start: {said[-1]}")
