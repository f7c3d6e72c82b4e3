"""vLLM in front of a GPU: the command that serves runs there, with the same names and key.

vLLM is not in the lock: it pins torch and CUDA libraries of its own, which are not those that
training here was proven with. It belongs into an environment of its own, or an image.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cookbook.serving.runs import Run

INSTALL = "python3 -m venv .vllm && .vllm/bin/pip install vllm"
KEY = "VLLM_API_KEY"  # vLLM reads its key there: a command line is seen by everybody on a machine
_OWN = Path(".vllm/bin/vllm")


@dataclass(frozen=True)
class Command:
    """What is started: its arguments, and the variables it needs."""

    arguments: list[str]
    environment: dict[str, str]


def installed() -> str | None:
    """Return the program where vLLM and a GPU are; None elsewhere."""
    if not torch.cuda.is_available():
        return None
    return shutil.which("vllm") or (str(_OWN.absolute()) if os.access(_OWN, os.X_OK) else None)


def command(
    program: str,
    model: str,
    name: str,
    adapters: Sequence[Run] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str,
    context: int | None = None,
) -> Command:
    """Return the command that serves a merged model, or adapters on their base.

    `model` is a folder or a Hub id, served as `name`; each adapter is served under its run's name.
    Adapters are taken with the rank that the largest has, since vLLM reserves memory for it.
    """
    arguments = [program, "serve", model, "--served-model-name", name]
    arguments += ["--host", host, "--port", str(port)]
    if context:
        arguments += ["--max-model-len", str(context)]
    if adapters:
        folders = {run.name: run.adapter for run in adapters if run.adapter}
        arguments += ["--enable-lora", "--max-loras", str(len(folders))]
        arguments += ["--max-lora-rank", str(_rank(list(folders.values())))]
        arguments += ["--lora-modules", *(f"{one}={path}" for one, path in folders.items())]
        template = next(iter(folders.values())) / "chat_template.jinja"
        if template.is_file():
            arguments += ["--chat-template", str(template)]
    return Command(arguments, {KEY: key})


def _rank(folders: Sequence[Path]) -> int:
    """Return the smallest rank that vLLM takes and no adapter exceeds."""
    ranks = [8]
    for folder in folders:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        ranks += [settings["r"], *(settings.get("rank_pattern") or {}).values()]
    return next(one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= max(ranks))
