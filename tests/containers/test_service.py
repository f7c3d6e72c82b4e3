"""The service: started, looked at, used in a browser, killed, started again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.containers import lab
from tests.containers.engine import Build, Project
from tests.containers.lab import PICTURES, answer

pytestmark = [pytest.mark.containers, pytest.mark.held("containers")]

URL = re.compile(r"^JupyterLab: (http://127\.0\.0\.1:\d+)/lab\?token=(\S+)$", re.MULTILINE)
SERVICE = "jupyter-cpu"
CACHE = "/home/cookbook/.cache/huggingface"


@dataclass(frozen=True)
class Service:
    """A running service: its project, its address and its token."""

    project: Project
    url: str
    token: str

    @property
    def container(self) -> str:
        """The id of its container."""
        return self.project.run("docker", "compose", "ps", "--quiet", SERVICE).strip()

    def inside(self, *command: str) -> str:
        """Run a command in it and return what it printed."""
        return self.project.run("docker", "exec", self.container, *command)


def start(project: Project) -> Service:
    """Start the service as a person does, and read the URL that is printed."""
    said = project.run("make", "docker-up", f"SERVICE={SERVICE}")
    found = URL.search(said)
    assert found, said[-3000:]
    return Service(project, found[1], found[2])


@pytest.fixture(scope="module")
def service(first_build: Build, project: Project) -> Iterator[Service]:
    """The service, started; stopped in the end."""
    yield start(project)
    project.run("make", "docker-down")


def test_it_is_healthy_and_on_this_machine_only(service: Service) -> None:
    described = service.project.check_safe(service.container, 8888)
    assert described["HostConfig"]["ShmSize"] == 8 * 2**30


def test_every_request_needs_the_token(service: Service) -> None:
    for path in ("/api/contents", "/api/kernels", "/api/terminals"):
        assert answer(f"{service.url}{path}") == 403
        assert answer(f"{service.url}{path}", Authorization="token wrong") == 403
        assert answer(f"{service.url}{path}", Authorization=f"token {service.token}") == 200


def test_a_token_that_is_given_is_taken(service: Service) -> None:
    changed = start(service.project.with_settings(JUPYTER_TOKEN="mine"))
    assert changed.token == "mine"
    assert answer(f"{changed.url}/api/contents", Authorization="token mine") == 200
    start(service.project)


def test_a_recipe_runs_in_the_browser_and_outlives_the_container(
    service: Service, chromium: str
) -> None:
    project = service.project
    running = start(project)
    lab.train_in_the_browser(running.url, running.token, project.tree, PICTURES / "container")
    notebook = project.tree / lab.NOTEBOOK
    metrics = project.tree / "runs" / lab.NOTEBOOK.removesuffix(".ipynb") / "cpu" / "metrics.json"
    for file in (notebook, metrics):
        assert (file.stat().st_uid, file.stat().st_gid) == (project.uid, project.gid)
    saved = notebook.read_bytes()
    model = f"{CACHE}/hub/a-model"
    running.inside("sh", "-c", f"mkdir -p {CACHE}/hub && echo weights > {model}")

    killed = running.container
    project.run("docker", "kill", "--signal", "KILL", killed)
    project.run("docker", "rm", "--force", killed)
    again = start(project)
    assert again.container != killed
    assert notebook.read_bytes() == saved
    assert again.inside("cat", model).strip() == "weights"


def test_make_opens_a_shell_and_shows_the_log(service: Service) -> None:
    project = start(service.project).project
    # `script` lends a terminal, which a shell for a person asks for.
    typed = "echo 'id -u -n; pwd; exit' | script --quiet --return --command 'make docker-shell'"
    said = project.run("sh", "-c", f"{typed} /dev/null")
    assert {"cookbook", "/workspace"} <= set(said.split())
    log = project.run("timeout", "10", "make", "docker-logs", f"SERVICE={SERVICE}", check=False)
    assert "Jupyter Server" in log and "is running at" in log


def test_it_stops_at_once(service: Service) -> None:
    container = start(service.project).container
    started = time.monotonic()
    service.project.run("docker", "compose", "stop", SERVICE)
    seconds = time.monotonic() - started
    assert seconds < 9, "it was killed after ten seconds instead of ending by itself"
    assert service.project.inspect(container)["State"]["ExitCode"] in (0, 143)


def test_prod_serves_notebooks_too(first_build: Build, project: Project) -> None:
    prod = project.with_settings(COOKBOOK_IMAGE=f"{project.name}:prod", TARGET="prod")
    running = start(prod)
    assert "absent" in running.inside("sh", "-c", "command -v gcc || echo absent")
    assert answer(f"{running.url}/api/contents", Authorization=f"token {running.token}") == 200
    prod.run("make", "docker-down")


def test_a_tree_that_cannot_be_written_is_refused(first_build: Build, project: Project) -> None:
    said = project.run(
        *("docker", "run", "--rm", "--volume", "/usr:/workspace:ro", f"{project.name}:dev", "true"),
        check=False,
    )
    assert "error: /workspace is not writable" in said and "make docker-build USER_UID=" in said
