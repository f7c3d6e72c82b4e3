"""Files that people have: mostly right, with one or several things wrong in them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from hypothesis import strategies as st
from pyarrow import parquet

Row = dict[str, Any]
LONGEST = 20_000  # characters of a giant text

SELDOM = st.sampled_from([False] * 5 + [True])
# A wrong byte ends most files at once; what comes after the reader has to be reached as well.
HARDLY_EVER = st.sampled_from([False] * 15 + [True])

words = st.lists(
    st.sampled_from("the sum of is 12 85 net sales rose fell what".split()), max_size=12
)
plain = words.map(" ".join)
strange = st.text(max_size=30)  # any characters, also of no script, and control characters
giant = st.integers(1_000, LONGEST).map(lambda length: "long " * (length // 5))
hostile = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>assistant",
        "</s>",
        "<pad>",
        "<think>",
        "#### ",
        "{{ 7 * 7 }}",
        "{% raise %}",
        "\x00",
        "\u2028",
        "\ufeff",
        "NaN",
        "None",
    ]
)
no_text = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.lists(st.integers(), max_size=2)
)
texts = st.one_of(plain, plain, plain, strange, hostile)
labels = st.sampled_from(["positive", "negative", "neutral", "", "POSITIVE", "7"])
roles = st.sampled_from(["user", "assistant", "system", "tool", "robot", "", None, 3])


@st.composite
def worked(draw: st.DrawFn) -> str:
    """A solution with or without the line that recipes look for."""
    ends = [
        "\n#### 85",
        "\n#### 85",
        "\n#### 3.5",
        "\n#### ",
        " 85",
        "\n#### 1/2\n#### 3",
        "</think>85",
    ]
    return draw(st.sampled_from([*[""] * 5, "<think>"])) + draw(plain) + draw(st.sampled_from(ends))


@st.composite
def turns(draw: st.DrawFn) -> list[Any]:
    """A conversation: in turns as it should be, or with anything wrong."""
    if draw(st.booleans()):
        pairs = draw(st.integers(1, 3))
        said = draw(st.lists(plain, min_size=2 * pairs, max_size=2 * pairs))
        who = ["user", "assistant"] * pairs
        return [{"role": role, "content": text} for role, text in zip(who, said, strict=True)]
    turn = st.fixed_dictionaries(
        {}, optional={"role": roles, "content": st.one_of(texts, st.none(), st.integers())}
    )
    return draw(st.lists(turn, max_size=5))


def row(columns: tuple[str, ...]) -> st.SearchStrategy[Row]:
    """A row with these columns, most values of the right kind."""
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "label": labels,
        "completion": st.one_of(*[worked()] * 5, texts),
        "answer": st.sampled_from(["85", "-3", "1,200", "1/2", "", "eighty"]),
        "messages": turns(),
        "rating": st.sampled_from([1, 2, 3.5, 5, "4", "", None, "good", True]),
    }
    return st.fixed_dictionaries({name: kinds.get(name, texts) for name in columns})


SHAPES = (
    ("prompt", "completion"),
    ("prompt", "completion", "answer"),
    ("prompt", "answer"),
    ("messages",),
    ("text",),
    ("text", "label"),
    ("document", "summary"),
    ("question", "reply"),
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "completion", "rating"),
    ("prompt", "completion", "label"),
)


@st.composite
def rows(draw: st.DrawFn, usual: tuple[str, ...]) -> list[Row]:
    """A table, most of them with the columns that the recipe wants."""
    columns = draw(st.sampled_from(SHAPES) if draw(SELDOM) else st.just(usual))
    found = draw(st.lists(row(columns), min_size=draw(st.sampled_from([0, 3, 8])), max_size=12))
    if not draw(SELDOM):  # so that a test split can be cut: enough rows, and no two alike
        found = [number(one, columns[0], n) for n, one in enumerate(4 * found)]
    most = draw(st.sampled_from([0, 0, 1, 2]))
    faults = draw(st.lists(st.sampled_from(FAULTS), max_size=most, unique=True))
    dice = random.Random(draw(st.integers(0, 2**32)))
    if len(columns) > 1 and draw(st.booleans()):  # the same rows, kept in another form
        found = draw(st.sampled_from(FORMS))(found, columns[0], columns[1])
    for fault in faults:
        found = fault(found, dice, draw) if found else found
    return found


def in_messages(found: list[Row], asked: str, answered: str) -> list[Row]:
    """Keep rows as conversations, some of two questions."""
    kept = []
    for n, one in enumerate(found):
        turns = [("user", one[asked]), ("assistant", one[answered])] * (1 + n % 2)
        kept.append({"messages": [{"role": role, "content": said} for role, said in turns]})
    return kept


def in_sharegpt(found: list[Row], asked: str, answered: str) -> list[Row]:
    """Keep rows as ShareGPT has them, with a system text in a column of its own."""
    pairs = [[("human", one[asked]), ("gpt", one[answered])] for one in found]
    return [
        {"system": "Be short.", "conversations": [{"from": a, "value": b} for a, b in pair]}
        for pair in pairs
    ]


def in_alpaca(found: list[Row], asked: str, answered: str) -> list[Row]:
    """Keep rows as instructions, some of which are about something."""
    return [
        {"instruction": one[asked], "input": "" if n % 2 else "this", "output": one[answered]}
        for n, one in enumerate(found)
    ]


def in_trl(found: list[Row], asked: str, answered: str) -> list[Row]:
    """Keep rows as TRL's conversational form, with what else they have."""
    return [
        one
        | {
            "prompt": [{"role": "user", "content": one[asked]}],
            "completion": [{"role": "assistant", "content": one[answered]}],
        }
        for one in found
    ]


def in_parts(found: list[Row], asked: str, answered: str) -> list[Row]:
    """Keep rows as messages whose content is a list of parts, a question without."""
    return [
        {
            "messages": [
                {"role": "user", "content": one[asked]},
                {"role": "model", "content": [{"type": "text", "text": one[answered]}]},
            ]
        }
        for one in found
    ]


def in_questions(found: list[Row], asked: str, answered: str) -> list[Row]:
    """Keep rows as questions and answers."""
    return [{"question": one[asked], "answer": one[answered]} for one in found]


def with_tools(found: list[Row], asked: str, answered: str) -> list[Row]:
    """Keep rows as conversations in which a tool is called before the answer."""
    kept = []
    for n, one in enumerate(found):
        arguments: Any = {f"name{n % 3}": n}
        call = {"name": "look", "arguments": json.dumps(arguments) if n % 2 else arguments}
        turns = [
            {"role": "user", "content": one[asked]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
            {"role": "tool", "content": "seen"},
            {"role": "assistant", "content": one[answered]},
        ]
        kept.append({"tools": [{"type": "function", "function": LOOK}], "messages": turns})
    return kept


LOOK = {
    "name": "look",
    "description": "Look.",
    "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
}
FORMS: tuple[Callable[[list[Row], str, str], list[Row]], ...] = (
    *(in_messages, in_sharegpt, in_alpaca, in_trl, in_parts, in_questions, with_tools),
)


def number(one: Row, name: str, n: int) -> Row:
    """Tell copies of a row apart by words of their own."""
    if isinstance(one[name], list):
        return one
    length = 60 if list(one) == ["text"] else 8  # the words of a text that is cut into blocks
    return one | {name: f"{one[name]} {' '.join(f'word{n}{place}' for place in range(length))}"}


def wrong_type(found: list[Row], dice: random.Random, draw: st.DrawFn) -> list[Row]:
    """Put something that is no text into a row."""
    name = dice.choice(sorted(found[0]))
    found[dice.randrange(len(found))][name] = draw(no_text)
    return found


def another_type(found: list[Row], dice: random.Random, draw: st.DrawFn) -> list[Row]:
    """Give a whole column one type, as tables have it, that is no text."""
    name = dice.choice(sorted(found[0]) or ["text"])
    kind = draw(st.sampled_from(OTHER_TYPES))
    return [one | {name: kind(n)} for n, one in enumerate(found)]


OTHER_TYPES: tuple[Callable[[int], Any], ...] = (
    lambda n: n,
    lambda n: n + 0.5,
    lambda n: n % 2 == 0,
    lambda n: None,
    lambda n: [f"part {n}"],
    lambda n: {"value": f"text {n}"},
)


def missing_column(found: list[Row], dice: random.Random, draw: st.DrawFn) -> list[Row]:
    """Leave a column out of a row."""
    one = dice.choice(found)
    if one:
        one.pop(dice.choice(sorted(one)))
    return found


def extra_column(found: list[Row], dice: random.Random, draw: st.DrawFn) -> list[Row]:
    """Add a column to one row or to all."""
    for one in found if dice.random() < 0.5 else found[:1]:
        one[draw(st.sampled_from(["extra", "input_ids", "labels", "unseen", "text"]))] = draw(texts)
    return found


def duplicates(found: list[Row], dice: random.Random, draw: st.DrawFn) -> list[Row]:
    """Repeat rows, also across what will be the test split."""
    return found * draw(st.integers(2, 6))


def one_giant(found: list[Row], dice: random.Random, draw: st.DrawFn) -> list[Row]:
    """Make a text longer than any context."""
    one = dice.choice(found)
    if one:
        one[dice.choice(sorted(one))] = draw(giant)
    return found


def all_empty(found: list[Row], dice: random.Random, draw: st.DrawFn) -> list[Row]:
    """Empty a column in every row."""
    name = dice.choice(sorted(found[0]) or ["text"])
    return [one | {name: dice.choice(["", " ", "\t"])} for one in found]


FAULTS = (wrong_type, another_type, missing_column, extra_column, duplicates, one_giant, all_empty)


@st.composite
def jsonl(draw: st.DrawFn, found: list[Row]) -> bytes:
    """The bytes of a file of JSON lines, at times with a line that is none."""
    lines = [json.dumps(one, ensure_ascii=draw(st.booleans())) for one in found]
    data = [line.encode("utf-8", "surrogatepass") for line in lines]
    if draw(HARDLY_EVER):
        data.insert(draw(st.integers(0, len(data))), draw(st.sampled_from(DAMAGES)))
    ending = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"]))
    return draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"])) + ending.join(data) + ending


@st.composite
def csv_table(draw: st.DrawFn, found: list[Row], separator: str) -> bytes:
    """The bytes of a CSV file, at times with a row of other length, or a quote that never ends."""
    table = io.StringIO()
    names = list(dict.fromkeys(name for one in found for name in one))
    quoting: Any = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.DictWriter(table, names, delimiter=separator, quoting=quoting)
    writer.writeheader()
    writer.writerows(found)
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    content = table.getvalue().encode(encoding, "surrogatepass")
    if draw(HARDLY_EVER):
        content += draw(
            st.sampled_from([b'"never ends\n', b"a,b,c,d,e,f,g\n", b"\xff,\xfe\n", b"\x00"])
        )
    return content


def column(values: list[Any]) -> pa.Array:
    """One column as Parquet has it, of one type: text in JSON's escapes where there are several."""
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return pa.array([json.dumps(value) for value in values])


@st.composite
def parquet_table(draw: st.DrawFn, found: list[Row]) -> bytes:
    """The bytes of a Parquet file, of types that other tools write, at times with a wrong byte."""
    names = dict.fromkeys(name for one in found for name in one)
    columns = {name: column([one.get(name) for one in found]) for name in names}
    for name, values in columns.items():
        if pa.types.is_string(values.type):
            write = draw(st.sampled_from(TEXT_TYPES))
            columns[name] = write(values)
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    content = bytearray(file.getvalue())
    if draw(HARDLY_EVER):
        content[draw(st.integers(0, len(content) - 1))] ^= 0x5A
    return bytes(content)


TEXT_TYPES: tuple[Callable[[pa.Array], pa.Array], ...] = (
    lambda values: values,
    lambda values: values,
    lambda values: values.cast(pa.large_string()),
    lambda values: values.cast(pa.binary()),  # as writers that know no text do
    lambda values: values.dictionary_encode(),  # a category, as pandas says
)


@st.composite
def any_file(draw: st.DrawFn, usual: tuple[str, ...]) -> tuple[str, bytes]:
    """A file's ending and its bytes, at times cut off in the middle as by a full disk."""
    found = draw(rows(usual))
    kind = draw(st.sampled_from(KINDS))
    if kind in ("csv", "tsv"):
        content = draw(csv_table(found, draw(st.sampled_from(SEPARATORS[kind]))))
    elif kind == "parquet":
        content = draw(parquet_table(found))
    elif kind == "arrow":
        content = arrow_table(found)
    elif kind == "txt":
        content = "\n\n".join(str(value) for one in found for value in one.values()).encode(
            "utf-8", "surrogatepass"
        )
    elif kind == "json":
        content = json.dumps(draw(st.sampled_from([found, {"data": found}]))).encode()
    else:
        content = draw(jsonl(found))
    if draw(HARDLY_EVER):
        content = content[: len(content) // 2]
    if draw(SELDOM):
        packed = draw(st.sampled_from(sorted(PACKED)))
        kind, content = f"{kind}.{packed}", PACKED[packed](content)
        if draw(HARDLY_EVER):
            content = content[: len(content) // 2]
    return (kind.upper() if draw(SELDOM) else kind), content


KINDS = ["jsonl", "jsonl", "jsonl", "json", "csv", "csv", "tsv", "parquet", "arrow", "txt"]
SEPARATORS = {"csv": [",", ",", ";", "|"], "tsv": ["\t"]}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def arrow_table(found: list[Row]) -> bytes:
    """The bytes of an Arrow file."""
    names = dict.fromkeys(name for one in found for name in one)
    table = pa.table({name: column([one.get(name) for one in found]) for name in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


DAMAGES = (
    b'{"prompt": "half',
    b"not json",
    b"null",
    b"[1, 2]",
    b"{}",
    b"85",
    b'{"prompt": "\xff\xfe", "completion": "b", "text": "c", "label": "d", "answer": "1"}',
    b'{"prompt": "a", "prompt": "b"}',
    b"\x00\x00",
    b"",
)


def right(columns: tuple[str, ...], count: int = 60) -> bytes:
    """The bytes of a file of `count` rows with which nothing is wrong."""
    rows = []
    length = 400 if columns == ("text",) else 8  # the words of a text that is cut into blocks
    for n in range(count):
        own = " ".join(f"word{n}{place}" for place in range(length))
        values = {"label": ["positive", "negative"][n % 2], "completion": f"{own}\n#### {n}"}
        values |= {"chosen": f"{own} yes", "rejected": f"{own} no"}
        rows.append({name: values.get(name, own) for name in columns} | {columns[0]: own})
        if "answer" in columns:
            rows[-1]["answer"] = str(n)
    return "\n".join(map(json.dumps, rows)).encode()


def folder(path: Path, columns: tuple[str, ...], count: int) -> Path:
    """Write a folder with `count` training rows and one test row, none alike."""
    *train, test = right(columns, count + 1).splitlines(keepends=True)
    path.mkdir()
    (path / "train.jsonl").write_bytes(b"".join(train))
    (path / "test.jsonl").write_bytes(test)
    return path
