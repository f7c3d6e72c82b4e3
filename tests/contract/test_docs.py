"""Documents point to what is there, and no file names this machine or its package index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scripts import poetry as poetry_script
from tests.contract import doc_rules as rules
from tests.contract.repository import ROOT, make_targets, repository_files

pytestmark = pytest.mark.contract

DOCUMENTS = [
    path
    for path in repository_files()
    if path.suffix in {".md", ".ipynb"}
    and path.relative_to(ROOT).parts[:2] != ("results", "recipes")  # pages: see test_pages
]
README_LINES = 120


def relative(value: Path) -> str:
    """Test id."""
    return str(value.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_resolve(path: Path) -> None:
    assert rules.broken_links(path, ROOT) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_named_targets_exist(path: Path) -> None:
    assert rules.named_targets(rules.markdown_of(path)) - make_targets() == set()


def test_targets_named_in_messages_exist() -> None:
    """Error messages and docstrings name targets between quotes, backticks or brackets."""
    pattern = re.compile(r"""[`'"(]make ([a-z][a-z-]*)[`'")]""")
    named = {
        (relative(path), target)
        for path in repository_files()
        if path.suffix == ".py" and path.parts[len(ROOT.parts)] in {"cookbook", "scripts"}
        for target in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert [place for place in sorted(named) if place[1] not in make_targets()] == []


def test_every_target_is_in_make_help() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = dict(re.findall(r"^ +make ([a-z-]+) +(\S.*)$", shown, re.MULTILINE))
    assert set(lines) == set(make_targets())


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert 0 < len(lines) <= README_LINES


def test_no_file_names_this_machine() -> None:
    places = [str(path) for path in (ROOT, Path.home()) if len(path.parts) > 1]
    assert _files_with([rf"{re.escape(place)}(?![\w.-])" for place in places]) == []


def test_no_file_names_a_package_host() -> None:
    settings = poetry_script.ask_pip(os.environ, [sys.executable])
    built_in = poetry_script.ask_pip(
        {"PIP_CONFIG_FILE": os.devnull, "PATH": os.environ["PATH"]}, [sys.executable]
    )
    hosts = {urlsplit(pip.index_url).hostname for pip in (settings, built_in)} - {None}
    assert hosts, "pip names no index, so there is nothing to look for"
    assert _files_with([rf"\b{re.escape(str(host))}\b" for host in hosts]) == []


def _files_with(patterns: list[str]) -> list[str]:
    """Text files of the repository in which a pattern occurs, and the pattern."""
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [
            f"{relative(path)}: {pattern}" for pattern in patterns if re.search(pattern, text)
        ]
    return found


# --- The rules are seen to fail -------------------------------------------------------------


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One `two`, three\n\n## Again\n\n## Again\n")
    (tmp_path / "doc.md").write_text(
        "[a](there.md) [b](there.md#one-two-three) [c](there.md#again-1) [d](#here) <e@f.org>\n"
        "[g](https://example.org/x) `[h](code.md)`\n\n# Here\n\n"
        "[i](gone.md) [j](there.md#gone) ![k](gone.png) [l](#gone) [m](../outside.md)\n\n"
        '<img src="gone2.png">\n\n```\n[n](fenced.md)\n```\n'
    )
    broken = [text.split()[1] for text in rules.broken_links(tmp_path / "doc.md", tmp_path)]
    assert broken == [
        "gone.md",
        "there.md#gone",
        "gone.png",
        "#gone",
        "../outside.md",
        "gone2.png",
    ]


def test_named_targets_are_found() -> None:
    text = (
        "We make sure of it. `make one`, `make -j4 two three-four NB=x.ipynb`\n\n"
        "```sh\ncd x && make five\nmake NB=a six\n```\n"
    )
    assert rules.named_targets(text) == {"one", "two", "three-four", "five", "six"}
