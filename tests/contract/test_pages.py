"""A recipe's page, its record and its notebook belong together, and the page is fit to be read.

`make record` writes the page. Where the record is of today's code, so is the page's text.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from cookbook.commands import pages, proof, record
from cookbook.commands.run import recipe_of
from cookbook.profiles import ROOT
from tests.contract import doc_rules
from tests.contract.test_secrets import TOKEN, scan
from tests.pages import png, use, written

pytestmark = pytest.mark.contract

RECIPES = [recipe_of(path) for path in record.notebooks()]
MOST_BYTES = 400_000  # of a page's pictures together
COMMAND = "run: .venv/bin/python -m cookbook.commands.record --pages"


def all_pages(recipe: str, root: Path = ROOT) -> list[Path]:
    """The pages of a recipe, one for each profile."""
    return sorted((root / "results" / "recipes" / recipe).glob("*.md"))


def faults(page: Path, root: Path = ROOT) -> list[str]:
    """Return what is wrong with a page of the repository in `root`."""
    if not (head := pages.head_of(page)):
        return ["it has no first line with digests"]
    found = []
    if head["page"] != pages.seal_of(page):
        found.append("it was edited: its digest is another")
    found += faults_of_record(page, head)
    text = page.read_text(encoding="utf-8")
    notebook = nbformat.read(root / page.parts[-3] / f"{page.parts[-2]}.ipynb", as_version=4)
    current = pages.is_of(page, notebook)
    if current and not found and pages.rewoven(page, notebook) != text:
        found.append(f"its text is not the notebook's, {COMMAND}")
    found += faults_of_pictures(page, text)
    for line in doc_rules.broken_links(page, root):
        # A heading may go before an older page is made anew; a file has to stay.
        if current or "no such heading" not in line:
            found.append(line)
    private = [rf"{re.escape(tempfile.gettempdir())}/tmp\w"]
    for place in (ROOT, Path.home()):
        private += [rf"(?<![\w.]){re.escape(str(place))}(?![\w.-])"] * (len(place.parts) > 1)
    found += [f"it names {name[0]}" for one in private if (name := re.search(one, text))]
    return found


def faults_of_pictures(page: Path, text: str) -> list[str]:
    """Return what is wrong with the pictures of a page; one that is missing is a broken link."""
    pictures = pages.pictures(page.parent, page.stem)
    shown = doc_rules.link_targets(text)
    found = [f"{path.name} is left over" for path in pictures if path.name not in shown]
    if sum(path.stat().st_size for path in pictures) > MOST_BYTES:
        found.append("its pictures are too large")
    return found


def faults_of_record(page: Path, head: dict[str, str]) -> list[str]:
    """Return what is wrong between a page and the record that it names."""
    path = page.parent / head["record"]
    if not path.exists():
        return ["its record is not there"]
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = []
    if not head["seal"] == run["seal"] == proof.seal_of(run):
        found.append("its record is another: the seals differ")
    if head["notebook"] != run["digests"]["notebook"]:
        found.append("its record is of another notebook")
    if (run["profile"], run["seed"]) != (page.stem, 0):
        found.append("its record is of another profile or seed")
    return found


def missing(runs: list[record.Run], root: Path = ROOT) -> list[str]:
    """Return the recipes with a record of seed 0 and of today's notebook that have no page."""
    found = []
    for run in runs:
        if run["seed"] == 0 and run["profile"] == "cpu" and "digests" in run:
            page = root / "results" / "recipes" / run["recipe"] / "cpu.md"
            notebook = nbformat.read(root / f"{run['recipe']}.ipynb", as_version=4)
            today = proof.digest(proof.code_of(proof.code_for_cpu(notebook)))
            if run["digests"]["notebook"] == today and not page.exists():
                found.append(run["recipe"])
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_pages_belong_to_their_records_and_notebooks(recipe: str) -> None:
    found = {page.name: faults(page) for page in all_pages(recipe)}
    assert not any(found.values()), found


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_readmes_link_the_pages(recipe: str) -> None:
    folder = ROOT / recipe.partition("/")[0]
    for page in all_pages(recipe):
        for readme in (ROOT / "README.md", folder / "README.md"):
            if page.stem == "cpu" or readme.parent == folder:
                path = Path(os.path.relpath(page, readme.parent)).as_posix()
                assert f"[read it executed]({path})" in readme.read_text(encoding="utf-8")


def test_each_recipe_has_a_page_once_it_is_recorded() -> None:
    assert missing(record.recorded_runs()) == [], "run: make record"


# --- The rules are seen to fail -------------------------------------------------------------

TEXT = "# Title\n\nSee [the folder](README.md#a-heading)."


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one recipe with its record and its page."""
    use(tmp_path, monkeypatch)
    outputs = [
        new_output("stream", text="printed\n"),
        new_output("display_data", data={"image/png": png()}),
    ]
    (tmp_path / "02-PEFT" / "README.md").write_text("# A heading\n", encoding="utf-8")
    written(tmp_path, [new_markdown_cell(TEXT), new_code_cell("show()", outputs=outputs)])
    return tmp_path


@pytest.fixture
def page(root: Path) -> Path:
    (only,) = all_pages("02-PEFT/X", root)
    assert faults(only, root) == []
    return only


def change(path: Path, old: str, new: str) -> None:
    """Replace a text that a file holds."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def reseal(page: Path) -> None:
    """Give an edited page the digest that it should have, as a forger would."""
    change(page, pages.head_of(page)["page"], pages.seal_of(page))


def change_record(page: Path, **content: Any) -> None:
    """Replace what a page's record holds, and seal it anew."""
    path = page.parent / pages.head_of(page)["record"]
    run = json.loads(path.read_text(encoding="utf-8")) | content
    path.write_text(json.dumps(proof.sealed(run)), encoding="utf-8")


def test_an_edited_output_is_found_out(root: Path, page: Path) -> None:
    change(page, "printed", "better")
    assert faults(page, root) == ["it was edited: its digest is another"]


def test_a_page_without_digests_is_found_out(root: Path, page: Path) -> None:
    page.write_text("# Title\n", encoding="utf-8")
    assert faults(page, root) == ["it has no first line with digests"]


def test_another_picture_is_found_out(root: Path, page: Path) -> None:
    (picture,) = pages.pictures(page.parent, "cpu")
    picture.write_bytes(picture.read_bytes() + b"more")
    assert faults(page, root) == ["it was edited: its digest is another"]


def test_another_record_is_found_out(root: Path, page: Path) -> None:
    change_record(page, notebook_seconds=1.0)
    assert faults(page, root) == ["its record is another: the seals differ"]


def test_a_record_of_another_notebook_or_seed_is_found_out(root: Path, page: Path) -> None:
    change_record(page, digests={"notebook": "another"}, seed=1)
    assert faults(page, root) == [
        "its record is another: the seals differ",
        "its record is of another notebook",
        "its record is of another profile or seed",
    ]


def test_a_record_that_is_gone_is_found_out(root: Path, page: Path) -> None:
    (page.parent / pages.head_of(page)["record"]).unlink()
    assert "its record is not there" in faults(page, root)


@pytest.mark.parametrize(("old", "new"), [("# Title", "# Other"), ("show()", "show()  # why")])
def test_older_text_or_comments_are_found_out(root: Path, page: Path, old: str, new: str) -> None:
    change(root / "02-PEFT" / "X.ipynb", old, new)
    assert faults(page, root) == [f"its text is not the notebook's, {COMMAND}"]


def test_text_that_was_edited_and_sealed_is_found_out(root: Path, page: Path) -> None:
    change(page, "# Title", "# Other")
    reseal(page)
    assert faults(page, root) == [f"its text is not the notebook's, {COMMAND}"]


def test_a_page_of_older_code_is_right_as_long_as_it_is_its_records(root: Path, page: Path) -> None:
    change(root / "02-PEFT" / "X.ipynb", "show()", "show(2)")
    change(root / "02-PEFT" / "README.md", "# A heading", "# Another")
    assert faults(page, root) == []


def test_pictures_that_are_gone_or_left_over_are_found_out(root: Path, page: Path) -> None:
    (picture,) = pages.pictures(page.parent, "cpu")
    shutil.copy(picture, picture.with_name("cpu-7.png"))
    assert faults(page, root) == ["cpu-7.png is left over"]
    picture.unlink()
    assert "cpu.md: cpu-1.png does not exist" in faults(page, root)


def test_large_pictures_are_found_out(
    root: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.contract.test_pages.MOST_BYTES", 100)
    assert faults(page, root) == ["its pictures are too large"]


@pytest.mark.parametrize(("old", "new"), [("# A heading", "# Another"), (None, None)])
def test_broken_links_are_found_out(
    root: Path, page: Path, old: str | None, new: str | None
) -> None:
    readme = root / "02-PEFT" / "README.md"
    if old and new:
        change(readme, old, new)
    else:
        readme.unlink()
    (line,) = faults(page, root)
    assert "../../../../02-PEFT/README.md" in line


def test_a_folder_of_a_machine_is_found_out(root: Path, page: Path) -> None:
    change(page, "printed", f"printed into {ROOT}")
    reseal(page)
    assert f"it names {ROOT}" in faults(page, root)


def test_a_token_in_a_page_would_be_found(page: Path) -> None:
    change(page, "printed", f"logged in with {TOKEN}")
    assert scan(page).returncode == 1


def test_a_recipe_without_its_page_is_found_out(root: Path, page: Path) -> None:
    (run,) = record.recorded_runs()
    assert missing([run], root) == []
    page.unlink()
    assert missing([run], root) == ["02-PEFT/X"]
    assert missing([run | {"seed": 1}, run | {"digests": {"notebook": "older"}}], root) == []
