"""How a fault is planted in a text: by one change of a few characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import nbformat

Change = Callable[[str], str]


class NotThere(ValueError):
    """The text that a fault replaces is not there, or not once."""


@dataclass(frozen=True)
class Fault:
    """One fault: where it is planted, and the tests that fail of it.

    One test is enough. A second is for trees that the first is not in yet; see `--revision`.
    """

    name: str
    kind: str  # what a person would suffer from it
    file: str
    planted: Change
    tests: tuple[str, ...]


def swap(old: str, new: str) -> Change:
    """Return a change of the one place where a text stands; in a notebook, in a cell's code."""

    def once(text: str) -> str:
        if text.count(old) != 1:
            raise NotThere(f"{old!r} is there {text.count(old)} times: change the catalogue too")
        return text.replace(old, new)

    def change(text: str) -> str:
        if not text.startswith("{"):
            return once(text)
        notebook = nbformat.reads(text, as_version=4)
        cells = [one for one in notebook.cells if one.cell_type == "code" and old in one.source]
        if len(cells) != 1:
            raise NotThere(f"{old!r} is in {len(cells)} cells: change the catalogue too")
        cells[0].source = once(cells[0].source)
        return str(nbformat.writes(notebook))

    return change


def output_left(text: str) -> str:
    """Leave an output in a notebook, as whoever executed it last and did not strip it."""
    notebook = nbformat.reads(text, as_version=4)
    cell = next(one for one in notebook.cells if one.cell_type == "code")
    cell.outputs = [nbformat.v4.new_output("stream", text="3\n")]
    return str(nbformat.writes(notebook))


def doubled(text: str) -> str:
    """Put another version of a package beside the one that is locked, as Poetry would do."""
    start = text.index('[[package]]\nname = "nvidia-cublas"')
    end = text.index("[[package]]", start + 1)
    package = text[start:end]
    version = package.partition('version = "')[2].partition('"')[0]
    return text[:end] + package.replace(version, "13.10.0.20", 1) + text[end:]


def token_pasted(text: str) -> str:
    """Paste a token into a document; put together here, so that this file holds none."""
    return text + "\n# token: " + "hf_" + "aBcD1234eFgH5678iJkL" + "9012mNoP3456qR" + "\n"


def figure_bettered(text: str) -> str:
    """Better the result of a recorded run by a tenth of a nat."""
    content = json.loads(text)
    content["metrics"][0]["after"] -= 0.1
    return json.dumps(content, indent=2) + "\n"
