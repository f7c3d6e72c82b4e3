"""poetry.lock: one version of a package per platform and Python, and files to install it from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from scripts import poetry as poetry_script
from tests.contract.lock_rules import (
    TARGETS,
    Target,
    is_selected,
    overlaps,
    read_lock,
    without_files,
)
from tests.contract.repository import (
    FOLDER_GROUPS,
    OTHER_GROUPS,
    ROOT,
    core_requirements,
    group_requirements,
    project,
)

pytestmark = pytest.mark.contract

LOCK = ROOT / "poetry.lock"
BROKEN_LOCK = Path(__file__).parent / "fixtures" / "overlapping-poetry.lock"
TWICE_RESOLVED = ["nvidia-cublas", "nvidia-cuda-nvrtc"]
NAMED_PACKAGES = """
    torch transformers datasets accelerate peft bitsandbytes trl deeplake jupyterlab nbstripout
    black isort flake8 mypy pytest nbmake
""".split()


def target_name(target: Target) -> str:
    """Test id."""
    return target.name.replace(", ", "-").replace(" ", "-")


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
def test_one_version_of_each_package(target: Target) -> None:
    assert overlaps(read_lock(LOCK), target) == {}


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
def test_the_broken_lock_is_found_out(target: Target) -> None:
    found = overlaps(read_lock(BROKEN_LOCK), target)
    expected = (
        {"nvidia-cublas": ["13.10.0.20", "13.4.1.3"], "nvidia-cuda-nvrtc": ["13.2.86", "13.5.37"]}
        if target.system == "Linux"
        else {}
    )
    assert found == expected


def test_markers_per_group_are_evaluated() -> None:
    target = TARGETS[0]
    package = {
        "name": "x",
        "version": "1",
        "groups": ["main", "dev"],
        "markers": {"main": 'sys_platform == "win32"'},
    }
    assert is_selected(package, target), "dev has no marker, so it always holds"
    assert not is_selected(package, target, {"main"})


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
def test_every_package_can_be_installed(target: Target) -> None:
    assert list(without_files(read_lock(LOCK), target)) == []


def test_a_package_without_a_fitting_file_is_found_out() -> None:
    package = {
        "name": "x",
        "version": "1",
        "groups": ["main"],
        "files": [{"file": "x-1-cp311-cp311-manylinux_2_28_x86_64.whl"}],
    }
    lacking = [target for target in TARGETS if list(without_files([package], target))]
    assert lacking == TARGETS[1:]
    package["files"] = [*package["files"], {"file": "x-1.tar.gz"}]
    assert not any(list(without_files([package], target)) for target in TARGETS)


@pytest.mark.parametrize("name", TWICE_RESOLVED)
def test_the_pins_are_those_torch_asks_for(name: str) -> None:
    """torch -> cuda-toolkit (one exact version) -> the two packages."""
    lock = {package["name"]: package for package in read_lock(LOCK)}
    toolkit = lock["cuda-toolkit"]
    asked_by_torch = SpecifierSet(f"=={toolkit['version']}")
    assert SpecifierSet(_version_of(lock["torch"]["dependencies"]["cuda-toolkit"])) == (
        asked_by_torch
    )
    asked = SpecifierSet(_version_of(toolkit["dependencies"][name]))
    (pin,) = [r for r in core_requirements() if canonicalize_name(r.name) == name]
    assert str(pin.marker) == 'platform_system == "Linux"'
    (version,) = [specifier.version for specifier in pin.specifier]
    assert str(pin.specifier) == f"=={version}"
    assert asked.contains(version), f"{name} {version} is pinned, torch asks for {asked}"
    assert lock[name]["version"] == version


def _version_of(dependency: str | dict[str, str]) -> str:
    text = dependency if isinstance(dependency, str) else dependency["version"]
    return text if text[0] in "=<>~!" else f"=={text}"


@pytest.mark.parametrize("name", NAMED_PACKAGES)
def test_named_packages_are_locked(name: str) -> None:
    assert name in {package["name"] for package in read_lock(LOCK)}


def test_kernels_is_not_locked() -> None:
    # With it installed, bitsandbytes tries to fetch kernels from the Hub.
    assert "kernels" not in {package["name"] for package in read_lock(LOCK)}


def test_the_lock_names_no_source() -> None:
    # A lock written behind a mirror must not send others there.
    assert [package["name"] for package in read_lock(LOCK) if "source" in package] == []


def test_a_group_is_a_folder_s_or_a_command_s() -> None:
    """What the other tests walk through is all that pyproject.toml has."""
    assert {*FOLDER_GROUPS.values(), *OTHER_GROUPS, "dev"} == set(project()["dependency-groups"])


def test_a_direct_package_is_locked_in_its_groups() -> None:
    lock = {package["name"]: package for package in read_lock(LOCK)}
    wanted = {"main": core_requirements()}
    groups = project()["dependency-groups"]
    wanted |= {group: group_requirements(group) for group in groups}
    missing = [
        f"{requirement.name} in {group}"
        for group, requirements in wanted.items()
        for requirement in requirements
        if group not in lock[canonicalize_name(requirement.name)]["groups"]
    ]
    assert missing == []


def test_the_lock_fits_pyproject() -> None:
    if not (poetry_script.bundled_is_whole(ROOT) or poetry_script.users_poetry(os.environ)):
        pytest.skip("there is no Poetry here; `make install` brings one")
    assert poetry_script.run(["check", "--lock"], ROOT, os.environ) == 0
