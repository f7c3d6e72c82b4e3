"""Load own, Hub or embedded data, and refuse or drop what cannot be trained on."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets
from datasets.features import Value

from cookbook import files, forms, hub
from cookbook.deduplicate import near_duplicates
from cookbook.files import DataError
from cookbook.forms import report_dropped
from cookbook.offline import offline_path
from cookbook.paths import typed_path

EMBEDDED = "offline:"  # prefix of names that live in the embedded default
TEST_SHARE = 0.1
COMPARED = 20_000  # rows of a split that are searched for copies; more would take minutes
COMMON = 0.05  # a run of words in so many of the rows is a template's, and tells none apart

__all__ = ["DataError"]


def load_splits(
    source: str, configuration: str | None = None, *, apart: str = "", second: bool = False
) -> DatasetDict:
    """Return a data set with the splits `train` and `test`.

    `source` is `offline:<name>` (the embedded default), a file, a folder of files, or a Hub id;
    `configuration` picks one of a Hub data set that has several. COOKBOOK_SPLITS and
    COOKBOOK_COLUMNS say which splits and columns are meant where names do not, but not for the
    `second` data set of a recipe. That may lie in a folder of the first, called `apart`, which is
    left out there. Where nothing is held out a test split is cut: 10 % of the rows, from which
    near-duplicates of training rows are removed. Near-duplicates between given splits are counted.
    """
    if source.startswith(EMBEDDED):
        return files.read_named(offline_path(source.removeprefix(EMBEDDED)))
    return _given_splits(source, configuration, apart, second)


def load_conversations(
    source: str, *, of: str = "", beside: str = "", **options: Any
) -> DatasetDict:
    """Return a data set's splits as conversations: `prompt` (turns) and `completion` (the answer).

    `options` are those of `load_splits`; in which forms rows may come is in `forms`. Where a recipe
    has several data sets, `of` says which one this is: messages name it, and in `beside`, a
    reader's own folder, a folder of that name takes the place of `source`.
    """
    own = Path(beside).expanduser() / of
    splits = load_splits(str(own) if beside and own.is_dir() else source, **options)
    which = f"split of the {of}" if of else "split"
    return DatasetDict(
        {name: forms.as_conversations(rows, f"{name} {which}") for name, rows in splits.items()}
    )


def _given_splits(source: str, configuration: str | None, apart: str, second: bool) -> DatasetDict:
    """Return a reader's own data, or the Hub's; `proof` knows this name."""
    path = Path(source).expanduser()
    if path.exists():
        splits = files.read(path, apart)
    elif _is_path(source):
        raise DataError(_absent(source))
    else:
        splits = hub.load_data_set(source, configuration)
        splits = DatasetDict({name: files.classes_as_text(one) for name, one in splits.items()})
    splits = files.train_and_test(splits, source, {} if second else files.renaming("SPLITS"))
    names = {} if second else files.renaming("COLUMNS")
    splits = files.renamed(splits, names, forms.KNOWN if path.exists() else ())
    if "test" in splits:
        _count_copies(splits)
        return splits
    return _with_test_cut(splits["train"], source)


def _is_path(source: str) -> bool:
    """Tell whether a name that is not there was meant as a file or folder, and not for the Hub."""
    path = Path(source)
    file = files.ending(path) in files.FORMATS or ("/" not in source and path.suffix[1:].isalpha())
    return file or path.is_absolute() or source.startswith((".", "~")) or "://" in source


def _absent(source: str) -> str:
    if re.search(r"\w:/", source):
        return f"{source} is an address. Download the file, and name it: COOKBOOK_DATASET=file."
    path = typed_path(source)
    there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    like = difflib.get_close_matches(path.name, there, 1, 0.8)
    mend = f"Is {like[0]} meant?" if like else "Check COOKBOOK_DATASET."
    if set("*?[") & {*source}:
        mend = "A pattern is not understood: name a file, or the folder of the files."
    return f"The data set {source} does not exist (looked for in {path.parent}). {mend}"


def _with_test_cut(rows: Dataset, source: str) -> DatasetDict:
    if len(rows) < 2:
        raise DataError(f"{source} has {len(rows)} rows: no test split can be cut.")
    # The cut does not follow the run's seed: runs of several seeds are compared on the same rows.
    cut = rows.train_test_split(test_size=TEST_SHARE, seed=0)
    texts = distinct_texts(concatenate_datasets([cut["train"], cut["test"]]))
    size = len(cut["train"])
    copies = set(near_duplicates(texts[:size], texts[size:]))
    kept = [index for index in range(len(cut["test"])) if index not in copies]
    if not kept:
        raise DataError(
            f"{source}: every row of the test split that was cut copies a training row."
        )
    print(f"Cut a test split of {len(kept)} rows ({len(copies)} near-duplicates removed).")
    return DatasetDict(train=cut["train"], test=cut["test"].select(kept))


def _count_copies(splits: DatasetDict) -> None:
    copies, searched = copies_between(splits["train"], splits["test"])
    if copies:
        print(
            f"Leakage: {len(copies)} of {searched} test rows say nearly the same as a training "
            "row, so the test flatters. Remove them from one of the two."
        )


def copies_between(train: Dataset, test: Dataset) -> tuple[list[int], int]:
    """Return the test rows that nearly say what a training row says, and how many were searched."""
    train, test = train.take(COMPARED), test.take(COMPARED)
    texts = _without_common([*map(plain, train), *map(plain, test)])
    return near_duplicates(texts[: len(train)], texts[len(train) :]), len(test)


def distinct_texts(rows: Dataset) -> list[str]:
    """Return what tells rows apart: their words, without what many of them share.

    A system text, a greeting or an instruction that stands in many rows would make all of them
    alike.
    """
    return _without_common([plain(row) for row in rows])


def plain(value: Any, key: str = "") -> str:
    """Return the texts of a row, or of what is in it, without the names around them."""
    if isinstance(value, dict):
        return " ".join(plain(one, name) for name, one in value.items())
    if isinstance(value, list):
        return " ".join(plain(one, key) for one in value)
    return "" if value is None or key in ("role", "from", "type", "id") else str(value)


def _without_common(texts: Sequence[str]) -> list[str]:
    """Return texts without the runs of five words that more than a share of them have."""
    words = [re.findall(r"\w+", text.casefold()) for text in texts]
    runs = [[" ".join(one[n : n + 5]) for n in range(len(one) - 4)] for one in words]
    counts = Counter(run for one in runs for run in set(one))
    most = max(3, COMMON * len(texts))
    left = []
    for one, own in zip(words, runs, strict=True):
        common = {
            place + n for place, run in enumerate(own) if counts[run] > most for n in range(5)
        }
        rest = [word for place, word in enumerate(one) if place not in common]
        # Of one or two words left nobody can tell whether the texts are the same: all have to be.
        left.append(" ".join(rest) if len(rest) > 2 or not common else "_".join(one))
    return left


def check_columns(rows: Dataset | IterableDataset, columns: Sequence[str], name: str) -> None:
    """Stop with the names of the missing columns, and of those that are there."""
    present = rows.column_names or []
    missing = [column for column in columns if column not in present]
    if missing:
        raise DataError(
            f"The {name}: there is no column {', '.join(missing)}, only {', '.join(present)}. "
            f'Name yours: COOKBOOK_COLUMNS="yours={missing[0]}".'
        )


def drop_rows_without(rows: Dataset, columns: Sequence[str], name: str = "data") -> Dataset:
    """Drop rows in which one of the columns is empty or no text, saying how many.

    A column of numbers, or of true and false, becomes text. Stops with `DataError` where one
    is missing, or no row is left.
    """
    check_columns(rows, columns, name)
    missing = {column: {""} for column in columns}
    for column in columns:
        kind = getattr(rows.features[column], "dtype", "")
        if kind.startswith(("int", "uint", "float", "bool")):
            rows = rows.cast_column(column, Value("string"))
        if kind.startswith("float"):
            missing[column].add("nan")  # no number, and no text either

    def whole(row: dict[str, Any]) -> bool:
        texts = {column: row[column] for column in columns}
        return all(isinstance(t, str) and t.strip() not in missing[c] for c, t in texts.items())

    kept = rows.filter(whole)
    report_dropped(Counter({f"no text in {' or '.join(columns)}": len(rows) - len(kept)}), name)
    if not kept:
        raise DataError(f"The {name} has no usable row left. Check {', '.join(columns)}.")
    return kept if len(kept) < len(rows) else rows


def text_batches(
    rows: Dataset | IterableDataset, batch_size: int, name: str = "data"
) -> Iterator[list[str]]:
    """Yield the column `text` in lists of at most `batch_size`, empty texts dropped and counted."""
    check_columns(rows, ["text"], name)
    kept = empty = 0
    for batch in rows.iter(batch_size=batch_size):
        texts = [text for text in batch["text"] if isinstance(text, str) and text.strip()]
        kept, empty = kept + len(texts), empty + len(batch["text"]) - len(texts)
        if texts:
            yield texts
    report_dropped(Counter({"empty or no text": empty}), name)
    if not kept:
        raise DataError(f"The {name} holds no text. Check its column `text`.")


def drop_too_long(rows: Dataset, max_length: int, name: str = "data") -> Dataset:
    """Drop tokenized rows (`input_ids`) over `max_length` tokens, saying how many.

    Cutting them instead would remove the end-of-turn token, and the model would learn not to stop.
    """
    kept = [index for index, ids in enumerate(rows["input_ids"]) if len(ids) <= max_length]
    if not kept:
        shortest = min(len(ids) for ids in rows["input_ids"])
        raise DataError(
            f"Every row of the {name} is longer than max_length={max_length} tokens (the shortest "
            f"has {shortest}). Raise `max_length` (COOKBOOK_MAX_LENGTH={shortest} or more), or "
            "shorten the rows."
        )
    if len(kept) < len(rows):
        print(f"Dropped {len(rows) - len(kept)} rows of the {name} over {max_length} tokens.")
    return rows.select(kept)


def general_text(count: int) -> list[str]:
    """Return `count` fixed paragraphs of general text for the forgetting check.

    They are part of the embedded default on every profile, so that runs can be compared.
    """
    return list(load_splits(f"{EMBEDDED}general-text")["test"]["text"][:count])
