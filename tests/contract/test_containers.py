"""Dockerfile, compose file and dev container agree with the lock, the Makefile and each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers import __main__ as recorded
from tests.contract.repository import ROOT, make_targets, project

pytestmark = pytest.mark.contract

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = ROOT / "docker-compose.yml"
GROUPS = set(project()["dependency-groups"])


def stage(name: str) -> str:
    """Return the lines of one stage of the Dockerfile."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    (found,) = [one for one in stages if re.match(rf"\S+ AS {name}\n", one)]
    return found


def services() -> dict[str, dict[str, Any]]:
    """Return the services of the compose file."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))[
        "services"
    ]
    return found


def devcontainer() -> dict[str, Any]:
    """Return devcontainer.json without its comments."""
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    return found


def locked(package: str) -> str:
    """Return the version of a package in the lock."""
    content = tomllib.loads((ROOT / "poetry.lock").read_text(encoding="utf-8"))
    (version,) = {one["version"] for one in content["package"] if one["name"] == package}
    return str(version)


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a Dockerfile with the linter that the lock pins."""
    command = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert command, "run: make install-dev"
    return subprocess.run([command, str(path)], capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing() -> None:
    found = hadolint(ROOT / "Dockerfile")
    assert found.returncode == 0, found.stdout + found.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian:12\nRUN cd /tmp && apt-get install curl\n")
    assert hadolint(bad).returncode == 1


def test_the_compose_file_fits_the_schema() -> None:
    options = ["--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    found = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_base_image_has_the_cuda_version_of_the_locked_torch() -> None:
    found = re.search(
        r"^ARG BASE_IMAGE=nvidia/cuda:(\d+\.\d+)\.\d+-base-ubuntu", DOCKERFILE, re.MULTILINE
    )
    assert found and locked("nvidia-cuda-runtime").startswith(f"{found[1]}.")


def test_dev_installs_every_group_and_says_so_to_make() -> None:
    text = stage("dev")
    assert set(re.findall(r"--with (\S+)", text)) == GROUPS
    (stamped,) = re.findall(r"^RUN scripts/finish_image.sh (.*)$", text, re.MULTILINE)
    assert set(stamped.split()) == {"core", "all", *GROUPS}


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_no_image_runs_as_root(name: str) -> None:
    assert re.findall(r"^USER (\S+)", stage(name), re.MULTILINE)[-1] == "${USER_UID}"


@pytest.mark.parametrize("name", sorted(services()))
def test_a_service_is_reached_from_this_machine_alone(name: str) -> None:
    service = services()[name]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert not any(setting.startswith("JUPYTER_TOKEN=") for setting in service["environment"])
    assert service["cap_drop"] == ["ALL"] and "privileged" not in service


def test_only_one_service_needs_a_gpu_and_both_are_the_same_image() -> None:
    gpu, cpu = services()["jupyter"], services()["jupyter-cpu"]
    (device,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert cpu.pop("profiles") == ["cpu"]
    assert gpu == cpu


def test_what_make_forgets_is_not_sent_to_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    kept_out = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for entry in (line.rstrip("/") for line in kept_out if line and not line.startswith("#")):
        assert {entry, f"**/{entry}"} & set(
            ignored
        ), f"{entry} is in .gitignore and not in .dockerignore"


def test_the_dev_container_stands_on_the_compose_service() -> None:
    found = devcontainer()
    assert found["service"] in services() and "deploy" not in services()[found["service"]]
    folder = ROOT / ".devcontainer"
    assert [(folder / name).resolve() for name in found["dockerComposeFile"]][0] == COMPOSE
    assert all((folder / name).is_file() for name in found["dockerComposeFile"])
    assert found["hostRequirements"]["gpu"] == "optional"
    (target,) = re.findall(r"^make (\S+)$", found["postCreateCommand"])
    assert target in make_targets()
    vscode = found["customizations"]["vscode"]
    assert {"ms-python.python", "ms-toolsai.jupyter"} <= set(vscode["extensions"])
    assert vscode["settings"]["python.defaultInterpreterPath"] == "/opt/cookbook/.venv/bin/python"
    assert "COOKBOOK_INSTALL=/opt/cookbook" in DOCKERFILE


def test_sizes_and_times_are_the_recorded_ones() -> None:
    text = recorded.PAGE.read_text(encoding="utf-8")
    assert "<!-- generated: containers -->" in text
    assert recorded.with_tables(text) == text, "run: .venv/bin/python -m tests.containers"


def test_docker_targets_are_listed() -> None:
    wanted = {f"docker-{what}" for what in ("build", "up", "down", "shell", "logs", "test")}
    assert wanted <= make_targets()
