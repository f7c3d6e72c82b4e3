"""Peers that train on a CPU, each in an environment of its own, by its documented recipe."""

from pathlib import Path

from tests.bench.works import Work

PEERS: tuple[str, ...] = ()


class NotInstalled(Exception):
    """A peer's environment could not be built; the message says why."""


def command(peer: str, work: Work, result: Path, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a peer once, and the variables that it needs."""
    raise NotInstalled(f"there is no peer {peer} for {work.name}: {result.name}, {scratch.name}")
