"""Run Poetry on this repository's own `.venv`, finding or bootstrapping Poetry first.

    python3 scripts/poetry.py <poetry arguments>

`.venv` and `.poetry` lie in the repository, or in the folder that COOKBOOK_INSTALL names: an image
has them outside the working tree, which is mounted over what the image holds there.
Poetry is, in this order: the one that POETRY names, a `poetry` (2.2 or newer) on the PATH, or a
pinned one that is installed into `.poetry/`. `POETRY=bootstrap` asks for the pinned one.
Only the standard library is used: this runs before anything is installed.
"""

from __future__ import annotations

import ast
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit, urlunsplit

ROOT = Path(__file__).resolve().parent.parent
POETRY_VERSION = "2.5.1"
PLUGIN_VERSION = "0.6.5"
OLDEST_POETRY = (2, 2)
OLDEST_PYTHON = (3, 11)
TOO_NEW_PYTHON = (3, 14)
MIRROR_VARIABLE = "POETRY_PYPI_MIRROR_URL"
INSTALL_VARIABLE = "COOKBOOK_INSTALL"
BOOTSTRAP = "bootstrap"
FORCE_BOOTSTRAP = f"POETRY={BOOTSTRAP}"
# Settings for another installation than into this `.venv`: where to, with which Python, and what.
OTHERS = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "PIP_REQUIRE_HASHES"),
    *("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_SRC", "PIP_PYTHON"),
    *("PIP_REQUIRE_VIRTUALENV", "PIP_REQUIRE_VENV", "PIP_DRY_RUN"),
    *("PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_EDITABLE", "PIP_NO_DEPS", "PIP_NO_DEPENDENCIES"),
    *("PIP_PLATFORM", "PIP_PYTHON_VERSION", "PIP_IMPLEMENTATION", "PIP_ABI"),
)


class SetupError(Exception):
    """Something a person has to mend; the message says what and how."""


class PipSettings(NamedTuple):
    """What pip is configured for: the index URL, and the file of authorities it trusts, if any."""

    index_url: str
    cert: str | None


class Poetry(NamedTuple):
    """A Poetry to call; `bundled` when it is the pinned one in `.poetry/`."""

    command: str
    bundled: bool


def check_python(version: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Raise SetupError unless the running Python can hold this project."""
    if OLDEST_PYTHON <= version < TOO_NEW_PYTHON:
        return
    minors = range(TOO_NEW_PYTHON[1] - 1, OLDEST_PYTHON[1] - 1, -1)
    found = [name for name in (f"python3.{minor}" for minor in minors) if shutil.which(name)]
    cure = (
        f"Run make with PYTHON={found[0]}, which is installed here."
        if found
        else "Install one of these and run make with PYTHON=python3.12 (or where it is)."
    )
    raise SetupError(
        f"Python {version[0]}.{version[1]} ({sys.executable}) does not fit: this project needs "
        f"3.11, 3.12 or 3.13. {cure}"
    )


def redact(url: str) -> str:
    """The URL without its user name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def poetry_version(command: str) -> tuple[int, ...] | None:
    """What `command --version` says, as numbers; None when it is no working Poetry."""
    try:
        result = subprocess.run(
            [command, "--version"],
            env=for_this_venv(os.environ),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", result.stdout)
    if result.returncode != 0 or match is None:
        return None
    return tuple(int(part) for part in match.groups("0"))


def users_poetry(environment: Mapping[str, str]) -> Poetry | None:
    """The Poetry a person chose or has on the PATH; None when the pinned one is to be used."""
    wanted = environment.get("POETRY", "")
    if wanted == BOOTSTRAP:
        return None
    search_path = environment.get("PATH")
    if wanted:
        command = shutil.which(os.path.expanduser(wanted), path=search_path)
        version = poetry_version(command) if command else None
        if command is None or version is None:
            raise SetupError(
                f"POETRY names {wanted}, which is no working Poetry. Correct it, or use "
                f"{FORCE_BOOTSTRAP} to have a pinned one installed into .poetry/."
            )
        if version[:2] < OLDEST_POETRY:
            raise SetupError(
                f"POETRY names Poetry {'.'.join(map(str, version))}; this project needs 2.2 or "
                f"newer. Update it, or use {FORCE_BOOTSTRAP}."
            )
        return Poetry(command, bundled=False)
    command = shutil.which("poetry", path=search_path)
    version = poetry_version(command) if command else None
    if command and version and version[:2] >= OLDEST_POETRY:
        return Poetry(command, bundled=False)
    return None


def parse_pip_config(listing: str) -> dict[str, str]:
    """Parse `pip config list` into option -> value, with pip's own precedence for `install`."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    chosen: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, separator, value = line.partition("=")
        section, _, option = key.partition(".")
        if not separator or section not in ranks:
            continue
        rank = ranks[section]
        if rank >= chosen.get(option, (-1, ""))[0]:
            chosen[option] = (rank, str(ast.literal_eval(value)))
    return {option: value for option, (_, value) in chosen.items()}


def default_index(help_text: str) -> str:
    """The index URL that `pip install --help` names as the one it uses by default."""
    match = re.search(r"--index-url\b.*?\(default:?\s+(\S+?)\)", help_text, re.DOTALL)
    if match is None:
        raise SetupError(
            "pip does not say which package index it uses. Set PIP_INDEX_URL to the address of "
            "your index and run make again."
        )
    return match.group(1)


def ask_pip(environment: Mapping[str, str], pythons: Sequence[str]) -> PipSettings:
    """The index pip is configured for, else pip's own built-in one, and its certificates.

    The first of `pythons` that has pip is asked, so that a pip.conf beside that Python counts.
    The URL may carry credentials: show it only through `redact`.
    """
    # A narrow terminal would break the URL in the help text over two lines.
    wide = {**for_this_venv(environment), "COLUMNS": "1000"}
    for python in pythons:
        listing = _pip(wide, python, "config", "list")
        if listing is None:
            continue
        settings = parse_pip_config(listing)
        index = settings.get("index-url") or default_index(
            _pip(wide, python, "install", "--help") or ""
        )
        return PipSettings(index, settings.get("cert"))
    raise SetupError("No pip was found to ask for the package index. Install pip for your Python.")


def _pip(environment: Mapping[str, str], python: str, *arguments: str) -> str | None:
    """What `pip <arguments>` prints; None where this Python has no pip or pip fails."""
    result = subprocess.run(
        [python, "-m", "pip", *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        check=False,
    )
    return result.stdout if result.returncode == 0 else None


def for_this_venv(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what its user set for installing elsewhere.

    PIP_USER alone would end pip in a virtual environment. Index, proxy and certificates stay.
    """
    child = {name: value for name, value in environment.items() if name not in OTHERS}
    child["PIP_USER"] = "0"  # a pip.conf may ask for it too
    return child


def make_venv(folder: Path, *options: str) -> None:
    """Create (or complete) a virtual environment under the running Python."""
    command = [sys.executable, "-m", "venv", *options, str(folder)]
    result = subprocess.run(command, env=for_this_venv(os.environ), check=False)
    if result.returncode != 0:
        raise SetupError(
            f"{sys.executable} could not make the virtual environment {folder.name}/. On Debian "
            f"and Ubuntu: apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        )


def install_folder(root: Path, environment: Mapping[str, str]) -> Path:
    """The folder that `.venv` and `.poetry` are in."""
    return Path(environment.get(INSTALL_VARIABLE) or root).absolute()


def ensure_project_venv(folder: Path) -> None:
    """Make `folder/.venv` where there is none, it is half made, or its Python is gone or unfit.

    Call under `held_lock`.
    """
    venv = folder / ".venv"
    # Lies outside `.venv`, so that it outlasts a call that was killed while clearing that.
    unfinished = folder / ".poetry" / "making-venv"
    if not unfinished.exists() and _fits(venv / "bin" / "python"):
        return
    unfinished.touch()
    make_venv(venv, "--clear")
    unfinished.unlink()


def _fits(python: Path) -> bool:
    """Whether this interpreter runs and is one that the project supports."""
    if not python.exists():
        return False
    probe = subprocess.run(
        [str(python), "-c", "import sys; print(*sys.version_info[:2])"],
        env=for_this_venv(os.environ),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    version = tuple(int(part) for part in probe.stdout.split())
    return OLDEST_PYTHON <= version < TOO_NEW_PYTHON


def bundled_poetry(folder: Path) -> Path:
    """Where the pinned Poetry is, or would be."""
    return folder / ".poetry" / "bin" / "poetry"


def bundled_is_whole(folder: Path) -> bool:
    """Whether the pinned Poetry of this very version was installed to the end."""
    stamp = folder / ".poetry" / "complete"
    return (
        stamp.is_file()
        and stamp.read_text(encoding="utf-8") == _stamp_text()
        and (folder / ".poetry" / "bin" / "python").exists()
        and bundled_poetry(folder).exists()
    )


def _stamp_text() -> str:
    return f"poetry {POETRY_VERSION}, poetry-plugin-pypi-mirror {PLUGIN_VERSION}\n"


def bootstrap(folder: Path, environment: Mapping[str, str]) -> Poetry:
    """Install the pinned Poetry into `.poetry/` unless it is there. Call under `held_lock`."""
    poetry = Poetry(str(bundled_poetry(folder)), bundled=True)
    if bundled_is_whole(folder):
        return poetry
    own = folder / ".poetry"
    print(f"Installing Poetry {POETRY_VERSION} into .poetry/ (once).", file=sys.stderr)
    for leftover in own.iterdir():
        if leftover.name in {"lock", "making-venv"}:
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    make_venv(own)
    python = str(own / "bin" / "python")
    index = ask_pip(environment, [sys.executable, python]).index_url
    install = [
        *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *(f"poetry=={POETRY_VERSION}", f"poetry-plugin-pypi-mirror=={PLUGIN_VERSION}"),
    ]
    # Handed over in the environment, where a password in the URL shows in no process list.
    result = subprocess.run(
        install, env={**for_this_venv(environment), "PIP_INDEX_URL": index}, check=False
    )
    if result.returncode != 0:
        raise SetupError(
            f"Poetry {POETRY_VERSION} could not be installed from {redact(index)} (pip's message "
            "is above). Check the network and the index pip is set to (`pip config list`), then "
            "run make again; or set POETRY to a Poetry 2.2 or newer that you have."
        )
    if not bundled_poetry(folder).exists():
        raise SetupError(
            f"pip installed Poetry somewhere else than into {own}: a pip.conf names a `target`, a "
            "`prefix` or a `root` (`pip config list`). Take it out, or set PIP_CONFIG_FILE to a "
            "file without it."
        )
    # Written last: without this file the next call starts over.
    (own / "complete").write_text(_stamp_text(), encoding="utf-8")
    return poetry


def poetry_environment(
    poetry: Poetry, root: Path, folder: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    """The environment in which Poetry installs into `folder/.venv` and nowhere else."""
    # An active environment of the user's would be taken for the one to install into.
    active = {"VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"}
    child = {name: value for name, value in environment.items() if name not in active}
    child = for_this_venv(child)
    child["POETRY_VIRTUALENVS_CREATE"] = "true"
    child["POETRY_VIRTUALENVS_IN_PROJECT"] = "true"
    if folder != root:
        child["VIRTUAL_ENV"] = str(folder / ".venv")  # Poetry prefers an active environment
    if poetry.bundled:
        own_python = str(folder / ".poetry" / "bin" / "python")
        pip = ask_pip(environment, [sys.executable, own_python])
        if not child.get(MIRROR_VARIABLE):
            child[MIRROR_VARIABLE] = pip.index_url
        if pip.cert:
            child.setdefault("REQUESTS_CA_BUNDLE", pip.cert)
            child.setdefault("SSL_CERT_FILE", pip.cert)
    return child


@contextmanager
def held_lock(folder: Path) -> Iterator[IO[str]]:
    """Hold the one lock under which `.venv` and `.poetry` change; waits, and says so."""
    own = folder / ".poetry"
    try:
        own.mkdir(exist_ok=True)
        lock = open(own / "lock", "a", encoding="utf-8")
    except OSError as error:
        raise SetupError(
            f"{own} cannot be written ({error.strerror}). Make {folder} yours, or name another "
            f"folder: {INSTALL_VARIABLE}=..."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another make that is installing here.", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def explain_failure(poetry: Poetry, status: int, environment: Mapping[str, str]) -> str:
    """One line on what to try after Poetry itself failed."""
    if poetry.bundled:
        index = redact(environment[MIRROR_VARIABLE])
        return (
            f"Poetry ended with status {status}; it used the index {index}. Where it says that "
            "poetry.lock is out of date: make lock."
        )
    return (
        f"{poetry.command} ended with status {status}. If packages are reachable only through an "
        f"index that pip is configured for, use the pinned Poetry: make {FORCE_BOOTSTRAP} <target>."
    )


def run(arguments: Sequence[str], root: Path, environment: Mapping[str, str]) -> int:
    """Run Poetry with `arguments` in `root`; returns its exit status."""
    check_python()
    folder = install_folder(root, environment)
    with held_lock(folder) as lock:
        poetry = users_poetry(environment) or bootstrap(folder, environment)
        ensure_project_venv(folder)
        child = poetry_environment(poetry, root, folder, environment)
        # Poetry holds the lock too, so that it stays locked if this process is killed first.
        status = subprocess.run(
            [poetry.command, *arguments],
            cwd=root,
            env=child,
            pass_fds=[lock.fileno()],
            check=False,
        ).returncode
    if status != 0:
        print(explain_failure(poetry, status, child), file=sys.stderr)
    return status


def main() -> int:
    """Exit status of Poetry, or 2 with one message where it could not be run."""
    try:
        return run(sys.argv[1:], ROOT, os.environ)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
