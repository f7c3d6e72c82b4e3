"""Rows as people have them are recognised, said, and become the right turns of a conversation."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from cookbook import files, forms
from cookbook.data import DataError

pytestmark = pytest.mark.unit


def _rows(*rows: dict[str, Any]) -> Dataset:
    return files.table_of(rows, "mine")


def _said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


def _from(role: str, value: Any) -> dict[str, Any]:
    return {"from": role, "value": value}


def _call(arguments: Any, **more: Any) -> dict[str, Any]:
    return more | {"type": "function", "function": {"name": "f", "arguments": arguments}}


def _turns(made: Dataset) -> list[list[str]]:
    """Return the turns of each row as `role: content`, the completion's with a star."""
    return [
        [f"{turn['role']}: {turn['content']}" for turn in row["prompt"]]
        + [f"*{turn['role']}: {turn['content']}" for turn in row["completion"]]
        for row in made
    ]


ASKED = ["user: q", "*assistant: a"]
EARLIER = ["user: q", "assistant: a"]
TOLD = ["system: s", "user: q", "*assistant: a"]
DEEP = ["user: q1", "assistant: a1", "user: q", "*assistant: a"]
TALK = [_said("user", "q"), _said("assistant", "a")]
SHARED = [_from("human", "q"), _from("gpt", "a")]
TEXT = [{"type": "text", "text": "q"}]
DATA = ["user: q", '*assistant: [{"from": "x", "to": "y"}]']
USERS = ["user: q", '*assistant: [{"role": "user", "name": "y"}]']


@pytest.mark.parametrize(
    ("row", "form", "turns"),
    [
        # Prompt and completion, as text or as messages (TRL).
        (
            {"prompt": "q", "completion": "a"},
            "prompts and completions in `prompt`, `completion`",
            ASKED,
        ),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, "prompts and completions", ASKED),
        ({"prompt": TALK[:1], "completion": "a"}, "prompts and completions", ASKED),
        ({"prompt": "q", "completion": TALK[1:]}, "prompts and completions", ASKED),
        ({"prompt": json.dumps(TALK[:1]), "completion": json.dumps(TALK[1:])}, "prompts", ASKED),
        ({"prompt": [_said("system", "s"), TALK[0]], "completion": TALK[1:]}, "prompts", TOLD),
        ({"prompt": SHARED[:1], "completion": SHARED[1:]}, "prompts and completions", ASKED),
        ({"prompt": 7, "completion": 8.5}, "prompts", ["user: 7", "*assistant: 8.5"]),
        ({"prompt": "[1, 2]", "completion": "{}"}, "prompts", ["user: [1, 2]", "*assistant: {}"]),
        ({"prompt": "q", "response": "a"}, "prompts and responses in `prompt`, `response`", ASKED),
        ({"prompt": "q", "answer": "a"}, "prompts and answers in `prompt`, `answer`", ASKED),
        ({"document": "q", "summary": "a"}, "documents and summaries", ASKED),
        ({"query": "q", "response": "a"}, "queries and responses in `query`, `response`", ASKED),
        ({"input": "q", "output": "a"}, "inputs and outputs in `input`, `output`", ASKED),
        ({"question": "q", "answer": "a"}, "questions and answers in `question`, `answer`", ASKED),
        ({"question": "q", "answer": 42}, "questions and answers", ["user: q", "*assistant: 42"]),
        ({"question": "q", "completion": "a", "answer": "b"}, "questions and completions", ASKED),
        ({"problem": "q", "solution": "a", "answer": "b"}, "problems and solutions", ASKED),
        ({"prompt": "q", "completion": TALK}, "prompts and completions", ASKED),
        ({"prompt": "q", "completion": '[{"from": "x", "to": "y"}]'}, "prompts", DATA),
        ({"prompt": "q", "completion": '[{"role": "user", "name": "y"}]'}, "prompts", USERS),
        # Conversations.
        ({"chat": TALK}, "conversations in `chat`", ASKED),
        ({"dialogue": "A: hi", "document": "q", "summary": "a"}, "documents and summaries", ASKED),
        ({"messages": repr(TALK)}, "conversations in `messages`", ASKED),
        ({"messages": [{"role": "user", "text": "q"}, TALK[1]]}, "conversations", ASKED),
        ({"messages": [{"role": "user", "parts": [{"text": "q"}]}, TALK[1]]}, "conv", ASKED),
        ({"messages": [_said("human", "q"), _said("AI", "a")]}, "conversations", ASKED),
        ({"messages": TALK, "system": [{"type": "text", "text": "s"}]}, "conversations", TOLD),
        ({"messages": TALK, "system": ["s"]}, "conversations", TOLD),
        ({"messages": [_said("system", ""), *TALK], "system": "s"}, "conversations", TOLD),
        ({"messages": TALK, "system_message": "s"}, "conversations", TOLD),
        ({"messages": TALK}, "conversations in `messages`", ASKED),
        ({"messages": json.dumps(TALK)}, "conversations in `messages`", ASKED),
        ({"conversation": TALK}, "conversations in `conversation`", ASKED),
        ({"messages": [_said("developer", "s"), *TALK]}, "conversations", TOLD),
        ({"messages": [_said("System ", " s\n"), *TALK]}, "conversations", TOLD),
        ({"messages": [_said("system", ""), *TALK]}, "conversations", ASKED),
        ({"messages": [_said("system", None), *TALK]}, "conversations", ASKED),
        ({"messages": [_said("user", "q"), _said("model", "a")]}, "conversations", ASKED),
        ({"messages": [_said("prompter", "q"), _said("bot", "a")]}, "conversations", ASKED),
        (
            {"messages": [_said("user", "h"), *TALK]},
            "conv",
            ["user: h", "user: q", "*assistant: a"],
        ),
        (
            {"messages": [_said("user", 0), _said("assistant", 1)]},
            "c",
            ["user: 0", "*assistant: 1"],
        ),
        (
            {"messages": [_said("user", 1), _said("assistant", True)]},
            "c",
            ["user: 1", "*assistant: true"],
        ),
        ({"messages": [_said("user", TEXT), TALK[1]]}, "conversations", ASKED),
        ({"messages": [_said("user", ["q"]), TALK[1]]}, "conversations", ASKED),
        ({"messages": [_said("user", {"parts": ["q"]}), TALK[1]]}, "conversations", ASKED),
        ({"messages": [_said("user", [{"type": "input_text", "text": "q"}]), TALK[1]]}, "c", ASKED),
        ({"messages": [_said("user", TEXT * 2), TALK[1]]}, "c", ["user: q\nq", "*assistant: a"]),
        ({"messages": [*TALK, _said("user", "left out")]}, "conversations", ASKED),
        (
            {"messages": [_said("user", "q1"), _said("assistant", "a1"), *TALK]},
            "conversations",
            DEEP,
        ),
        ({"prompt": "q", "messages": TALK}, "conversations in `messages`", ASKED),
        # ShareGPT.
        ({"conversations": SHARED}, "ShareGPT conversations in `conversations`", ASKED),
        ({"conversations": json.dumps(SHARED)}, "ShareGPT conversations", ASKED),
        ({"conversations": [_from("system", "s"), *SHARED]}, "ShareGPT conversations", TOLD),
        ({"conversations": SHARED, "system": "s"}, "ShareGPT conversations", TOLD),
        ({"conversations": [_from("user", "q"), _from("chatgpt", "a")]}, "ShareGPT", ASKED),
        ({"conversations": [_from("human", "q1"), _from("gpt", "a1"), *SHARED]}, "ShareGPT", DEEP),
        # Instructions.
        (
            {"instruction": "q", "output": "a"},
            "instructions (Alpaca) in `instruction`, `output`",
            ASKED,
        ),
        ({"instruction": "q", "input": "", "output": "a"}, "instructions (Alpaca)", ASKED),
        ({"instruction": "q", "input": None, "output": "a"}, "instructions (Alpaca)", ASKED),
        (
            {"instruction": "q", "input": " i\n", "output": "a"},
            "instructions (Alpaca) in `instruction`, `input`, `output`",
            ["user: q\n\ni", "*assistant: a"],
        ),
        (
            {"instruction": "q", "context": "c", "response": "a", "category": "x"},
            "instructions (Alpaca) in `instruction`, `context`, `response`",
            ["user: q\n\nc", "*assistant: a"],
        ),
        ({"instruction": "q", "output": "a", "history": [["q1", "a1"]]}, "instructions", DEEP),
        ({"instruction": "q", "output": "a", "history": []}, "instructions", ASKED),
        ({"instruction": "q", "output": "a", "history": ""}, "instructions", ASKED),
        ({"instruction": "q", "output": "a", "history": '[["q1", "a1"]]'}, "instructions", DEEP),
        ({"question": "q", "answer": "a", "history": TALK}, "questions", [*EARLIER, *ASKED]),
        ({"instruction": "q", "output": "a", "system": "s"}, "instructions", TOLD),
        (
            {"question": "q", "context": "c", "answer": "a"},
            "questions and answers in `question`, `context`, `answer`",
            ["user: q\n\nc", "*assistant: a"],
        ),
        (
            {"question": "q", "context": ["c", "d"], "answer": "a"},
            "questions and answers",
            ["user: q\n\nc\nd", "*assistant: a"],
        ),
        # A system text in a column of its own.
        ({"prompt": "q", "completion": "a", "system": "s"}, "prompts and completions", TOLD),
        ({"prompt": "q", "completion": "a", "system": " "}, "prompts and completions", ASKED),
        ({"prompt": "q", "completion": "a", "system_prompt": "s"}, "prompts and completions", TOLD),
        ({"messages": TALK, "system": "s"}, "conversations", TOLD),
        ({"messages": [_said("system", "s"), *TALK], "system": "other"}, "conversations", TOLD),
    ],
)
def test_rows_are_recognised_and_said(
    row: dict[str, Any], form: str, turns: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made = forms.as_conversations(_rows(row, row), "train split")
    assert _turns(made) == [turns, turns]
    assert f"The train split: 2 rows of {form}" in capsys.readouterr().out
    assert not {"messages", "system", "history", "instruction"} & {*made.column_names}


def test_the_line_that_says_what_was_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    forms.as_conversations(_rows(*[{"conversations": SHARED}] * 36))
    expected = "The data: 36 rows of ShareGPT conversations in `conversations`.\n"
    assert capsys.readouterr().out == expected
    forms.as_conversations(_rows({"conversations": SHARED}), quiet=True)
    assert capsys.readouterr().out == ""


def test_messages_in_a_table_of_text_are_read(tmp_path: Path) -> None:
    made = io.StringIO()
    csv.writer(made).writerows([["messages"], [json.dumps(TALK)]])
    (tmp_path / "a.csv").write_text(made.getvalue(), encoding="utf-8")
    assert _turns(forms.as_conversations(files.read(tmp_path / "a.csv")["train"])) == [ASKED]


def test_parquet_does_not_add_keys_to_turns(tmp_path: Path) -> None:
    rows = [
        {"messages": [_said("user", "q"), _said("assistant", None, tool_calls=[_call("{}")])]},
        {"messages": [_said("user", "q", name="Ann"), _said("assistant", "a")]},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    made = forms.as_conversations(files.read(tmp_path / "a.parquet")["train"])
    called = {"role": "assistant", "content": "", "tool_calls": [_call({})]}
    assert [row["completion"][0] for row in made] == [called, _said("assistant", "a")]
    assert [row["prompt"][0] for row in made] == [
        _said("user", "q"),
        _said("user", "q", name="Ann"),
    ]


# --- Tools ----------------------------------------------------------------------------------

ARGUMENTS = {"city": "Köln", "n": 2}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "turn",
    [
        _said("assistant", None, tool_calls=[_call(ARGUMENTS)]),
        _said("assistant", None, tool_calls=[_call(json.dumps(ARGUMENTS))]),
        _said("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": ARGUMENTS}}]),
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": ARGUMENTS}]},
        {"role": "assistant", "tool_calls": json.dumps([_call(ARGUMENTS)])},
        _said("assistant", None, function_call={"name": "f", "arguments": json.dumps(ARGUMENTS)}),
        _from("function_call", json.dumps({"name": "f", "arguments": ARGUMENTS})),
        _from("function_call", json.dumps([{"name": "f", "parameters": ARGUMENTS}])),
        _said("function_call", json.dumps({"name": "f", "arguments": ARGUMENTS})),
    ],
)
def test_calls_of_tools_are_answers_in_one_form(turn: dict[str, Any]) -> None:
    asked = _from("human", "q") if "from" in turn else _said("user", "q")
    rows = _rows({"messages": [asked, turn], "tools": json.dumps([TOOL])}, {"messages": TALK})
    made = forms.as_conversations(rows)
    expected = {"role": "assistant", "content": "", "tool_calls": [_call(ARGUMENTS)]}
    assert made[0]["completion"] == [expected]
    assert list(made["tools"]) == [[TOOL], None]


def test_results_of_tools_stand_before_the_answer() -> None:
    call = _said("assistant", None, tool_calls=[_call("{}", id="call_0")])
    result = _said("tool", {"open": True}, tool_call_id="call_0")
    talk = [_said("user", "q"), call, result, _said("assistant", "a")]
    shared = [
        _from("human", "q"),
        _from("function_call", '{"name": "f", "arguments": {}}'),
        _from("observation", '{"open": true}'),
        _from("gpt", "a"),
    ]
    (one,) = forms.as_conversations(_rows({"messages": talk, "tools": [TOOL]}))
    (other,) = forms.as_conversations(_rows({"conversations": shared, "tools": json.dumps([TOOL])}))
    assert one["completion"] == other["completion"] == [_said("assistant", "a")]
    assert one["tools"] == other["tools"] == [TOOL]
    called, told = one["prompt"][1:]
    assert called == _said("assistant", "", tool_calls=[_call({}, id="call_0")])
    assert told == _said("tool", '{"open": true}', tool_call_id="call_0")
    assert other["prompt"][1:] == [
        _said("assistant", "", tool_calls=[_call({})]),
        _said("tool", '{"open": true}'),
    ]


@pytest.mark.parametrize(
    "role", ["tool", "function", "observation", "ipython", "function_response"]
)
def test_what_a_tool_returned_may_be_empty(role: str) -> None:
    (row,) = forms.as_conversations(_rows({"messages": [*TALK, _said(role, ""), TALK[1]]}))
    assert row["prompt"][-1] == _said("tool", "")


def test_what_else_a_turn_holds_stays() -> None:
    more = {"weight": 0, "reasoning_content": "because", "name": "Ann"}
    turns = [TALK[0], _said("assistant", "a", prefix=None, **more)]
    (row,) = forms.as_conversations(_rows({"messages": turns}))
    assert row["completion"] == [_said("assistant", "a", **more)]


# --- What is dropped, and what is refused ---------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " ", "completion": "a"}, "an empty turn"),
        ({"prompt": "q", "completion": None}, "an empty turn"),
        ({"prompt": "q", "completion": float("nan")}, "an empty turn"),
        ({"messages": [_said("user", ""), TALK[1]]}, "an empty turn"),
        ({"messages": [TALK[0], _said("assistant", None)]}, "an empty turn"),
        ({"messages": TALK[1:]}, "no assistant turn after a prompt"),
        ({"messages": TALK[:1]}, "no assistant turn after a prompt"),
        ({"messages": [_said("system", "s"), TALK[1]]}, "no assistant turn after a prompt"),
        ({"messages": []}, "no assistant turn after a prompt"),
        ({"messages": None}, "the conversation is not a list of turns"),
        ({"messages": TALK[0]}, "the conversation is not a list of turns"),
        ({"messages": [1, 2]}, "the conversation is not a list of turns"),
        ({"messages": ["q", "a"]}, "the conversation is not a list of turns"),
        ({"messages": "[{'role': 'user'"}, "the conversation is not a list of turns"),
        ({"messages": [_said("robot", "q"), TALK[1]]}, "a role ('robot') that is not system, user"),
        ({"messages": [{"content": "q"}, TALK[1]]}, "a role ('') that is not system, user"),
        ({"messages": [_said("user", [*TEXT, {"type": "image"}]), TALK[1]]}, "no text (image)"),
        ({"messages": [_said("user", [*TEXT, {}]), TALK[1]]}, "no text (a picture, a file)"),
        (
            {"messages": [_said("user", [{"type": "image_url", "image_url": {}}]), TALK[1]]},
            "no text (image_url)",
        ),
        ({"question": "q", "context": {"a": ["b"]}, "answer": "a"}, "an object where a text"),
        ({"question": "q", "answer": ["Lima", "Lima city"]}, "several answers, where one"),
        ({"prompt": "q", "completion": "a", "label": False}, "an answer to be avoided"),
        (
            {"messages": [TALK[0], _said("assistant", "", tool_calls=[_call("{")])]},
            "no JSON object",
        ),
        (
            {"messages": [TALK[0], _said("assistant", "", tool_calls=[{"id": "x"}])]},
            "without the name",
        ),
        ({"messages": [TALK[0], _from("function_call", "text")]}, "a tool call that is no object"),
        ({"prompt": "q", "completion": "a", "history": 3}, "history is not a list of questions"),
        ({"prompt": "q", "completion": "a", "history": [["q1"]]}, "history is not a list of"),
        ({"messages": TALK, "tools": "f, g"}, "tools is not a list of descriptions"),
    ],
)
def test_rows_that_cannot_be_used_are_counted_or_refused(
    row: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good: dict[str, Any] = (
        {"prompt": "q", "completion": "a"} if "prompt" in row else {"messages": TALK}
    )
    if "question" in row:
        good = {"question": "q", "answer": "a"} | ({"context": ""} if "context" in row else {})
    made = forms.as_conversations(_rows(good, row, good, row), "train split")
    assert _turns(made) == [ASKED, ASKED]
    shown = capsys.readouterr().out
    assert "Dropped 2 rows of the train split: " in shown and reason in shown
    assert shown.count("Dropped") == 1 and "(rows 2, 4)." in shown
    with pytest.raises(DataError, match="The data has no usable row left. Check its prompts"):
        forms.as_conversations(_rows(row))


def test_many_dropped_rows_are_named_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    empty = {"prompt": "", "completion": ""}
    forms.as_conversations(_rows({"prompt": "q", "completion": "a"}, *[empty] * 9), "set")
    assert "Dropped 9 rows of the set: an empty turn (rows 2, 3, 4, 5, 6, ...)." in (
        capsys.readouterr().out
    )


def test_what_follows_the_last_answer_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk = [_said("user", "hello"), _said("assistant", " hi "), _said("user", "unanswered")]
    made = forms.as_conversations(_rows({"messages": talk}, {"messages": TALK}))
    assert _turns(made) == [["user: hello", "*assistant: hi"], ASKED]
    assert (
        "Left out what follows the last answer, in 1 rows of the data." in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "columns", [["frage", "antwort"], ["text", "label"], ["prompt"], ["chosen"]]
)
def test_unknown_columns_are_named(columns: list[str]) -> None:
    named = ", ".join(sorted(columns))
    with pytest.raises(DataError, match=f"columns {named}; needed are.*COOKBOOK_COLUMNS="):
        forms.as_conversations(_rows(dict.fromkeys(columns, "x")))


def test_other_columns_stay_in_their_rows() -> None:
    rows = _rows(
        {"prompt": "q", "completion": "a", "answer": "1", "chat_template_kwargs": {"think": True}},
        {"prompt": "", "completion": "a", "answer": "2", "chat_template_kwargs": None},
        {"prompt": "q", "completion": "a", "answer": "3", "chat_template_kwargs": {"other": [1]}},
    )
    made = forms.as_conversations(rows)
    assert list(made["answer"]) == ["1", "3"]
    assert list(made["chat_template_kwargs"]) == [{"think": True}, {"other": [1]}]


# --- Several readings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "row", "turns", "said"),
    [
        # Nothing is asked: what was taken, and what takes the other.
        (
            "",
            {"messages": TALK, "prompt": "p", "completion": "c"},
            ASKED,
            "could be read as prompts and completions in `prompt`, `completion` too: "
            'COOKBOOK_COLUMNS="prompt=prompt,completion=completion".',
        ),
        (
            "",
            {"messages": TALK, "conversations": SHARED},
            ASKED,
            "could be read as ShareGPT conversations in `conversations` too: "
            'COOKBOOK_COLUMNS="conversations=conversations".',
        ),
        (
            "",
            {"prompt": "q", "completion": "a", "context": "c"},
            ASKED,
            "could be read as prompts and completions in `prompt`, `context`, `completion` too: "
            'COOKBOOK_COLUMNS="prompt=prompt,context=context,completion=completion".',
        ),
        (
            "",
            {"instruction": "q", "output": "a", "prompt": "p"},
            ASKED,
            "read as prompts and outputs in `prompt`, `output` too: "
            'COOKBOOK_COLUMNS="prompt=prompt,out',
        ),
        (
            "",
            {"question": "q", "context": "c", "answer": "a"},
            ["user: q\n\nc", "*assistant: a"],
            'To leave out `context`: COOKBOOK_COLUMNS="context=unused".',
        ),
        # What such a line says is taken.
        (
            "prompt=prompt,completion=completion",
            {"messages": TALK, "prompt": "p", "completion": "c"},
            ["user: p", "*assistant: c"],
            "could be read as conversations in `messages` too: "
            'COOKBOOK_COLUMNS="messages=messages".',
        ),
        (
            "messages=messages",
            {"messages": TALK, "prompt": "p", "completion": "c"},
            ASKED,
            "in `prompt`, `completion` too: "
            'COOKBOOK_COLUMNS="prompt=prompt,completion=completion".',
        ),
        (
            "prompt=prompt,context=context,completion=completion",
            {"prompt": "q", "completion": "a", "context": "c"},
            ["user: q\n\nc", "*assistant: a"],
            "To leave out `context`: "
            'COOKBOOK_COLUMNS="prompt=prompt,completion=completion,context=unused',
        ),
        ("context=unused", {"question": "q", "context": "c", "answer": "a"}, ASKED, ""),
        # Names of one's own; Alpaca's `input` is not lost by them.
        ("frage=prompt,antwort=completion", {"frage": "q", "antwort": "a"}, ASKED, ""),
        (
            "frage=prompt,antwort=completion",
            {"frage": "q", "antwort": "a", "messages": TALK[:1]},
            ASKED,
            "could be read as conversations in `messages` too: "
            'COOKBOOK_COLUMNS="messages=messages".',
        ),
        (
            "talk=messages",
            {"talk": TALK, "prompt": "p", "completion": "c"},
            ASKED,
            'COOKBOOK_COLUMNS="prompt=prompt,completion=completion".',
        ),
        (
            "instruction=prompt,output=completion",
            {"instruction": "q", "input": "i", "output": "a"},
            ["user: q\n\ni", "*assistant: a"],
            "leave out `input`: "
            'COOKBOOK_COLUMNS="instruction=prompt,output=completion,input=unused".',
        ),
        (
            "instruction=prompt,output=completion,input=unused",
            {"instruction": "q", "input": "i", "output": "a"},
            ASKED,
            "",
        ),
        (
            "frage=question,text=context,antwort=answer",
            {"frage": "q", "text": "c", "antwort": "a"},
            ["user: q\n\nc", "*assistant: a"],
            'COOKBOOK_COLUMNS="frage=question,antwort=answer,text=unused".',
        ),
        (
            "wer=system,frage=prompt,antwort=completion",
            {"wer": "s", "frage": "q", "antwort": "a"},
            TOLD,
            "",
        ),
    ],
)
def test_of_several_readings_the_one_asked_for_is_taken(
    asked: str,
    row: dict[str, Any],
    turns: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COOKBOOK_COLUMNS", asked)
    rows = files.renamed(DatasetDict(train=_rows(row)), files.renaming("COLUMNS"))["train"]
    assert _turns(forms.as_conversations(rows)) == [turns]
    shown = capsys.readouterr().out
    assert said in shown
    assert shown.count("\n") == 1 + bool(said)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "answer": "1"},
        {"instruction": "q", "input": "i", "output": "a"},
        {"messages": TALK, "prompt": "q", "prompt_id": "x"},
    ],
)
def test_what_nobody_means_is_not_offered(
    row: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    forms.as_conversations(_rows(row))
    assert capsys.readouterr().out.count("\n") == 1


# --- Pairs of texts -------------------------------------------------------------------------

NAMES = ("prompt", "completion")


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"messages": TALK}, ("q", "a")),
        ({"conversations": [_from("system", "s"), *SHARED]}, ("s\n\nq", "a")),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, ("q", "a")),
        ({"question": "q", "answer": "a"}, ("q", "a")),
        ({"instruction": "q", "input": "i", "output": "a"}, ("q\n\ni", "a")),
        ({"prompt": "q", "completion": "a", "system": "s"}, ("s\n\nq", "a")),
        ({"prompt": "q", "completion": "a", "system": ""}, ("q", "a")),
        (
            {"messages": [TALK[0], _said("assistant", "a", reasoning_content="t\n")]},
            ("q", "<think>\nt\n</think>\n\na"),
        ),
        ({"messages": [TALK[0], _said("assistant", "a", thinking=" ")]}, ("q", "a")),
    ],
)
def test_conversations_of_one_question_become_pairs(
    row: dict[str, Any], pair: tuple[str, str]
) -> None:
    made = forms.as_pairs(_rows(row | {"figure": "1"}, row | {"figure": "2"}), NAMES)
    expected = dict(zip(NAMES, pair, strict=True))
    assert list(made) == [expected | {"figure": "1"}, expected | {"figure": "2"}]


def test_pairs_of_text_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows({"prompt": " q ", "completion": "", "answer": "1"})
    assert forms.as_pairs(rows, NAMES) is rows
    rows = _rows({"text": "t", "label": 1, "prompt": "x", "completion": "y", "system": "s"})
    assert forms.as_pairs(rows, ("text", "label")) is rows
    assert capsys.readouterr().out == ""


def test_pairs_get_the_names_that_a_recipe_wants() -> None:
    made = forms.as_pairs(_rows({"messages": TALK}), ("document", "summary"))
    assert list(made) == [{"document": "q", "summary": "a"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*TALK, _said("user", "more"), _said("assistant", "b")]},
        {"messages": [TALK[0], _said("assistant", None, tool_calls=[_call({})])]},
        {"messages": [*TALK, _said("tool", "x"), TALK[1]]},
        {"messages": TALK, "tools": [TOOL]},
    ],
)
def test_what_is_no_single_question_is_dropped_and_counted(
    row: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"messages": TALK, "n": "1"}
    made = forms.as_pairs(_rows(good, row, good), NAMES, "train split")
    assert list(made["prompt"]) == ["q", "q"] and list(made["n"]) == ["1", "1"]
    shown = capsys.readouterr().out
    assert "Dropped 1 rows of the train split: more than one question, or a tool" in shown
    assert "(row 2)." in shown
    with pytest.raises(DataError, match="The data has no usable row left: more than one question"):
        forms.as_pairs(_rows(row), NAMES)


# --- What recipes put into prompts ----------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "result"),
    [
        ({"completion": "40+2=42\n#### 42"}, "42"),
        ({"completion": "40+2=42\n#### 42", "answer": 43}, "43"),
        ({"completion": "40+2=42\n#### 42", "answer": None}, "42"),
        ({"completion": None}, ""),
        ({"completion": "first\nsecond"}, ""),
    ],
)
def test_a_row_s_result_is_its_answer_s_or_its_solution_s(row: dict[str, Any], result: str) -> None:
    assert forms.with_result(row) == {"answer": result}


def test_shots_stand_after_the_system_turn() -> None:
    system, user = _said("system", "s"), _said("user", "q")
    shots = forms.as_shot({"prompt": [system, _said("user", "q0"), user], "completion": TALK[1:]})
    assert shots == TALK
    assert forms.with_shots([user], shots) == [*TALK, user]
    assert forms.with_shots([system, user], shots) == [system, *TALK, user]
