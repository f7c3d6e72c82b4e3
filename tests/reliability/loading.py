"""The loading path of each recipe, run as it stands in its notebook, on files of any content."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import nbformat
import pytest
from datasets import Dataset, List
from hypothesis import HealthCheck, Phase, given, settings
from transformers import AutoTokenizer

from cookbook.chat import IGNORED
from cookbook.commands.record import notebooks
from cookbook.commands.run import recipe_of
from cookbook.profiles import CookbookError
from tests.reliability import files

NOTEBOOKS = notebooks()
# The columns that a recipe reads by itself; what it can read besides is in OWN-DATA.md.
COLUMNS = {
    "GPT-2-From-Scratch": ("text",),
    "Distributed-Full-Fine-Tuning": ("prompt", "completion"),
    "Falcon-7B-LoRA": ("prompt", "completion"),
    "PEFT-Methods-Compared": ("prompt", "completion", "answer"),
    "Financial-Sentiment-OPT": ("text", "label"),
    "Summarization-FLAN-T5": ("document", "summary"),
    "Financial-Reasoning-Gemma-3": ("prompt", "completion"),
    "Math-Reasoning-Qwen-GRPO": ("prompt", "completion", "answer"),
    "Qwen3-Reasoning-Conversational": ("prompt", "completion", "answer"),
    "Export-and-Serve": ("prompt", "completion"),
    "DPO-Preference-Tuning": ("prompt", "chosen", "rejected"),
    "KTO-Thumbs-Up-Down": ("prompt", "completion", "label"),
    "Reward-Model-and-Best-of-N": ("prompt", "chosen", "rejected"),
}
# Training rows that suffice where one does not: an update takes them, or two labels or modes need
# one each.
FEWEST = {
    "Distributed-Full-Fine-Tuning": 32,
    "Financial-Sentiment-OPT": 2,
    "GPT-2-From-Scratch": 2,
    "KTO-Thumbs-Up-Down": 2,
    "Math-Reasoning-Qwen-GRPO": 16,
    "PEFT-Methods-Compared": 4,
    "Qwen3-Reasoning-Conversational": 2,
}
FIRST, LAST = "## Data Loading", "## Model Configuration"


@dataclass(frozen=True)
class Outcome:
    """What became of one file: used, or refused with a message; and what was printed before."""

    refused: str | None
    printed: str
    defined: dict[str, Any]

    @property
    def kind(self) -> str:
        """What the record counts."""
        if self.refused is not None:
            return "refused"
        return "used, rows dropped" if "Dropped" in self.printed else "used"

    def supervised(self) -> Iterator[Dataset]:
        """Yield every table of examples with labels that the cells made."""
        found = list(self.defined.values())
        for one in found:
            if isinstance(one, dict):
                found.extend(one.values())
            elif isinstance(one, Dataset) and isinstance(one.features.get("labels"), List):
                yield one


class _Tokenizers:
    """Stands for `AutoTokenizer`: reads a tokenizer once, and gives it as it was read.

    Reading it takes longer than all that a file goes through.
    """

    def __init__(self) -> None:
        self._read: dict[str, tuple[Any, dict[str, Any]]] = {}

    def from_pretrained(self, path: str, **options: Any) -> Any:
        if path not in self._read:
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            names = ("chat_template", "pad_token", "padding_side")
            self._read[path] = tokenizer, {name: getattr(tokenizer, name) for name in names}
        tokenizer, state = self._read[path]
        for name, value in state.items():
            setattr(tokenizer, name, value)
        return tokenizer


class Recipe:
    """A notebook's setup, executed once, and its loading cells, executed for each file."""

    def __init__(self, path: Path) -> None:
        self.name, self.columns = recipe_of(path), COLUMNS[path.stem]
        cells = nbformat.read(path, as_version=4).cells
        headings = [cell.source.split("\n", 1)[0] for cell in cells]
        first, last = headings.index(FIRST), headings.index(LAST)
        setup, loading = (
            [
                compile(cell.source, f"{self.name}, cell {number}", "exec")
                for number, cell in enumerate(cells)
                if start <= number < end and cell.cell_type == "code"
            ]
            for start, end in ((0, first), (first, last))
        )
        self._loading = loading
        self._names: dict[str, Any] = {}
        for code in setup:
            exec(code, self._names)
        if "AutoTokenizer" in self._names:
            self._names["AutoTokenizer"] = _Tokenizers()

    def load(self, source: Path, **changed: Any) -> Outcome:
        """Load a file as a person's own data, with some settings changed.

        Whatever is no `CookbookError` comes through.
        """
        return self._load(source.parent, {"dataset": str(source), "own": True} | changed)

    def load_embedded(self, folder: Path) -> Outcome:
        """Load the embedded data that the profile `cpu` names; runs lie below the folder."""
        own = self._names["SETTINGS"]["dataset"][0]
        return self._load(folder, {"dataset": own, "own": False})

    def _load(self, folder: Path, settings: dict[str, Any]) -> Outcome:
        names, printed = dict(self._names), io.StringIO()
        run = folder / "run"
        (run / "checkpoints").mkdir(parents=True)
        names["config"] = type(names["config"])(**vars(names["config"]) | settings)
        names["run"] = run
        refused = None
        with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
            patch.setenv("COOKBOOK_RUNS", str(folder / "runs"))
            try:
                for code in self._loading:
                    exec(code, names)
            except CookbookError as error:
                refused = str(error)
        return Outcome(refused, printed.getvalue(), names)


def ready(path: Path, runs: Path) -> Recipe:
    """Execute a notebook's setup as for a person with data of their own, on the `cpu` profile."""
    given = {"COOKBOOK_PROFILE": "cpu", "COOKBOOK_DATASET": "own", "COOKBOOK_RUNS": str(runs)}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        for name, value in given.items():
            patch.setenv(name, value)
        return Recipe(path)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one file and for what `datasets` makes of it; removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cookbook-fuzz-"))
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    try:
        yield folder
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        remove(folder)


def remove(folder: Path, tries: int = 100) -> None:
    """Remove a folder into which something may still be written.

    Deep Lake gives a tag's lock back from a thread of its own, after the call that wrote the tag.
    """
    for _ in range(tries):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
    shutil.rmtree(folder)


def check(outcome: Outcome) -> None:
    """Assert what holds for every file: nothing is trained on that would teach nothing."""
    if outcome.refused is not None:
        assert len(outcome.refused) > 20 and "Traceback" not in outcome.refused, outcome.refused
        return
    for rows in outcome.supervised():
        for labels in rows["labels"]:
            assert any(label != IGNORED for label in labels), "a fully masked example is trained on"


def load(recipe: Recipe, kind: str, content: bytes) -> Outcome:
    """Load a file of this content and check what came of it.

    What a recipe has beside it is a short file: reading the embedded data takes seconds.
    """
    with scratch() as folder:
        path, talks = folder / f"mine.{kind}", folder / "talks.jsonl"
        path.write_bytes(content)
        talks.write_bytes(files.right(("prompt", "completion"), 20))
        outcome = recipe.load(path, chat_dataset=str(talks), second_dataset=str(talks))
        check(outcome)
    return outcome


def fuzz(recipe: Recipe, count: int, *, same_every_time: bool) -> Counter[str]:
    """Load `count` files and return how many were used and how many refused; all must be either."""
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=count,
        derandomize=same_every_time,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # making a failing file smaller takes minutes
    )
    @given(files.any_file(recipe.columns))
    def load_one(drawn: tuple[str, bytes]) -> None:
        outcomes[load(recipe, *drawn).kind] += 1

    load_one()
    return outcomes
