"""Own files with anything in them: used, dropped with a count, or refused with a message."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from cookbook import data
from cookbook.commands import proof
from tests.reliability import files, loading
from tests.reliability.loading import NOTEBOOKS, Recipe

# Files for each recipe, the same every time: a gate that draws anew fails on commits that changed
# nothing. `python -m tests.reliability loading` draws anew, and so does a workflow every week.
QUICK, MORE = 15, 40


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The recipe whose rows have labels."""
    (path,) = [one for one in NOTEBOOKS if one.stem == "Financial-Sentiment-OPT"]
    return loading.ready(path, tmp_path_factory.mktemp("runs"))


@pytest.mark.unit
@pytest.mark.held("loading")
def test_a_right_file_is_used(recipe: Recipe) -> None:
    outcome = loading.load(recipe, "jsonl", files.right(recipe.columns))
    assert outcome.refused is None
    if recipe.columns != ("text",):
        assert list(outcome.supervised())


@pytest.mark.unit
@pytest.mark.held("loading")
def test_embedded_data_pass_through_nothing_for_own(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a recipe's record need not depend on it (`proof.GIVEN`)."""

    def called(*_: object, **__: object) -> None:
        raise AssertionError("the embedded data went through it")

    for module, name in proof.GIVEN:
        monkeypatch.setattr(f"{module}.{name}", called)
    outcome = recipe.load_embedded(tmp_path)
    assert outcome.refused is None and len(outcome.printed) > 100


@pytest.mark.unit
@pytest.mark.held("loading")
@pytest.mark.parametrize("count", range(1, 7))
def test_few_rows_are_used_or_refused(recipe: Recipe, tmp_path: Path, count: int) -> None:
    """Where a recipe needs more than it has, it says so before it trains."""
    mine = files.folder(tmp_path / "mine", recipe.columns, count)
    outcome = recipe.load(mine)
    loading.check(outcome)
    if count >= loading.FEWEST.get(Path(recipe.name).name, 1):
        assert outcome.refused is None


@pytest.mark.unit
@pytest.mark.held("loading")
def test_no_file_ends_in_a_traceback(recipe: Recipe) -> None:
    assert loading.fuzz(recipe, QUICK, same_every_time=True).total() >= QUICK


@pytest.mark.slow
@pytest.mark.held("loading")
def test_no_file_of_many_ends_in_a_traceback(recipe: Recipe) -> None:
    outcomes = loading.fuzz(recipe, MORE, same_every_time=True)
    assert outcomes["refused"] < outcomes.total(), "a fuzzer whose every file is refused at once"


LABELS: dict[str, tuple[list[Any], list[Any], str | None]] = {
    "of test rows alone": (["good", "bad"] * 4, ["good", "fair"], "No training row shows .* fair:"),
    "numbers": ([0, 1] * 4, [1, 0], None),
    "with blanks": (["good ", "bad"] * 4, [" bad", "good"], None),
    "one is missing": (["good", "bad"] * 4 + [None, ""], ["good", None], None),
    "all are missing": ([""] * 8, ["good"], "train split has no usable row left"),
}


@pytest.mark.unit
@pytest.mark.held("loading")
@pytest.mark.parametrize(("train", "test", "complaint"), LABELS.values(), ids=list(LABELS))
def test_labels_of_the_sentiment_recipe(
    sentiment: Recipe, tmp_path: Path, train: list[Any], test: list[Any], complaint: str | None
) -> None:
    (tmp_path / "mine").mkdir()
    for name, labels in (("train", train), ("test", test)):
        rows = [{"text": f"{name} {n}", "label": label} for n, label in enumerate(labels)]
        content = "\n".join(map(json.dumps, rows))
        (tmp_path / "mine" / f"{name}.jsonl").write_text(content, encoding="utf-8")
    outcome = sentiment.load(tmp_path / "mine")
    if complaint:
        assert outcome.refused and re.search(complaint, outcome.refused)
        return
    assert outcome.refused is None
    missing = sum(label in (None, "") for label in train)
    assert (f"Dropped {missing} rows of the train split" in outcome.printed) == (missing > 0)
    for rows in outcome.defined["tokenized"].values():
        assert {answer[0]["content"] for answer in rows["completion"]} <= {
            str(label).strip() for label in train if label not in (None, "")
        }


@pytest.mark.unit
def test_a_masked_example_would_be_seen() -> None:
    rows = datasets.Dataset.from_dict({"labels": [[-100, 5], [-100, -100]]})
    with pytest.raises(AssertionError, match="fully masked"):
        loading.check(loading.Outcome(None, "", {"tokenized": {"train": rows}}))


@pytest.mark.unit
def test_a_folder_goes_that_is_still_written_into() -> None:
    """As by Deep Lake: right after its tag, a removal in one go failed 61 times of 300."""

    def write(folder: Path) -> None:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError):
                (folder / "log" / f"{time.monotonic_ns()}.lock").touch()

    with loading.scratch() as folder:
        (folder / "log").mkdir()
        thread = threading.Thread(target=write, args=(folder,))
        thread.start()
        while not any((folder / "log").iterdir()):
            time.sleep(0.001)
    thread.join()
    assert not folder.exists()


@pytest.mark.unit
def test_a_folder_that_stays_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(f"{path} stays")

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(OSError, match="stays"):
        loading.remove(tmp_path, tries=2)


@pytest.mark.unit
def test_texts_are_what_they_were(tmp_path: Path) -> None:
    """What is parsed here comes out as it was written, of whatever script."""
    texts = ["\u00e9", "\u65e5\u672c", "\U0001f600", "\u2028 is no end of a line"]
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in [*texts, "last"]]
    path.write_text("\n".join(lines), encoding="utf-8")
    splits = data.load_splits(str(path))
    assert sorted([*splits["train"]["text"], *splits["test"]["text"]]) == sorted([*texts, "last"])
