"""Where pip looks for packages on this machine. No index is named here: pip is asked."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass

from cookbook.offline.errors import OfflineError

# A later one overrides an earlier one, as in pip.
_SECTIONS = ("global", "install", "download", ":env:")


@dataclass(frozen=True)
class PipSettings:
    """The part of pip's configuration that decides where and how it downloads."""

    index_url: str | None  # None: the index that pip uses where nothing is configured
    extra_index_urls: tuple[str, ...]
    find_links: tuple[str, ...]
    trusted_hosts: tuple[str, ...]
    no_index: bool
    cert: str | None  # certificate bundle, a file or a folder
    client_cert: str | None
    proxy: str | None
    timeout: float  # seconds


def pip_settings() -> PipSettings:
    """Return what pip is configured for: files and `PIP_` variables, as pip itself merges them.

    Raises OfflineError where pip cannot be asked.
    """
    values = _merged(_pip_config_list())
    return PipSettings(
        index_url=values.get("index-url"),
        extra_index_urls=tuple(values.get("extra-index-url", "").split()),
        find_links=tuple(values.get("find-links", "").split()),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        no_index=values.get("no-index", "").lower() in {"1", "true", "yes", "on"},
        cert=values.get("cert"),
        client_cert=values.get("client-cert"),
        proxy=values.get("proxy"),
        timeout=float(values.get("timeout") or values.get("default-timeout") or 60),
    )


def _merged(listing: str) -> dict[str, str]:
    """Return the settings of a `pip config list`, whose lines read `section.key='value'`."""
    sections: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        if section in sections and value:
            sections[section][key] = str(ast.literal_eval(value))
    return {key: value for section in _SECTIONS for key, value in sections[section].items()}


def _pip_config_list() -> str:
    command = [*_pip(), "config", "list", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise OfflineError(f"`pip config list` failed: {done.stderr.strip()}")
    return done.stdout


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    raise OfflineError(
        "pip tells where packages come from, and there is none. "
        f"Run `{sys.executable} -m ensurepip`, then `make offline` again."
    )
