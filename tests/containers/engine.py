"""Docker as the tests use it: whatever engine `docker info` finds."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

LONGEST = 1500  # seconds for one command; a first build downloads torch and CUDA's libraries
STEP = re.compile(r"^#(\d+) \[(?:\S+ )?(\S+) +\d+/\d+\] (.*)$", re.MULTILINE)


def missing() -> str | None:
    """Return why containers cannot be tested here, or None."""
    if not shutil.which("docker"):
        return "there is no docker command"
    for command in (
        ["docker", "info"],
        ["docker", "compose", "version"],
        ["docker", "buildx", "version"],
    ):
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            return f"`{' '.join(command)}` failed: {found.stderr.strip()[-200:]}"
    return None


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@dataclass(frozen=True)
class Build:
    """What a build printed: each step's stage and instruction, and whether it was cached."""

    output: str
    seconds: float

    def steps(self) -> dict[str, bool]:
        """Return `stage: instruction` -> whether it came from the cache."""
        cached = set(re.findall(r"^#(\d+) CACHED$", self.output, re.MULTILINE))
        return {
            f"{stage}: {what}": number in cached
            for number, stage, what in STEP.findall(self.output)
        }


class Layer(NamedTuple):
    """What one step of a Dockerfile added to an image."""

    instruction: str
    bytes: int


@dataclass(frozen=True)
class Project:
    """A working tree with an image, a compose project and a user of its own."""

    tree: Path
    name: str
    uid: int
    gid: int
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: Path, name: str) -> Project:
        """Return a project for a tree; the container's user gets the numbers of its owner."""
        owner = tree.stat()
        return cls(tree, name, owner.st_uid, owner.st_gid)

    @property
    def environment(self) -> dict[str, str]:
        """What Make and compose are given."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("COOKBOOK_")
        }
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MARK", "NB", "FOLDER", "JUPYTER_TOKEN"):
            kept.pop(name, None)
        return kept | {
            "COMPOSE_PROJECT_NAME": self.name,
            "COOKBOOK_IMAGE": f"{self.name}:dev",
            "USER_UID": str(self.uid),
            "USER_GID": str(self.gid),
            "BUILDKIT_PROGRESS": "plain",
            **self.settings,
        }

    def with_settings(self, **settings: str) -> Project:
        """Return the same project with further variables for Make and compose."""
        return replace(self, settings={**self.settings, **settings})

    def run(self, *command: str, check: bool = True, timeout: float = LONGEST) -> str:
        """Run a command in the tree and return what it printed; both streams, in order."""
        done = subprocess.run(
            command,
            cwd=self.tree,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}"
        return done.stdout

    def remove(self) -> None:
        """Remove the project's containers, networks, volumes and images; not the build cache."""
        profiles = ("--profile", "cpu", "--profile", "serve")
        down = ("docker", "compose", *profiles, "down", "--volumes", "--timeout", "5")
        self.run(*down, check=False)
        for kind, names in self.leftovers().items():
            self.run("docker", kind, "rm", "--force", *names, check=False)

    def leftovers(self) -> dict[str, list[str]]:
        """Return what is labelled as the project's: also images that others took the name of."""
        mine = ("--quiet", "--filter", f"label=com.docker.compose.project={self.name}")
        listings = {
            "container": ("container", "ls", "--all"),
            "image": ("image", "ls", "--all"),
            "volume": ("volume", "ls"),
        }
        found = {
            kind: sorted(set(self.run("docker", *what, *mine).split()))
            for kind, what in listings.items()
        }
        return {kind: names for kind, names in found.items() if names}

    def build(self, *options: str) -> Build:
        """Build the image `dev` through Make."""
        started = time.monotonic()
        output = self.run("make", "docker-build", *options)
        return Build(output, time.monotonic() - started)

    def in_image(self, image: str, *command: str, check: bool = True) -> str:
        """Run a command in a fresh container of an image."""
        return self.run(
            *("docker", "run", "--rm", "--network", "none", "--entrypoint", ""),
            image,
            *command,
            check=check,
        )

    def layers(self, image: str) -> list[Layer]:
        """Return what each step added to an image, in order; empty ones are left out."""
        lines = self.run(
            *("docker", "history", "--no-trunc", "--human=false", "--format", "{{json .}}"), image
        ).splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        made = [Layer(" ".join(one["CreatedBy"].split()), int(one["Size"])) for one in found]
        return [layer for layer in reversed(made) if layer.bytes]

    def check_safe(self, container: str, port: int) -> dict[str, Any]:
        """Assert that a service is healthy, and reached from this machine alone; describe it."""
        described = self.inspect(container)
        assert described["State"]["Health"]["Status"] == "healthy"
        bound = described["NetworkSettings"]["Ports"][f"{port}/tcp"]
        assert {one["HostIp"] for one in bound} == {"127.0.0.1"}
        assert described["HostConfig"]["CapDrop"] == ["ALL"]
        return described

    def inspect(self, what: str) -> dict[str, Any]:
        """Return what Docker knows of an image, a container or a volume."""
        (found,) = json.loads(self.run("docker", "inspect", what))
        described: dict[str, Any] = found
        return described
