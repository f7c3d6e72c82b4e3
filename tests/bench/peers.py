"""The peers: an environment for each, and what a run of one is given."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cookbook import models
from cookbook.profiles import ROOT
from tests.bench import rows
from tests.bench.works import PEERS, Work

ENVIRONMENTS = ROOT / ".bench"
REQUIREMENTS = Path(__file__).parent / "requirements"
STAMP = "requirements.sha256"
# What reaches from a person's shell into a run, and what would let one contestant see our settings.
FOREIGN = ("COOKBOOK_", "HF_", "TRANSFORMERS_", "THP_", "MALLOC_", "LD_PRELOAD", "OMP_", "KMP_")

__all__ = ["PEERS", "NotInstalled", "command"]


class NotInstalled(Exception):
    """A peer's environment could not be built; the message says why."""


def command(peer: str, work: Work, result: Path, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a peer once, and the variables that it needs.

    The first call for a peer builds its environment, the first for a work what it trains on.
    """
    python = environment(peer)
    prepared = scratch / f"{peer}-{work.name}"
    task = prepared / "task.json"
    # Its caches and its home stay in the scratch folder; no one is told that it ran.
    given = {
        "HF_HOME": str(scratch / "home"),
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    if not task.is_file():
        prepared.mkdir(parents=True)
        exported = _export(work, prepared)
        partial = prepared / "task.part"
        partial.write_text(json.dumps(exported), encoding="utf-8")
        said = subprocess.run(
            [str(python), "-m", "tests.bench.peer", peer, str(partial), "--prepare"],
            cwd=ROOT,
            env=variables() | given,
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode:
            raise NotInstalled(f"could not be given its task: {said.stderr.strip()[-300:]}")
        partial.rename(task)
    return [str(python), "-m", "tests.bench.peer", peer, str(task), str(result)], given


def variables() -> dict[str, str]:
    """Return this process's environment without what would change a contestant's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    path = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path)}


def environment(peer: str) -> Path:
    """Return the Python of a peer's own environment; build it where it is missing or outdated."""
    folder, pins = ENVIRONMENTS / peer, REQUIREMENTS / f"{peer}.txt"
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    python, stamp = folder / "bin" / "python", folder / STAMP
    if stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return python
    print(f"building the environment of {peer} in {folder.relative_to(ROOT)}", flush=True)
    # Every package is pinned, so there is nothing to resolve; some peers' own pins do not agree.
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(pins)]
    for step in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
        said = subprocess.run(step, capture_output=True, text=True, check=False)
        if said.returncode:
            raise NotInstalled(f"could not be installed: {said.stderr.strip()[-300:]}")
    stamp.write_text(wanted, encoding="ascii")
    return python


def _export(work: Work, folder: Path) -> dict[str, object]:
    """Write the work's rows, as messages and as tokens, and return the task."""
    model = models.resolve_model(rows.MODEL)
    messages, tokenized = folder / "messages.jsonl", folder / "tokens.jsonl"
    for path, found in (
        (messages, rows.fitting_conversations(work)),
        (tokenized, rows.supervised(work)),
    ):
        lines = (json.dumps(dict(row)) for row in found)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return {
        **{name: value for name, value in asdict(work).items() if name != "contestants"},
        "work": work.name,
        "steps": work.steps,
        "model": str(model),
        "parameters": whole.num_parameters(),
        "rows": str(messages),
        "tokenized": str(tokenized),
        "prepared": str(folder),
    }
