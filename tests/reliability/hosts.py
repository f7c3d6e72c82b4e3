"""Machines for a test: network namespaces with addresses of their own, on one wire."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def impossible() -> str | None:
    """Say why no network namespace can be made here, or return None."""
    if shutil.which("ip") is None:
        return "needs the command ip (package iproute2)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    name = f"trial-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


class Host:
    """One machine: what runs on it sees its own address, and its neighbours on the wire."""

    def __init__(self, name: str, address: str, card: str) -> None:
        self.name, self.address, self.card = name, address, card

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on this machine."""
        there = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(there, text=True, **options)

    def processes(self) -> list[int]:
        """Return what runs on this machine."""
        return [int(line) for line in _ip("netns", "pids", self.name).split()]

    def kill(self) -> int:
        """Take the machine's power away; return how many processes that ended."""
        found = self.processes()
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass  # its parent's death ended it
        return len(found)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two machines, joined by one wire and by nothing else."""
    mark = os.getpid() % 100_000  # a card's name has at most 15 letters
    hosts = tuple(
        Host(f"cookbook-{mark}-{side}", f"10.77.0.{number}", f"w{mark}{side}")
        for number, side in enumerate("ab", start=1)
    )
    made = []
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            made.append(host)
        first, second = hosts
        _ip("link", "add", first.card, "type", "veth", "peer", "name", second.card)
        for host in hosts:
            _ip("link", "set", host.card, "netns", host.name)
            for line in (
                ("address", "add", f"{host.address}/24", "dev", host.card),
                ("link", "set", host.card, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-netns", host.name, *line)
        yield first, second
    finally:
        for host in made:
            host.kill()
            _ip("netns", "delete", host.name)  # the wire goes with it
