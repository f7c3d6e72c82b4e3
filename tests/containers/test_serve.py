"""The service `serve`: a finished run behind an API, from the image, on this machine alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.containers.engine import Build, Project, free_port
from tests.containers.lab import answer
from tests.serving.tiny_gguf import write_model

pytestmark = [pytest.mark.containers, pytest.mark.held("containers")]

KEY = "of-nobody"
NAME = "tiny"


@dataclass(frozen=True)
class Api:
    """A running service: its project and its address."""

    project: Project
    url: str

    @property
    def container(self) -> str:
        """The id of its container."""
        return self.project.run("docker", "compose", "ps", "--quiet", "serve").strip()

    def ask(self) -> dict[str, Any]:
        """Ask for some tokens, and return the whole answer."""
        asked = {"model": NAME, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
        request = Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=60) as response:
            found: dict[str, Any] = json.load(response)
            return found


@pytest.fixture(scope="module")
def api(first_build: Build, project: Project) -> Iterator[Api]:
    """The service with a model of random weights, started as a person does; stopped in the end."""
    folder = project.tree / "runs" / "exports" / NAME
    folder.mkdir(parents=True)
    write_model(folder / f"{NAME}.gguf")
    for path in (folder, folder.parent, folder.parent.parent, folder / f"{NAME}.gguf"):
        os.chown(path, project.uid, project.gid)
    port = str(free_port())
    served = project.with_settings(
        RUN=f"runs/exports/{NAME}", SERVE_PORT=port, COOKBOOK_API_KEY=KEY
    )
    said = served.run("make", "docker-serve")
    assert f"API: http://127.0.0.1:{port}/v1" in said
    yield Api(served, f"http://127.0.0.1:{port}")
    served.run("make", "docker-down")


def test_it_is_healthy_and_on_this_machine_only(api: Api) -> None:
    api.project.check_safe(api.container, 8000)
    user = api.project.run("docker", "exec", api.container, "id", "-u").strip()
    assert user == str(api.project.uid) != "0"


def test_it_answers_who_has_the_key(api: Api) -> None:
    assert api.ask()["usage"]["completion_tokens"] == 8
    models = f"{api.url}/v1/models"
    assert answer(models) == 401
    assert answer(models, Authorization="Bearer wrong") == 401
    assert answer(models, Authorization=f"Bearer {KEY}") == 200
    assert answer(f"{api.url}/health") == 200
    page = {"Authorization": f"Bearer {KEY}", "Origin": "http://example.org"}
    assert answer(models, **page) == 403
    assert KEY not in api.project.run("docker", "compose", "logs", "serve")


def test_llama_cpp_is_started_again_where_it_is_killed(api: Api) -> None:
    # Of the container's own processes: those that run the engine.
    kill = (
        "import psutil\nfor one in psutil.process_iter():\n"
        "    if 'cookbook.serving.engine' in one.cmdline(): one.kill()"
    )
    api.project.run("docker", "exec", api.container, "python", "-c", kill)
    last = time.monotonic() + 60
    while answer(f"{api.url}/health") != 200 and time.monotonic() < last:
        time.sleep(0.5)
    assert api.ask()["usage"]["completion_tokens"] == 8


def test_it_stops_at_once(api: Api) -> None:
    container = api.container
    started = time.monotonic()
    api.project.run("docker", "compose", "--profile", "serve", "stop", "serve")
    assert time.monotonic() - started < 15
    assert api.project.inspect(container)["State"]["ExitCode"] in (0, 143)
