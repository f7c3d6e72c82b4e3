"""Which profile a machine runs, at which precision, and whether its environment is complete."""

import os
import platform
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from packaging.requirements import Requirement

from cookbook.paths import complaint
from cookbook.paths import typed_path as typed_path
from cookbook.paths import unwritable_caches

ROOT = Path(__file__).resolve().parents[1]
PROFILE_NAMES = ("cpu", "gpu16", "gpu80")
SMALL_CARD = 40 * 2**30  # bytes; below this a card runs `gpu16`
# float16 on GPUs only: a CPU has neither units for it nor a gradient scaler.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_WHOLE_NUMBERS = {
    "COOKBOOK_MAX_STEPS": "max_steps",
    "COOKBOOK_SEED": "seed",
    "COOKBOOK_MAX_LENGTH": "max_length",
}
# What no notebook imports: what opens them, and what torch's own wheel brings.
_NOT_IMPORTED = re.compile(r"jupyterlab$|nvidia-")
_NAMES = {"COOKBOOK_MODEL": "model", "COOKBOOK_DATASET": "dataset"}
# Files that `datasets` reads, through its cache; text files are parsed in memory.
_CACHED = (".parquet", ".pq", ".arrow", ".feather")


class CookbookError(RuntimeError):
    """Something a person can mend; the message says what happened and with which command."""

    def _render_traceback_(self) -> list[str]:
        # Jupyter prints these lines instead of a traceback: the sentence is what a reader needs.
        return [f"{type(self).__name__}: {self}"]


def columns(settings: Mapping[str, tuple[Any, ...]]) -> dict[str, dict[str, Any]]:
    """Return profile -> its settings, from a notebook's table with one row for each setting.

    A row holds a value for each of `PROFILE_NAMES`, in that order; None stands for a setting that a
    profile has not. Raises `CookbookError` for a row of another length.
    """
    for name, row in settings.items():
        if not isinstance(row, tuple) or len(row) != len(PROFILE_NAMES):
            raise CookbookError(
                f"The row {name!r} of SETTINGS needs a value for each of "
                f"{', '.join(PROFILE_NAMES)}, in brackets; it is {row!r}."
            )
    return {
        profile: {name: row[at] for name, row in settings.items() if row[at] is not None}
        for at, profile in enumerate(PROFILE_NAMES)
    }


def choose_profile(settings: Mapping[str, tuple[Any, ...]]) -> SimpleNamespace:
    """Pick this machine's column of a notebook's `SETTINGS` table and apply the overrides.

    `COOKBOOK_PROFILE` forces a profile; otherwise no CUDA means `cpu`, a card under 40 GB `gpu16`,
    a larger one `gpu80`. `COOKBOOK_MODEL`, `COOKBOOK_DATASET`, `COOKBOOK_MAX_STEPS`,
    `COOKBOOK_MAX_LENGTH` and `COOKBOOK_SEED` replace the settings of those names. The result also
    has `profile`, `own` (own model or data) and `seed`. Raises `CookbookError` for values nobody
    could have meant, and where the cache that the data needs cannot be written.

    A file or folder is named as the shell knows it (`typed_path`), and comes back absolute.
    """
    join_processes()
    name = os.environ.get("COOKBOOK_PROFILE") or _profile_of_this_machine()
    profiles = columns(settings)
    if name not in profiles:
        raise CookbookError(
            f"COOKBOOK_PROFILE is {name!r}, but the profiles are {', '.join(profiles)}. "
            "Set one of them, or unset it and let the machine pick: `unset COOKBOOK_PROFILE`."
        )
    if name != "cpu" and not torch.cuda.is_available() and not _allowed("COOKBOOK_ALLOW_CPU"):
        raise CookbookError(
            f"The profile {name} needs a CUDA GPU and torch sees none. Use `COOKBOOK_PROFILE=cpu`, "
            "or set `COOKBOOK_ALLOW_CPU=1` to walk through it on the CPU (with a tiny model)."
        )
    chosen: dict[str, Any] = {"seed": 0, **profiles[name], "profile": name}
    chosen["own"] = any(os.environ.get(variable) for variable in _NAMES)
    for variable, key in _NAMES.items():
        if text := os.environ.get(variable):
            chosen[key] = _named(text)
    for variable, key in _WHOLE_NUMBERS.items():
        if text := os.environ.get(variable):
            if key not in chosen:
                raise CookbookError(f"{variable} is set, but this recipe has no `{key}`: unset it.")
            chosen[key] = _whole_number(variable, text)
    if chosen["max_steps"] == 0:
        raise CookbookError("COOKBOOK_MAX_STEPS is 0: nothing would be trained. Set 1 or more.")
    _check_caches(str(chosen["dataset"]))
    return SimpleNamespace(**chosen)


def settings_text(config: SimpleNamespace) -> str:
    """Return this run's settings as a small table, the profile first."""
    rows = {"profile": config.profile, **vars(config)}
    del rows["own"]
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def place_in_launch() -> tuple[int, int]:
    """Return this process's number and how many there are, as torchrun and Accelerate tell them.

    (0, 0) for a process that was not launched together with others: a notebook, or plain Python.
    """
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 0))


def join_processes() -> None:
    """Be one of several processes, where torchrun or `accelerate launch` started several.

    Each gets a GPU of its own, where there are some, and the first alone prints for all. The others
    are still heard when they fail.
    """
    rank, world_size = place_in_launch()
    if world_size < 2:
        return
    from accelerate import PartialState  # takes seconds, and is for this alone

    PartialState(cpu=not torch.cuda.is_available())
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def _profile_of_this_machine() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return "gpu16" if torch.cuda.get_device_properties(0).total_memory < SMALL_CARD else "gpu80"


def _named(text: str) -> str:
    """Return the absolute path of the file or folder that a text names, or the text as it is.

    What names no file is a Hub id, or a mistake that whoever reads it tells.
    """
    path = typed_path(text)
    return str(path) if os.path.exists(path) else text


def _check_caches(dataset: str) -> None:
    """Raise `CookbookError` where the data set goes through a cache that cannot be written.

    Later the data would be blamed. Other folders are named with it, since one command moves all;
    alone they stop nothing: what needs them takes a temporary folder, and says so.
    """
    path = Path(dataset)
    files = path.rglob("*") if path.is_dir() else [path]
    cached = any(file.suffix.lower() in _CACHED for file in files)
    if dataset.startswith("offline:") or path.exists() and not cached:
        return
    if "HF_DATASETS_CACHE" in (unwritable := unwritable_caches()):
        raise CookbookError(complaint(unwritable))


def _allowed(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def _whole_number(variable: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise CookbookError(f"{variable} is {text!r}: a whole number is needed, such as 100.")
    return int(text)


def compute_dtype() -> torch.dtype:
    """Return the fastest precision that this device computes natively and trains well in.

    CUDA: bfloat16 from compute capability 8.0 (Ampere), float16 before (a T4 has no units for it).
    CPU: bfloat16 where the processor has instructions for it (AMX or AVX512-BF16), else float32:
    without them torch emulates bfloat16, four times slower than float32 or far more.
    `COOKBOOK_PRECISION` forces one. Raises `CookbookError` for one that the device cannot train in.
    """
    on_gpu = torch.cuda.is_available()
    if forced := os.environ.get("COOKBOOK_PRECISION"):
        possible = [name for name in PRECISIONS if on_gpu or name != "float16"]
        if forced not in possible:
            raise CookbookError(
                f"COOKBOOK_PRECISION is {forced!r}; this device can train in "
                f"{' or '.join(possible)}. Let it pick: `unset COOKBOOK_PRECISION`."
            )
        return PRECISIONS[forced]
    if on_gpu:
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    features = torch.cpu.get_capabilities()
    native = features.get("amx_bf16") or features.get("avx512_bf16")
    return torch.bfloat16 if native else torch.float32


def device_name() -> str:
    """Return the name of the GPU, or of the processor where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())


def required_packages(group: str | None = None, root: Path = ROOT) -> list[Requirement]:
    """Return what `pyproject.toml` asks for: the core packages, or those of a dependency group."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    if group is not None and group not in groups:
        raise CookbookError(f"There is no group {group!r}; pyproject.toml has {', '.join(groups)}.")
    lines = groups[group] if group else project["project"]["dependencies"]
    requirements = [Requirement(line) for line in lines]
    return [one for one in requirements if one.marker is None or one.marker.evaluate()]


def check_environment(group: str, root: Path = ROOT) -> str:
    """Return a small table of versions and device, or stop with the command that mends the setup.

    Checks that every core package and every package of the technique's `group` is installed, at a
    version that `pyproject.toml` allows. Installs nothing. With `COOKBOOK_ANY_VERSION=1` other
    versions are named in the table instead, for machines with a torch of their own.
    Silences one warning of bitsandbytes, whose import comes after this.
    """
    core = [one for one in required_packages(root=root) if not _NOT_IMPORTED.match(one.name)]
    own = required_packages(group, root)
    versions = {one.name: _installed_version(one.name) for one in [*core, *own]}
    missing = [name for name, version in versions.items() if version is None]
    wrong = [
        f"{one.name} {versions[one.name]} (needs {one.specifier})"
        for one in [*core, *own]
        if versions[one.name] and not one.specifier.contains(versions[one.name] or "", True)
    ]
    tolerated = wrong if _allowed("COOKBOOK_ANY_VERSION") else []
    if missing or wrong != tolerated:
        problems = [*(f"{name} is not installed" for name in missing), *wrong]
        mend = f"Run: make install-{group}"
        if not missing:
            mend += ", or set COOKBOOK_ANY_VERSION=1 to try these"
        raise CookbookError(f"{'; '.join(problems)}. {mend}")
    shown = ["torch", "transformers", *(one.name for one in own)]
    rows = {name: str(versions[name]) for name in dict.fromkeys(shown)}
    rows |= {"device": device_name(), "precision": str(compute_dtype()).removeprefix("torch.")}
    if tolerated:
        rows["other versions"] = ", ".join(tolerated)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
