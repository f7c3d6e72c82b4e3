"""Paths as a person typed them, and the folders that libraries write to.

The standard library alone: `python -m cookbook.paths` runs before JupyterLab starts.
"""

import io
import os
import sys
import tempfile
from pathlib import Path


def typed_path(text: str) -> Path:
    """Return the absolute path that a person typed.

    `~` is their home, and a relative path begins in the folder of the shell that they typed it in:
    `COOKBOOK_FROM`, since a notebook's kernel has a folder of its own, or else the current one.
    """
    return folder_of_the_shell() / os.path.expanduser(text)


def folder_of_the_shell() -> Path:
    """Return the folder that relative paths are meant from."""
    return Path(os.environ.get("COOKBOOK_FROM") or Path.cwd())


def as_typed(path: Path) -> Path:
    """Return a path so that it can be typed in the shell that paths are meant from."""
    here, there = folder_of_the_shell().resolve(), path.resolve()
    return there.relative_to(here) if there.is_relative_to(here) else path.absolute()


def start_command() -> None:
    """Do what comes first in every command: its kernels and processes inherit it.

    Relative paths are meant from here, and text is UTF-8, whatever the locale says. cron and slim
    containers have none, and libraries read files of their own without naming an encoding.
    """
    os.environ.setdefault("COOKBOOK_FROM", os.getcwd())
    if offline := os.environ.get("COOKBOOK_OFFLINE"):
        os.environ["COOKBOOK_OFFLINE"] = str(typed_path(offline))
    os.environ["PYTHONUTF8"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() in ("ascii", "646"):
            # Names of files came in as bytes that no ASCII text can hold, and leave as they came.
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def caches() -> dict[str, Path]:
    """Return the variable that moves a library's folder -> that folder, where it writes now."""
    there = os.environ.get
    home = Path(os.path.expanduser("~"))
    cache = Path(there("XDG_CACHE_HOME") or home / ".cache")
    hugging_face = Path(there("HF_HOME") or cache / "huggingface")
    shared = Path(there("XDG_DATA_HOME") or home / ".local" / "share") / "jupyter"
    jupyter = home / "Library" / "Jupyter" if sys.platform == "darwin" else shared
    pictures = Path(there("XDG_CONFIG_HOME") or home / ".config") / "matplotlib"
    usual = {
        "HF_DATASETS_CACHE": hugging_face / "datasets",
        "HF_HUB_CACHE": Path(there("HUGGINGFACE_HUB_CACHE") or hugging_face / "hub"),
        "MPLCONFIGDIR": home / ".matplotlib" if sys.platform == "darwin" else pictures,
        "JUPYTER_RUNTIME_DIR": Path(there("JUPYTER_DATA_DIR") or jupyter) / "runtime",
        "IPYTHONDIR": home / ".ipython",
    }
    return {name: Path(os.path.expanduser(there(name) or path)) for name, path in usual.items()}


def unwritable_caches() -> list[str]:
    """Return the variables that move what cannot be written: a home is read-only, or not there."""
    return [name for name, folder in caches().items() if _refusal(folder)]


def _refusal(folder: Path) -> str | None:
    """Return why nothing can be written into a folder, or made above it where it is not there.

    It is tried: root may write everywhere by the permissions, and not by the file system.
    """
    there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    try:
        with tempfile.TemporaryDirectory(dir=there):
            return None
    except OSError as error:
        return error.strerror or str(error)


def complaint(variables: list[str]) -> str:
    """Return the sentence that names folders which cannot be written, and the command that helps.

    With HF_HOME both caches of Hugging Face move, where neither was named for itself.
    """
    folders = caches()
    shown = ", ".join(f"{folders[name]} ({_refusal(folders[name])})" for name in variables)
    both = [f"HF_{cache}_CACHE" for cache in ("DATASETS", "HUB")]
    moved = list(variables)
    if set(both) <= set(variables) and not any(os.environ.get(name) for name in both):
        moved = ["HF_HOME", *(name for name in variables if name not in both)]
    place = Path(tempfile.gettempdir()) / f"caches-{os.getuid()}"
    settings = " ".join(f"{name}={place / name.lower()}" for name in moved)
    return (
        f"Libraries cannot write where they keep files: {shown}. "
        f"Name folders that you may write to, these or others: `export {settings}`."
    )


def main() -> int:
    """Exit status 0, or 2 with one message where JupyterLab could not start."""
    start_command()
    found = unwritable_caches()
    if "JUPYTER_RUNTIME_DIR" in found:
        print(f"error: {complaint(found)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
