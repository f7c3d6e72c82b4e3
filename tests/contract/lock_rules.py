"""What poetry.lock selects for one platform and Python, and whether that can be installed."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

Package = dict[str, Any]

PYTHONS = ((3, 11), (3, 12), (3, 13))
# The oldest systems that every locked file runs on: glibc 2.28 and macOS 14.
GLIBC_MINOR = 28
MACOS = (14, 0)


class Target(NamedTuple):
    """One machine and Python that the project is locked for."""

    system: str
    machine: str
    python: tuple[int, int]

    @property
    def name(self) -> str:
        """For example `Linux x86_64, Python 3.12`."""
        return f"{self.system} {self.machine}, Python {self.python[0]}.{self.python[1]}"

    def marker_environment(self) -> dict[str, str]:
        """The PEP 508 environment of this target."""
        version = f"{self.python[0]}.{self.python[1]}"
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{version}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": self.system,
            "platform_version": "",
            "python_full_version": f"{version}.0",
            "python_version": version,
            "sys_platform": self.system.lower(),
            "extra": "",
        }

    def wheel_tags(self) -> set[Tag]:
        """Every wheel tag that installs on this target."""
        if self.system == "Darwin":
            platforms = list(mac_platforms(MACOS, self.machine))
        else:
            platforms = [f"manylinux_2_{n}_{self.machine}" for n in range(5, GLIBC_MINOR + 1)]
            platforms += [f"manylinux{alias}_{self.machine}" for alias in ("1", "2010", "2014")]
        interpreter = f"cp{self.python[0]}{self.python[1]}"
        return {
            *cpython_tags(self.python, platforms=platforms),
            *compatible_tags(self.python, interpreter, platforms),
        }


TARGETS = [
    Target(system, machine, python)
    for system, machine in (("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"))
    for python in PYTHONS
]


def read_lock(path: Path) -> list[Package]:
    """The package entries of a poetry.lock."""
    packages: list[Package] = tomllib.loads(path.read_text(encoding="utf-8"))["package"]
    return packages


def is_selected(package: Package, target: Target, groups: set[str] | None = None) -> bool:
    """Whether installing `groups` (default: all of them) on `target` installs this entry.

    The lock holds one marker for all groups, or one per group; a group without one always holds.
    """
    wanted = [group for group in package["groups"] if groups is None or group in groups]
    markers = package.get("markers", {})
    environment = target.marker_environment()
    for group in wanted:
        text = markers if isinstance(markers, str) else markers.get(group)
        if not text or Marker(text).evaluate(environment):
            return True
    return False


def overlaps(packages: list[Package], target: Target) -> dict[str, list[str]]:
    """Names with more than one version selected on `target`, and those versions."""
    versions: dict[str, set[str]] = defaultdict(set)
    for package in packages:
        if is_selected(package, target):
            versions[package["name"]].add(package["version"])
    return {name: sorted(found) for name, found in versions.items() if len(found) > 1}


def without_files(packages: list[Package], target: Target) -> Iterator[str]:
    """Names of selected packages with neither a wheel for `target` nor a source archive."""
    tags = target.wheel_tags()
    for package in packages:
        if not is_selected(package, target):
            continue
        files = [entry["file"] for entry in package["files"]]
        wheels = [name for name in files if name.endswith(".whl")]
        fits = any(not tags.isdisjoint(parse_wheel_filename(name)[3]) for name in wheels)
        if not fits and len(wheels) == len(files):
            yield package["name"]
