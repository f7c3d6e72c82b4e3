"""The doctor before the operation: `make check-data DATA=my.jsonl`.

It (`python -m cookbook.commands.doctor my.jsonl`) reads data as a recipe would read them and says
what the recipe would make of them, on the terminal and as a page. Nothing is trained but, for the
plan, a few layers with random weights, and no weights are loaded.
"""

import argparse
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Json,
    concatenate_datasets,
    disable_progress_bars,
)
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from cookbook import chat, data, files, forms, models
from cookbook import pairs as of_pairs
from cookbook import preferences
from cookbook.commands.doctor import page as pages
from cookbook.commands.doctor import private
from cookbook.commands.doctor.page import Bars, Examples, Table
from cookbook.commands.doctor.recipe import Recipe, heard
from cookbook.deduplicate import near_duplicates, near_duplicates_within
from cookbook.forms import Row
from cookbook.paths import as_typed, start_command, typed_path
from cookbook.profiles import ROOT, CookbookError, choose_profile, compute_dtype

DEFAULT = "02-PEFT/Falcon-7B-LoRA.ipynb"
LENGTHS = (128, 192, 256, 512, 1024, 2048, 4096)
KEEP = 0.98  # the share of rows that a proposed `max_length` keeps
LABELLED = 800  # rows whose labels are made, as a recipe makes them; tokens are counted of more
TOKENIZED = 2_000_000  # characters of rows whose tokens are counted
COMPARED = 5_000_000  # characters of rows that are searched for copies; more would take minutes
LENGTH_BIAS = 0.2  # from a half: pairs whose better answer is the longer one, or the shorter
LENGTHS_APART = 1.5  # times as long are answers with one thumb as those with the other
RARE = 0.05  # the share of thumbs below which a kind has little to say
FEW = 50  # training rows below which a score says little
SHOWN = 5
NO_RESULT = f"no result of one line and at most {forms.LONGEST_RESULT} characters after ####"
NUMBER = "row of the file, for check-data"  # a column that no data set has


@dataclass
class Part:
    """The rows of a split, and where in its file each of them stands."""

    rows: Dataset
    word: str  # what they are counted in: line, or row
    places: list[str]

    def at(self, numbers: Sequence[int], count: int = SHOWN) -> str:
        """Return where rows stand: `lines 3, 7, 9 and 12 more`."""
        found = sorted((self.places[n] for n in numbers), key=_in_order)
        first = ", ".join(found[:count])
        more = f" and {len(numbers) - count} more" if len(numbers) > count else ""
        return f"{self.word}{'s' if len(numbers) > 1 else ''} {first}{more}"

    def select(self, numbers: Sequence[int]) -> "Part":
        """Return the part that has these rows alone."""
        return Part(self.rows.select(numbers), self.word, [self.places[n] for n in numbers])


def _in_order(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return file, int(line)


@dataclass
class Findings:
    """What was found, in the order in which it is told."""

    subject: dict[str, str]
    sections: list[pages.Section] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusal: str = ""

    @property
    def verdict(self) -> str:
        """Return the first line."""
        if self.refusal:
            return f"not usable: {self.refusal}"
        count = len(self.warnings)
        return f"ready, with {count} warning{'s' * (count > 1)}" if count else "ready"

    def add(self, title: str, *blocks: pages.Block | None) -> None:
        """Add a section of what there is to say."""
        self.sections.append(pages.Section(title, [one for one in blocks if one]))


# --- Reading, with the place of every row -----------------------------------------------------


def places_of(paths: Sequence[Path], count: int) -> tuple[str, list[str]]:
    """Return what rows of files are counted in, and the place of each of `count` rows."""
    found: list[str] = []
    for path in paths:
        lines = _lines_of(path)
        if lines is None:
            found = []
            break
        found += [f"{path.name}:{line}" if len(paths) > 1 else str(line) for line in lines]
    if len(found) != count:
        return "row", [str(number + 1) for number in range(count)]
    return "line", found


def _lines_of(path: Path) -> list[int] | None:
    """Return the line on which each row of a text file begins; None where rows are no lines."""
    kind = files.FORMATS[files.ending(path)]
    if kind == "json":
        values = list(files._json_values(path, files._text(path)))
        if len(values) == 1 and isinstance(values[0][1], list):
            return None
        counts = [(line, len(one) if isinstance(one, list) else 1) for line, one in values]
        return [line for line, count in counts for _ in range(count)]
    if kind == "csv":
        text = files._text(path)
        return [line for line, _ in files._records(path, text, *files._dialect(path, text))[1:]]
    return None


def read(source: str, apart: str = "") -> tuple[dict[str, Part], list[list[str]], str]:
    """Return the splits of `load_splits` with the place of each row, a table of what there was,
    and a sentence on what was left out of a folder.

    Copies of training rows are still in a test split that had to be cut.
    """
    path = Path(source)
    if source.startswith(data.EMBEDDED) or not path.exists():
        splits = data.load_splits(source)
        parts = {name: _numbered(rows) for name, rows in splits.items()}
        return parts, [[name, source, str(len(one.places))] for name, one in parts.items()], ""
    raw = files.read(path, apart)
    chosen = files.train_and_test(raw, source, files.renaming("SPLITS"))
    by_split, left = _files_of(path, apart)
    table, parts = [], {}
    for theirs, rows in raw.items():
        ours = next((name for name, one in chosen.items() if one is rows), "not used")
        where = by_split.get(theirs, [])
        names = ", ".join(
            str(one.relative_to(path) if path.is_dir() else one.name) for one in where
        )
        table.append([ours, names or theirs, str(len(rows))])
        if ours != "not used":
            word, places = places_of(where, len(rows))
            parts[ours] = Part(rows, word, places)
    tables = DatasetDict({name: one.rows for name, one in parts.items()})
    for name, rows in files.renamed(tables, files.renaming("COLUMNS"), forms.KNOWN).items():
        parts[name].rows = rows
    return parts, table, left


def _numbered(rows: Dataset) -> Part:
    return Part(rows, "row", [str(number + 1) for number in range(len(rows))])


def _files_of(path: Path, apart: str) -> tuple[dict[str, list[Path]], str]:
    """Return the files of each split, and what of a folder is not among them."""
    if path.is_file():
        return {"train": [path]}, ""
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return {}, ""
    with heard([]):  # said before
        splits = files.files_by_split(path, apart)
    used = {one for found in splits.values() for one in found}
    others = sorted(
        str(one.relative_to(path))
        for one in path.rglob("*")
        if one.is_file()
        and one not in used
        and not one.name.startswith(".")
        and not (apart and one.is_relative_to(path / apart))
    )
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return splits, f"{', '.join(others[:SHOWN])}{more}" if others else ""


def cut_test(parts: dict[str, Part], source: str) -> tuple[dict[str, list[str]], int]:
    """Cut a test split as `load_splits` does where there is none.

    Returns the texts by which rows were compared, and how many copies were removed from it.
    """
    whole = parts["train"]
    if len(whole.places) < 2:
        data.load_splits(source)  # says why that is too little
    numbers = Dataset.from_dict({"number": list(range(len(whole.places)))})
    cut = numbers.train_test_split(test_size=data.TEST_SHARE, seed=0)
    for name in ("train", "test"):
        parts[name] = whole.select(cut[name]["number"])
    texts = _texts_to_compare(parts)
    copies = near_duplicates(texts["train"], texts["test"])
    if len(copies) == len(parts["test"].places):
        data.load_splits(source)  # says that every one copies a training row
    kept = sorted({*range(len(parts["test"].places))} - {*copies})
    parts["test"] = parts["test"].select(kept)
    return texts, len(copies)


def _texts_to_compare(parts: dict[str, Part]) -> dict[str, list[str]]:
    """Return what tells rows of the splits apart, of as many as are compared."""
    taken = {name: list(part.rows.take(data.COMPARED)) for name, part in parts.items()}
    sizes = (len(text) for rows in taken.values() for row in rows for text in private.texts_in(row))
    share = min(1.0, COMPARED / max(1, sum(sizes)))
    taken = {name: rows[: max(1, int(share * len(rows)))] for name, rows in taken.items()}
    everything: Any = [row for rows in taken.values() for row in rows]
    texts = iter(data.distinct_texts(everything))
    return {name: [next(texts) for _ in rows] for name, rows in taken.items()}


# --- Rows that a recipe uses --------------------------------------------------------------------


def usable(
    part: Part, recipe: Recipe, name: str, middle: float | None = None
) -> tuple[Part, dict[str, list[int]], forms.Form | None]:
    """Return a split's rows as the recipe uses them, its dropped rows by reason, and their form.

    `middle` is that of ratings which become thumbs.
    """
    rows = part.rows.add_column(NUMBER, list(range(len(part.rows))))
    form = None
    if recipe.texts:
        data.check_columns(rows, ["text"], name)
        rows = data.drop_rows_without(rows, ["text"], name)
    elif recipe.prefers and preferences.form_of(part.rows) != "problems":
        rows, by_reason = preferences.read(rows, name, middle)
        lost = {reason: [n - 1 for n in numbers] for reason, numbers in by_reason.items()}
        return Part(rows, part.word, [part.places[n] for n in rows[NUMBER]]), lost, None
    elif recipe.pairs is None:
        form = forms.recognise(part.rows, name)[0]
        rows = forms.as_conversations(rows, name)
    else:
        if not {*recipe.pairs} <= {*rows.column_names}:
            form = forms.recognise(part.rows, name)[0]
        rows = forms.as_pairs(rows, recipe.pairs, name)
        data.check_columns(rows, recipe.pairs, name)
        if recipe.checks:
            rows = rows.map(forms.with_result)
        wanted = [recipe.pairs[0], "answer"] if recipe.checks else [*recipe.pairs]
        rows = data.drop_rows_without(rows, wanted, name)
        if recipe.figures:
            keep = [n for n, one in enumerate(rows[recipe.pairs[1]]) if _figure(one)]
            if not keep:
                raise data.DataError(f"The {name} has no usable row left. Check #### figure.")
            rows = rows.select(keep)
    kept = rows[NUMBER]
    dropped: dict[str, list[int]] = {}
    for number in sorted({*range(len(part.rows))} - {*kept}):
        reason = _why_dropped(part.rows[number], form, recipe)
        dropped.setdefault(reason, []).append(number)
    return Part(rows, part.word, [part.places[n] for n in kept]), dropped, form


def _better_recipe(columns: set[str], recipe: Recipe) -> str:
    """Return a sentence that names the recipe which these columns are made for, or nothing."""
    if {"text", "label"} <= columns and not recipe.labels:
        what, other = "texts with classes", "03-Instruction-Tuning/Financial-Sentiment-OPT.ipynb"
    elif {"chosen", "rejected"} <= columns and not recipe.prefers:
        what, other = "pairs of answers", "06-Preference-Tuning/DPO-Preference-Tuning.ipynb"
    elif {"prompt", "completion", "label"} <= columns and not recipe.prefers:
        what, other = "answers with thumbs", "06-Preference-Tuning/KTO-Thumbs-Up-Down.ipynb"
    elif "text" in columns and len(columns) == 1 and not recipe.texts:
        what, other = "plain texts", "01-Full-Fine-Tuning/GPT-2-From-Scratch.ipynb"
    else:
        return ""
    return f"These look like {what}: NB={other} takes them."


def _figure(text: str) -> str:
    return forms.result_of(text) if "####" in text else ""


def _why_dropped(row: Row, form: forms.Form | None, recipe: Recipe) -> str:
    if form is not None:
        try:
            turns, _ = forms.conversation(row, form)
            forms._tools(row)
        except forms._Unusable as error:
            return str(error)
        if recipe.pairs and sum(one["role"] == "user" for one in turns) > 1:
            return "more than one question, where this recipe takes one"
        if recipe.figures:
            return NO_RESULT
        return "a tool, or no text to learn" if not recipe.grpo else f"{NO_RESULT}, or a tool"
    columns = recipe.pairs or ("text",)
    if all(isinstance(row[one], str) and row[one].strip() for one in columns):
        return NO_RESULT
    return f"no text in {' or '.join(columns)}"


def conversations_of(part: Part, recipe: Recipe, labels: Sequence[str]) -> Dataset:
    """Return usable rows as the conversations that the recipe makes of them."""
    if recipe.pairs is None:
        return part.rows
    asked, answered = recipe.pairs
    if recipe.prefers:
        first = part.rows[0]
        if "chosen" in first:
            return preferences.answers(part.rows)
        if isinstance(first[asked], list):  # messages, with a thumb
            return part.rows
        answered = "answer"
    rule = recipe.instruction(labels)
    system = [{"role": "system", "content": rule}] if rule else []

    def converse(row: Row) -> Row:
        said = str(row[answered]).strip()
        return {
            "prompt": [*system, {"role": "user", "content": str(row[asked]).strip()}],
            "completion": [{"role": "assistant", "content": said}],
        }

    made = [converse(row) for row in part.rows]
    return Dataset.from_dict({name: [one[name] for one in made] for name in made[0]})


# --- Tokens -------------------------------------------------------------------------------------


@dataclass
class Tokens:
    """Lengths of rows in tokens, and rows with labels."""

    whole: dict[str, list[int]]  # by split
    answers: list[int]  # of labelled training rows
    labelled: Dataset  # training rows that fit, the longest ones among them
    said: list[str]  # what the template and the check of labels said
    counted: int  # training rows whose tokens were counted
    labelled_from: int  # training rows that labels were made of
    examples: Dataset  # of them, two to show


def _text_of(tokenizer: PreTrainedTokenizerBase, row: Row) -> str:
    switches = {"tools": row["tools"]} if row.get("tools") else {}
    return chat.render(tokenizer, [*row["prompt"], *row["completion"]], **switches)


def _lengths(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ends: Sequence[int]
) -> list[int]:
    """Return how many tokens each text has up to its last end of turn, many texts at once."""
    found = []
    for start in range(0, len(texts), 1000):
        batch = tokenizer(list(texts[start : start + 1000]), add_special_tokens=False)
        for ids in batch["input_ids"]:
            last = next((n for n in range(len(ids) - 1, -1, -1) if ids[n] in ends), len(ids) - 1)
            found.append(last + 1)
    return found


def spread(count: int, wanted: int) -> list[int]:
    """Return `wanted` numbers below `count`, evenly spread, or all."""
    return (
        sorted({n * count // wanted for n in range(wanted)}) if count > wanted else [*range(count)]
    )


def _within_budget(rows: Dataset, characters: int, most: int) -> list[int]:
    """Return numbers of rows that have at most so many characters together, evenly spread."""
    some = spread(len(rows), min(most, 200))
    sizes = [sum(map(len, private.texts_in(row))) for row in rows.select(some)]
    return spread(len(rows), max(2, min(most, int(characters / max(1.0, statistics.mean(sizes))))))


def count_tokens(
    conversations: dict[str, Dataset], tokenizer: Any, ends: list[int], limit: int, batch: int
) -> Tokens:
    """Count the tokens of conversations, and label a part of the training rows as recipes do.

    Lengths are those of the labelled rows. Of more rows than are labelled they are counted without
    labels, where that gives the same numbers for the labelled ones; else they stand for all.
    """
    said: list[str] = []
    train = conversations["train"]
    some = _within_budget(train, TOKENIZED // 4, LABELLED)
    with heard(said):
        labelled = chat.supervise_answers(train.select(some), tokenizer, ends)
    lengths = [len(ids) for ids in labelled["input_ids"]]
    whole = {"train": lengths}
    numbers = some
    if len(some) < len(train) and len(labelled) == len(some):
        picked = _within_budget(train, TOKENIZED, len(train))
        texts = [_text_of(tokenizer, row) for row in train.select(picked)]
        counted = _lengths(tokenizer, texts, ends)
        if [one for n, one in zip(picked, counted) if n in {*some}] == [
            one for n, one in zip(some, lengths) if n in {*picked}
        ]:
            whole["train"], numbers = counted, picked
    if "test" in conversations:
        picked = _within_budget(conversations["test"], TOKENIZED // 4, LABELLED)
        rows = conversations["test"].select(picked)
        whole["test"] = _lengths(tokenizer, [_text_of(tokenizer, row) for row in rows], ends)
    answers = [sum(one != chat.IGNORED for one in labels) for labels in labelled["labels"]]
    fit = labelled.select([n for n, length in enumerate(lengths) if length <= limit])
    said.append(chat.check_supervision(fit if len(fit) else labelled, tokenizer, ends))
    if len(fit):
        fit = _with_longest(fit, train, whole["train"], numbers, tokenizer, ends, limit, batch)
    return Tokens(whole, answers, fit, said, len(numbers), len(some), labelled.take(2))


def _with_longest(
    fit: Dataset,
    train: Dataset,
    lengths: list[int],
    numbers: list[int],
    tokenizer: Any,
    ends: list[int],
    limit: int,
    batch: int,
) -> Dataset:
    """Add the longest rows that fit, where they are not labelled yet: a plan needs them."""
    if len(lengths) != len(numbers) or len(numbers) <= LABELLED:
        return fit
    fitting = sorted(((one, n) for one, n in zip(lengths, numbers) if one <= limit), reverse=True)
    with heard([]):
        longest = chat.supervise_answers(
            train.select([n for _, n in fitting[:batch]]), tokenizer, ends
        )
    kept = ("input_ids", "labels", "prompt", "completion")
    both = {name: [*fit[name], *longest[name]] for name in kept}
    return Dataset.from_dict(both, features=Features({name: fit.features[name] for name in kept}))


def tokens_of_pairs(conversations: dict[str, Dataset], tokenizer: Any, limit: int) -> Tokens:
    """Count the tokens of an encoder-decoder, which reads one sequence and writes another."""
    picked = _within_budget(conversations["train"], TOKENIZED // 4, LABELLED)
    whole, answers = {}, []
    for name, rows in conversations.items():
        taken = rows.select(picked if name == "train" else spread(len(rows), LABELLED))
        read_ids = tokenizer(["\n\n".join(t["content"] for t in p) for p in taken["prompt"]])
        whole[name] = [len(ids) for ids in read_ids["input_ids"]]
        if name == "train":
            written = tokenizer(text_target=[c[0]["content"] for c in taken["completion"]])
            answers = [len(ids) for ids in written["input_ids"]]
            made = {"input_ids": read_ids["input_ids"], "labels": written["input_ids"]}
            labelled = Dataset.from_dict(made)
    fit = labelled.select([n for n, one in enumerate(whole["train"]) if one <= limit])
    return Tokens(whole, answers, fit, [], len(picked), len(picked), labelled.take(2))


def proposal(lengths: Sequence[int]) -> int:
    """Return the smallest usual `max_length` that keeps enough rows, or what keeps them."""
    enough = sorted(lengths)[max(0, -(-int(KEEP * 1000) * len(lengths) // 1000) - 1)]
    return next((one for one in LENGTHS if one >= enough), enough)


def histogram(lengths: Sequence[int], bins: int = 12) -> list[tuple[str, int]]:
    """Return the counts of lengths in bins of one width; the last holds what is longer."""
    top = sorted(lengths)[max(0, int(0.99 * len(lengths)) - 1)]
    width = next(
        step * 10**power
        for power in range(9)
        for step in (1, 2, 5)
        if step * 10**power * bins > top
    )
    start = min(lengths) // width
    last = min(top // width, start + bins - 1)
    counts = Counter(min(length // width, last) for length in lengths)
    bars = []
    for place in range(start, last + 1):
        ends = f"{place * width + width - 1:,}"
        if place == last and max(lengths) >= (last + 1) * width:
            ends = f"{max(lengths):,}"
        begin = f"{place * width:,}"
        bars.append((begin if begin == ends else f"{begin} - {ends}", counts[place]))
    return bars


def _summary(lengths: Sequence[int]) -> list[str]:
    ordered = sorted(lengths)
    places = [0, len(ordered) // 2, int(0.9 * len(ordered)), int(0.99 * len(ordered)), -1]
    return [f"{ordered[min(place, len(ordered) - 1)]:,}" for place in places]


# --- The examination ----------------------------------------------------------------------------


class Examination:
    """One look through data, step by step; each step adds a section."""

    def __init__(self, recipe: Recipe, config: SimpleNamespace, findings: Findings) -> None:
        self.recipe, self.config, self.findings = recipe, config, findings
        self.labels: list[str] = []
        self.parts: dict[str, Part] = {}
        self.used: dict[str, Part] = {}
        self.conversations: dict[str, Dataset] = {}

    def run(self) -> None:
        """Take all steps; a `CookbookError` ends them, as it would end the recipe."""
        said: list[str] = []
        with heard(said):
            self.parts, table, left = read(self.config.dataset, self.recipe.apart)
        texts = None
        if "test" not in self.parts:
            texts, copies = cut_test(self.parts, self.config.dataset)
            sizes = [len(self.parts[name].places) for name in ("train", "test")]
            searched = " of those compared" if len(texts["train"]) < sizes[0] else ""
            said.append(
                f"No split is held out: the recipe cuts one of {sizes[1]} rows and trains on "
                f"{sizes[0]} ({copies} near-duplicates removed from the test{searched})."
            )
        if self.recipe.prefers:
            self._keep_together()
        self._rows(said, table, left)
        ready = self._tokenizer() if not self.recipe.texts else None
        with ThreadPoolExecutor(1) as beside:
            # Tokenizing happens outside of Python: what is compared meanwhile takes no longer.
            tokens: Future[Tokens] | None = beside.submit(self._count, *ready) if ready else None
            self._copies(texts)
            self._private()
            found = tokens.result() if tokens else None
        if found and ready:
            self._first_tokens(found)
            self._examples(found, ready)
            self._lengths(found)
            self._answers()
            self._plan(found, ready)
        elif self.recipe.texts:
            self._texts()

    @property
    def limit(self) -> int:
        """Return the recipe's own `max_length`, or what comes to it."""
        config = self.config
        if self.recipe.grpo:
            return int(config.max_prompt_length + config.max_completion_length)
        return int(config.max_length)

    def _rows(self, said: list[str], table: list[list[str]], left: str) -> None:
        what: list[pages.Block] = [*map(private.masked, said)]
        self.findings.sections.append(pages.Section("What it is", what))
        if left:
            what.append(f"In the folder and left out: {left}.")
            ends = {files.ending(Path(one)) for one in left.split(", ")}
            if ends & {*files.FORMATS} - {".txt"}:
                self._warn(f"Files of data in the folder are left out: {left}.")
        what.append(Table(["split", "files", "rows"], table))
        columns = self.parts["train"].rows.column_names
        what.append(f"Columns: {', '.join(columns)}.")
        what.append(_better_recipe({*columns}, self.recipe))
        dropped: list[list[str]] = []
        total = gone = 0
        heard_here: list[str] = []
        train = self.parts["train"].rows
        middle = preferences.middle_of(train) if self.recipe.judges else None
        for name, part in self.parts.items():
            with heard(heard_here):
                self.used[name], reasons, _ = usable(part, self.recipe, f"{name} split", middle)
            total += len(part.places)
            for reason, numbers in reasons.items():
                gone += len(numbers)
                dropped.append([name, str(len(numbers)), private.masked(reason), part.at(numbers)])
        form = [private.masked(one) for one in heard_here if not one.startswith("Dropped ")]
        if self.recipe.pairs and not any("rows of" in one for one in form):
            names = " and ".join(f"`{one}`" for one in self.recipe.pairs)
            form.append(f"Read as pairs of {names}. COOKBOOK_COLUMNS names other columns.")
        what[:0] = form
        used = total - gone
        sizes = ", ".join(f"{name} {len(one.places)}" for name, one in self.used.items())
        self.findings.add(
            "Rows",
            f"{used} of {total} rows are used ({sizes}); dropped: {gone}.",
            Table(["split", "dropped", "reason", "where"], dropped) if dropped else None,
        )
        if gone:
            self._warn(f"Dropped: {gone} of {total} rows.")
        if len(self.used["train"].places) < FEW:
            count = len(self.used["train"].places)
            self._warn(f"{count} training rows are few: expect little, and trust no small gain.")
        if self.recipe.labels:
            self._classes()
        if self.compared:
            self._comparisons()

    @property
    def compared(self) -> bool:
        """Tell whether rows became pairs of answers, or answers with thumbs."""
        given = preferences.form_of(self.parts["train"].rows) != "problems"
        return self.recipe.prefers and given

    def _keep_together(self) -> None:
        """Keep all rated answers to a prompt in one split, as the recipe does."""
        train, test = self.parts["train"], self.parts["test"]
        if preferences.form_of(train.rows) not in ("ratings", "thumbs"):
            return
        rows = concatenate_datasets([train.rows, test.rows])
        both = Part(rows, train.word, [*train.places, *test.places])
        sides = preferences.together(rows, len(train.places))
        for name, numbers in zip(("train", "test"), sides):
            self.parts[name] = both.select(numbers)

    def _comparisons(self) -> None:
        """Tell of preferences what they may teach beside what is meant: length, and prompts."""
        train, test = (self.used[name] for name in ("train", "test"))
        kept = preferences.unseen(train.rows, test.rows)
        both = len(test.places) - len(kept)
        prompts = len({str(one) for one in train.rows["prompt"]})
        what = "answers" if self.recipe.judges else "pairs"
        count = f"{len(train.places)} training {what} to {prompts} prompts."
        self.findings.add(
            "Thumbs" if self.recipe.judges else "Pairs",
            f"{count} {(self._of_thumbs if self.recipe.judges else self._of_pairs)(train)}",
            f"{both} test {what} have a prompt that is trained on; the recipe drops those.",
        )
        if both:
            total = len(test.places)
            self._warn(f"{both} of {total} test {what} have a prompt that is trained on.")

    def _of_pairs(self, train: Part) -> str:
        longer = preferences.length_bias(train.rows)
        if abs(longer - 0.5) > LENGTH_BIAS and len(train.places) >= FEW:
            which = "longer" if longer > 0.5 else "shorter"
            share = max(longer, 1 - longer)
            self._warn(
                f"The better answer is the {which} one in {share:.0%} of the pairs: the model may "
                "learn length alone. Balance them, or compare lengths before and after."
            )
        return f"The better answer is the longer one in {longer:.0%} of them (ties count half)."

    def _of_thumbs(self, train: Part) -> str:
        """Tell how even the two kinds are, and which answers have both; warn of what misleads."""
        thumbs = train.rows["label"]
        preferences.check_both_kinds(train.rows)
        said: dict[str, list[int]] = {}
        for number, turns in enumerate(zip(train.rows["prompt"], train.rows["completion"])):
            said.setdefault(str(turns), []).append(number)
        unsure = [n for own in said.values() if len({thumbs[n] for n in own}) > 1 for n in own]
        if unsure:
            self._warn(f"The same answer has thumbs up and down: {train.at(unsure)}.")
        rarer = min(thumbs.count(True), thumbs.count(False)) / len(thumbs)
        if rarer < RARE:
            self._warn(
                f"Only {rarer:.1%} of the thumbs are of the rarer kind. The recipe weighs them "
                "higher, but cannot make up for what is not there: collect more of them."
            )
        up, down = (
            statistics.mean(
                len(str(one[-1]["content"]))
                for one, thumb in zip(train.rows["completion"], thumbs)
                if thumb is kind
            )
            for kind in (True, False)
        )
        if len(thumbs) >= FEW and max(up, down) > LENGTHS_APART * min(up, down):
            self._warn(
                f"Answers with a thumb up have {up:.0f} characters on average, with a thumb down "
                f"{down:.0f}: the model may learn length alone."
            )
        return f"{thumbs.count(True)} have a thumb up, {thumbs.count(False)} a thumb down."

    def _warn(self, sentence: str) -> None:
        self.findings.warnings.append(private.masked(sentence))

    def _classes(self) -> None:
        """Tell the classes of label data apart, with the recipe's own check of them."""
        for name, part in self.used.items():
            stripped = [one.strip() for one in part.rows["label"]]
            part.rows = part.rows.remove_columns("label").add_column("label", stripped)
        splits = {name: part.rows for name, part in self.used.items()}
        checked = self.recipe.check({"labels"}, {"splits": splits, "data": data})
        self.labels = list(checked["labels"])
        counts = {name: Counter(rows["label"]) for name, rows in splits.items()}
        rows = [
            [private.masked(label), *(str(counts[name][label]) for name in counts)]
            for label in sorted({*counts["train"]}.union(*counts.values()))
        ]
        rarest = min(self.labels, key=lambda one: counts["train"][one])
        fewest, most = counts["train"][rarest], max(counts["train"].values())
        taken = min(self.config.train_examples_per_class, fewest)
        self.findings.add(
            "Classes",
            f"{len(self.labels)} classes; the rarest is {private.masked(rarest)!r} with {fewest} "
            f"training rows. The recipe takes {taken} of each.",
            Table(["class", *counts], rows),
        )
        if len(self.labels) == 1:
            self._warn("There is one class only: nothing can be told apart.")
        if fewest * 10 < most or fewest < 10:
            self._warn(
                f"The class {rarest!r} has {fewest} training rows, so the recipe takes {taken} of "
                "each class."
            )
        unseen = sorted({*counts.get("test", ())} - {*counts["train"]})
        if unseen:
            part = self.parts["test"]
            numbers = [n for n, one in enumerate(splits["test"]["label"]) if one in unseen]
            where = Part(part.rows, part.word, self.used["test"].places).at(numbers)
            self._warn(
                f"No training row has the test's label {', '.join(unseen)} ({where}): the recipe "
                "refuses it. Add rows of it, or remove those."
            )

    def _first_tokens(self, tokens: Tokens) -> None:
        """Let the recipe look whether classes begin with the same token, which it refuses."""
        if self.recipe.labels:
            seen = {row[0]["content"] for row in tokens.labelled["completion"]}  # of a sample
            given = {"tokenized": {"train": tokens.labelled}, "labels": seen}
            self.recipe.check({"label_tokens"}, {**given, "chat": chat, "data": data})

    def _tokenizer(self) -> tuple[Any, list[int], list[str], str, bool]:
        """Return tokenizer, ends, what the template said, the model's folder, and its kind."""
        both = "encoder_decoder=True" in self.recipe.source
        path = models.resolve_model(self.config.model, encoder_decoder=both)
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        pairs = bool(AutoConfig.from_pretrained(path).is_encoder_decoder)
        said: list[str] = []
        for name, part in self.used.items():
            self.conversations[name] = conversations_of(part, self.recipe, self.labels)
        own = tokenizer.chat_template
        if not pairs:
            self.recipe.choose_template(tokenizer)
            if tokenizer.chat_template != own:
                what = "The model has no chat template" if own is None else "Another template"
                said.append(f"{what}: the recipe's own is used.")
            with heard(said):
                chat.fit_template(tokenizer, self.conversations["train"])
        ends = [tokenizer.eos_token_id] if pairs else chat.end_tokens(tokenizer)
        return tokenizer, ends, said, path, pairs

    def _count(
        self, tokenizer: Any, ends: list[int], said: list[str], path: str, pairs: bool
    ) -> Tokens:
        if pairs:
            return tokens_of_pairs(self.conversations, tokenizer, self.limit)
        size = self.config.per_device_train_batch_size
        return count_tokens(self.conversations, tokenizer, ends, self.limit, size)

    def _copies(self, of_cut: dict[str, list[str]] | None) -> None:
        """Tell rows that say nearly the same, within the training split and across the splits.

        `of_cut` are the texts of a test split that was cut, and that was searched before.
        """
        texts = of_cut or _texts_to_compare(self.parts)
        train = self.parts["train"]
        compared = len(texts["train"])
        first: dict[str, int] = {}
        whole = [data.plain(row) for row in train.rows.take(compared)]
        exact = [n for n, text in enumerate(whole) if text and first.setdefault(text, n) != n]
        # Equal rows are left out before near ones are searched: thousands of copies take long.
        singles = sorted({*range(compared)} - {*exact})
        near = near_duplicates_within([texts["train"][n] for n in singles])
        near = [singles[n] for n in near]
        blocks: list[pages.Block] = [
            f"{len(exact)} exact and {len(near)} near-duplicates among {compared} training rows."
        ]
        rows = [["exact", train.at([first[whole[n]]]), train.at([n])] for n in exact[:3]]
        rows += [
            ["near", train.at([one]), train.at([other])]
            for one, other in self._partners(texts["train"], near[: SHOWN - len(rows)])
        ]
        if rows:
            blocks.append(Table(["kind", "row", "says the same as"], rows))
        if exact or near:
            self._warn(
                f"{len(exact) + len(near)} training rows repeat others ({len(exact)} exactly)."
            )
        if not of_cut and texts.get("test"):
            blocks += self._leakage(texts)
        if compared < len(train.places):
            blocks.append(f"Compared: the first {compared} of {len(train.places)} training rows.")
        self.findings.add("Duplicates and leakage", *blocks)

    def _leakage(self, texts: dict[str, list[str]]) -> list[pages.Block]:
        found = near_duplicates(texts["train"], texts["test"])
        if not found:
            return ["Leakage: no test row says nearly what a training row says."]
        share = (
            f"{len(found)} of {len(texts['test'])} test rows say nearly what a training row says"
        )
        self._warn(f"Leakage: {share}, so the test flatters.")
        train, test = self.parts["train"], self.parts["test"]
        some = found[:SHOWN]
        near = near_duplicates([texts["test"][n] for n in some], texts["train"])
        rows = []
        for number in some:
            alike = [
                n for n in near if near_duplicates([texts["test"][number]], [texts["train"][n]])
            ]
            rows.append([test.at([number]), train.at(alike[:1])])
        return [f"Leakage: {share}.", Table(["test", "training"], rows)]

    @staticmethod
    def _partners(texts: list[str], found: list[int]) -> Iterator[tuple[int, int]]:
        """Yield each found text with the first earlier one that it nearly is."""
        if not found:
            return
        near = near_duplicates([texts[n] for n in found], texts[: max(found)])
        for number in found:
            earlier = (n for n in near if n < number)
            alike = (n for n in earlier if near_duplicates([texts[n]], [texts[number]]))
            yield from ((other, number) for other in islice(alike, 1))

    def _private(self) -> None:
        rows, total = [], 0
        for name, part in self.parts.items():
            for kind, (count, numbers) in private.search(part.rows).items():
                rows.append([kind, name, str(count), part.at(numbers)])
                total += count
        said = "What looks like secrets or personal data is counted; values are never shown."
        self.findings.add(
            "Secrets and personal data",
            said if rows else "Nothing looks like a secret or personal data.",
            Table(["kind", "split", "found", "where"], rows) if rows else None,
        )
        if rows:
            kinds = ", ".join(dict.fromkeys(row[0] for row in rows))
            self._warn(f"{total} values look like secrets or personal data ({kinds}).")

    def _lengths(self, tokens: Tokens) -> None:
        lengths, total = tokens.whole["train"], len(self.used["train"].places)
        best = proposal(lengths)
        columns = {name: found for name, found in tokens.whole.items() if found}
        limits = sorted({*LENGTHS, self.limit})
        drops = {
            limit: {name: sum(one > limit for one in found) for name, found in columns.items()}
            for limit in limits
        }
        table = [
            [
                f"{limit:,}{' (the recipe)' if limit == self.limit else ''}",
                *(f"{n:,} ({n / len(columns[name]):.1%})" for name, n in drops[limit].items()),
            ]
            for limit in limits
        ]
        setting = f"COOKBOOK_MAX_LENGTH={best}"
        enough = (
            f"{setting} keeps {sum(one <= best for one in lengths) / len(lengths):.1%} of the rows."
        )
        if self.recipe.grpo:
            enough = f"{best} tokens keep {KEEP:.0%} of the rows: `max_prompt_length` in SETTINGS."
        counted = ""
        if tokens.counted < total or tokens.labelled_from < total:
            counted = (
                f"Sampled, evenly spread: tokens were counted in {tokens.counted:,} of {total:,} "
                f"training rows, and labels made for {tokens.labelled_from:,}."
            )
        self.findings.add(
            "Lengths in tokens",
            Table(
                ["", "min", "median", "90 %", "99 %", "max"],
                [["whole row", *_summary(lengths)], ["answers", *_summary(tokens.answers)]],
            ),
            Bars("prompt and answer together", histogram(lengths)),
            Bars("answers alone", histogram(tokens.answers)),
            Table(["max_length", *(f"drops of {name}" for name in columns)], table),
            enough,
            counted,
        )
        lost = drops[self.limit]
        if lost["train"] == len(lengths) or lost.get("test", 0) == len(columns.get("test", [1])):
            name = "train" if lost["train"] == len(lengths) else "test"
            rows = Dataset.from_dict({"input_ids": [[0] * one for one in columns[name]]})
            data.drop_too_long(rows, self.limit, f"{name} split")
        if lost["train"] > (1 - KEEP) * len(lengths):
            self._warn(
                f"max_length={self.limit} drops {lost['train'] / len(lengths):.0%} of the training "
                f"rows; {enough}"
            )

    def _examples(self, tokens: Tokens, ready: tuple[Any, list[int], list[str], str, bool]) -> None:
        tokenizer, ends, said, _, pairs = ready
        blocks: list[pages.Block] = [*said, *map(private.masked, tokens.said)]
        rows = tokens.examples
        if pairs:
            runs = [
                [
                    (private.masked(str(tokenizer.decode(row["input_ids"]))), False),
                    (private.masked(str(tokenizer.decode(row["labels"]))), True),
                ]
                for row in rows
            ]
        else:
            # Values are hidden before anything is tokenized: decoded they might look otherwise.
            kept = [k for k in ("prompt", "completion", "tools") if k in rows.column_names]
            clean = private.masked_within([{k: row[k] for k in kept} for row in rows])
            # As columns of Arrow's own types, objects would get the keys of each other.
            table = Dataset.from_dict(
                {k: [one[k] for one in clean] for k in kept},
                features=Features({k: Json() for k in kept}),
            )
            with heard([]):
                shown = chat.supervise_answers(table, tokenizer, ends)
            runs = [chat._runs(tokenizer, one["input_ids"], one["labels"]) for one in shown]
        if not pairs:
            token = tokenizer.convert_ids_to_tokens(ends[0])
            blocks.append(f"The end of turn, {token}, is supervised: the model learns to stop.")
        self.findings.add("What is learned", *blocks, Examples([run[:200] for run in runs]))

    def _answers(self) -> None:
        """Tell answers that teach little: all equal, or very short."""
        if self.recipe.labels:
            return
        said = [
            str(one[-1].get("content") or "") for one in self.conversations["train"]["completion"]
        ]
        short = [n for n, one in enumerate(said) if 0 < len(one.split()) <= 2 and len(one) < 20]
        empty = [n for n, one in enumerate(said) if not one.strip()]
        whole = [str(one) for one in self.conversations["train"]["completion"]]
        ((_, times),) = Counter(whole).most_common(1)
        blocks = []
        if len(said) > 1 and times == len(said):
            blocks.append("All answers are equal.")
            self._warn("All answers are equal: the model would learn to say one thing.")
        elif len(said) >= 10 and times > len(said) / 4:
            blocks.append(f"One answer stands in {times} of {len(said)} rows.")
            self._warn(blocks[-1])
        part = self.used["train"]
        if self.compared and not self.recipe.judges:  # each pair has two answers
            short, empty = (sorted({n // 2 for n in found}) for found in (short, empty))
        if short:
            blocks.append(f"{len(short)} answers have one or two words ({part.at(short)}).")
        if empty:
            blocks.append(
                f"{len(empty)} answers are calls of tools without text ({part.at(empty)})."
            )
        self.findings.add("Answers", *(blocks or ["Nothing unusual."]))

    def _texts(self) -> None:
        """Tell of texts for pre-training how long they are, and plan it."""
        sizes = [len(one) for one in self.used["train"].rows["text"]]
        self.findings.add(
            "Lengths in characters",
            Table(["", "min", "median", "90 %", "99 %", "max"], [["texts", *_summary(sizes)]]),
            Bars("characters in a text", histogram(sizes)),
            f"{sum(sizes):,} characters to train on. The recipe trains a tokenizer of its own and "
            "joins texts into blocks, so that none is too long.",
        )
        config = self.config
        if config.model == "gpt2":
            named = {name: value for name, value in vars(config).items() if name.startswith("n_")}
            shape: Any = AutoConfig.for_model("gpt2", **named)
        else:
            shape = AutoConfig.from_pretrained(models.resolve_model(config.model, weights=False))
        shape.vocab_size = config.vocab_size
        size = min(config.block_size, shape.max_position_embeddings)
        self._planned({"model_config": shape, "block_size": size})

    def _plan(self, tokens: Tokens, ready: tuple[Any, list[int], list[str], str, bool]) -> None:
        """Let the recipe's own cells plan its training with the rows that were labelled."""
        tokenizer, ends, _, path, pairs = ready
        rows = {"train": tokens.labelled}
        if self.recipe.prefers and not self.compared:
            self.findings.add("Memory and time", "Not planned: the model makes the answers itself.")
            return
        given: dict[str, Any] = {
            "model_path": path,
            "tokenizer": tokenizer,
            "tokenized": rows | {"first": rows},  # of one task, or of the first of several
            "untrained": ["first"],
            "rows": rows | {"test": tokens.labelled},
            "parts": {"all": tokens.labelled},
            "trained": self.conversations["train"] if self.recipe.grpo else tokens.labelled,
            "processes": getattr(self.config, "processes", None)
            or max(1, torch.cuda.device_count()),
            "task_type": "SEQ_2_SEQ_LM" if pairs else "CAUSAL_LM",
        }
        with heard([]):
            given["model_config"] = models.config_of(path)
            if self.compared:
                some = self.used["train"].rows.take(LABELLED)
                which = of_pairs.ONE if self.recipe.judges else of_pairs.ANSWERS
                labelled = of_pairs.label_pairs({"train": some}, tokenizer, ends, self.limit, which)
                given |= {"trained": labelled["train"], "held": 0.0}
        self._planned(given)

    def _planned(self, given: dict[str, Any]) -> None:
        given |= {"config": self.config, "dtype": compute_dtype(), "torch": torch}
        given |= {"models": models, "data": data}
        plans = self.recipe.plans(given)
        gib = 2**30
        there = float(psutil.virtual_memory().total)
        if torch.cuda.is_available():
            there = float(torch.cuda.get_device_properties(0).total_memory)
        rows = [
            [
                "LoRA" if one.memory.adapter_weights else "all weights",
                f"{one.memory.total / gib:.1f} GiB",
                f"{one.seconds / 60:.1f} minutes",
            ]
            for one in plans
        ]
        self.findings.add(
            "Memory and time",
            Table(["trained", "memory", "time"], rows),
            f"For {self.config.max_steps} steps, planned for this machine, which has "
            f"{there / gib:.1f} GiB; its speed was measured just now.",
        )
        most = max(one.memory.total for one in plans)
        if most > there:
            self._warn(
                f"Training needs {most / gib:.1f} GiB, more than the {there / gib:.1f} GiB here: "
                "lower `per_device_train_batch_size`, or COOKBOOK_MAX_LENGTH."
            )


# --- The command --------------------------------------------------------------------------------


def examine(recipe: Recipe, config: SimpleNamespace) -> Findings:
    """Look through the data of `config` for a recipe; what ends it is in the verdict."""
    source = config.dataset if ":" in config.dataset else str(as_typed(Path(config.dataset)))
    model = str(as_typed(Path(config.model))) if Path(config.model).exists() else config.model
    findings = Findings(
        {"data": source, "recipe": recipe.name, "model": model, "profile": config.profile}
    )
    try:
        Examination(recipe, config, findings).run()
    except CookbookError as error:
        findings.refusal = private.masked(str(error))
    return findings


def page_path(source: str) -> Path:
    """Return where the page on a data set is written."""
    runs = os.environ.get("COOKBOOK_RUNS")
    name = re.sub(r"[^\w.-]+", "-", Path(source.rpartition(":")[2]).name).strip("-.") or "data"
    return (typed_path(runs) if runs else ROOT / "runs") / "check-data" / f"{name}.html"


def _notebook(text: str) -> Path:
    path = typed_path(text)
    return path if path.is_file() or not (ROOT / text).is_file() else ROOT / text


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the command line; exit status 0, 1 where the data cannot be used, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", default="")
    parser.add_argument("--nb", default="", help=f"the recipe, {DEFAULT} by default")
    parser.add_argument("--model", default="", help="a model instead of the recipe's own")
    options = parser.parse_args(None if arguments is None else list(arguments))
    start_command()
    disable_progress_bars()
    source = options.data or os.environ.get("COOKBOOK_DATASET", "")
    notebook = _notebook(options.nb or DEFAULT)
    if not source:
        print("Name the data: make check-data DATA=my.jsonl", file=sys.stderr)
        return 2
    if not notebook.is_file():
        print(f"There is no notebook {options.nb}. Here are: ls 0*/*.ipynb", file=sys.stderr)
        return 2
    os.environ["COOKBOOK_DATASET"] = source
    if options.model:
        os.environ["COOKBOOK_MODEL"] = options.model
    try:
        recipe = Recipe(notebook)
        findings = examine(recipe, choose_profile(recipe.settings))
    except CookbookError as error:
        print(f"not usable: {private.masked(str(error))}")
        return 1
    page = page_path(source)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(pages.as_html(findings), encoding="utf-8")
    except OSError as error:
        print(f"{page} cannot be written ({error}). Set COOKBOOK_RUNS to another folder.")
        return 1
    print(pages.as_text(findings))
    print(f"\nPage: {as_typed(page)} ({time.time() - psutil.Process().create_time():.0f} s)")
    return 1 if findings.refusal else 0


if __name__ == "__main__":
    sys.exit(main())
