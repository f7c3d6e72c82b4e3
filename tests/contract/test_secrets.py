"""No file that could be committed holds a secret: the scanner of the pre-commit hook says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.contract.repository import ROOT, repository_files

pytestmark = pytest.mark.contract

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
KEY = "AKIA" + "Z7Q2WX5R8T1Y4U6P"


# A model's name that looks as random as a key.
NO_SECRET = "^(models/)?HuggingFaceTB/SmolLM2-360M-Instruct.?$"
OPTIONS = ["-p", "scripts/hugging_face_token.py", "--exclude-secrets", NO_SECRET]


def scan(*files: Path) -> subprocess.CompletedProcess[str]:
    """Scan files as the hook does."""
    command = [str(Path(sys.executable).with_name("detect-secrets-hook"))]
    command += [*OPTIONS, *map(str, files)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_repository_holds_no_secret() -> None:
    found = scan(*(path.relative_to(ROOT) for path in repository_files()))
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("secret", [TOKEN, KEY])
def test_a_secret_in_the_output_of_a_notebook_would_be_found(secret: str, tmp_path: Path) -> None:
    notebook = tmp_path / "One.ipynb"
    output = {"output_type": "stream", "name": "stdout", "text": [f"logged in with {secret}\\n"]}
    notebook.write_text(json.dumps({"cells": [{"outputs": [output]}]}, indent=1), encoding="utf-8")
    assert scan(notebook).returncode == 1


def test_the_hook_is_the_same_command() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"].split() for one in config["repos"] for hook in one["hooks"]]
    assert ["scripts/in_venv.sh", "detect-secrets-hook", *OPTIONS] in entries
