"""Load own, Hub or embedded data, refuse what cannot be trained on, and show what is supervised."""

import html
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.features import Value
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cookbook.deduplicate import near_duplicates
from cookbook.offline import offline_path
from cookbook.profiles import CookbookError

IGNORED = -100  # the label that torch's cross entropy leaves out
EMBEDDED = "offline:"  # prefix of names that live in the embedded default
TEST_SHARE = 0.1
ROLES = ("system", "user", "assistant", "tool")

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class DataError(CookbookError):
    """The data set cannot be used as it is."""


def resolve_model(name: str, weights: bool = True) -> str:
    """Return a folder or Hub id that `from_pretrained` takes, after checking that it is usable.

    `offline:<name>` is a model of the embedded default. A folder must hold `config.json` and, if
    `weights` are wanted, safetensors; pickled weights are refused, since loading them can run code.
    So is an architecture that needs code of the model's own, and one that is quantized already.
    """
    if name.startswith(EMBEDDED):
        return str(offline_path(name.removeprefix(EMBEDDED)))
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise CookbookError(
                f"The model folder {name} does not exist. Set COOKBOOK_MODEL to a folder with "
                "config.json and *.safetensors, or to a Hub id such as HuggingFaceTB/SmolLM2-135M."
            )
        _check_architecture(name)
        return name
    if not (folder / "config.json").is_file():
        raise CookbookError(f"{name} has no config.json, so it is no model folder. Check the path.")
    if weights and not list(folder.glob("*.safetensors")):
        raise CookbookError(
            f"{name} has no *.safetensors weights, and pickled weights are not loaded because they "
            "can run code. Convert them: `model.save_pretrained(folder)` writes safetensors."
        )
    _check_architecture(str(folder))
    return str(folder)


def _check_architecture(name: str) -> None:
    """Raise `CookbookError` for a folder or Hub id whose `config.json` no recipe can train from."""
    settings, _ = PreTrainedConfig.get_config_dict(name)
    kind = settings.get("model_type")
    if kind not in CONFIG_MAPPING:
        own = " The code that it brings of its own is not run." if "auto_map" in settings else ""
        raise CookbookError(
            f"transformers knows no architecture {kind!r}, which the config.json of {name} names."
            f"{own} Set COOKBOOK_MODEL to a model of an architecture that it knows."
        )
    if quantized := settings.get("quantization_config"):
        raise CookbookError(
            f"The weights of {name} are quantized already ({quantized.get('quant_method')}), which "
            "recipes do by themselves. Set COOKBOOK_MODEL to the model that it was made from."
        )


def check_token_ids(model: PreTrainedModel, rows: Iterable[Sequence[int]]) -> None:
    """Raise `DataError` for a token id that the model has no row for.

    The tokenizer is then another model's. A CPU calls it an index out of range, and a GPU nothing
    that a person could read.
    """
    table: Any = model.get_input_embeddings()
    known = table.weight.shape[0]
    largest = max((max(row) for row in rows if len(row)), default=0)
    if largest >= known:
        raise DataError(
            f"The tokenizer made the token id {largest}, but the model has only {known} tokens: "
            "they do not belong together. Take tokenizer and config.json from the same model."
        )


def load_splits(source: str, configuration: str | None = None) -> DatasetDict:
    """Return a data set with the splits `train` and `test`.

    `source` is `offline:<name>` (the embedded default), a file (JSONL, CSV, Parquet), a folder of
    such files (`train.*`, `test.*`), or a Hub id; `configuration` picks one of a Hub data set that
    has several. Where there is no `test` split one is cut: 10 % of the rows, from which
    near-duplicates of training rows are removed. An only split, whatever its name, is `train`.
    """
    if source.startswith(EMBEDDED):
        return _load_files(offline_path(source.removeprefix(EMBEDDED)))
    path = Path(source).expanduser()
    if path.exists():
        return _with_test_split(_load_files(path), source)
    if path.suffix in _BUILDERS or path.is_absolute() or source.startswith((".", "~")):
        raise DataError(f"The data set {source} does not exist. Check COOKBOOK_DATASET.")
    try:
        return _with_test_split(load_dataset(source, configuration), source)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise DataError(
            f"The Hub has no data set {source!r}, or it cannot be reached ({error}). For a run "
            "without the Hub use `COOKBOOK_PROFILE=cpu`, or set COOKBOOK_DATASET to your own file."
        ) from error


def _load_files(path: Path) -> DatasetDict:
    files = _files_by_split(path)
    suffixes = {Path(name).suffix for names in files.values() for name in names}
    if len(suffixes) != 1:
        raise DataError(f"{path} mixes {', '.join(sorted(suffixes))}: use one file format.")
    builder = _BUILDERS[suffixes.pop()]
    if builder == "json":
        return DatasetDict({split: _from_json(names) for split, names in files.items()})
    try:
        splits = load_dataset(builder, data_files=files)
        for rows in splits.values():
            rows.data.validate(full=True)  # Parquet's text is not decoded before it is used
        return splits
    except (DatasetGenerationError, ValueError, TypeError, OSError, NotImplementedError) as error:
        cause = error.__cause__ or error
        raise DataError(
            f"{path} cannot be read: {cause}. Each row needs the same columns and types, and text "
            "has to be UTF-8: write the file anew."
        ) from error


def _from_json(names: Sequence[str]) -> Dataset:
    """Return the objects of JSON files as a table; a column that a row lacks is None there.

    They are parsed here, in memory, and not by pyarrow's reader: it can end the kernel with a
    segmentation fault on lines that are no JSON, and names no line where it only complains.
    """
    rows = [row for name in names for row in _json_objects(Path(name))]
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns.append(Dataset.from_dict({name: [row.get(name) for row in rows]}))
        except (ValueError, TypeError, NotImplementedError, OverflowError) as error:  # pyarrow's
            raise DataError(
                f"{', '.join(names)}: the column {name!r} cannot be read ({error}). Give it one "
                "type in all rows, text for what is trained on."
            ) from error
    return concatenate_datasets(columns, axis=1)


def _json_objects(path: Path) -> list[dict[str, Any]]:
    """Parse JSON Lines, or one JSON array of objects, and name the first line that is wrong."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8. Convert it: `iconv -f WINDOWS-1252 -t UTF-8`."
        ) from error
    if text.lstrip().startswith("["):
        parsed = [(1, text)]
    else:
        parsed = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows: list[dict[str, Any]] = []
    for line, part in parsed:
        try:
            value = json.loads(part, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {line} is no JSON: {error}. Mend or remove it."
            ) from error
        found = value if isinstance(value, list) else [value]
        if not all(isinstance(row, dict) for row in found):
            raise DataError(f'{path}, line {line} is no JSON object, like {{"column": "value"}}.')
        rows += found
    if not any(rows):
        raise DataError(f"{path} holds no data: each line has to be a JSON object with columns.")
    return rows


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in one object twice")
    return found


def _files_by_split(path: Path) -> dict[str, list[str]]:
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise DataError(f"{path} is no {', '.join(_BUILDERS)} file. Convert it to JSONL.")
        return {"train": [str(path)]}
    splits: dict[str, list[str]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix in _BUILDERS and file.name != "built.json":
            split = "test" if file.stem.startswith(("test", "valid")) else "train"
            splits.setdefault(split, []).append(str(file))
    if not splits:
        raise DataError(f"{path} holds no {', '.join(_BUILDERS)} file to train on.")
    return splits


def _with_test_split(splits: DatasetDict, source: str) -> DatasetDict:
    if len(splits) == 1:
        splits = DatasetDict(train=next(iter(splits.values())))
    if "train" not in splits:
        raise DataError(f"{source} has no `train` split, only {', '.join(splits)}.")
    if "test" in splits:
        return splits
    if "validation" in splits:
        return DatasetDict(train=splits["train"], test=splits["validation"])
    if len(splits["train"]) < 2:
        raise DataError(f"{source} has {len(splits['train'])} rows: no test split can be cut.")
    # The cut does not follow the run's seed: runs of several seeds are compared on the same rows.
    cut = splits["train"].train_test_split(test_size=TEST_SHARE, seed=0)
    texts = _texts(concatenate_datasets([cut["train"], cut["test"]]))
    size = len(cut["train"])
    copies = set(near_duplicates(texts[:size], texts[size:]))
    kept = [index for index in range(len(cut["test"])) if index not in copies]
    if not kept:
        raise DataError(
            f"{source}: every row of the test split that was cut copies a training row."
        )
    print(f"Cut a test split of {len(kept)} rows ({len(copies)} near-duplicates removed).")
    return DatasetDict(train=cut["train"], test=cut["test"].select(kept))


def _texts(rows: Dataset) -> list[str]:
    """Return what tells rows apart, without the template that all of them share."""
    texts = [" ".join(str(value) for value in row.values()) for row in rows]
    start = len(os.path.commonprefix(texts))
    end = len(os.path.commonprefix([text[start:][::-1] for text in texts]))
    return [text[start : len(text) - end] for text in texts]


def check_columns(rows: Dataset | IterableDataset, columns: Sequence[str], name: str) -> None:
    """Stop with the names of the missing columns, and of those that are there."""
    present = rows.column_names or []
    missing = [column for column in columns if column not in present]
    if missing:
        raise DataError(
            f"The {name} lacks the column {', '.join(missing)}; it has {', '.join(present)}. "
            "Rename yours: `dataset.rename_columns({...})`."
        )


def drop_rows_without(rows: Dataset, columns: Sequence[str], name: str = "data") -> Dataset:
    """Drop rows in which one of the columns is empty or no text, saying how many.

    A column of numbers, or of true and false, becomes text. Stops with `DataError` where no row is
    left.
    """
    for column in columns:
        if getattr(rows.features[column], "dtype", "").startswith(("int", "uint", "float", "bool")):
            rows = rows.cast_column(column, Value("string"))

    def whole(row: dict[str, Any]) -> bool:
        return all(isinstance(row[column], str) and row[column].strip() for column in columns)

    kept = rows.filter(whole)
    _report_dropped(Counter({f"no text in {' or '.join(columns)}": len(rows) - len(kept)}), name)
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
    _report_dropped(Counter({"empty or no text": empty}), name)
    if not kept:
        raise DataError(f"The {name} holds no text. Check its column `text`.")


def as_conversations(rows: Dataset, name: str = "data") -> Dataset:
    """Return rows with the columns `prompt` and `completion`, both lists of chat messages.

    Takes `prompt`/`completion` as plain strings, or `messages` (the last assistant turn becomes the
    completion). Rows that cannot be trained on are dropped and counted; if none is left, or a
    column is missing, `DataError` says so.
    """
    columns = set(rows.column_names)
    if not ({"prompt", "completion"} <= columns or "messages" in columns):
        raise DataError(
            f"The {name} has the columns {', '.join(sorted(columns))}; needed are `prompt` and "
            "`completion`, or `messages`. Rename yours: `dataset.rename_columns({...})`."
        )
    kept: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        example = _from_messages(row) if "messages" in columns else _from_pair(row)
        if isinstance(example, str):
            dropped[example] += 1
        else:
            kept.append(example)
    _report_dropped(dropped, name)
    if not kept:
        raise DataError(f"The {name} has no usable row left. Check its prompts and completions.")
    return Dataset.from_list(kept)


def _from_pair(row: dict[str, Any]) -> dict[str, Any] | str:
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return "prompt or completion is not text"
    if not prompt.strip() or not completion.strip():
        return "empty prompt or completion"
    return {
        "prompt": [{"role": "user", "content": prompt.strip()}],
        "completion": [{"role": "assistant", "content": completion.strip()}],
    }


def _from_messages(row: dict[str, Any]) -> dict[str, Any] | str:
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "messages is not a list of turns"
    if any(turn.get("role") not in ROLES for turn in turns):
        return f"a role other than {', '.join(ROLES)}"
    if any(not str(turn.get("content") or "").strip() for turn in turns):
        return "an empty turn"
    while turns and turns[-1]["role"] != "assistant":
        turns = turns[:-1]
    if len(turns) < 2:
        return "no assistant turn after a prompt"
    turns = [{"role": turn["role"], "content": turn["content"].strip()} for turn in turns]
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def _report_dropped(dropped: Counter[str], name: str) -> None:
    for reason, count in (+dropped).items():  # those above 0
        print(f"Dropped {count} rows of the {name}: {reason}.")


def supervise_answers(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, end_of_turn: int
) -> Dataset:
    """Add `input_ids` and `labels` to conversations; the loss sees the completion alone.

    The completion's labels end with the last `end_of_turn` token id: what a template writes after
    it is never generated. A column `chat_template_kwargs` (a dict) sets a template's own switches
    for its row, like Qwen3's `enable_thinking`.
    """
    if not rows:
        raise DataError("No example is left to train or test on: give more rows.")
    template: Any = tokenizer.apply_chat_template

    def tokenize(row: dict[str, Any]) -> dict[str, list[int]]:
        switches = row.get("chat_template_kwargs", {}) | {"return_dict": False}
        prompt = template(row["prompt"], add_generation_prompt=True, **switches)
        whole = template(row["prompt"] + row["completion"], **switches)
        # Tokens may merge across the border; what differs belongs to the answer.
        pairs = zip(prompt, whole)
        shared = next((place for place, (a, b) in enumerate(pairs) if a != b), len(prompt))
        answer = whole[shared:]
        if end_of_turn in answer:
            answer = answer[: len(answer) - answer[::-1].index(end_of_turn)]
        return {"input_ids": whole[:shared] + answer, "labels": [IGNORED] * shared + answer}

    return rows.map(tokenize)


def drop_too_long(rows: Dataset, max_length: int, name: str = "data") -> Dataset:
    """Drop tokenized rows (`input_ids`) over `max_length` tokens, saying how many.

    Cutting them instead would remove the end-of-turn token, and the model would learn not to stop.
    """
    kept = [index for index, ids in enumerate(rows["input_ids"]) if len(ids) <= max_length]
    if not kept:
        shortest = min(len(ids) for ids in rows["input_ids"])
        raise DataError(
            f"Every row of the {name} is longer than max_length={max_length} tokens (the shortest "
            f"has {shortest}). Raise `max_length` in the PROFILES table, or shorten the rows."
        )
    if len(kept) < len(rows):
        print(f"Dropped {len(rows) - len(kept)} rows of the {name} over {max_length} tokens.")
    return rows.select(kept)


def check_supervision(rows: Dataset, tokenizer: PreTrainedTokenizerBase, end_of_turn: int) -> str:
    """Check the labels of every tokenized row and return one sentence that says what was seen.

    Each row must have supervised tokens, must not be supervised throughout, must supervise the
    `end_of_turn` token id (or the model never learns to stop) and must not begin with two BOS.
    """
    bos = tokenizer.bos_token_id
    supervised = total = 0
    for number, (ids, labels) in enumerate(zip(rows["input_ids"], rows["labels"], strict=True)):
        targets = [label for label in labels if label != IGNORED]
        if not targets:
            raise DataError(f"Row {number} is fully masked: it would teach nothing.")
        if len(targets) == len(labels):
            raise DataError(f"Row {number} supervises its prompt too: check the prompt's length.")
        if end_of_turn not in targets:
            token = tokenizer.convert_ids_to_tokens(end_of_turn)
            raise DataError(
                f"Row {number} does not supervise the end-of-turn token {token}: the model would "
                "not learn to stop. The chat template must end the assistant's turn with it."
            )
        if bos is not None and list(ids[:2]) == [bos, bos]:
            raise DataError(f"Row {number} begins with two BOS tokens: the template adds one too.")
        supervised, total = supervised + len(targets), total + len(labels)
    return f"{len(rows)} rows, {total} tokens, {supervised} supervised ({supervised / total:.0%})"


class SupervisedView:
    """Tokenized examples decoded back from their ids, with the supervised part marked.

    A notebook shows it as HTML; `print` shows the supervised part between ⟦ and ⟧.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Dataset, count: int = 2) -> None:
        examples = rows.take(count)
        self._examples = [_runs(tokenizer, row["input_ids"], row["labels"]) for row in examples]

    def __str__(self) -> str:
        marked = [
            "".join(f"⟦{text}⟧" if on else text for text, on in runs) for runs in self._examples
        ]
        return "\n\n".join(marked)

    def _repr_html_(self) -> str:
        def shown(text: str, on: bool) -> str:
            return f"<mark>{html.escape(text)}</mark>" if on else html.escape(text)

        blocks = ["".join(shown(*run) for run in runs) for runs in self._examples]
        return "".join(f"<pre style='white-space:pre-wrap'>{block}</pre>" for block in blocks)


def _runs(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], labels: Sequence[int]
) -> list[tuple[str, bool]]:
    """Split an example into runs of supervised and masked tokens, decoded."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(ids, labels, strict=True):
        on = label != IGNORED
        if not runs or runs[-1][1] != on:
            runs.append(([], on))
        runs[-1][0].append(token)
    return [(str(tokenizer.decode(tokens)), on) for tokens, on in runs]


def general_text(count: int) -> list[str]:
    """Return `count` fixed paragraphs of general text for the forgetting check.

    They are part of the embedded default on every profile, so that runs can be compared.
    """
    return list(load_splits(f"{EMBEDDED}general-text")["test"]["text"][:count])
