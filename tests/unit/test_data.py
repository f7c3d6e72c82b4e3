"""Own data gets its splits, and is used, dropped with a count, or refused with a sentence."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_dataset

from cookbook import data, files, forms
from cookbook.data import DataError

pytestmark = pytest.mark.unit

PAIRS = [{"prompt": f"question number {n}", "completion": f"answer {n * n}"} for n in range(40)]


def _jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_own_files_of_every_format_get_a_test_split(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"mine.{suffix}"
    rows = Dataset.from_list(PAIRS)
    write = {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix]
    write(str(path))
    splits = data.load_splits(str(path))
    assert len(splits["train"]) == 36 and len(splits["test"]) == 4
    assert sorted([*splits["train"], *splits["test"]], key=str) == sorted(PAIRS, key=str)
    expected = "Cut a test split of 4 rows (0 near-duplicates removed).\n"
    assert capsys.readouterr().out.endswith(expected)
    assert list(data.load_splits(str(path))["test"]) == list(splits["test"])


@pytest.mark.parametrize("test", ["test.jsonl", "val.jsonl", "my-dev-set.jsonl", "eval/a.jsonl"])
def test_what_is_held_out_is_scored_and_never_trained_on(tmp_path: Path, test: str) -> None:
    (tmp_path / "eval").mkdir()
    _jsonl(tmp_path / "train.jsonl", PAIRS[:30])
    _jsonl(tmp_path / test, PAIRS[30:])
    splits = data.load_splits(str(tmp_path))
    assert list(splits["train"]) == PAIRS[:30] and list(splits["test"]) == PAIRS[30:]


def test_a_folder_of_held_out_rows_alone_is_refused_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _jsonl(tmp_path / "test.jsonl", PAIRS)
    with pytest.raises(DataError, match="COOKBOOK_SPLITS=test=train; or name one file itself"):
        data.load_splits(str(tmp_path))
    assert len(data.load_splits(str(path))["train"]) == 36
    monkeypatch.setenv("COOKBOOK_SPLITS", "test=train")
    assert len(data.load_splits(str(tmp_path))["train"]) == 36


def test_columns_and_splits_get_the_names_that_were_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = [{"frage": row["prompt"], "antwort": row["completion"]} for row in PAIRS]
    _jsonl(tmp_path / "de.jsonl", theirs[:30])
    _jsonl(tmp_path / "test.jsonl", theirs[30:])
    monkeypatch.setenv("COOKBOOK_SPLITS", "test=train,train=test")
    monkeypatch.setenv("COOKBOOK_COLUMNS", "frage=prompt,antwort=completion")
    splits = data.load_splits(str(tmp_path))
    assert list(splits["train"]) == PAIRS[30:] and list(splits["test"]) == PAIRS[:30]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("absent.jsonl", "absent.jsonl does not exist .looked for in .*. Check COOKBOOK_DATASET"),
        ("absent.CSV.GZ", "does not exist"),
        ("./absent", "does not exist"),
        ("~/no such folder", "does not exist"),
        ("/no/such/folder", "/no/such/folder does not exist"),
    ],
)
def test_a_path_that_leads_nowhere_is_not_asked_of_the_hub(source: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        data.load_splits(source)


def test_one_row_is_too_few_to_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mine.jsonl has 1 rows: no test split can be cut"):
        data.load_splits(str(_jsonl(tmp_path / "mine.jsonl", PAIRS[:1])))
    splits = data.load_splits(str(_jsonl(tmp_path / "two.jsonl", PAIRS[:2])))
    assert (len(splits["train"]), len(splits["test"])) == (1, 1)


# --- Leakage --------------------------------------------------------------------------------

WORDS = (
    "amber bridge candle desert engine forest garden harbor island jacket kettle lantern".split()
)
SHARED = " ".join(WORDS * 9)  # as long as system texts are


def _said(number: int, length: int = 10) -> str:
    """Return a sentence that is no other number's."""
    return " ".join(
        f"{WORDS[(number * (k + 3) + k) % 12]}{number * (k + 1)}" for k in range(length)
    )


def _chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


ALIKE: dict[str, list[dict[str, Any]]] = {
    "a template": [
        {
            "prompt": f"Below is an instruction. Write a fitting response. {_said(n, 2)} Answer:",
            "completion": "yes",
        }
        for n in range(80)
    ],
    "a system column": [
        {"id": f"r{n}", "system": SHARED, "prompt": _said(n, 5), "completion": _said(n + 100, 4)}
        for n in range(80)
    ],
    "a system turn": [
        {"messages": [{"role": "system", "content": SHARED}, *_chat(_said(n), "ok")["messages"]]}
        for n in range(80)
    ],
    "first turns": [
        _chat(
            "Hello, can you help me today with something?",
            "Of course, what is it about?",
            _said(n, 4),
            _said(n + 100, 3),
        )
        for n in range(80)
    ],
    "four beginnings": [
        _chat(
            f"{WORDS[n % 4]} {SHARED}", _said(n, 4), "and what else is there to say?", _said(n, 2)
        )
        for n in range(80)
    ],
    "tools": [
        _chat(_said(n, 4), _said(n, 3)) | {"tools": [{"name": "find", "description": SHARED}]}
        for n in range(80)
    ],
    "an answer": [
        {"prompt": _said(n), "completion": "I am sorry, but I cannot help with that."}
        for n in range(80)
    ],
}


@pytest.mark.parametrize("shared", ALIKE)
def test_rows_that_share_something_are_not_copies(
    shared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ALIKE[shared]
    splits = data.load_splits(str(_jsonl(tmp_path / "mine.jsonl", rows)))
    assert (len(splits["train"]), len(splits["test"])) == (72, 8)
    assert "Cut a test split of 8 rows (0 near-duplicates removed)." in capsys.readouterr().out
    (tmp_path / "given").mkdir()
    _jsonl(tmp_path / "given" / "train.jsonl", rows[:60])
    _jsonl(tmp_path / "given" / "test.jsonl", rows[60:])
    assert len(data.load_splits(str(tmp_path / "given"))["test"]) == 20
    assert "Leakage" not in capsys.readouterr().out


@pytest.mark.parametrize("shared", ALIKE)
def test_copies_between_given_splits_are_counted_and_said(
    shared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ALIKE[shared]
    _jsonl(tmp_path / "train.jsonl", rows[:60])
    _jsonl(tmp_path / "test.jsonl", [*rows[60:], rows[3], rows[40]])
    splits = data.load_splits(str(tmp_path))
    assert len(splits["test"]) == 22 and len(splits["train"]) == 60
    assert "Leakage: 2 of 22 test rows say nearly the same as a training row" in (
        capsys.readouterr().out
    )
    assert data.copies_between(splits["train"], splits["test"]) == ([20, 21], 22)


@pytest.mark.parametrize("validation", [False, True])
def test_near_copies_count_and_short_ones_must_be_equal(
    validation: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [{"prompt": _said(n, 12), "completion": _said(n + 50, 12)} for n in range(20)]
    train.append({"prompt": "Capital of France?", "completion": "Paris"})
    test = [
        {"prompt": train[2]["prompt"].upper() + "!", "completion": train[2]["completion"]},
        {"prompt": "Please: " + train[5]["prompt"], "completion": train[5]["completion"] + " Bye."},
        {"prompt": "capital of france", "completion": "Paris."},
        {"prompt": "Capital of Spain?", "completion": "Madrid"},
        {"prompt": _said(200, 12), "completion": _said(300, 12)},
    ]
    _jsonl(tmp_path / "train.jsonl", train)
    _jsonl(tmp_path / ("val.jsonl" if validation else "test.jsonl"), test)
    splits = data.load_splits(str(tmp_path))
    assert data.copies_between(splits["train"], splits["test"]) == ([0, 1, 2], 5)
    assert "Leakage: 3 of 5 test rows" in capsys.readouterr().out


def test_texts_that_only_repeat_within_their_split_are_no_copies() -> None:
    train, test = ([{"prompt": _said(n, 12)}] * 20 for n in (1, 2))
    pair = Dataset.from_list(train), Dataset.from_list(test)
    assert data.copies_between(*pair) == ([], 20)
    assert data.copies_between(pair[0], pair[0]) == ([*range(20)], 20)


def test_it_is_said_how_many_rows_were_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "COMPARED", 5)
    _jsonl(tmp_path / "train.jsonl", PAIRS[:20])
    _jsonl(tmp_path / "test.jsonl", PAIRS[4:14])
    data.load_splits(str(tmp_path))
    assert "Leakage: 1 of 5 test rows" in capsys.readouterr().out


def test_copies_of_training_rows_leave_the_cut_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a sentence of more than five words that stands in the file more than once"
    rows = [{"prompt": text, "completion": "the same"}] * 60
    path = _jsonl(tmp_path / "copies.jsonl", [*rows, *PAIRS])
    splits = data.load_splits(str(path))
    assert text not in splits["test"]["prompt"]
    removed = 10 - len(splits["test"])
    said = f"Cut a test split of {10 - removed} rows ({removed} near-duplicates removed)."
    assert removed > 0 and said in capsys.readouterr().out
    with pytest.raises(DataError, match="copies a training row"):
        data.load_splits(str(_jsonl(tmp_path / "only.jsonl", list(rows))))


# --- Columns, texts and lengths -------------------------------------------------------------


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


def test_lacking_columns_are_named_beside_those_there() -> None:
    rows = Dataset.from_dict({"document": ["a"], "title": ["b"]})
    data.check_columns(rows, ["document", "title"], "data")
    with pytest.raises(
        DataError, match="stories: there is no column text, label, only document, title.*text"
    ):
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
        (
            {"story": ["w1"]},
            "stories: there is no column text, only story.*COOKBOOK_COLUMNS=.yours=text",
        ),
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
        ([0.0, float("nan"), 2.0], ["0", "2"]),
        (["nan", None, "None"], ["nan", "None"]),
        ([True, False, None], ["true", "false"]),
    ],
)
def test_numbers_and_truths_are_text_and_missing_ones_are_none(
    values: list[Any], kept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data.drop_rows_without(Dataset.from_dict({"label": values}), ["label"])
    assert list(rows["label"]) == kept
    assert "Dropped 1 rows of the data: no text in label." in capsys.readouterr().out


@pytest.mark.parametrize("values", [[["a"], ["b"]], [{"a": "b"}], [b"\xff", b"b"], [None, None]])
def test_what_is_no_text_is_refused(values: list[Any]) -> None:
    with pytest.raises(data.DataError, match="no usable row left"):
        data.drop_rows_without(Dataset.from_dict({"label": values}), ["label"])


def test_the_second_data_set_of_a_recipe_keeps_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _jsonl(tmp_path / "first.jsonl", [{"frage": f"q{n}", "b": f"a{n}"} for n in range(20)])
    second = _jsonl(tmp_path / "second.jsonl", [{"messages": [f"m{n}"]} for n in range(20)])
    monkeypatch.setenv("COOKBOOK_COLUMNS", "frage=prompt,b=completion")
    assert data.load_splits(str(first))["train"].column_names == ["prompt", "completion"]
    with pytest.raises(DataError, match="COOKBOOK_COLUMNS names frage, b; the train split has"):
        data.load_splits(str(second))
    assert data.load_splits(str(second), second=True)["train"].column_names == ["messages"]


def test_columns_are_known_whatever_their_capitals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"Prompt": f"q{n}", " System-Prompt": "s", "Notes": "n"} for n in range(20)]
    read = data.load_splits(str(_jsonl(tmp_path / "mine.jsonl", rows)))["train"]
    assert read.column_names == ["prompt", "system_prompt", "Notes"]
    assert "in small letters: Prompt,  System-Prompt." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("mine.xlsx", "does not exist"),
        ("mine.json", "Is mine.jsonl meant"),
        ("*.jsonl", "pattern is not understood"),
        ("https://example.com/mine.jsonl", "is an address. Download the file"),
        ("file:///mine.jsonl", "is an address"),
    ],
)
def test_what_is_not_there_is_said_with_what_may_be_meant(
    source: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _jsonl(tmp_path / "mine.jsonl", PAIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COOKBOOK_FROM", str(tmp_path))
    with pytest.raises(DataError, match=complaint):
        data.load_splits(source)


def test_few_words_that_are_left_make_no_copies(tmp_path: Path) -> None:
    """Where nearly all is common, only texts that are the same as a whole are copies."""
    ways = ["please", "now", "thanks", "again", "today", "friend", "quick", "maybe"]
    names = ["France", "Peru", "Chile", "Spain", "Italy", "Japan", "Kenya", "Ghana", "Cuba"]
    said = [f"What is the capital of the country that we call {one}" for one in names]
    rows = [{"prompt": one, "completion": way} for one in said for way in ways]
    texts = data.distinct_texts(Dataset.from_list(rows))
    assert len({*texts}) == len(rows)


def test_columns_of_the_hub_keep_their_capitals() -> None:
    """Fino1 has a column `Response`, by which the Gemma recipe knows it."""
    rows = DatasetDict(train=Dataset.from_list([{"Response": "a", "Prompt": "q"}]))
    assert files.renamed(rows, {})["train"].column_names == ["Response", "Prompt"]
    assert files.renamed(rows, {}, forms.KNOWN)["train"].column_names == ["response", "prompt"]
