"""What the contract tests read: the repository's files, its dependencies, its Make targets."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]

# Notebook folder -> the dependency group that is enough for it.
FOLDER_GROUPS = {
    "01-Full-Fine-Tuning": "full-finetuning",
    "02-PEFT": "peft",
    "03-Instruction-Tuning": "instruction-tuning",
    "04-Reasoning-Tuning": "reasoning",
    "05-Export-and-Serving": "serving",
    "06-Preference-Tuning": "preference",
}
# What a command needs beside a folder's group.
OTHER_GROUPS = ("sweep",)


@cache
def repository_files() -> tuple[Path, ...]:
    """Files that are, or could be, committed: tracked ones and new ones that are not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = (ROOT / name for name in listing.split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


def copy_files(folder: Path) -> None:
    """Copy to `folder` what a clone would hold."""
    for path in repository_files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def notebooks() -> list[Path]:
    """The notebooks in the numbered technique folders."""
    return sorted(path for folder in FOLDER_GROUPS for path in (ROOT / folder).glob("*.ipynb"))


@cache
def project() -> dict[str, dict[str, object]]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def core_requirements() -> list[Requirement]:
    """The requirements that are always installed."""
    texts = project()["project"]["dependencies"]
    assert isinstance(texts, list)
    return [Requirement(text) for text in texts]


def group_requirements(group: str) -> list[Requirement]:
    """The requirements of one dependency group."""
    texts = project()["dependency-groups"][group]
    assert isinstance(texts, list)
    return [Requirement(text) for text in texts]


def names(requirements: list[Requirement]) -> set[str]:
    """Normalised distribution names."""
    return {canonicalize_name(requirement.name) for requirement in requirements}


def optional_packages() -> set[str]:
    """Direct packages of the groups for users that core does not have."""
    groups = (*FOLDER_GROUPS.values(), *OTHER_GROUPS)
    found = {name for group in groups for name in names(group_requirements(group))}
    return found - names(core_requirements())


INTERNAL = {f"check-{what}" for what in ("notebook", "folder", "docker", "caches")}


@cache
def make_targets() -> frozenset[str]:
    """Targets that a person calls: the .PHONY ones but for internal checks."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    declared = " ".join(re.findall(r"^\.PHONY:(.*)$", text, re.MULTILINE)).split()
    return frozenset(name for name in declared if name not in INTERNAL)
