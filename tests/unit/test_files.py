"""Files and folders as people have them become tables in which nothing is guessed or lost."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pyarrow import feather, parquet

from cookbook import files
from cookbook.files import DataError

pytestmark = pytest.mark.unit

ROWS = [
    {"prompt": "Where, is\nit?", "completion": "None"},
    {"prompt": 'a "b" ünï 😀', "completion": "00017"},
    {"prompt": "NA", "completion": "true"},
]
FRAME = pd.DataFrame(ROWS)
COLUMNS = {name: list(FRAME[name]) for name in FRAME}
TABLE = pa.Table.from_pylist(ROWS)


def _jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _csv(separator: str = ",", end: str = "\n", **how: Any) -> str:
    return str(FRAME.to_csv(sep=separator, index=False, lineterminator=end, **how))


def _parquet(table: pa.Table = TABLE, **how: Any) -> bytes:
    made = io.BytesIO()
    parquet.write_table(table, made, **how)
    return made.getvalue()


def _arrow(writer: Any) -> bytes:
    made = io.BytesIO()
    with writer(made, TABLE.schema) as opened:
        opened.write_table(TABLE)
    return made.getvalue()


def _feather() -> bytes:
    made = io.BytesIO()
    feather.write_feather(TABLE, made)
    return made.getvalue()


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _only(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file alone, which are the split `train`."""
    splits = files.read(path)
    assert list(splits) == ["train"]
    return list(splits["train"])


# --- Files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", _jsonl(ROWS)),
        ("a.JSONL", _jsonl(ROWS).replace("\n", "\r\n")),
        ("a.ndjson", "\n\n" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
        ("mark.jsonl", b"\xef\xbb\xbf" + _jsonl(ROWS).encode()),
        ("utf16.jsonl", _jsonl(ROWS).encode("utf-16")),
        ("utf16-without-mark.jsonl", _jsonl(ROWS).encode("utf-16-le")),
        ("utf16-big.jsonl", _jsonl(ROWS).encode("utf-16-be")),
        ("a.json", json.dumps(ROWS)),
        ("pretty.json", json.dumps(ROWS, indent=2)),
        ("lines-called.json", _jsonl(ROWS)),
        ("wrapped.json", json.dumps({"version": "1.1", "data": ROWS})),
        ("wrapped-pretty.json", json.dumps({"data": ROWS}, indent=2)),
        ("wrapped-by-hand.json", '{"data": [\n' + ",\n".join(map(json.dumps, ROWS)) + "\n]}"),
        ("columns.json", json.dumps(COLUMNS)),
        ("columns-pretty.json", json.dumps(COLUMNS, indent=1)),
        ("pandas.json", FRAME.to_json()),
        ("pandas-index.json", FRAME.to_json(orient="index")),
        ("pandas-records.json", FRAME.to_json(orient="records")),
        ("pandas-table.json", FRAME.to_json(orient="table", index=False)),
        ("a.csv", _csv()),
        ("a.CSV", _csv(end="\r\n")),
        ("mark.csv", b"\xef\xbb\xbf" + _csv().encode()),
        ("all-quoted.csv", _csv(quoting=1)),
        ("spaces.csv", _csv(quoting=1).replace('","', '", "')),
        ("semicolon.csv", _csv(";")),
        ("said.csv", "sep=;\r\n" + _csv(";", "\r\n")),
        ("said-otherwise.csv", "sep=^\n" + _csv("^")),
        ("tab.csv", _csv("\t")),
        ("bar.csv", _csv("|")),
        ("utf16-of-excel.csv", _csv("\t", "\r\n").encode("utf-16")),
        ("utf16-without-mark.csv", _csv().encode("utf-16-le")),
        ("a.tsv", _csv("\t")),
        ("a.tab", _csv("\t")),
        ("commas.tsv", _csv()),
        ("a.parquet", _parquet()),
        ("a.pq", _parquet()),
        ("small-groups.parquet", _parquet(row_group_size=1)),
        ("file.arrow", _arrow(pa.ipc.new_file)),
        ("stream.arrow", _arrow(pa.ipc.new_stream)),
        ("a.feather", _feather()),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value[:60] else "",
)
def test_every_format_holds_the_same_rows(name: str, content: str | bytes, tmp_path: Path) -> None:
    assert _only(_write(tmp_path / "mine ü" / name, content)) == ROWS


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (".jsonl", _jsonl(ROWS).encode()),
        (".CSV", _csv(";").encode("utf-16")),
        (".parquet", _parquet()),
        (".arrow", _arrow(pa.ipc.new_file)),
        (".feather", _arrow(pa.ipc.new_stream)),
    ],
)
def test_every_format_can_be_compressed(
    kind: str, content: bytes, packed: str, tmp_path: Path
) -> None:
    whole = PACK[packed](content)
    assert _only(_write(tmp_path / f"a{kind}{packed}", whole)) == ROWS
    assert _only(_write(tmp_path / f"b{kind}{packed.upper()}", whole)) == ROWS
    # Some browsers and download tools take the ending away, others unpack and leave it.
    assert _only(_write(tmp_path / f"c{kind}", whole)) == ROWS
    assert _only(_write(tmp_path / f"d{kind}{packed}", content)) == ROWS


@pytest.mark.parametrize("packed", PACK)
def test_compressed_files_are_read_to_their_end_or_refused(packed: str, tmp_path: Path) -> None:
    one, two = (PACK[packed](_jsonl([row]).encode()) for row in ROWS[:2])
    assert _only(_write(tmp_path / f"joined.jsonl{packed}", one + two)) == ROWS[:2]
    many = PACK[packed](_jsonl([{"text": f"row {n} {hash(str(n))}"} for n in range(9000)]).encode())
    torn = _write(tmp_path / f"torn.jsonl{packed}", many[: len(many) // 2])
    with pytest.raises(DataError, match=f"torn.jsonl{packed} cannot be unpacked.*download it anew"):
        files.read(torn)


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("zeros.csv", "a,b\n007,1.0\n1e5,-0\n", [("007", "1.0"), ("1e5", "-0")]),
        (
            "missing.csv",
            "a,b\nNone,NA\nnull,nan\n,x\n",
            [("None", "NA"), ("null", "nan"), ("", "x")],
        ),
        ("truths.csv", "a,b\ntrue,False\nyes,TRUE\n", [("true", "False"), ("yes", "TRUE")]),
        ("dates.csv", "a,b\n2024-01-02,12:30\n", [("2024-01-02", "12:30")]),
        ("decimals.csv", "a;b\n1,5;2,25\n3,0;4,75\n", [("1,5", "2,25"), ("3,0", "4,75")]),
        ("commas.csv", "a;b\nx, y;z, w, v\nq, r;s\n", [("x, y", "z, w, v"), ("q, r", "s")]),
        ("lines.csv", 'a,b\n"x\n\ny",z\n', [("x\n\ny", "z")]),
        ("windows-lines.csv", 'a,b\r\n"x\r\ny",z\r\n', [("x\r\ny", "z")]),
        ("old-mac.csv", "a,b\rx,y\r", [("x", "y")]),
        ("inner.csv", 'a,b\n"say ""hi""",5" nail\n', [('say "hi"', '5" nail')]),
        ("json.csv", 'a,b\n"[{""k"": 1}]",x\n', [('[{"k": 1}]', "x")]),
        ("no-end.csv", "a,b\nx,y", [("x", "y")]),
        ("blank.csv", "\na,b\n\n\nx,y\n,\n\n", [("x", "y")]),
        ("trailing.csv", "a,b\nx,y,\nz,w,\n", [("x", "y"), ("z", "w")]),
        ("trailing-named.csv", "a,b,,\nx,y,,\nz,w,,\n", [("x", "y"), ("z", "w")]),
        (
            "quotes.tsv",
            'a\tb\n"hi" he said\tx\ny\t"yo" she\n',
            [('"hi" he said', "x"), ("y", '"yo" she')],
        ),
        ("open-quotes.tsv", 'a\tb\n"open\tx\n"too\ty\n', [('"open', "x"), ('"too', "y")]),
        ("commas.tsv", "a\tb\nx, y\tz\n", [("x, y", "z")]),
        ("long.csv", f"a,b\n{'x' * 200_000},y\n", [("x" * 200_000, "y")]),
        ("separator-line.csv", "a,b\nx\u2028y,z\x85w\n", [("x\u2028y", "z\x85w")]),
    ],
)
def test_a_table_of_text_stays_the_text_that_it_is(
    name: str, content: str, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    expected = [dict(zip("ab", row, strict=True)) for row in rows]
    assert _only(_write(tmp_path / name, content)) == expected


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ("Frage, kurz;Antwort\nx;y\nz, w, v;u\n", {"Frage, kurz": "x", "Antwort": "y"}),
        ("sep=;\na;b,c\nx;y,z\n", {"a": "x", "b,c": "y,z"}),
    ],
)
def test_the_separator_is_the_one_that_fits_or_was_said(
    content: str, row: dict[str, str], tmp_path: Path
) -> None:
    assert _only(_write(tmp_path / "a.csv", content))[0] == row


def test_utf_16_without_a_mark_may_be_chinese(tmp_path: Path) -> None:
    row = {"prompt": "一种语言" * 500}
    content = json.dumps(row, ensure_ascii=False).encode("utf-16-le")
    assert _only(_write(tmp_path / "a.jsonl", content)) == [row]


def test_a_column_without_a_name_gets_one(tmp_path: Path) -> None:
    content = FRAME.head(1).to_csv()  # pandas writes its numbers of rows so
    (row,) = _only(_write(tmp_path / "a.csv", content))
    assert row == {"column 1": "0", **ROWS[0]}


def test_empty_fields_at_the_ends_of_lines_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.read(_write(tmp_path / "a.csv", "a,b\nx,y,\nz,w,\nq,r\n"))
    shown = capsys.readouterr().out
    assert shown == "a.csv: 2 lines end in an empty field, which is left out.\n"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "a,b\nx,y\nz, w,v\n", "line 3 has 3 fields where the header has 2. A text with"),
        ("a.csv", 'a,b\n"x\n\nq",y\nz\np\n', r"line 5 has 1 fields .* \(1 more lines are wrong\)"),
        ("a.csv", "a,b\nx,y,\nz\n", "line 3 has 1 fields where the header has 2"),
        ("a.csv", "a,b\nx,y,\nz,w,v\n", "line 2 has 3 fields where the header has 2"),
        ("a.csv", "sep=;\na;b\nx;y;z\n", "line 3 has 3 fields where the header has 2"),
        ("a.csv", "text\nx, y\n", "line 2 has 2 fields where the header has 1"),
        ("a.csv", "a,a\nx,y\n", "two columns are called the same in a, a"),
        ("a.csv", "a,b\n" + "x,y\n" * 300 + '"open,y\n', "line 302 cannot be read.*double quote"),
        ("a.csv", "a,b\n", "holds no rows: its first line names the columns"),
        ("a.csv", "", "holds no rows"),
        ("a.csv", "a,b\nx\0,y\n", "null characters"),
        ("a.csv", "a\0b,c\nx,y\n", "null characters"),
        (
            "a.csv",
            "a,b\nx,y\nä,z\n".encode("cp1252"),
            "line 3 is not UTF-8.*`iconv .* a.csv > utf8",
        ),
        ("a.jsonl", "", "holds no data"),
        ("a.jsonl", "\n \n", "holds no data"),
        ("a.jsonl", "{}\n{}\n", "holds no data"),
        ("a.jsonl", '{"a": 1}\n{"a": 2\n', "line 2 is no JSON.*Mend or remove it"),
        ("a.jsonl", '{"a": 1}\n\n[1, 2]\n', "line 3 is no JSON object"),
        ("a.jsonl", '{"a": 1}\n"text"\n', "line 2 is no JSON object"),
        ("a.jsonl", '{"a": 1}\n{"a": "\0"}\n', "line 2 is no JSON"),
        ("a.jsonl", "\0{}\n", "is no"),
        ("a.jsonl", '{"a": "x"}\n{"a": "\\ud83d"}\n', "line 2 is no JSON: '.ud83d' is half of"),
        ("a.jsonl", '{"a": [{"b": "\\udE00 \\ud83d"}]}\n', "line 1 is no JSON: '.ude00' is half"),
        ("a.jsonl", '{"a": 1, "a": 2}\n', "line 1 is no JSON: a name stands in one object twice"),
        ("a.jsonl", "[" * 100_000, "line 1 is no JSON"),
        ("a.jsonl", '{"a": 99999999999999999999999}\n', "column 'a' cannot be read"),
        ("a.jsonl", "<!DOCTYPE html>\n", "line 1 is no JSON"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        ("a.json", '[\n {"a": 1},\n {"a": }\n]', "line 3 is no JSON"),
        (
            "a.json",
            '{"train": [{"a": 1}], "test": [{"a": 2}]}',
            "several lists of rows: train, test",
        ),
        (
            "a.parquet",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "`git lfs pull`",
        ),
        ("a.parquet", "", "a.parquet cannot be read.*write the file anew"),
        ("a.parquet", _parquet()[:-9], "a.parquet cannot be read"),
        ("a.parquet", _parquet(TABLE.slice(0, 0)), "a.parquet holds no rows"),
        ("a.arrow", _arrow(pa.ipc.new_file)[:40], "a.arrow cannot be read"),
        ("a.txt", "", "holds no text"),
        ("a.txt", b"a\xff\n", "line 1 is not UTF-8"),
        ("a.xlsx", "PK", "is no .jsonl.*each of them also as .gz.*Convert it to JSONL"),
        ("a.jsonl.zip", "PK", "unpack it first if it is an archive"),
        ("a.gz", gzip.compress(b"{}"), "is no .jsonl"),
    ],
)
def test_what_cannot_be_read_whole_is_refused(
    name: str, content: str | bytes, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=complaint):
        files.read(_write(tmp_path / name, content))


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
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]
    whole = _parquet(pa.Table.from_pylist(rows), compression="none")
    assert damaged(whole) != whole
    with pytest.raises(DataError, match="mine.parquet cannot be read"):
        files.read(_write(tmp_path / "mine.parquet", damaged(whole)))


@pytest.mark.parametrize(
    ("lines", "values"),
    [
        (["1", "null", "3"], [1, None, 3]),
        (["1.0", "NaN", "3.0"], [1, None, 3]),
        (["1.5", "null", "NaN"], [1.5, None, None]),
        (['[{"b": NaN}]', "[]"], [[{"b": None}], []]),
        (["1.0", "2.0"], [1.0, 2.0]),
        (['"x"', "NaN", "7"], ["x", None, "7"]),
        (['"x"', "0.5", "true"], ["x", "0.5", "true"]),
        (['"None"', '"NA"', "null"], ["None", "NA", None]),
        (['"00011"', '"1"'], ["00011", "1"]),
        (['"a\\u0000b"'], ["a\0b"]),
        (['"\\ud83d\\ude00"'], ["😀"]),
        (['[{"b": 1}]', '[{"c": "x"}]'], [[{"b": 1}], [{"c": "x"}]]),
        (['{"b": null}', '{"c": {}}', "[]"], [{"b": None}, {"c": {}}, []]),
        (['"x"', '[{"b": "y"}]'], ["x", [{"b": "y"}]]),
    ],
)
def test_values_of_json_stay_what_they_are(
    lines: list[str], values: list[Any], tmp_path: Path
) -> None:
    path = _write(tmp_path / "a.jsonl", "".join(f'{{"a": {one}, "n": 0}}\n' for one in lines))
    read = [row["a"] for row in _only(path)]
    assert read == values and [*map(type, read)] == [*map(type, values)]


def test_a_column_that_rows_lack_is_none_there(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"a": "x"}\n{"b": "y"}\n')
    assert _only(path) == [{"a": "x", "b": None}, {"a": None, "b": "y"}]


@pytest.mark.parametrize(
    "row",
    [
        {"a": "x", "b": 1},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}]},
        {"talk": [{"role": "user", "content": "x"}]},
        {"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "gpt"}]},
    ],
)
def test_an_object_alone_is_one_row(row: dict[str, Any], tmp_path: Path) -> None:
    assert _only(_write(tmp_path / "a.json", json.dumps(row, indent=1))) == [row]


def test_objects_of_binary_files_have_their_own_keys(tmp_path: Path) -> None:
    # Arrow gives every object the keys of all others.
    calls = [[{"name": "f", "arguments": {"x": 1}}], [{"name": "g", "arguments": {"y": [2]}}], None]
    table = pa.table({"n": [1, 2, 3], "calls": calls, "text": ["a", "b", "c"]})
    for packed in (_parquet(table), gzip.compress(_parquet(table))):
        rows = _only(_write(tmp_path / "a.parquet", packed))
        assert [row["calls"] for row in rows] == calls
        assert [(row["n"], row["text"]) for row in rows] == [(1, "a"), (2, "b"), (3, "c")]


# --- Class names ----------------------------------------------------------------------------

CLASSES = ["calm", "none", "urgent"]


def _classes(labels: list[int | None]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=CLASSES)})
    rows = {"text": [f"t{n}" for n in range(len(labels))], "label": labels}
    return Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["parquet", "parquet.gz", "arrow", "saved", "saved splits"])
def test_class_names_stay_names(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, path = _classes([2, 0, None, 1, -1]), tmp_path / f"a.{kind}"
    if kind == "saved":
        rows.save_to_disk(path)
    elif kind == "saved splits":
        DatasetDict(train=rows).save_to_disk(path)
    elif kind == "arrow":
        rows.save_to_disk(tmp_path / "saved")
        path = tmp_path / "saved" / "data-00000-of-00001.arrow"
    else:
        rows.to_parquet(tmp_path / "a.parquet")
        if kind == "parquet.gz":
            path.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    read = files.read(path)["train"]
    assert list(read["label"]) == ["urgent", "calm", None, "none", None]
    assert list(read["text"]) == ["t0", "t1", "t2", "t3", "t4"]
    assert "The classes of `label` by their names: calm, none, urgent." in capsys.readouterr().out


def test_categories_of_pandas_are_their_names(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": pd.Categorical(["no", "yes"])})
    frame.to_parquet(tmp_path / "a.parquet")
    assert [row["label"] for row in _only(tmp_path / "a.parquet")] == ["no", "yes"]


# --- Plain text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "by", "found", "said"),
    [
        ({"a.txt": "one\ntwo\n\n"}, "", ["one", "two"], "2 texts, each a line"),
        ({"a.TXT": "one\r\ntwo"}, "", ["one", "two"], "2 texts, each a line"),
        (
            {"a.txt": "one\ntwo\n\n three \n"},
            "",
            ["one\ntwo", "three"],
            "2 texts, each a paragraph",
        ),
        ({"a.txt": "one\r\n\r\ntwo"}, "", ["one", "two"], "2 texts, each a paragraph"),
        ({"a.txt": "one\n\ntwo"}, "line", ["one", "two"], "2 texts, each a line"),
        ({"a.txt": "one\n\ntwo"}, "document", ["one\n\ntwo"], "1 texts, each a document"),
        (
            {"b.txt": "two\n\n2", "a.txt": "one"},
            "",
            ["one", "two\n\n2"],
            "2 texts, each a document",
        ),
        (
            {"a.txt": "one\n\n1", "b.txt": "two"},
            "paragraph",
            ["one", "1", "two"],
            "3 texts, each a p",
        ),
    ],
)
def test_plain_text_is_cut_and_said(
    texts: dict[str, str],
    by: str,
    found: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COOKBOOK_SAMPLE_BY", by)
    paths = [_write(tmp_path / name, text) for name, text in texts.items()]
    rows = files.read(tmp_path if len(paths) > 1 else paths[0])["train"]
    assert list(rows["text"]) == found and rows.column_names == ["text"]
    assert said in capsys.readouterr().out


def test_an_unknown_way_to_cut_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_SAMPLE_BY", "sentence")
    with pytest.raises(DataError, match="COOKBOOK_SAMPLE_BY is 'sentence'; choose line, paragraph"):
        files.read(_write(tmp_path / "a.txt", "text"))


def test_line_ends_of_old_machines_end_lines(tmp_path: Path) -> None:
    assert list(files.read(_write(tmp_path / "a.txt", "one\r\rtwo"))["train"]["text"]) == [
        "one",
        "two",
    ]


# --- JSON in other shapes, and quotes that are letters --------------------------------------

PAIR = {"prompt": "q", "completion": "a"}
TURN = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
TALK = [TURN, ANSWER]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            json.dumps({"conversations": [{"id": 1, "messages": TALK}] * 2}),
            [{"messages": TALK}] * 2,
        ),
        (json.dumps({"messages": [TALK, TALK]}), [{"messages": TALK}] * 2),
        (json.dumps({"messages": [PAIR, PAIR]}), [PAIR] * 2),
        (json.dumps({"messages": TALK}), [{"messages": TALK}]),
        (
            json.dumps({"columns": [*PAIR], "index": [0, 1], "data": [["q", "a"], ["q", "a"]]}),
            [PAIR] * 2,
        ),
        (
            json.dumps({"features": [{"name": "x"}], "rows": [{"row_idx": 0, "row": PAIR}] * 2}),
            [PAIR] * 2,
        ),
        (f"{json.dumps(TALK)}\n{json.dumps(TALK)}\n", [{"messages": TALK}] * 2),
        (f"{json.dumps(PAIR, indent=1)}\n{json.dumps(PAIR, indent=1)}\n", [PAIR] * 2),
        (f"[{json.dumps(PAIR)}\n,{json.dumps(PAIR)}]", [PAIR] * 2),
        (f"\ufeff\ufeff{json.dumps(PAIR)}\n{json.dumps(PAIR)}", [PAIR] * 2),
    ],
)
def test_json_of_many_shapes_is_rows(text: str, rows: list[Any], tmp_path: Path) -> None:
    read = files.read(_write(tmp_path / "a.json", text))["train"]
    assert [{name: row[name] for name in rows[0]} for row in read] == rows


SPOKEN = ('"We are happy.', 'And we stay so."')


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_speech_over_several_lines_joins_no_rows(
    separator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["text,label", "A,x", f"{SPOKEN[0]},y", "B,x", f"{SPOKEN[1]},z"]
    text = "\n".join(lines).replace(",", separator)
    read = files.read(_write(tmp_path / "a.csv", text))["train"]
    assert list(read["text"]) == ["A", SPOKEN[0], "B", SPOKEN[1]]
    assert list(read["label"]) == ["x", "y", "x", "z"]
    assert "double quotes are letters like others" in capsys.readouterr().out


def test_a_text_in_quotes_may_have_lines_and_separators(tmp_path: Path) -> None:
    text = 'text,label\n"We are happy, and\nwe stay so, here",y\nB,x\n'
    read = files.read(_write(tmp_path / "a.csv", text))["train"]
    assert list(read["text"]) == ["We are happy, and\nwe stay so, here", "B"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('text\tlabel\n"Q ""x"""\tA\n"5" is an inch\tx\n', "line 3 cannot be read.*double quote"),
        ('text,label\n"Q \\"x\\" y","A"\n', "line 2 cannot be read.*written twice"),
        ('"text","label"\n"Q "x" y","A"\n', "line 2 cannot be read.*written twice"),
        ('text,label\n"A",x\n"We,y\nstay.",z\n', "line 3: a double quote joins it with what"),
        ("My table\ntext,label\na,b\nc,d\n", "nothing above it"),
    ],
)
def test_a_wrong_quote_is_named_and_does_not_change_the_others(
    text: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=complaint):
        files.read(_write(tmp_path / "a.csv", text))


# --- Which split a name tells ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "split"),
    [
        *[
            (f"{name}.jsonl", "train")
            for name in ("train", "TRAIN", "training", "my-train", "train_v2")
        ],
        *[
            (f"{name}.jsonl", "train")
            for name in ("train-test-split", "trainset", "TrainData", "a.train")
        ],
        *[
            (f"{name}.csv", "test")
            for name in ("test", "Test1", "my-test-set", "mydata_test", "x.test")
        ],
        *[
            (f"{name}.csv", "test")
            for name in ("testset", "test_data", "myTest", "a_test_b", "eval")
        ],
        *[
            (f"{name}.csv", "test")
            for name in ("my-eval", "heldout", "held-out", "hold_out", "2024test")
        ],
        *[
            (f"{name}.csv", "test")
            for name in ("tests", "my-evals", "benchmark", "my_data_benchmark")
        ],
        *[
            (f"{name}.csv", "validation")
            for name in ("val", "valid", "validation", "dev", "my_dev")
        ],
        *[
            (f"{name}.csv", "validation")
            for name in ("valset", "devSet", "VAL", "validation-00000-of-2", "development")
        ],
        *[
            (f"{name}.csv", None)
            for name in ("latest", "contest", "trainer", "trained", "device", "value")
        ],
        *[
            (f"{name}.csv", None)
            for name in ("mine", "attest", "valley", "developer", "evaluate", "17")
        ],
        ("train/0.parquet", "train"),
        ("data/test/part-0.parquet", "test"),
        ("Validation/a.json", "validation"),
        ("test/train.jsonl", "train"),
        ("train/test.jsonl.gz", "test"),
        ("latest/a.jsonl", None),
        ("test.jsonl.GZ", "test"),
        ("test.tar.gz", "test"),
    ],
)
def test_names_tell_splits(path: str, split: str | None) -> None:
    assert files.split_of(Path(path)) == split


def _folder(folder: Path, *names: str) -> Path:
    """Write files whose only row says which one it is."""
    for name in names:
        row = {"file": name}
        content: str | bytes = _jsonl([row])
        kind = files.ending(Path(name))
        if kind == ".parquet":
            content = _parquet(pa.Table.from_pylist([row]))
        elif kind == ".csv":
            content = f'"file"\n"{name}"\n'
        elif kind == ".txt":
            content = name
        packed = Path(name).suffix.lower()
        if packed in PACK and isinstance(content, str):
            content = PACK[packed](content.encode())
        _write(folder / name, content)
    return folder


def _read(folder: Path) -> dict[str, list[str]]:
    """Return which files are in which split."""
    read = files.read(folder)
    return {split: sorted(rows[rows.column_names[0]]) for split, rows in read.items()}


@pytest.mark.parametrize(
    ("names", "splits", "said"),
    [
        ("a.jsonl b.jsonl", {"train": "a.jsonl b.jsonl"}, ""),
        ("train.jsonl test.jsonl", {"train": "train.jsonl", "test": "test.jsonl"}, ""),
        ("train.jsonl val.jsonl", {"train": "train.jsonl", "validation": "val.jsonl"}, ""),
        ("train.csv dev.csv", {"train": "train.csv", "validation": "dev.csv"}, ""),
        (
            "mydata_train.jsonl mydata_test.jsonl",
            {"train": "mydata_train.jsonl", "test": "mydata_test.jsonl"},
            "",
        ),
        ("mytrain.jsonl mytest.jsonl", {"train": "mytrain.jsonl", "test": "mytest.jsonl"}, ""),
        (
            "faqtrain.csv.gz faqval.csv",
            {"train": "faqtrain.csv.gz", "validation": "faqval.csv"},
            "",
        ),
        ("rows.jsonl test.jsonl", {"train": "rows.jsonl", "test": "test.jsonl"}, ""),
        ("rows.jsonl my-test-set.jsonl", {"train": "rows.jsonl", "test": "my-test-set.jsonl"}, ""),
        (
            "latest.jsonl contest.jsonl trainer.jsonl",
            {"train": "latest.jsonl contest.jsonl trainer.jsonl"},
            "",
        ),
        ("train.jsonl.gz test.jsonl", {"train": "train.jsonl.gz", "test": "test.jsonl"}, ""),
        (
            "train.jsonl train.jsonl.gz test.jsonl.xz",
            {"train": "train.jsonl", "test": "test.jsonl.xz"},
            "Left out: train.jsonl.gz, the same as train.jsonl.",
        ),
        (
            "train-0.parquet train-1.parquet test-0.parquet",
            {"train": "train-0.parquet train-1.parquet", "test": "test-0.parquet"},
            "",
        ),
        (
            "train.jsonl other.jsonl",
            {"train": "train.jsonl"},
            "Left out, since other files are named `train`: other.jsonl.",
        ),
        (
            "data/train/0.parquet data/test/0.parquet",
            {"train": "data/train/0.parquet", "test": "data/test/0.parquet"},
            "",
        ),
        (
            "data/train-00000-of-00001.parquet data/validation-00000-of-00001.parquet",
            {
                "train": "data/train-00000-of-00001.parquet",
                "validation": "data/validation-00000-of-00001.parquet",
            },
            "",
        ),
        (
            "a/train.csv b/train.csv b/deep/er/test.csv",
            {"train": "a/train.csv b/train.csv", "test": "b/deep/er/test.csv"},
            "",
        ),
        ("train.jsonl eval/a.csv", {"train": "train.jsonl", "test": "eval/a.csv"}, ""),
        (
            "train/a.jsonl train/b.jsonl test.jsonl",
            {"train": "train/a.jsonl train/b.jsonl", "test": "test.jsonl"},
            "",
        ),
        ("a.jsonl old/b.jsonl", {"train": "a.jsonl"}, "has files itself: old/b.jsonl."),
        ("TRAIN.JSONL Test.CSV.GZ", {"train": "TRAIN.JSONL", "test": "Test.CSV.GZ"}, ""),
        ("train.jsonl test.csv", {"train": "train.jsonl", "test": "test.csv"}, ""),
        (
            "a.jsonl notes.txt README.md .hidden.jsonl .git/a.jsonl requirements.txt",
            {"train": "a.jsonl"},
            "",
        ),
        ("a.txt b.txt requirements.txt", {"train": "a.txt b.txt"}, "2 texts, each a document"),
        ("test.jsonl", {"test": "test.jsonl"}, ""),
    ],
)
def test_folders_hold_splits(
    names: str,
    splits: dict[str, str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = _folder(tmp_path / "train" / "mine ü", *names.split())
    assert _read(folder) == {split: sorted(found.split()) for split, found in splits.items()}
    shown = capsys.readouterr().out
    assert said in shown if said else "Left out" not in shown


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ((), "holds no .jsonl.* file to train on"),
        (("notes.md", "a.zip"), "holds no .jsonl.* file to train on"),
        (("a.jsonl", "b.csv"), "mixes .csv, .jsonl in one split"),
    ],
)
def test_folders_without_a_table_are_refused(
    names: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=complaint):
        files.read(_folder(tmp_path, *names))


def test_an_empty_part_of_many_is_no_fault(tmp_path: Path) -> None:
    _write(tmp_path / "part-0.parquet", _parquet(TABLE.slice(0, 0)))  # as Spark writes them
    _write(tmp_path / "part-1.parquet", _parquet())
    assert _only(tmp_path) == ROWS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test.jsonl", "test.jsonl is trained on, since it was named itself, whatever its name"),
        ("train.jsonl", "Beside train.jsonl lies a held-out split: name the folder to be scored"),
        ("rows.jsonl", ""),
    ],
)
def test_a_file_that_was_named_itself_is_trained_on_alone(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder(tmp_path, "train.jsonl", "test.jsonl", "rows.jsonl")
    assert _read(tmp_path / name) == {"train": [name]}
    shown = capsys.readouterr().out
    assert shown.startswith(said) and shown.count("\n") == bool(said)


def test_files_of_a_folder_are_said_by_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a/train.jsonl", "b/train.jsonl", "b/software_testing.csv")
    assert {*_read(_folder(tmp_path / "mine", *names))} == {"train", "test"}
    said = "Files of mine: train: a/train.jsonl, b/train.jsonl; test: b/software_testing.csv."
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["-00000-of-00001.parquet", ".jsonl"])
def test_several_splits_of_a_kind_stay_apart(ending: str, tmp_path: Path) -> None:
    names = [f"{split}_{kind}{ending}" for split in ("train", "test") for kind in ("sft", "gen")]
    folder = _folder(tmp_path / "data", *names)
    assert {*_read(folder)} == {"train_sft", "train_gen", "test_sft", "test_gen"}
    chosen = files.train_and_test(files.read(folder), "mine", {})
    assert [rows["file"][0] for rows in chosen.values()] == [names[0], names[2]]
    asked = {"train_gen": "train", "test_gen": "test"}
    chosen = files.train_and_test(files.read(folder), "mine", asked)
    assert [rows["file"][0] for rows in chosen.values()] == [names[1], names[3]]


def test_parts_of_one_split_are_one(tmp_path: Path) -> None:
    assert {*_read(_folder(tmp_path, "train_1.jsonl", "train_2.jsonl"))} == {"train"}


def test_what_trainers_and_tools_leave_is_no_data(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "mine.jsonl", "package.json", "eval_results.json")
    assert _read(folder) == {"train": ["mine.jsonl"]}


def test_texts_beside_a_table_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(tmp_path, "index.csv", "a.txt", "b.txt")
    assert _read(folder) == {"train": ["index.csv"]}
    assert "a.txt, b.txt. To train on plain text" in capsys.readouterr().out


def test_a_folder_apart_is_another_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(tmp_path, "data/a.jsonl", "chat/talks.jsonl")
    assert {*files.read(folder, "chat")["train"]["file"]} == {"data/a.jsonl"}
    assert len(files.read(folder)["train"]) == 2
    mine = _folder(tmp_path / "other", "a.jsonl", "chat/talks.jsonl")
    capsys.readouterr()
    assert len(files.read(mine, "chat")["train"]) == 1
    assert "Left out" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", ""])
def test_what_may_not_be_read_is_said_with_the_mend(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root may read everything, so the refusal is played."""
    folder = _folder(tmp_path / "mine", "a.jsonl", "a.parquet")

    def refuse(path: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    for method in ("open", "read_bytes", "iterdir"):
        monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(DataError, match="may not be read by you: `chmod"):
        files.read(folder / name if name else folder)


def test_a_device_is_no_data_set() -> None:
    with pytest.raises(DataError, match="/dev/null is neither a file nor a folder"):
        files.read(Path("/dev/null"))


# --- Folders of the Hub, and of `save_to_disk` ----------------------------------------------

HUB = ("data/train-0.parquet", "data/test-0.parquet", "more/a.jsonl", "more/notes.md", "stray.csv")


def _with_card(folder: Path, configs: Any) -> Path:
    _folder(folder, *HUB)
    _write(folder / "README.md", f"---\nconfigs: {json.dumps(configs)}\n---\n# Mine\n")
    return folder


def _config(data_files: Any, name: str = "default") -> dict[str, Any]:
    return {"config_name": name, "data_files": data_files}


TRAIN = {"split": "train", "path": "data/train-*"}
TEST = {"split": "test", "path": ["data/test-*"]}
TWO = [_config([TRAIN, TEST], "main"), _config("more/*", "extra")]


@pytest.mark.parametrize(
    ("configs", "chosen", "splits"),
    [
        ([_config([TRAIN, TEST])], "", {"train": HUB[:1], "test": HUB[1:2]}),
        ([_config([TRAIN, TEST])], "default", {"train": HUB[:1], "test": HUB[1:2]}),
        (
            [_config({"train": "data/train-*", "test": "data/test-*"})],
            "",
            {"train": HUB[:1], "test": HUB[1:2]},
        ),
        # Without splits the Hub trains on all of them. Here their names count.
        ([_config("data/*.parquet")], "", {"train": HUB[:1], "test": HUB[1:2]}),
        ([_config(["data/*.parquet"])], "", {"train": HUB[:1], "test": HUB[1:2]}),
        ([_config("more/*")], "", {"train": HUB[2:3]}),
        ([_config([{"split": "held", "path": "**/a.jsonl"}])], "", {"held": HUB[2:3]}),
        ([{"config_name": "x", "data_dir": "data"}], "", {"train": HUB[:1], "test": HUB[1:2]}),
        ([{"config_name": "x", "data_dir": "data", "data_files": "te*"}], "", {"train": HUB[1:2]}),
        (TWO, "main", {"train": HUB[:1], "test": HUB[1:2]}),
        (TWO, "extra", {"train": HUB[2:3]}),
        ([*TWO, _config("stray.csv")], "", {"train": HUB[4:]}),
        ([], "", {"train": HUB[4:]}),
    ],
)
def test_the_card_of_a_folder_names_its_files(
    configs: Any,
    chosen: str,
    splits: dict[str, tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COOKBOOK_CONFIG", chosen)
    folder = _with_card(tmp_path, configs)
    if not configs:  # a card that names none: the folder's own files
        (folder / "data" / "test-0.parquet").unlink()
        (folder / "data" / "train-0.parquet").unlink()
    assert _read(folder) == {split: sorted(names) for split, names in splits.items()}


@pytest.mark.parametrize(
    ("configs", "chosen", "complaint"),
    [
        (TWO, "", "has the configurations main, extra: choose one, COOKBOOK_CONFIG=main"),
        (TWO, "third", "has the configurations main, extra"),
        ([_config([TRAIN])], "third", "has the configurations default"),
        ([_config("absent/*")], "", "names absent/.*, but no .* file is called so: download it"),
        ([_config("more/*.md")], "", "names more/.*.md, but no"),
        ([_config("/data/x.jsonl")], "", "names /data/x.jsonl, but no"),
    ],
)
def test_a_card_that_leaves_open_what_is_meant_is_refused(
    configs: Any, chosen: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_CONFIG", chosen)
    with pytest.raises(DataError, match=complaint):
        files.read(_with_card(tmp_path, configs))


def test_saved_data_sets_are_read_without_what_lies_beside(tmp_path: Path) -> None:
    rows = {name: Dataset.from_list([{"file": name}]) for name in ("train", "test")}
    DatasetDict(rows).save_to_disk(tmp_path / "two")
    rows["train"].save_to_disk(tmp_path / "one")
    for name, one in rows.items():
        one.save_to_disk(tmp_path / "apart" / name)
    for folder in ("two/train", "one", "apart/train"):
        stray = tmp_path / folder / "cache-0ca05fc271ea40df.arrow"  # a result that `map` kept
        stray.write_bytes(next((tmp_path / folder).glob("data-*.arrow")).read_bytes())
    assert _read(tmp_path / "two") == {"train": ["train"], "test": ["test"]}
    assert _read(tmp_path / "one") == {"train": ["train"]}
    assert _read(tmp_path / "apart") == {"train": ["train"], "test": ["test"]}
    next((tmp_path / "one").glob("data-*.arrow")).unlink()
    with pytest.raises(DataError, match="one cannot be read.*Save the data set anew"):
        files.read(tmp_path / "one")


def test_saved_conversations_have_their_own_keys(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "x"}], [{"role": "tool", "name": "f", "content": "y"}]]
    Dataset.from_dict({"messages": turns}).save_to_disk(tmp_path / "mine")
    assert [row["messages"] for row in _only(tmp_path / "mine")] == turns


# --- Columns and splits by other names ------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ("", {"frage": "q", "antwort": "a", "input": "i"}),
        ("frage=prompt,antwort=completion", {"prompt": "q", "completion": "a", "input": "i"}),
        (
            " frage = prompt , antwort = completion ",
            {"prompt": "q", "completion": "a", "input": "i"},
        ),
        ("frage=antwort,antwort=frage", {"antwort": "q", "frage": "a", "input": "i"}),
        ("frage=input", {"input": "q", "antwort": "a"}),
        ("frage=frage", {"frage": "q", "antwort": "a", "input": "i"}),
    ],
)
def test_columns_get_the_names_that_were_said(
    said: str, row: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_COLUMNS", said)
    rows = Dataset.from_list([{"frage": "q", "antwort": "a", "input": "i"}])
    assert list(files.renamed(DatasetDict(train=rows), files.renaming("COLUMNS"))["train"]) == [row]


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (
            "fragen=prompt",
            "COOKBOOK_COLUMNS names fragen; the train split has the columns frage, a",
        ),
        ("frage", "COOKBOOK_COLUMNS is 'frage': pairs are needed, theirs=ours"),
        ("frage=", "pairs are needed"),
        ("frage=a=b", "pairs are needed"),
        ("frage=prompt,a=prompt", "COOKBOOK_COLUMNS calls two columns the same"),
    ],
)
def test_wrong_names_of_columns_are_refused(
    said: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_COLUMNS", said)
    with pytest.raises(DataError, match=complaint):
        files.renamed(
            DatasetDict(train=Dataset.from_list([{"frage": "q", "a": "b"}])),
            files.renaming("COLUMNS"),
        )


@pytest.mark.parametrize(
    ("there", "asked", "train", "test", "said"),
    [
        ("train test", "", "train", "test", ""),
        ("test train", "", "train", "test", ""),
        ("train", "", "train", None, ""),
        ("all", "", "all", None, "Splits: all as train ("),
        ("train validation", "", "train", "validation", "Splits: validation as test ("),
        ("train test validation", "", "train", "test", "train and test; left out: validation ("),
        ("train val_a val_b test", "", "train", "test", "train and test; left out: val_a, val_b ("),
        (
            "train_sft test_sft",
            "",
            "train_sft",
            "test_sft",
            "train_sft as train, test_sft as test (",
        ),
        (
            "train_sft test_sft train_gen test_gen",
            "",
            "train_sft",
            "test_sft",
            "left out: train_gen, test_gen (",
        ),
        (
            "train_sft test_gen train_gen test_sft",
            "train_gen=train,test_gen=test",
            "train_gen",
            "test_gen",
            "left out: train_sft, test_sft (",
        ),
        ("train train_extra dev", "", "train", "dev", "dev as test; left out: train_extra ("),
        ("train unsupervised", "", "train", None, "left out: unsupervised ("),
        ("test", "test=train", "test", None, "Splits: test as train ("),
        ("de en", "en=train", "en", None, "en as train; left out: de ("),
        ("a b", "b = train , a=test", "b", "a", "b as train, a as test ("),
    ],
)
def test_the_right_splits_are_taken(
    there: str,
    asked: str,
    train: str,
    test: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COOKBOOK_SPLITS", asked)
    splits = {name: Dataset.from_list([{"split": name}]) for name in there.split()}
    taken = files.train_and_test(DatasetDict(splits), "mine", files.renaming("SPLITS"))
    found = {ours: rows[0]["split"] for ours, rows in taken.items()}
    assert found == {"train": train} | ({"test": test} if test else {})
    shown = capsys.readouterr().out
    assert said in shown and shown.count("\n") == bool(said)


@pytest.mark.parametrize(
    ("there", "asked", "complaint"),
    [
        (
            "test",
            "",
            "no split of mine is to be trained on: test. Say which: COOKBOOK_SPLITS=test=train",
        ),
        ("validation", "", "no split of mine is to be trained on: validation"),
        ("de en", "", "no split of mine is to be trained on: de, en"),
        ("train_a train_b", "", "Say which to take: COOKBOOK_SPLITS=train_a=train"),
        ("train test_a test_b", "", "Say which to take: COOKBOOK_SPLITS=train=train,test_a=test"),
        ("train dev_a dev_b", "", "Say which to take: COOKBOOK_SPLITS=train=train,dev_a=test"),
        (
            "train test",
            "trian=train",
            "COOKBOOK_SPLITS is 'trian=train'.*has the splits train, test",
        ),
        (
            "train test",
            "train=train,test=tset",
            "one split has to be `train`, and one may be `test`",
        ),
        ("train test", "test=test", "one split has to be `train`"),
        ("a b", "a=train,b=train", "one split has to be `train`"),
        ("a b", "a", "COOKBOOK_SPLITS is 'a': pairs are needed"),
    ],
)
def test_splits_that_names_do_not_tell_are_refused(
    there: str, asked: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_SPLITS", asked)
    splits = {name: Dataset.from_list([{"split": name}]) for name in there.split()}
    with pytest.raises(DataError, match=complaint):
        files.train_and_test(DatasetDict(splits), "mine", files.renaming("SPLITS"))
