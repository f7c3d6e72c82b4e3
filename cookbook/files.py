"""A reader's own files and folders as tables, in which nothing was guessed, shifted or lost.

JSON, CSV and plain text are parsed here, Parquet, Arrow and saved data sets by `datasets`; why is
in README.md here, "Own data".
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Json,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import DatasetCard
from pyarrow import parquet

from cookbook.profiles import CookbookError

Row = dict[str, Any]
Record = tuple[int, list[str]]  # a line of a table: the number of its first line, and its fields

FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    ".txt": "text",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
SEPARATORS = ",\t;|"
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": (
        *("test", "tests", "testing", "eval", "evals", "evaluation", "benchmark"),
        *("heldout", "holdout"),
    ),
    "validation": ("validation", "valid", "val", "dev", "devel", "development"),
}
_KINDS = ("sft", "gen", "prefs")  # of training; the Hub has a `train_sft` beside a `train_gen`
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")  # as the Hub numbers the files of a split
SAMPLE_BY = ("line", "paragraph", "document")  # as `datasets` calls them
# Written beside data by `datasets`, by the Hub, by trainers and by `make offline`, and no data.
_NO_DATA = {
    *("built.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("all_results.json", "eval_results.json", "test_results.json", "train_results.json"),
    *("trainer_state.json", "package.json", "package-lock.json", "requirements.txt"),
}
_MAGIC: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
    b"\x28\xb5\x2f\xfd": lambda content: pa.CompressedInputStream(
        pa.BufferReader(content), "zstd"
    ).read(),
}
_BROKEN = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, pa.ArrowException)


class DataError(CookbookError):
    """The data set cannot be used as it is."""


def ending(path: Path) -> str:
    """Return a file's ending in lower case, without that of a compression: `.jsonl`."""
    suffixes = [one.lower() for one in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read(path: Path, apart: str = "") -> DatasetDict:
    """Return what a file or folder holds, by split; a file alone is the split `train`.

    The splits are named `train`, `test` and `validation` where a name says which, else as their
    files say. What is no training split never becomes `train`. A folder inside that is called
    `apart` is another data set. Raises `DataError` for what cannot be read whole.
    """
    try:
        if path.is_file():
            _check_format(path)
            return _tables({"train": [path]})
        if not path.is_dir():
            raise DataError(f"{path} is neither a file nor a folder: write its rows into a file.")
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved(path)
        splits = files_by_split(path, apart)
        if not splits:
            raise DataError(f"{path} holds no {', '.join(FORMATS)} file to train on.")
        return _tables(splits)
    except PermissionError as error:
        raise DataError(
            f"{error.filename or path} may not be read by you: `chmod -R u+rX {path}`, or ask its "
            "owner."
        ) from error


def files_by_split(folder: Path, apart: str = "") -> dict[str, list[Path]]:
    """Return the files of a folder by split, as its README's `configs` say, or else their names."""
    return _named_by_card(folder) or _own_splits(folder, _data_files(folder, apart))


def read_named(folder: Path) -> DatasetDict:
    """Return what the files of a folder hold, by the splits that their names tell alone."""
    return _tables(_named_by_files(folder, _data_files(folder)))


def _check_format(path: Path) -> None:
    if ending(path) not in FORMATS:
        raise DataError(
            f"{path} is no {', '.join(FORMATS)} file (each of them also as {', '.join(COMPRESSED)})"
            ". Convert it to JSONL, or unpack it first if it is an archive."
        )
    if split_of(Path(path.name)) in ("test", "validation"):
        print(f"{path.name} is trained on, since it was named itself, whatever its name says.")
    try:
        beside = [one for one in path.parent.iterdir() if ending(one) in FORMATS]
    except PermissionError:  # a file may be read where its folder may not be listed
        return
    siblings = {split_of(Path(one.name)) for one in beside}
    if split_of(Path(path.name)) == "train" and siblings & {"test", "validation"}:
        print(f"Beside {path.name} lies a held-out split: name the folder to be scored on it.")


# --- Which file belongs to which split ------------------------------------------------------


def split_of(path: Path) -> str | None:
    """Return the split that a relative path's name tells, or a folder on its way; else None.

    The beginning of a name counts first, then its end, then what stands between; words are told
    apart by anything that is no letter, and by capitals (`myTest`).
    """
    for part in (_stem(path.name), *reversed(path.parts[:-1])):
        parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", part).lower()
        words = [word for word in re.split(r"[^a-z]+", parted) if word]
        twos = [one + other for one, other in zip(words, words[1:])]  # held-out
        for word in dict.fromkeys([*words[:1], *words[-1:], *words, *twos]):
            base = re.sub(r"(set|data|split|file|files)$", "", word) or word
            for split, names in SPLIT_NAMES.items():
                if word in names or base in names:
                    return split
    return None


def _stem(name: str) -> str:
    """Return a file's name without its endings."""
    while Path(name).suffix.lower() in (*COMPRESSED, *FORMATS):
        name = Path(name).stem
    return name


def _named_by_files(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    pairs = _named_in_pairs(files)
    found: dict[str | None, list[Path]] = {}
    for path in files:
        split = split_of(path.relative_to(folder)) or pairs.get(path)
        found.setdefault(split, []).append(path)
    unnamed = found.pop(None, [])
    if unnamed and "train" not in found:
        found["train"] = unnamed
    elif unnamed:
        print(f"Left out, since other files are named `train`: {_shown(unnamed, folder)}.")
    return {str(split): paths for split, paths in found.items()}


def _own_splits(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return a reader's files by split, and say which is which where there are several.

    Where the Hub has several splits of a kind (`train_sft`, `train_gen`), each is one here.
    """
    splits: dict[str, list[Path]] = {}
    for split, paths in _named_by_files(folder, files).items():
        for path in paths:
            stem = _stem(path.name)
            shard = _SHARD.fullmatch(stem)
            own = shard[1] if shard else stem
            kind, _, rest = own.partition("_")
            of_a_kind = kind in SPLIT_NAMES.get(split, ()) and rest
            name = own if of_a_kind and (shard or rest in _KINDS) else split
            splits.setdefault(name, []).append(path)
    if len(files) > 1:
        said = (f"{split}: {_shown(paths, folder)}" for split, paths in splits.items())
        print(f"Files of {folder.name}: {'; '.join(said)}.")
    return splits


def _named_in_pairs(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the splits that names tell only beside each other, as `mytrain` and `mytest` do.

    A word within a word says nothing by itself: `latest` and `contest` end in `test`.
    """
    groups: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        stem = _stem(path.name).lower()
        for split, names in SPLIT_NAMES.items():
            for name in names:
                if stem.startswith(name) or stem.endswith(name):
                    rest = re.sub(f"^{name}" if stem.startswith(name) else f"{name}$", "*", stem)
                    groups.setdefault((path.parent, rest), {})[split] = path
    told = [group for group in groups.values() if "train" in group and len(group) > 1]
    return {path: split for group in told for split, path in group.items()}


def _data_files(folder: Path, apart: str = "") -> list[Path]:
    """Return a folder's files of data, or those below it where it has none itself, each once.

    `train.jsonl` beside a folder `test` is both. A folder inside called `apart` does not count.
    """

    def wanted(paths: Iterable[Path]) -> list[Path]:
        kept = [
            path
            for path in sorted(paths)
            if ending(path) in FORMATS
            and path.name not in _NO_DATA
            and not fnmatch(path.name, "cache-*.arrow")  # results that `datasets` keeps
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and not (apart and path.is_relative_to(folder / apart))
            and path.is_file()
        ]
        return [path for path in kept if ending(path) != ".txt"] or kept

    found = wanted(folder.iterdir())
    below = [path for path in wanted(folder.rglob("*")) if path.parent != folder]
    if found and below:
        named = {split_of(Path(path.name)) for path in found} | {None}
        more = [
            path for path in below if split_of(Path(path.relative_to(folder).parts[0])) not in named
        ]
        if left := [path for path in below if path not in more]:
            print(f"Left out, since {folder.name} has files itself: {_shown(left, folder)}.")
        below = more
    found += below
    texts = [path for path in sorted(folder.glob("*.txt")) if path.name not in _NO_DATA]
    if found and len(texts) > 1 and ending(found[0]) != ".txt":  # one is a note
        print(
            f"Left out, since {folder.name} has tables: {_shown(texts, folder)}. To train on "
            "plain text, give it a folder of its own."
        )
    whole: dict[str, Path] = {}
    for path in found:  # `train.jsonl` beside `train.jsonl.gz` is the same twice
        name = re.sub(rf"({'|'.join(map(re.escape, COMPRESSED))})$", "", str(path), flags=re.I)
        if name in whole:
            print(f"Left out: {path.name}, the same as {whole[name].name}.")
        whole.setdefault(name, path)
    return list(whole.values())


def _named_by_card(folder: Path) -> dict[str, list[Path]]:
    """Return the files that the `configs` of a Hub repository's README.md name; {} without any."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    text = card.read_bytes().decode("utf-8", "replace")
    if not re.search(r"^configs:", text, re.MULTILINE):
        return {}
    try:
        content = vars(DatasetCard(text, ignore_metadata_errors=True).data)
    except Exception as error:  # its parser has errors of its own
        said = " ".join(str(error).split())
        raise DataError(f"{card}: its `configs` cannot be read: {said}. Mend them.") from error
    configs = {
        str(one.get("config_name", "default")): one
        for one in content.get("configs") or []
        if isinstance(one, dict) and (one.get("data_files") or one.get("data_dir"))
    }
    if not configs:
        return {}
    wanted = os.environ.get("COOKBOOK_CONFIG") or ("default" if "default" in configs else "")
    if wanted not in configs:
        if len(configs) > 1 or wanted:
            raise DataError(
                f"{folder} has the configurations {', '.join(configs)}: choose one, "
                f"COOKBOOK_CONFIG={next(iter(configs))}."
            )
        wanted = next(iter(configs))
    chosen = configs[wanted]
    base = folder / str(chosen.get("data_dir") or "")
    if not chosen.get("data_files"):
        return _own_splits(base, _data_files(base))
    splits: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for name, pattern in _patterns(chosen["data_files"]):
        paths = _files_like(base, pattern)
        if not paths:
            raise DataError(
                f"{card} names {pattern}, but no {', '.join(FORMATS)} file is called so: download "
                "it anew."
            )
        (splits.setdefault(name, []) if name else unnamed).extend(paths)
    if unnamed and (told := _own_splits(base, unnamed)):
        splits |= told if len(told) > 1 else {"train": unnamed}
    return splits


def _files_like(base: Path, pattern: str) -> list[Path]:
    try:
        found = sorted(base.glob(pattern))
    except (ValueError, NotImplementedError):  # an address, or nothing
        return []
    return [path for path in found if path.is_file() and ending(path) in FORMATS]


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Yield split and pattern of a card's `data_files`: a text, a list of them, or of mappings.

    The split is empty where none is named: the names of the files tell it then.
    """
    if isinstance(data_files, dict) and "path" not in data_files:
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    for one in data_files if isinstance(data_files, list) else [data_files]:
        if not isinstance(one, dict):
            one = {"path": one}
        paths = one.get("path", [])
        for path in paths if isinstance(paths, list) else [paths]:
            yield str(one.get("split") or ""), str(path)


def _shown(paths: Sequence[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# --- Reading --------------------------------------------------------------------------------


def _tables(splits: dict[str, list[Path]]) -> DatasetDict:
    return DatasetDict({split: _table(paths) for split, paths in splits.items()})


def _table(paths: Sequence[Path]) -> Dataset:
    kinds = {FORMATS[ending(path)] for path in paths}
    if len(kinds) != 1:
        endings = ", ".join(sorted({ending(path) for path in paths}))
        raise DataError(f"{paths[0].parent} mixes {endings} in one split: use one file format.")
    kind = kinds.pop()
    if kind in ("parquet", "arrow"):
        return classes_as_text(_binary(kind, paths))
    if kind == "text":
        return Dataset.from_dict({"text": _texts(paths)})
    read_rows = _json_rows if kind == "json" else _csv_rows
    return table_of([row for path in paths for row in read_rows(path)], ", ".join(map(str, paths)))


def table_of(rows: Sequence[Row], where: str) -> Dataset:
    """Return rows as a table; a column that a row lacks is None there.

    Numbers among texts become text. Lists and objects stay what they are: as columns of Arrow's
    own types every object would get the keys of all others.
    """
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        nested = any(isinstance(value, (dict, list)) for value in values)
        kinds = {type(value) for value in values if value is not None}
        if not nested and str in kinds and len(kinds) > 1:
            values = [_as_text(value) for value in values]
        elif not nested:
            values = _whole_numbers(values)
        try:
            features = Features({name: Json()}) if nested else None
            columns.append(Dataset.from_dict({name: values}, features=features))
        except (ValueError, TypeError, NotImplementedError, OverflowError) as error:  # pyarrow's
            raise DataError(
                f"{where}: the column {name!r} cannot be read ({error}). Give it one type in all "
                "rows, text for what is trained on."
            ) from error
    return concatenate_datasets(columns, axis=1)


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None or value != value else str(value)


def _whole_numbers(values: list[Any]) -> list[Any]:
    """Take numbers for whole ones where only a missing value made them floating-point ones."""
    there = [value for value in values if value is not None and value == value]
    floats = all(isinstance(value, float) for value in there)
    if len(there) < len(values) and there and floats and all(one.is_integer() for one in there):
        return [None if value is None or value != value else int(value) for value in values]
    return values


def classes_as_text(rows: Dataset) -> Dataset:
    """Replace the numbers of classes by their names, in a table that knows them (`ClassLabel`)."""
    for name, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            texts = [None if n is None or n < 0 else feature.int2str(n) for n in rows[name]]
            rows = rows.remove_columns(name).add_column(name, texts)
            print(f"The classes of `{name}` by their names: {', '.join(feature.names[:10])}.")
    return rows


def _binary(kind: str, paths: Sequence[Path]) -> Dataset:
    paths = [path for path in paths if not _is_empty(kind, path)] or paths[:1]
    if _is_empty(kind, paths[0]):
        raise DataError(f"{paths[0]} holds no rows: write the file anew.")
    try:
        if any(_head(path).startswith(tuple(_MAGIC)) for path in paths):
            parts = [Dataset(_arrow_table(kind, _content(path))) for path in paths]
            rows = concatenate_datasets(parts)
        else:
            rows = load_dataset(kind, data_files=[str(path) for path in paths], split="train")
        rows.data.validate(full=True)  # Parquet's text is not decoded before it is used
    except (DatasetGenerationError, TypeError, NotImplementedError, *_BROKEN) as error:
        if isinstance(error, CookbookError):
            raise
        cause = error.__cause__ or error
        if isinstance(cause, PermissionError):
            raise DataError(
                f"`datasets` cannot write to its cache ({cause}). Name a folder that can be "
                "written: `export HF_DATASETS_CACHE=/tmp/datasets`."
            ) from error
        raise DataError(
            f"{', '.join(map(str, paths))} cannot be read: {str(cause).rstrip('.')}. Each row "
            "needs the same columns and types, and text has to be UTF-8: write the file anew."
        ) from error
    return _without_absent(rows)


def _is_empty(kind: str, path: Path) -> bool:
    """Tell whether a Parquet file holds no rows: `datasets` fails on it, even as one of many."""
    _check_pointer(path, _head(path))
    if kind != "parquet" or not _head(path).startswith(b"PAR1"):
        return False
    try:
        return bool(parquet.read_metadata(path).num_rows == 0)
    except _BROKEN:
        return False  # what is wrong with it is said where it is read


def _arrow_table(kind: str, content: bytes) -> pa.Table:
    if kind == "parquet":
        return parquet.read_table(io.BytesIO(content))
    try:
        return pa.ipc.open_file(content).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(content).read_all()


def _without_absent(rows: Dataset) -> Dataset:
    """Turn columns of objects into what was written: keys that only other rows have are dropped."""
    for name in rows.column_names:
        if pa.types.is_nested(rows.data.schema.field(name).type):
            values = [_present(value) for value in rows[name]]
            column = Dataset.from_dict({name: values}, features=Features({name: Json()}))
            rows = concatenate_datasets(
                [rows.remove_columns(name).flatten_indices(), column], axis=1
            )
    return rows


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(one) for key, one in value.items() if one is not None}
    return [_present(one) for one in value] if isinstance(value, list) else value


def _saved(path: Path) -> DatasetDict:
    """Return what `save_to_disk` wrote."""
    try:
        saved = load_from_disk(str(path))
    except (TypeError, FileNotFoundError, *_BROKEN) as error:
        raise DataError(f"{path} cannot be read: {error}. Save the data set anew.") from error
    found = saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    return DatasetDict(
        {name: _without_absent(classes_as_text(rows)) for name, rows in found.items()}
    )


def _content(path: Path) -> bytes:
    """Return a file's bytes, unpacked if they are compressed, whatever its name says."""
    try:
        content = path.read_bytes()
        for magic, unpack in _MAGIC.items():
            if content.startswith(magic):
                content = unpack(content)
                break
    except PermissionError:
        raise
    except _BROKEN as error:
        raise DataError(f"{path} cannot be unpacked: {error}. Copy or download it anew.") from error
    _check_pointer(path, content)
    return content


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _check_pointer(path: Path, content: bytes) -> None:
    if content.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is only a pointer to the data. Fetch it: `git lfs pull`.")


def _text(path: Path) -> str:
    """Return a file's text: UTF-8 or UTF-16, with a mark or without."""
    content = _content(path)
    encoding = json.detect_encoding(content)
    if encoding.startswith("utf-16") and not _likely_utf16(content):
        encoding = "utf-8-sig"
    try:
        text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
        return text.removeprefix("\ufeff")  # a second mark, where two files were joined
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8. Convert it, from the encoding that it has: "
            f"`iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{ending(path)}`."
        ) from error


def _likely_utf16(content: bytes) -> bool:
    """Tell a text in UTF-16 from one with a stray null.

    It has a mark, or begins with two letters of ASCII, or has nulls all over.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:4].count(0) == 2:
        return True
    return 3 * content[:2000].count(0) > len(content[:2000])


def _texts(paths: Sequence[Path]) -> list[str]:
    """Return the documents of plain text: several files are one each, a file alone is cut.

    It is cut at blank lines, or where it has none at the end of each line.
    """
    contents = [re.sub(r"\r\n?", "\n", _text(path)) for path in paths]
    usual = "document"
    if len(paths) == 1:
        usual = "paragraph" if re.search(r"\S\s*\n\s*\n\s*\S", contents[0]) else "line"
    by = os.environ.get("COOKBOOK_SAMPLE_BY") or usual
    if by not in SAMPLE_BY:
        raise DataError(f"COOKBOOK_SAMPLE_BY is {by!r}; choose {', '.join(SAMPLE_BY)}.")
    cut = {"line": r"\n", "paragraph": r"\n\s*\n", "document": r"\Z(?!)"}[by]
    texts = [part.strip() for text in contents for part in re.split(cut, text) if part.strip()]
    if not texts:
        raise DataError(f"{', '.join(map(str, paths))} holds no text to train on.")
    others = ", ".join(one for one in SAMPLE_BY if one != by)
    print(f"{len(texts)} texts, each a {by} (COOKBOOK_SAMPLE_BY={by}; or: {others}).")
    return texts


# --- JSON -----------------------------------------------------------------------------------


def _json_rows(path: Path) -> list[Row]:
    """Parse JSON Lines, or one JSON array or object, and name the first line that is wrong.

    pyarrow's reader can end the kernel with a segmentation fault on lines that are no JSON, and
    names no line where it only complains.
    """
    rows: list[Row] = []
    for line, value in _json_values(path, _text(path)):
        found = value if isinstance(value, list) else [value]
        if not all(isinstance(row, dict) for row in found):
            raise DataError(f'{path}, line {line} is no JSON object, like {{"column": "value"}}.')
        rows += found
    if len(rows) == 1:
        rows = _rows_within(path, rows[0])
    if not any(rows):
        raise DataError(f"{path} holds no data: each line has to be a JSON object with columns.")
    return rows


def _json_values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield a file's values, each with the line it begins in: one a line, or spread over lines.

    A list of turns that stands in one of several lines is a conversation: it becomes a row.
    """
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and _begins_more(lines[0][1]):
        yield from _spread_values(path, text)
        return
    for line, part in lines:
        try:
            value = _parsed(part)
        except (ValueError, RecursionError) as error:
            raise _no_json(path, line, error) from error
        talk = len(lines) > 1 and isinstance(value, list) and all(map(_is_turn, value))
        yield line, {"messages": value} if talk else value


def _begins_more(line: str) -> bool:
    """Tell whether a line begins an array or object that ends in a later one."""
    line = line.strip()
    if line[0] == "[":
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return True
    return line[0] == "{" and line[-1] in "{[,:"


def _spread_values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield values that stand one after another, each over as many lines as it likes."""
    at = 0
    while (begin := _BLANK.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        line = text.count("\n", 0, begin) + 1
        try:
            value, at = _DECODER.raw_decode(text, begin)
            _check_characters(text[begin:at], value)
        except (ValueError, RecursionError) as error:
            raise _no_json(path, getattr(error, "lineno", line), error) from error
        yield line, value


def _no_json(path: Path, line: int, error: Exception) -> DataError:
    said = str(error)
    if isinstance(error, json.JSONDecodeError):
        said = f"{error.msg} at column {error.colno}"
    if said.startswith("Extra data"):
        said += ", where each line is one object, without a comma after it"
    return DataError(f"{path}, line {line} is no JSON: {said}. Mend or remove it.")


def _is_turn(value: Any) -> bool:
    """Tell whether a value is one turn of a conversation."""
    return isinstance(value, dict) and bool({"role", "from"} & {*value})


def _parsed(text: str) -> Any:
    value = _DECODER.decode(text)
    _check_characters(text, value)
    return value


def _check_characters(text: str, value: Any) -> None:
    if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            letter = ascii(error.object[error.start])
            raise ValueError(f"{letter} is half of a character, without the other half") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in one object twice")
    return found


_BLANK = re.compile(r"\s*")
_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_repeats,
    parse_constant=lambda name: None if name == "NaN" else float(name),  # Python writes them
)


def _rows_within(path: Path, only: Row) -> list[Row]:
    """Return the rows that a file's only object holds, or that object as the only row.

    `{"data": [{...}, ...]}` wraps them, and `{"prompt": [...], "completion": [...]}` holds columns.
    So does what pandas writes with `orient="split"`, and `{"messages": [[...], [...]]}`; what shows
    data sets on the Hub wraps each row once more.
    """
    lists = {key: value for key, value in only.items() if isinstance(value, list)}
    if {*only} == {"columns", "index", "data"}:
        return [dict(zip(only["columns"], values)) for values in only["data"]]
    if "features" in only and all(_holds_row(one) for one in lists.get("rows", [None])):
        return [one["row"] for one in only["rows"]]
    tables_within = [
        key
        for key, value in lists.items()
        if value
        and key not in ("tools", "functions")
        and all(isinstance(one, dict) and not _is_turn(one) for one in value)
    ]
    if len(tables_within) > 1:
        raise DataError(
            f"{path} holds several lists of rows: {', '.join(tables_within)}. Write each into a "
            f"file of its own in one folder, {tables_within[0]}.json and so on."
        )
    if tables_within:
        found: list[Row] = lists[tables_within[0]]
        return found
    alike = {len(value) for value in lists.values()}
    scalar = not any(isinstance(one, (dict, list)) for some in lists.values() for one in some)
    talks = [one for some in lists.values() for one in some if isinstance(one, list)]
    scalar = scalar or bool(talks) and all(map(_is_turn, [turn for one in talks for turn in one]))
    if lists and len(lists) == len(only) and len(alike) == 1 and scalar:
        return [dict(zip(lists, values)) for values in zip(*lists.values())]
    tables = list(only.values())
    if tables and all(isinstance(one, dict) for one in tables) and len({*map(len, tables)}) == 1:
        keys = list(tables[0])  # as pandas writes a table
        if all(map(str.isdigit, only)) and not all(map(str.isdigit, keys)):
            return tables  # by the numbers of rows
        if all(list(one) == keys for one in tables) and not {"role", "content"} & {*keys}:
            return [{name: only[name][key] for name in only} for key in keys]
    return [only]


def _holds_row(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("row"), dict)


# --- CSV ------------------------------------------------------------------------------------


def _csv_rows(path: Path) -> list[Row]:
    """Parse a table of text with a header; every value stays the text that it is.

    The separator is the one that cuts the most lines into as many fields as the header has. A line
    of any other number is named: an unquoted separator in it would shift what follows.
    """
    text = _text(path)
    if "\0" in text:
        raise DataError(f"{path} has null characters in it, so it is no text: write it anew.")
    said = re.match(r'"?sep=([^"\s]|\t)"?\r?\n', text, re.IGNORECASE)  # Excel's line
    if said:
        text = "\n" + text[said.end() :]
    separator, quoting = _dialect(path, text, said[1] if said else "")
    records = _records(path, text, separator, quoting)
    if quoting == csv.QUOTE_MINIMAL and _are_letters(path, text, separator, records):
        records = _records(path, text, separator, csv.QUOTE_NONE)
    if len(records) < 2:
        raise DataError(f"{path} holds no rows: its first line names the columns, rows follow.")
    (_, header), *body = records
    width = len(header)
    while width and not header[width - 1] and all(not "".join(r[width - 1 :]) for _, r in body):
        width -= 1
    names = [name.strip() or f"column {place}" for place, name in enumerate(header[:width], 1)]
    if len({*names}) < len(names):
        raise DataError(f"{path}: two columns are called the same in {', '.join(names)}.")
    longer = [line for line, record in body if len(record) > width]
    if longer and all(not "".join(record[width:]) for _, record in body):
        print(f"{path.name}: {len(longer)} lines end in an empty field, which is left out.")
        body = [(line, record[:width]) for line, record in body]
    _check_widths(path, [(line, len(record)) for line, record in body], width, separator)
    return [dict(zip(names, record)) for _, record in body]


def _check_widths(path: Path, widths: list[tuple[int, int]], width: int, separator: str) -> None:
    wrong = [(line, count) for line, count in widths if count != width]
    if wrong:
        line, count = wrong[0]
        more = f" ({len(wrong) - 1} more lines are wrong)" if len(wrong) > 1 else ""
        mend = f"A text with {separator!r} or a line end in it has to stand in double quotes, "
        mend += '"like, this".'
        if len(wrong) == len(widths):
            mend = "The first line has to be the names of the columns, with nothing above it."
        raise DataError(
            f"{path}, line {line} has {count} fields where the header has {width}{more}. {mend}"
        )


def _dialect(path: Path, text: str, said: str = "") -> tuple[str, Literal[0, 3]]:
    """Return the separator, and whether double quotes are quotes or letters like others.

    `said` is the separator where the file names it.
    """
    usual = said or ("\t" if ending(path) in (".tsv", ".tab") else ",")
    candidates = [said] if said else sorted(SEPARATORS, key=lambda one: one != usual)
    scores: dict[tuple[str, Literal[0, 3]], tuple[float, int]] = {}
    quotings: tuple[Literal[0, 3], ...] = (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)
    for quoting in quotings:
        for separator in candidates:
            try:
                records = _records(path, text, separator, quoting, strict=True, at_most=200)
            except csv.Error:
                continue
            header = len(records[0][1]) if records else 0
            fitting = sum(len(record) == header for _, record in records)
            if header > 1:
                scores[separator, quoting] = (fitting / len(records), header)
        if scores:
            separator, quoting = max(scores, key=lambda one: scores[one])
            if quoting == csv.QUOTE_NONE and _are_quotes(text):
                return separator, csv.QUOTE_MINIMAL  # one of its quotes is wrong, and gets named
            return separator, quoting
    return usual, csv.QUOTE_MINIMAL


def _are_quotes(text: str) -> bool:
    """Tell whether double quotes have been written as quotes: doubled or escaped within a text.

    Or the names of the columns stand in them. Speech that is a text by itself looks the same as a
    quoted field, and says nothing.
    """
    first = text.lstrip().partition("\n")[0].strip()
    return bool(re.search(r'\\"|[^"\s,;|]""[^"]|"""', text)) or first[:1] + first[-1:] == '""'


def _are_letters(path: Path, text: str, separator: str, records: list[Record]) -> bool:
    """Tell whether double quotes are letters in a table that can be read either way.

    Speech can open a quote at the beginning of one line and close it at the end of another's text.
    Then each line by itself has all fields, and what the quotes join has separators as no prose has
    them. Raises `DataError` where other fields do stand in quotes.
    """
    joined = re.compile(rf"{re.escape(separator)}\S.*\n|\n.*{re.escape(separator)}\S")
    prose = re.compile(rf"{re.escape(separator)}\s")
    found = [
        line
        for line, record in records
        if any("\n" in one and joined.search(one) and not prose.search(one) for one in record)
    ]
    by_line = _records(path, text, separator, csv.QUOTE_NONE) if found else []
    if not found or len({len(record) for _, record in by_line}) > 1:
        return False
    cut = re.escape(separator)
    if re.search(rf'(?:^|{cut})"[^"\n]*"(?:{cut}|\r?$)', text, re.MULTILINE):
        raise DataError(
            f"{path}, line {found[0]}: a double quote joins it with what follows, though each line "
            'has all fields by itself. A double quote in a text is written twice, "like ""this"".'
        )
    print(f"{path.name}: double quotes are letters like others; each line has all its fields.")
    return True


def _records(
    path: Path,
    text: str,
    separator: str,
    quoting: Literal[0, 3],
    strict: bool = True,
    at_most: int = 0,
) -> list[Record]:
    """Return the lines of a table, empty ones left out."""
    csv.field_size_limit(sys.maxsize)
    first_line = text.lstrip().partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=quoting,
        strict=strict,
        skipinitialspace=f'"{separator} "' in first_line,  # "like", "this"
    )
    records: list[Record] = []
    start = 1
    try:
        for record in reader:
            if any(field.strip() for field in record):
                records.append((start, record))
            start = reader.line_num + 1
            if at_most and len(records) >= at_most:
                break
    except csv.Error as error:
        if at_most:
            raise
        raise DataError(
            f"{path}, line {start} cannot be read: {error}. A double quote in a text is written "
            'twice, "like ""this"".'
        ) from error
    return records


# --- Columns and splits by other names ------------------------------------------------------


def renaming(what: str) -> dict[str, str]:
    """Return what COOKBOOK_SPLITS or COOKBOOK_COLUMNS renames, `theirs=ours,...`; {} without it."""
    variable = f"COOKBOOK_{what}"
    said = os.environ.get(variable) or ""
    pairs = [one.split("=") for one in said.split(",") if one.strip()]
    if not all(len(pair) == 2 and all(map(str.strip, pair)) for pair in pairs):
        raise DataError(f"{variable} is {said!r}: pairs are needed, theirs=ours,that=this.")
    names = {theirs.strip(): ours.strip() for theirs, ours in pairs}
    if len(names) < len(pairs):
        raise DataError(f"{variable} is {said!r}: one name stands there for two.")
    return names


def renamed(splits: DatasetDict, names: dict[str, str], known: Collection[str] = ()) -> DatasetDict:
    """Give columns other names, as COOKBOOK_COLUMNS says: `frage=prompt,antwort=completion`.

    Columns that are `known` but for capitals, blanks and hyphens (`Prompt`) get those names, which
    a line says. Nothing is known of the Hub's: recipes call its columns as they are called there.
    """
    for split, rows in splits.items():
        missing = [theirs for theirs in names if theirs not in rows.column_names]
        if missing:
            raise DataError(
                f"COOKBOOK_COLUMNS names {', '.join(missing)}; the {split} split has the columns "
                f"{', '.join(rows.column_names)}."
            )
        moved = {theirs: ours for theirs, ours in names.items() if theirs != ours}
        taken = [ours for ours in moved.values() if ours in rows.column_names and ours not in moved]
        if len({*names.values()}) < len(names):
            raise DataError(f"COOKBOOK_COLUMNS calls two columns the same: {', '.join(names)}.")
        rows = rows.remove_columns(taken).rename_columns(moved)
        splits[split] = _in_small_letters(rows, {*known} - {*names.values()}, split)
    return splits


def _in_small_letters(rows: Dataset, known: set[str], split: str) -> Dataset:
    small = {name: re.sub(r"[\s-]+", "_", name.strip().lower()) for name in rows.column_names}
    once = Counter(small.values())
    moved = {name: new for name, new in small.items() if name != new and once[new] == 1}
    moved = {name: new for name, new in moved.items() if new in known}
    if moved:
        print(f"Columns of the {split} split in small letters: {', '.join(moved)}.")
    return rows.rename_columns(moved)


def train_and_test(splits: DatasetDict, source: str, names: dict[str, str]) -> DatasetDict:
    """Return the splits to train on and to be scored on, the second only where there is one.

    `names` are what COOKBOOK_SPLITS says (`train_gen=train,test_gen=test`). Without them `train`
    and `test` are taken by their names, `train_sft` and `test_sft` where those are what there is,
    `validation` where there is no test; an only split is `train` unless its name says otherwise.
    """
    if names and (not {*names} <= {*splits} or sorted(names.values()) not in _ASKED_SPLITS):
        raise DataError(
            f"COOKBOOK_SPLITS is {os.environ['COOKBOOK_SPLITS']!r}: one split has to be `train`, "
            f"and one may be `test`. {source} has the splits {', '.join(splits)}."
        )
    names = names or _usual_splits(list(splits), source)
    if "train" not in names.values():
        first, *others = splits
        say = ",".join([f"{first}=train", *(f"{one}=test" for one in others[:1])])
        raise DataError(
            f"By their names no split of {source} is to be trained on: {', '.join(splits)}. Say "
            f"which: COOKBOOK_SPLITS={say}; or name one file itself."
        )
    taken = {ours: theirs for theirs, ours in names.items() if ours in ("train", "test")}
    left = [name for name in splits if name not in taken.values()]
    unusual = [f"{theirs} as {ours}" for ours, theirs in taken.items() if theirs != ours]
    if unusual or left:
        said = f"Splits: {', '.join(unusual) or 'train and test'}"
        said += f"; left out: {', '.join(left)}" if left else ""
        print(f"{said} (COOKBOOK_SPLITS=this=train,that=test takes others).")
    return DatasetDict({ours: splits[theirs] for ours, theirs in taken.items()})


_ASKED_SPLITS = (["train"], ["test", "train"])


def _usual_splits(there: list[str], source: str) -> dict[str, str]:
    by_kind: dict[str | None, list[str]] = {}
    for name in there:
        by_kind.setdefault(split_of(Path(name)), []).append(name)
    if len(there) == 1 and None in by_kind:
        by_kind["train"] = there
    chosen: dict[str, str] = {}
    for kind in ("train", "test", "validation"):
        names = by_kind.get(kind, [])
        best = [name for name in names if name == kind] or [n for n in names if "sft" in n] or names
        if not best or (kind == "validation" and "test" in chosen.values()):
            continue
        wanted = chosen | {best[0]: "train" if kind == "train" else "test"}
        if len(best) > 1:
            say = ",".join(f"{theirs}={ours}" for theirs, ours in wanted.items())
            raise DataError(
                f"{source} has the splits {', '.join(there)}. Say which to take: "
                f"COOKBOOK_SPLITS={say}."
            )
        chosen = wanted
    return chosen
