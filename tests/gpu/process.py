"""Run a command for a limited time, and end all that it started."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Timer

import psutil

from cookbook.profiles import ROOT


def run_logged(
    command: Sequence[str],
    environment: dict[str, str],
    log: Path,
    timeout: float,
    show: bool = True,
) -> tuple[int | None, str]:
    """Run a command, keeping what it prints, and `show` it; return its status and last line.

    The status is None where it took longer than `timeout` seconds. It and what it started, the
    kernel among them, are ended with it, so that the GPU is free for the next.
    """
    last: deque[str] = deque(maxlen=20)
    late: list[bool] = []
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

        def stop() -> None:
            late.append(True)
            _end(process.pid)

        timer = Timer(timeout, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if show:
                    print(line, end="", flush=True)
                file.write(line)
                last.append(line)
            process.wait()
        finally:
            timer.cancel()
            if late:
                timer.join()  # what it ends is gone only then
            if process.poll() is None:
                _end(process.pid)
    return (None if late else process.returncode), last_line(last)


def _end(pid: int) -> None:
    """End a process that we started, and every process below it."""
    try:
        root = psutil.Process(pid)
        root.suspend()  # or it could start one more between our looking and our ending
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for one in family:
        _signal(one, "terminate")
    _signal(root, "resume")
    _, alive = psutil.wait_procs(family, timeout=10)
    for one in alive:
        _signal(one, "kill")
    psutil.wait_procs(alive, timeout=10)


def _signal(process: psutil.Process, name: str) -> None:
    try:
        getattr(process, name)()
    except psutil.NoSuchProcess:
        pass


def last_line(lines: Sequence[str]) -> str:
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "it said nothing"
