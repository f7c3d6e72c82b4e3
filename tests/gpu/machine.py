"""What machine this is: `python -m tests.gpu.machine` prints it as JSON.

A process of its own: asking CUDA makes a context, which would hold memory beside the notebook.
"""

import ast
import json
import platform
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
from packaging.utils import canonicalize_name
from packaging.version import Version

from cookbook.commands import proof
from cookbook.profiles import ROOT, device_name, required_packages
from tests.contract.repository import FOLDER_GROUPS

Facts = dict[str, Any]

# What executes a notebook, and what Trainer imports by itself.
RUNS_IT = frozenset({"nbclient", "nbformat", "accelerate", "safetensors", "tensorboard"})
MODULES = {"scikit-learn": "sklearn"}  # whose module has another name than the package


def facts() -> Facts:
    """Return the machine's name, memory, CUDA and driver; `cuda` says whether there is a GPU."""
    import torch

    found: Facts = {"cuda": torch.cuda.is_available(), "device": device_name()}
    found |= {"system": platform.platform(), "python": platform.python_version()}
    if found["cuda"]:
        card = torch.cuda.get_device_properties(0)
        found |= {
            "memory_bytes": int(card.total_memory),
            "capability": f"{card.major}.{card.minor}",
            "cuda_version": torch.version.cuda,
            "driver_version": driver_version(),
        }
    return found


def driver_version() -> str:
    """Return the version of the NVIDIA driver, or `unknown`."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (said.stdout.split() or ["unknown"])[0]


def describe() -> Facts:
    """Return the facts, asked in a process of its own."""
    command = [sys.executable, "-m", "tests.gpu.machine"]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer: Facts = json.loads(said.stdout.splitlines()[-1])
    return answer


def asked_for(notebook: Path) -> list[str]:
    """Return the normalised names of the packages that executing a notebook takes.

    Of those that its group and the core ask for: what the notebook imports, what the modules of
    `cookbook` do that it needs, and what runs it. JupyterLab, for one, is for people.
    """
    group = FOLDER_GROUPS[notebook.parent.name]
    cells = nbformat.read(notebook, as_version=4).cells
    sources = _with_modules("\n".join(one.source for one in cells if one.cell_type == "code"))
    imported = RUNS_IT.union(*map(_imported, sources))
    names = (one.name for one in [*required_packages(), *required_packages(group)])
    wanted = {str(canonicalize_name(name)) for name in names}
    return sorted(name for name in wanted if MODULES.get(name, name.replace("-", "_")) in imported)


def _with_modules(source: str) -> list[str]:
    """Return some code, and that of the modules of `cookbook` that it needs."""
    names = {one.partition(".")[0] for one in proof.package().used_by(source)}
    paths = [ROOT / "cookbook" / f"{name}.py" for name in sorted(names)]
    return [source, *(path.read_text(encoding="utf-8") for path in paths if path.is_file())]


def _imported(source: str) -> set[str]:
    """Return the top-level modules that some code imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def missing(notebook: Path) -> list[str]:
    """Return the packages that executing a notebook takes and that are not installed."""
    names = asked_for(notebook)
    here = installed(names)
    return [name for name in names if name not in here]


def differing(versions: dict[str, str], lock: Path = ROOT / "poetry.lock") -> dict[str, Facts]:
    """Return the packages of another version than the lock's: what is here, what is locked.

    A build's mark, as in 2.11.0+cu130, makes no other version.
    """
    content = tomllib.loads(lock.read_text(encoding="utf-8"))
    locked = {str(canonicalize_name(one["name"])): one["version"] for one in content["package"]}
    return {
        name: {"here": version, "locked": locked[name]}
        for name, version in versions.items()
        if name in locked and Version(version).public != Version(locked[name]).public
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
