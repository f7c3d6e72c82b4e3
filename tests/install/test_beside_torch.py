"""What SETUP.md says of machines with a torch of their own, tried with another torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cookbook.profiles import required_packages
from scripts import beside_torch
from tests.contract import doc_rules
from tests.contract.repository import FOLDER_GROUPS, ROOT, copy_files

OTHER = "torch<2.15"  # not the locked one


def lines_of_setup() -> str:
    """Return the block of SETUP.md that leads from a machine with a torch to a trained model."""
    text = doc_rules.markdown_of(ROOT / "SETUP.md")
    (section,) = re.findall(r"^## A rented GPU.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    return str(re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[0])


@pytest.mark.contract
@pytest.mark.parametrize("group", FOLDER_GROUPS.values())
def test_nothing_but_torch_and_what_opens_notebooks_is_left_out(group: str) -> None:
    listed = {Requirement(one).name for one in beside_torch.beside_torch(group)}
    wanted = {one.name for one in [*required_packages(), *required_packages(group)]}
    left_out = wanted - listed
    assert listed <= wanted
    assert {"torch", "jupyterlab"} <= left_out
    assert all(one in ("torch", "jupyterlab") or one.startswith("nvidia-") for one in left_out)


@pytest.mark.contract
def test_a_group_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert beside_torch.main(["nothing"]) == 2
    assert "Name a group: full-finetuning, peft" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.thorough
def test_a_recipe_trains_with_the_machine_s_own_torch(tmp_path: Path) -> None:
    tree, venv = tmp_path / "cookbook", tmp_path / "machine"
    copy_files(tree)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([f"{venv}/bin/pip", "install", "-q", OTHER, "ipykernel"], check=True)
    asked = [f"{venv}/bin/python", "-c", "import torch; print(torch.__version__)"]
    before = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    path = f"{venv}/bin:{os.environ['PATH']}"
    own = {"PATH": path, "COOKBOOK_OFFLINE": str(ROOT / ".offline"), "COOKBOOK_MAX_STEPS": "2"}
    done = subprocess.run(
        ["bash", "-e", "-c", lines_of_setup()],
        cwd=tree,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "held_out_loss" in done.stdout
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == before
