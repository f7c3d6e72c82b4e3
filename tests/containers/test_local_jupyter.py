"""`make jupyter` without containers, in a browser."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.containers import engine, lab
from tests.containers.lab import PICTURES, answer
from tests.contract.repository import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.held("browser")]


def lent(tree: Path) -> dict[str, str]:
    """Return the variables with which a copied tree uses what is installed here."""
    return os.environ | {
        "COOKBOOK_INSTALL": str(ROOT),
        "COOKBOOK_OFFLINE": str(ROOT / ".offline"),
        "COOKBOOK_RUNS": str(tree / "runs"),
    }


def test_a_copied_tree_installs_nothing_into_this_one(tree: Path) -> None:
    command = ["make", "--dry-run", "jupyter", "install-all"]
    said = subprocess.run(
        command, cwd=tree, env=lent(tree), capture_output=True, text=True, check=True
    )
    assert "jupyter lab" in said.stdout and "poetry" not in said.stdout


def test_a_recipe_runs_in_jupyterlab(tree: Path, chromium: str) -> None:
    port = engine.free_port()
    url, token = f"http://127.0.0.1:{port}", "of-this-test"
    given = {
        "COOKBOOK_MAX_STEPS": "20",
        # JupyterLab remembers there what was open last, for whoever starts it next.
        "JUPYTER_CONFIG_DIR": str(tree.parent / "jupyter"),
        "JUPYTER_PORT": str(port),
        "JUPYTER_TOKEN": token,
    }
    log = tree.parent / "jupyter.log"
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen(
            ["make", "jupyter"],
            cwd=tree,
            env=lent(tree) | given,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 90
        while not answer(f"{url}/api"):
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.3)
        assert answer(f"{url}/api/contents") == 403
        assert answer(f"{url}/api/contents", Authorization=f"token {token}") == 200
        assert not answer(f"http://127.0.0.2:{port}/api"), "it listens on more than 127.0.0.1"
        lab.train_in_the_browser(url, token, tree, PICTURES / "local")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert (tree / "runs" / lab.NOTEBOOK.removesuffix(".ipynb") / "cpu" / "metrics.json").is_file()
