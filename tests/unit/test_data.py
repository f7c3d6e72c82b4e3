"""Own data is used, dropped with a count, or refused with a sentence; labels are checked."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from datasets import Dataset, load_dataset
from pyarrow import parquet

from cookbook import data
from cookbook.data import DataError

pytestmark = pytest.mark.unit

PAIRS = [{"prompt": f"question number {n}", "completion": f"answer {n * n}"} for n in range(40)]


def _jsonl(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_own_files_of_every_format_get_a_test_split(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    rows = Dataset.from_list(PAIRS)
    write = {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix]
    write(str(path))
    splits = data.load_splits(str(path))
    assert len(splits["train"]) == 36 and len(splits["test"]) == 4
    assert not set(splits["train"]["prompt"]) & set(splits["test"]["prompt"])


def _wrong_text(content: bytes) -> bytes:
    """One letter of the text is no UTF-8 any more."""
    return content.replace(b"question 7", b"question \xff")


def _wrong_schema(content: bytes) -> bytes:
    """The description of the columns, at the end of the file, begins with nonsense."""
    at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return content[:at] + b"\x5a" * 8 + content[at + 8 :]


@pytest.mark.parametrize("damaged", [_wrong_text, _wrong_schema])
def test_a_damaged_parquet_file_is_refused(
    damaged: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    whole, path = io.BytesIO(), tmp_path / "mine.parquet"
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]
    parquet.write_table(pa.Table.from_pylist(rows), whole, compression="none")
    path.write_bytes(damaged(whole.getvalue()))
    assert path.read_bytes() != whole.getvalue()
    with pytest.raises(DataError, match="mine.parquet cannot be read"):
        data.load_splits(str(path))


def test_copies_of_training_rows_leave_the_cut_test_split(tmp_path: Path) -> None:
    text = "a sentence of more than five words that stands in the file more than once"
    rows = [{"prompt": text, "completion": "the same"}] * 60
    path = _jsonl(tmp_path / "copies.jsonl", [*rows, *PAIRS])
    assert text not in data.load_splits(str(path))["test"]["prompt"]
    with pytest.raises(DataError, match="copies a training row"):
        data.load_splits(str(_jsonl(tmp_path / "only.jsonl", list(rows))))


def test_a_shared_template_does_not_make_rows_copies(tmp_path: Path) -> None:
    template = "Below is an instruction that describes a task. Write a fitting response. {} Answer:"
    rows = [{"prompt": template.format(row["prompt"]), "completion": "yes"} for row in PAIRS]
    assert len(data.load_splits(str(_jsonl(tmp_path / "mine.jsonl", rows)))["test"]) == 4


def test_a_folder_with_its_own_test_split_keeps_it(tmp_path: Path) -> None:
    _jsonl(tmp_path / "train.jsonl", list(PAIRS[:30]))
    _jsonl(tmp_path / "test.jsonl", list(PAIRS[30:]))
    assert len(data.load_splits(str(tmp_path))["test"]) == 10


def test_an_only_split_is_trained_on_whatever_its_name(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]
    _jsonl(tmp_path / "test.jsonl", rows)
    splits = data.load_splits(str(tmp_path))
    assert (len(splits["train"]), len(splits["test"])) == (36, 4)


def test_rows_without_text_in_a_column_are_dropped_and_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = Dataset.from_dict({"prompt": ["a", " ", None, "d"], "answer": ["1", "2", "3", "4"]})
    assert data.drop_rows_without(rows, ["prompt", "answer"])["answer"] == ["1", "4"]
    assert "Dropped 2 rows of the data: no text in prompt or answer." in capsys.readouterr().out
    assert data.drop_rows_without(rows, ["answer"]) is rows
    assert capsys.readouterr().out == ""
    with pytest.raises(data.DataError, match="no usable row"):
        data.drop_rows_without(rows.select([1, 2]), ["prompt"])


def test_bad_sources_are_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        data.load_splits(str(tmp_path / "absent.jsonl"))
    (tmp_path / "notes.txt").write_text("text", encoding="utf-8")
    with pytest.raises(DataError, match="Convert it to JSONL"):
        data.load_splits(str(tmp_path / "notes.txt"))
    with pytest.raises(DataError, match="holds no"):
        data.load_splits(str(tmp_path))
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a"', encoding="utf-8")
    with pytest.raises(DataError, match="line 1 is no JSON"):
        data.load_splits(str(tmp_path / "torn.jsonl"))


def test_missing_columns_are_named() -> None:
    with pytest.raises(DataError, match="columns answer, question; needed are"):
        data.as_conversations(Dataset.from_list([{"question": "a", "answer": "b"}]))


def test_empty_rows_are_dropped_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": " ", "completion": "b"}, {"prompt": "a", "completion": None}, PAIRS[0]]
    assert len(data.as_conversations(Dataset.from_list(rows), "data")) == 1
    shown = capsys.readouterr().out
    assert "Dropped 1 rows of the data: empty" in shown and "is not text" in shown


def test_messages_are_cut_at_the_last_assistant_turn() -> None:
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": " hi "},
        {"role": "user", "content": "a question without an answer"},
    ]
    row = data.as_conversations(Dataset.from_list([{"messages": turns}]))[0]
    assert row["completion"] == [{"role": "assistant", "content": "hi"}]
    assert [turn["content"] for turn in row["prompt"]] == ["hello"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "", "completion": ""},
        {"messages": [{"role": "assistant", "content": "alone"}]},
        {"messages": [{"role": "user", "content": "alone"}]},
        {"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_unusable_rows_alone_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no usable row"):
        data.as_conversations(Dataset.from_list([row]))


def test_lacking_columns_are_named_beside_those_there() -> None:
    rows = Dataset.from_dict({"document": ["a"], "title": ["b"]})
    data.check_columns(rows, ["document", "title"], "data")
    with pytest.raises(DataError, match="stories lacks the column text, label; it has document"):
        data.check_columns(rows, ["text", "title", "label"], "stories")


@pytest.mark.parametrize("streamed", [False, True])
def test_texts_come_in_batches_without_the_empty_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], streamed: bool
) -> None:
    texts = ["w1", " ", "w2", "w3", None, "", "w4"]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    rows = load_dataset("json", data_files=str(path), split="train", streaming=streamed)
    # Rows are counted before any is dropped, and a batch of nothing is left out.
    assert list(data.text_batches(rows, 2, "stories")) == [["w1"], ["w2", "w3"], ["w4"]]
    assert capsys.readouterr().out == "Dropped 3 rows of the stories: empty or no text.\n"


def test_nothing_dropped_is_nothing_said(capsys: pytest.CaptureFixture[str]) -> None:
    rows = Dataset.from_dict({"text": ["w1", "w2", "w3"]})
    assert list(data.text_batches(rows, 2)) == [["w1", "w2"], ["w3"]]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"story": ["w1"]}, "stories lacks the column text; it has story"),
        ({"text": ["", None, " "]}, "stories holds no text"),
        ({"text": [1, 2]}, "stories holds no text"),
    ],
)
def test_data_without_any_text_is_refused(columns: dict[str, list[object]], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        list(data.text_batches(Dataset.from_dict(columns), 2, "stories"))


def test_rows_over_the_limit_are_dropped_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    rows = Dataset.from_dict({"input_ids": [[1] * 5, [1] * 50]})
    assert data.drop_too_long(rows, 10)["input_ids"] == [[1] * 5]
    assert "Dropped 1 rows of the data over 10 tokens" in capsys.readouterr().out
    with pytest.raises(DataError, match="max_length=4.*Raise `max_length`"):
        data.drop_too_long(rows, 4)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([1, None, 3], ["1", "3"]),
        ([0.5, 2.0, None], ["0.5", "2"]),
        ([True, False, None], ["true", "false"]),
    ],
)
def test_numbers_and_truths_are_text(
    values: list[Any], kept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data.drop_rows_without(Dataset.from_dict({"label": values}), ["label"])
    assert list(rows["label"]) == kept
    assert "Dropped 1 rows of the data: no text in label." in capsys.readouterr().out


@pytest.mark.parametrize("values", [[["a"], ["b"]], [{"a": "b"}], [b"\xff", b"b"], [None, None]])
def test_what_is_no_text_is_refused(values: list[Any]) -> None:
    with pytest.raises(data.DataError, match="no usable row left"):
        data.drop_rows_without(Dataset.from_dict({"label": values}), ["label"])
