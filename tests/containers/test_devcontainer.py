"""The dev container, opened by the reference implementation of its specification."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest

from tests.containers.engine import Build, Project

pytestmark = [pytest.mark.containers, pytest.mark.held("containers")]

CLI = "@devcontainers/cli@0.89.0"
NOTEBOOK = "01-Full-Fine-Tuning/GPT-2-From-Scratch.ipynb"


def devcontainer(project: Project, *arguments: str) -> str:
    """Run the command line of dev containers on the tree."""
    where = ["--workspace-folder", str(project.tree)]
    return project.run("npx", "--yes", CLI, arguments[0], *where, *arguments[1:])


@pytest.fixture(scope="module")
def opened(first_build: Build, project: Project) -> Iterator[Project]:
    """The tree, opened in a dev container."""
    if not shutil.which("npx"):
        if os.environ.get("CI"):
            pytest.fail("no npx here: install Node.js with npm")
        pytest.skip("no npx here: install Node.js with npm")
    said = devcontainer(project, "up")
    outcome = json.loads(said.strip().splitlines()[-1])
    assert outcome["outcome"] == "success", said[-3000:]
    assert outcome["remoteUser"] == "cookbook"
    assert outcome["remoteWorkspaceFolder"] == "/workspace"
    yield project
    project.run("docker", "rm", "--force", outcome["containerId"])


def test_its_user_owns_the_tree(opened: Project) -> None:
    assert devcontainer(opened, "exec", "id", "-u").strip().endswith(str(opened.uid))


def test_make_works(opened: Project) -> None:
    said = devcontainer(opened, "exec", "make", "help")
    assert "make jupyter" in said and "make quickstart" in said


def test_the_interpreter_of_the_editor_has_the_packages(opened: Project) -> None:
    configuration = json.loads(devcontainer(opened, "read-configuration").strip().splitlines()[-1])
    settings = configuration["configuration"]["customizations"]["vscode"]["settings"]
    python = settings["python.defaultInterpreterPath"]
    devcontainer(opened, "exec", python, "-c", "import cookbook, peft, trl, ipykernel, black")


def test_a_recipe_runs(opened: Project) -> None:
    devcontainer(opened, "exec", "make", "notebook", f"NB={NOTEBOOK}", "COOKBOOK_MAX_STEPS=20")
    metrics = opened.tree / "runs" / NOTEBOOK.removesuffix(".ipynb") / "cpu" / "metrics.json"
    assert json.loads(metrics.read_text(encoding="utf-8"))["train"]["steps"] == 20
    assert metrics.stat().st_uid == opened.uid
