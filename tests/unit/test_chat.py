"""Whatever the template and the conversation, what is learned is what has to be generated."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Json
from transformers import AutoTokenizer, GenerationConfig

from cookbook import chat, evaluation, forms
from cookbook.files import DataError
from cookbook.profiles import CookbookError
from tests.unit import tiny
from tests.unit.templates import CHATML, ENDLESS, KINDS, Kind, tokenizer, unmarked

pytestmark = pytest.mark.unit

Turn = dict[str, Any]
Row = dict[str, Any]


def _user(said: str) -> Turn:
    return {"role": "user", "content": said}


def _model(said: str, **more: Any) -> Turn:
    return {"role": "assistant", "content": said, **more}


_SYSTEM = {"role": "system", "content": "You know geography."}
_CALL = {"name": "weather", "arguments": {"city": "Köln", "days": 2}}
_TOOL = {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}}


def _calls(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"id": f"number{n:03}", "type": "function", "function": one} for n, one in enumerate(calls)
    ]


_RESULT = {
    "role": "tool",
    "name": "weather",
    "content": "rain and wind",
    "tool_call_id": "number000",
}

CONVERSATIONS: dict[str, Row] = {
    "one turn": {"messages": [_user("The capital of France?"), _model("It is Paris.")]},
    "several turns": {
        "messages": [
            _user("France?"), _model("Paris"), _user("And Italy?"), _model("Rome."),
            _user("Peru?"), _model("Lima, by the sea"),
        ]
    },
    "system": {
        "messages": [_SYSTEM, _user("France?"), _model("Paris"), _user("Peru?"), _model("Lima")]
    },
    "two users": {
        "messages": [_user("Hello."), _user("France?"), _model("Paris"), _user("Why"), _model("So")]
    },
    "two answers": {
        "messages": [
            _user("France?"), _model("Paris"), _model("It is on the Seine."),
            _user("Peru?"), _model("Lima"),
        ]
    },
    "an answer and a call": {
        "messages": [
            _user("Köln?"), _model("I look."), _model("", tool_calls=_calls(_CALL)),
            _RESULT, _model("It rains."),
        ],
        "tools": [{"type": "function", "function": _TOOL}],
    },
    "a later system text": {
        "messages": [
            _SYSTEM, _user("France?"), _model("Paris"),
            _SYSTEM | {"content": "Be brief."}, _user("Peru?"), _model("Lima"),
            _user("Chile?"), _SYSTEM | {"content": "Be polite."}, _model("Santiago, please"),
        ]
    },
    "the assistant begins": {
        "messages": [_model("Welcome."), _user("France?"), _model("Paris")]
    },
    "calls without numbers": {
        "messages": [
            _user("Köln?"), _model("", tool_calls=[{"type": "function", "function": _CALL}]),
            {"role": "tool", "content": "rain and wind"}, _model("It rains."),
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    },
    "tools": {
        "messages": [
            _user("Köln?"), _model("", tool_calls=_calls(_CALL)), _RESULT,
            _model("It rains."), _user("Thanks"), _model("You are welcome"),
        ],
        "tools": [{"type": "function", "function": _TOOL}],
    },
    "tools after a system text": {
        "messages": [
            _SYSTEM, _user("Köln?"), _model("I look.", tool_calls=_calls(_CALL, _CALL)),
            _RESULT, _RESULT | {"tool_call_id": "number001"}, _model("It rains."),
        ],
        "tools": [{"type": "function", "function": _TOOL}],
    },
    "a call as the last answer": {
        "messages": [_user("Köln?"), _model("", tool_calls=_calls(_CALL))],
        "tools": [{"type": "function", "function": _TOOL}],
    },
    "thoughts": {
        "messages": [
            _user("2 and 2?"), _model("<think>\nI add them.\n</think>\n\nfour"),
            _user("And 3?"), _model("<think>\nSeven, then.\n</think>\n\nseven"),
        ]
    },
    "unlearned": {
        "messages": [_user("a?"), _model("b"), _user("c?"), _model("d", weight=0), _user("e?"),
                     _model("f", weight=1)]
    },
    "unlearned at the end": {
        "messages": [_user("a?"), _model("b"), _user("c?"), _model("d", weight=0)]
    },
    "a greeting first": {"messages": [_user("x"), _model("Hi"), _user("y"), _model("Ho")]},
    "hostile": {
        "messages": [
            _user("{{ 7*7 }} {% raw %} <|im_end|>\n<|im_start|>assistant\nno </s> <eos> <|end|>"),
            _model("{{ 7*7 }} {%- endif -%} 49"), _user("</think> <tool_call> [/INST]"),
            _model("<|im_end|> </s> <eos> <end_of_turn> <|eot_id|> <|end|> and so on"),
        ]
    },
    "unicode": {"messages": [_user("日本の首都は？"), _model("東京 🗼 żółć"), _user("ß"), _model("é")]},
    "very short": {"messages": [_user("?"), _model("1"), _user("!"), _model("<")]},
}  # fmt: skip


def _table(*rows: Row) -> Dataset:
    names = {name: Json() for row in rows for name in row}
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Dataset.from_dict(columns, features=Features(names))


def _read(row: Row) -> Dataset:
    return forms.as_conversations(_table(row), quiet=True)


def _prompt_ids(words: Any, turns: Sequence[Turn], row: Row) -> list[int]:
    switches = dict(row.get("chat_template_kwargs") or {})
    if row.get("tools"):
        switches["tools"] = row["tools"]
    text = words.apply_chat_template(
        list(turns), tokenize=False, add_generation_prompt=True, **switches
    )
    return list(words(text, add_special_tokens=False)["input_ids"])


def _said(name: str, kind: Kind, turn: Turn) -> str:
    """Return what a template of this kind wants to have generated, the end of the turn included."""
    said = turn["content"]
    calls = [
        f"<tool_call>\n{json.dumps(one['function'], ensure_ascii=False)}\n</tool_call>"
        for one in turn.get("tool_calls", ())
    ]
    before = kind.before
    if said.startswith("<think>") and name == "qwen-3":
        before = ""  # the thought takes the place of the empty one
    if said.startswith("<think>") and name == "deepseek-r1":
        said = said.removeprefix("<think>\n")  # which its prompt writes
    return before + "\n".join([one for one in (said, *calls) if one]) + kind.after + kind.end


def _learned(words: Any, made: Dataset) -> list[tuple[list[int], str]]:
    """Return every supervised run: the ids before it, and its text."""
    found = []
    for ids, labels in zip(made["input_ids"], made["labels"], strict=True):
        assert all(label in (chat.IGNORED, one) for one, label in zip(ids, labels, strict=True))
        on = [label != chat.IGNORED for label in labels]
        for start in range(len(ids)):
            if on[start] and not (start and on[start - 1]):
                end = next((n for n in range(start, len(ids)) if not on[n]), len(ids))
                # A run's text as it stands after its prompt: alone it might lose a first blank.
                text = words.decode(ids[:end])[len(words.decode(ids[:start])) :]
                found.append((list(ids[:start]), text))
        assert on[-1], "nothing follows the last answer"
    return found


# Templates that do not tell two answers side by side apart.
_JOINING = ("mistral", "mistral-sentencepiece", "gemma", "phi", "qwen-3", "deepseek-r1")


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    found: list[Turn] = []
    for turn in turns:
        if found and found[-1]["role"] == turn["role"] == "assistant":
            texts = [one["content"] for one in (found.pop(), turn) if one["content"]]
            turn = {**turn, "content": "\n\n".join(texts)}
        found.append(turn)
    return found


def _wanted(words: Any, name: str, row: Row) -> list[tuple[list[int], str]]:
    turns = [*row["prompt"], *row["completion"]]
    turns = _joined(turns) if name in _JOINING else turns
    asked = [turn["role"] for turn in turns].index("user")
    return [
        (_prompt_ids(words, turns[:n], row), _said(name, KINDS[name], turn))
        for n, turn in enumerate(turns)
        if turn["role"] == "assistant" and turn.get("weight") != 0 and n > asked
    ]


def _without_blanks(runs: list[tuple[list[int], str]]) -> list[tuple[list[int], str]]:
    return [(before, "".join(text.split())) for before, text in runs]


def _fitted(name: str, rows: Dataset) -> Any:
    words = KINDS[name].tokenizer()
    chat.fit_template(words, rows)
    return words


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_learned_is_what_has_to_be_generated_after_the_prompt(
    name: str, conversation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _read(CONVERSATIONS[conversation])
    words = _fitted(name, rows)
    ends = chat.end_tokens(words)
    made = chat.supervise_answers(rows, words, ends)
    wanted, learned = _wanted(words, name, rows[0]), _learned(words, made)
    if KINDS[name].pieces == "sentencepiece":  # whose decoder does not give blanks back
        wanted, learned = _without_blanks(wanted), _without_blanks(learned)
    assert learned == wanted
    assert chat.check_supervision(made, words, ends).startswith(f"{len(made)} rows")
    shown = capsys.readouterr().out
    if KINDS[name].together:
        assert len(made) == 1 and "became" not in shown
    elif KINDS[name].together is False:
        assert len(made) == len(wanted) and (len(made) == 1) == ("became" not in shown)
    assert "generation markers" not in shown
    drops_thoughts = name == "deepseek-r1" and conversation == "thoughts"
    assert ("leaves out the thoughts of 2 answers" in shown) == drops_thoughts


def _direct(turns: Sequence[Turn], **more: Any) -> Dataset:
    """Return one row as it stands: the forms' reader would strip its texts."""
    return _table({"prompt": list(turns[:-1]), "completion": list(turns[-1:]), **more})


def _supervised(words: Any, rows: Dataset, **more: Any) -> list[str]:
    made = chat.supervise_answers(rows, words, chat.end_tokens(words), **more)
    return [text for _, text in _learned(words, made)]


_BEGINNINGS = ("\n\nfour", "\nfour", " four", "    four", "four", "<four", "\t")


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_keeps_its_tokens_whatever_the_answer_begins_with(name: str) -> None:
    talks = [[_user("2 and 2?"), _model(said)] * 2 for said in _BEGINNINGS]
    rows = _table(*({"prompt": one[:-1], "completion": one[-1:]} for one in talks))
    kind, words = KINDS[name], _fitted(name, rows)
    learned = _learned(words, chat.supervise_answers(rows, words, chat.end_tokens(words)))
    strips = name in ("deepseek-r1", "gemma") or name.startswith("llama")
    wanted = [
        (
            _prompt_ids(words, talk[:n], {}),
            kind.before + (said.strip() if strips else said) + kind.after + kind.end,
        )
        for said, talk in zip(_BEGINNINGS, talks, strict=True)
        for n in (1, 3)
    ]
    if kind.pieces == "sentencepiece":
        wanted, learned = _without_blanks(wanted), _without_blanks(learned)
    assert learned == wanted


@pytest.mark.parametrize("name", KINDS)
def test_only_the_last_answer_is_learned_where_that_is_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _read(CONVERSATIONS["several turns"])
    words = _fitted(name, rows)
    every = _supervised(words, rows)
    monkeypatch.setenv("COOKBOOK_TURNS", "last")
    assert _supervised(words, rows) == every[-1:] and len(every) == 3
    assert _supervised(words, rows, turns="all") == every
    monkeypatch.setenv("COOKBOOK_TURNS", "first")
    with pytest.raises(CookbookError, match="COOKBOOK_TURNS is 'first': choose all or last"):
        _supervised(words, rows)


@pytest.mark.parametrize("name", KINDS)
def test_arguments_as_text_and_as_an_object_give_the_same_tokens(name: str) -> None:
    made = []
    for arguments in (_CALL["arguments"], json.dumps(_CALL["arguments"])):
        row = json.loads(json.dumps(CONVERSATIONS["tools"]))
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = arguments
        rows = _read(row)
        words = _fitted(name, rows)
        made.append(chat.supervise_answers(rows, words, chat.end_tokens(words))["input_ids"][:])
    assert made[0] == made[1] and made[0]


def test_a_turn_without_weight_is_never_learned(capsys: pytest.CaptureFixture[str]) -> None:
    unlearned = {"messages": [_user("a?"), _model("b", weight=0)]}
    rows = forms.as_conversations(_table(unlearned, CONVERSATIONS["one turn"]), quiet=True)
    words = _fitted("chatml", rows)
    assert _supervised(words, rows) == ["It is Paris.<|im_end|>"]
    shown = capsys.readouterr().out
    assert "Dropped 1 rows of the data: no turn to learn (`weight` is 0) (row 1)." in shown
    with pytest.raises(DataError, match="No row can be learned: no turn to learn"):
        _supervised(words, rows.take(1))


def test_rows_of_one_and_of_several_answers_keep_their_columns() -> None:
    names = ("one turn", "thoughts", "several turns")
    talks = [CONVERSATIONS[name] | {"source": name} for name in names]
    rows = forms.as_conversations(_table(*talks), quiet=True)
    words = _fitted("qwen-3", rows)
    made = chat.supervise_answers(rows, words, chat.end_tokens(words))
    assert made["source"][:] == ["one turn", *["thoughts"] * 2, *["several turns"] * 3]
    for row, (before, text) in zip(made, _learned(words, made), strict=True):
        assert before == _prompt_ids(words, row["prompt"], row)
        (answer,) = row["completion"]
        assert text.endswith(answer["content"].split("</think>")[-1] + "<|im_end|>")


def _thinking(name: str, thinks: bool | None, answer: Turn) -> list[str]:
    more = {} if thinks is None else {"chat_template_kwargs": {"enable_thinking": thinks}}
    rows = _direct([_user("2 and 2?"), answer], **more)
    return _supervised(_fitted(name, rows), rows)


_THOUGHT = _model("four", reasoning_content="I add.")


@pytest.mark.parametrize(
    ("name", "thinks", "answer", "learned", "said"),
    [
        ("qwen-3", True, _model("four"), "<think>\n\n</think>\n\nfour<|im_end|>", ""),
        ("qwen-3", False, _model("four"), "four<|im_end|>", ""),
        ("qwen-3", True, _THOUGHT, "<think>\nI add.\n</think>\n\nfour<|im_end|>", ""),
        ("qwen-3", False, _THOUGHT, "four<|im_end|>", "thoughts of 1 answers are left out"),
        ("chatml", None, _THOUGHT, "<think>\nI add.\n</think>\n\nfour<|im_end|>", "leaves out"),
        ("gemma", None, _THOUGHT, "<think>\nI add.\n</think>\n\nfour<end_of_turn>", "leaves out"),
        ("deepseek-r1", None, _THOUGHT, "I add.\n</think>\n\nfour<｜end▁of▁sentence｜>", "leaves"),
        ("deepseek-r1", None, _model("four"), "four<｜end▁of▁sentence｜>", "1 answers have none"),
        ("deepseek-r1", None, _model("<th>"), "<th><｜end▁of▁sentence｜>", "1 answers have none"),
    ],
)
def test_a_thought_is_learned_unless_the_prompt_has_closed_it(
    name: str,
    thinks: bool | None,
    answer: Turn,
    learned: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _thinking(name, thinks, answer) == [learned]
    shown = capsys.readouterr().out
    assert said in shown and bool(said) == bool(shown)


def test_markers_and_prompts_agree() -> None:
    for name in ("marked", "marked-without-end", "marked-beyond-end"):
        for conversation in CONVERSATIONS.values():
            rows = _read(conversation)
            words, plain = _fitted(name, rows), _fitted(name, rows)
            plain.chat_template = unmarked(plain.chat_template)
            ends = chat.end_tokens(words)
            made = chat.supervise_answers(rows, words, ends)
            assert made["labels"][:] == chat.supervise_answers(rows, plain, ends)["labels"][:]


def test_where_markers_enclose_the_header_the_prompt_decides(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = KINDS["marked"].tokenizer()
    words.chat_template = words.chat_template.replace(
        "{%- generation -%}", "{%- generation -%}{{- 'My answer: ' -}}"
    ).replace("|im_start|>assistant\\n", "|im_start|>assistant\\nMy answer: ")
    assert _supervised(words, _direct([_user("?"), _model("yes")])) == ["yes<|im_end|>"]
    assert "markers enclose 1 answers otherwise" in capsys.readouterr().out


# --- Fitting a template ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "conversation", "said", "prompt"),
    [
        ("chatml", "system", "", "<|im_start|>system\nYou know geography.<|im_end|>\n"),
        ("drops-system", "system", "no system turn", "user\nYou know geography.\n\nFrance?<|im"),
        (
            "gemma",
            "system",
            "no system turn",
            "<start_of_turn>user\nYou know geography.\n\nFrance?",
        ),
        ("gemma", "two users", "turns alternate", "<start_of_turn>user\nHello.\n\nFrance?<end_of"),
        ("mistral", "system", "no system turn", "<s>[INST] You know geography.\n\nFrance? [/INST]"),
        ("in-parts", "system", "content in parts", "<|im_start|>system\nYou know geography.<|im"),
        ("no-generation-prompt", "system", "no generation prompt", "<|im_start|>assistant\n"),
        ("chatml", "tools", "takes no tools", '"description": "The weather."'),
        ("chatml", "tools", "takes no tools", "<tool_response>\nrain and wind\n</tool_response>"),
        ("chatml", "tools after a system text", "takes no tools", "You know geography.\n\n# Tools"),
        ("gemma", "tools after a system text", "takes no tools", "You know geography.\n\n# Tools"),
        ("qwen-3", "tools", "", '"description": "The weather."'),
    ],
)
def test_a_template_is_made_to_take_what_rows_hold_and_says_so(
    name: str, conversation: str, said: str, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _read(CONVERSATIONS[conversation])
    words = _fitted(name, rows)
    shown = capsys.readouterr().out
    assert said in shown and bool(said) == bool(shown)
    row = rows[0]
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    assert prompt in chat.render(words, row["prompt"], add_generation_prompt=True, **tools)


@pytest.mark.parametrize("name", KINDS)
def test_a_fitted_template_is_saved(name: str, tmp_path: Path) -> None:
    for conversation in ("system", "two users", "tools", "hostile"):
        rows = _read(CONVERSATIONS[conversation])
        words = _fitted(name, rows)
        words.save_pretrained(tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path)
        ends = chat.end_tokens(words)
        assert chat.end_tokens(again) == ends
        made = [chat.supervise_answers(rows, one, ends) for one in (words, again)]
        assert made[0].to_dict() == made[1].to_dict()
        chat.fit_template(again, rows)  # a second time nothing is left to do
        assert again.chat_template == words.chat_template


def test_a_blank_before_answers_is_no_part_of_the_header(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = KINDS["vicuna"].tokenizer()
    words.chat_template = words.chat_template.partition("{%- if add_generation_prompt")[0]
    rows = _read(CONVERSATIONS["one turn"])
    chat.fit_template(words, rows)
    assert "it gets 'ASSISTANT:'" in capsys.readouterr().out
    assert _supervised(words, rows) == [" It is Paris.</s>"]


def test_of_several_templates_the_one_is_taken_that_rows_need(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for conversation, name in (("tools", "tool_use"), ("system", "default")):
        rows = _read(CONVERSATIONS[conversation])
        words = KINDS["qwen-3"].tokenizer()
        words.chat_template = {"default": CHATML, "tool_use": words.chat_template}
        wanted = words.chat_template[name]
        chat.fit_template(words, rows)
        assert words.chat_template == wanted
        assert f"`{name}` is taken" in capsys.readouterr().out
    for wrong, complaint in ((None, "has no chat template"), ({"rag": CHATML}, "rag.*`default`")):
        words.chat_template = wrong
        with pytest.raises(CookbookError, match=complaint):
            chat.fit_template(words, rows)


_NINE_LETTERS = (
    "{%- for turn in messages -%}{%- for call in turn.tool_calls or [] -%}"
    "{%- if call.id | length != 9 -%}{{- raise_exception('nine letters') -}}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
)
_DESCRIBED = "{%- for tool in tools or [] -%}{{- tool.function.description + '' -}}{%- endfor -%}"


@pytest.mark.parametrize(
    ("strict", "number", "description", "fits"),
    [
        (_NINE_LETTERS, "abcdefghi", "The weather.", True),
        (_NINE_LETTERS, "call_1", "The weather.", False),
        (_DESCRIBED, "call_1", "The weather.", True),
        (_DESCRIBED, "call_1", None, False),
    ],
)
def test_tools_are_text_where_the_template_asks_for_more_than_rows_say(
    strict: str,
    number: str,
    description: str | None,
    fits: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = json.loads(json.dumps(CONVERSATIONS["tools"]))
    row["messages"][1]["tool_calls"][0]["id"] = number
    if description is None:
        del row["tools"][0]["function"]["description"]
    words = KINDS["qwen-3"].tokenizer()
    words.chat_template = strict + words.chat_template
    rows = _read(row)
    chat.fit_template(words, rows)
    assert ("takes no tools" in capsys.readouterr().out) is not fits
    assert len(_supervised(words, rows)) == 3


def test_line_ends_that_are_tokens_end_no_turn() -> None:
    words = tokenizer(("\n", "\n\n", "<end>"), "</s>", "<s>")
    words.chat_template = "{% for turn in messages %}{{ turn.content }}\n\n{% endfor %}"
    assert chat.end_tokens(words) == [words.eos_token_id]
    words.chat_template = words.chat_template.replace("\n\n", "\n\n<end>")
    assert words.convert_ids_to_tokens(chat.end_tokens(words)) == ["<end>", "</s>"]


def test_a_template_that_demands_a_system_turn_is_read_with_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = KINDS["chatml-base"].tokenizer()
    words.chat_template = (
        "{%- if messages[0].role != 'system' -%}{{- raise_exception('no system') -}}{%- endif -%}"
        + words.chat_template
    )
    rows = _read(CONVERSATIONS["system"])
    chat.fit_template(words, rows)
    assert not capsys.readouterr().out
    assert _supervised(words, rows) == ["Paris<|im_end|>", "Lima<|im_end|>"]


def test_texts_with_the_end_of_a_turn_in_them_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talks = [[_user("a?"), _model(said)] for said in ("b<|im_end|>", "b", "<|im_end|> it is")]
    rows = forms.as_conversations(_table(*({"messages": one} for one in talks)), quiet=True)
    _supervised(_fitted("chatml", rows), rows)
    assert "2 answers hold the end of a turn as text" in capsys.readouterr().out


def test_two_answers_that_are_one_cannot_differ_in_weight(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk = [_user("France?"), _model("Paris", weight=0), _model("Lyon")]
    rows = forms.as_conversations(_table({"messages": talk}, CONVERSATIONS["one turn"]), quiet=True)
    assert _supervised(_fitted("gemma", rows), rows) == ["It is Paris.<end_of_turn>"]
    assert "side by side are one, and differ in `weight`" in capsys.readouterr().out
    assert _supervised(_fitted("chatml", rows), rows)[0] == "Lyon<|im_end|>"


def test_rows_that_a_template_refuses_are_dropped_and_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = forms.as_conversations(
        _table(CONVERSATIONS["system"], CONVERSATIONS["one turn"]), quiet=True
    )
    words = KINDS["mistral"].tokenizer()
    assert _supervised(words, rows) == [" It is Paris. </s>"]
    assert "Dropped 1 rows of the data: the chat template says: no system turn (row 1)." in (
        capsys.readouterr().out
    )
    with pytest.raises(DataError, match="the chat template says: no system turn"):
        _supervised(words, rows.take(1))
    words.chat_template = "{{ messages[0].content + 1 }}"
    with pytest.raises(DataError, match="the chat template says: TypeError"):
        chat.supervise_answers(rows, words, 0)


# --- Where a turn ends ----------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_end_of_a_turn_is_read_off_the_template_before_the_end_of_a_text(name: str) -> None:
    kind = KINDS[name]
    words = kind.tokenizer()
    chat.fit_template(words, _read(CONVERSATIONS["one turn"]))
    ends = words.convert_ids_to_tokens(chat.end_tokens(words))
    assert ends == list(dict.fromkeys([kind.end, *([kind.eos] if kind.eos else [])]))


def test_a_call_may_end_otherwise() -> None:
    called = "{%- for call in turn.tool_calls or [] -%}<call>{{ call.function | tojson }}"
    template = CHATML.replace(
        "{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' -}}",
        called
        + "</call>{%- endfor -%}{{- turn.content + (END if turn.tool_calls else '<end>') -}}",
    )
    for end, wanted in (
        ("'<wait>'", ["<end>", "<wait>", "<eos>"]),
        ("'<end>'", ["<end>", "<eos>"]),
    ):
        words = tokenizer(("<call>", "</call>", "<end>", "<wait>"), "<eos>")
        words.chat_template = template.replace("END", end)
        assert words.convert_ids_to_tokens(chat.end_tokens(words)) == wanted


def test_a_template_without_any_end_is_refused_with_the_mend() -> None:
    rows = _read(CONVERSATIONS["several turns"])
    words = tokenizer((), "</s>")
    words.chat_template = ENDLESS
    ends = chat.end_tokens(words)
    made = chat.supervise_answers(rows, words, ends)
    with pytest.raises(DataError, match="end-of-turn token </s>.*write `{{ eos_token }}`"):
        chat.check_supervision(made, words, ends)
    words = tokenizer((), None)
    words.chat_template = ENDLESS
    with pytest.raises(CookbookError, match="Set `eos_token` in its tokenizer_config.json"):
        chat.end_tokens(words)


def test_generation_stops_on_either_end() -> None:
    rows = _read(CONVERSATIONS["one turn"])
    words = _fitted("chatml-base", rows)
    ends = chat.end_tokens(words)
    model = tiny.model(vocab_size=len(words), pad_token_id=words.pad_token_id, eos_token_id=None)
    prompts = [_prompt_ids(words, rows[0]["prompt"], rows[0])]
    settings = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=ends)
    assert len(ends) == 2
    for end in ends:
        with torch.no_grad():
            model.lm_head.weight.zero_()
            # Whatever is read, this token is next: its own direction alone is scored.
            model.model.norm.weight.zero_()
        biased = torch.zeros(len(words))
        biased[end] = 1.0
        hook = model.lm_head.register_forward_hook(lambda *args: args[2] + biased)
        assert evaluation.generate(model, words, prompts, settings, 1).stopped == 1.0
        hook.remove()
    assert evaluation.generate(model, words, prompts, settings, 1).stopped == 0.0


# --- Labels of a tokenizer of words, and their check ----------------------------------------


def _tokens(
    question: str, answer: str, template: str = tiny.TEMPLATE, **more: Any
) -> list[tuple[str, int]]:
    """Return the tokens of one conversation with `more` columns, each with its label."""
    words: Any = tiny.tokenizer()
    words.chat_template = template
    row = {"prompt": [_user(question)], "completion": [_model(answer)], **more}
    (made,) = chat.supervise_answers(Dataset.from_list([row]), words, end_of_turn=1)
    tokens = words.convert_ids_to_tokens(made["input_ids"])
    wanted = words.convert_tokens_to_ids(tokens)
    assert all(label in (-100, token) for token, label in zip(wanted, made["labels"], strict=True))
    return list(zip(tokens, made["labels"], strict=True))


def test_the_loss_sees_the_answer_and_nothing_of_the_prompt() -> None:
    made = _tokens("w1 w2", "w3 w4")
    assert [token for token, label in made if label == -100] == "user w1 w2 <end> assistant".split()
    assert [token for token, label in made if label != -100] == ["w3", "w4", "<end>"]


def test_what_a_template_writes_after_the_end_of_turn_is_left_out() -> None:
    after = tiny.TEMPLATE.replace("<end> ", "<end> w39 ")
    made = [token for token, _ in _tokens("w1", "w3 <end> w4", after)]
    # Up to the last end of turn: an answer of several turns keeps all of them.
    assert made == "user w1 <end> w39 assistant w3 <end> w4 <end>".split()


@pytest.mark.parametrize(("thinks", "masked"), [(True, 4), (False, 5)])
def test_a_row_sets_the_switches_of_its_template(thinks: bool, masked: int) -> None:
    # Written by the template as the prompt's end, or by the model as its answer's beginning.
    switch = "assistant {% if enable_thinking is defined and not enable_thinking %}w9 {% endif %}"
    switching = tiny.TEMPLATE.replace("assistant {% endif %}", switch + "{% endif %}")
    switching = switching.replace(
        "{{ turn.role }}", "{{ turn.role }}{{ ' w9' if turn.role == 'assistant' }}"
    )
    made = _tokens("w1", "w3", switching, chat_template_kwargs={"enable_thinking": thinks})
    assert [token for token, _ in made] == "user w1 <end> assistant w9 w3 <end>".split()
    assert [label for _, label in made].count(-100) == masked


def test_an_answer_without_end_of_turn_is_kept_whole() -> None:
    endless = tiny.TEMPLATE.replace("<end> ", "")
    assert _tokens("w1", "w3 w4", endless)[-2:] == [("w3", 9), ("w4", 10)]


def test_no_example_is_no_data() -> None:
    rows = Dataset.from_dict({"prompt": [], "completion": []})
    with pytest.raises(DataError, match="No example is left"):
        chat.supervise_answers(rows, tiny.tokenizer(), 1)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([-100, -100, -100, -100], "fully masked"),
        ([3, 6, 7, 1], "supervises its prompt"),
        ([-100, -100, 7, -100], "end-of-turn token <end>"),
        ([-100, 6, -100, 1], "end-of-turn token <end>"),
    ],
)
def test_wrong_labels_are_refused(labels: list[int], complaint: str) -> None:
    rows = Dataset.from_dict({"input_ids": [[3, 6, 7, 1]], "labels": [labels]})
    with pytest.raises(DataError, match=complaint):
        chat.check_supervision(rows, tiny.tokenizer(), end_of_turn=1)


def test_two_bos_tokens_are_refused() -> None:
    words = tiny.tokenizer()
    words.bos_token = "w0"
    rows = Dataset.from_dict({"input_ids": [[6, 6, 7, 1]], "labels": [[-100, -100, 7, 1]]})
    with pytest.raises(DataError, match="two BOS"):
        chat.check_supervision(rows, words, end_of_turn=1)


def test_the_view_marks_the_supervised_part_and_escapes_html() -> None:
    rows = Dataset.from_dict({"input_ids": [[3, 6, 4, 7, 1]], "labels": [[-100] * 3 + [7, 1]]})
    view = chat.SupervisedView(tiny.tokenizer(), rows)
    assert str(view) == "user w0 assistant⟦w1 <end>⟧"
    assert "<mark>w1 &lt;end&gt;</mark>" in view._repr_html_()


# --- Templates of published models ----------------------------------------------------------


def _published() -> list[Path]:
    found = importlib.util.find_spec("trl")
    folder = Path(found.origin).parent / "chat_templates" if found and found.origin else None
    return sorted(folder.glob("*.jinja")) if folder else []


_OWN_TOKEN = re.compile(r"</?[A-Za-z_]+>|<[|｜]?/?[A-Za-z_▁]+[|｜]?>")
_WITHOUT_THOUGHTS = ("gemma4", "gemma4_v3", "gemma4_v4")  # unless there are calls of tools
_WITHOUT_END = ("glm4moe",)  # the next turn's header ends a turn there


@pytest.mark.parametrize("path", _published(), ids=lambda path: path.stem)
def test_templates_of_published_models_learn_what_their_prompts_ask_for(path: Path) -> None:
    template = path.read_text(encoding="utf-8")
    tokens = tuple(sorted({*_OWN_TOKEN.findall(template)}))
    talks = [CONVERSATIONS[name] for name in ("several turns", "tools", "thoughts", "two answers")]
    rows = forms.as_conversations(_table(*talks), quiet=True)
    words = tokenizer(tokens, "</s>", "<s>")
    words.chat_template = template
    chat.fit_template(words, rows)
    ends = chat.end_tokens(words)
    apart = 3 == len(_learned(words, chat.supervise_answers(rows.select([3]), words, ends)))
    made = chat.supervise_answers(rows, words, ends)
    learned = iter(_learned(words, made))
    for row in rows:
        turns = [*row["prompt"], *row["completion"]]
        turns = _moved(turns if apart else _joined(turns), template)
        others = [turn["content"] for turn in turns if turn["role"] in ("user", "tool")]
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                before, text = next(learned)
                assert before == _prompt_ids(words, turns[:number], row)
                assert turn["content"].split("</think>")[-1].strip() in text
                thought = "reasoning_content" in turn and path.stem not in _WITHOUT_THOUGHTS
                assert not (thought and "<think>" in text)
                assert not any(other in text for other in others)
    assert not [*learned]
    if path.stem not in _WITHOUT_END:
        chat.check_supervision(made, words, ends)


def _moved(turns: Sequence[Turn], template: str) -> list[Turn]:
    """Give thoughts the keys of templates that look for them there, and not within the text."""
    names = ("reasoning_content", "thinking")
    key = next((one for one in names if re.search(rf"[.'\"]{one}\b", template)), "")
    if not key or "</think>" in template:
        return list(turns)
    found = []
    for turn in turns:
        thought, closed, said = turn["content"].partition("</think>")
        if turn["role"] == "assistant" and closed:
            thought = thought.removeprefix("<think>").strip()
            turn = {**turn, key: thought, "content": said.strip()}
        found.append(turn)
    return found


def test_pairs_are_checked_and_shown_as_one_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"input_ids": [6, 7, 1], "labels": [8, 1]}, {"input_ids": [6] * 9, "labels": [8, 1]}]
    pairs, words = Dataset.from_list(rows), tiny.tokenizer()
    checked = chat.check_pairs({"train": pairs}, words, [1], max_length=5)
    assert list(checked["train"]) == rows[:1]
    (shown,) = chat.in_one_sequence(checked["train"])
    assert shown == {"input_ids": [6, 7, 1, 8, 1], "labels": [chat.IGNORED] * 3 + [8, 1]}
    said = capsys.readouterr().out
    assert "Dropped 1 rows of the train split" in said and "2 supervised" in said
    with pytest.raises(DataError, match="end-of-turn"):
        chat.check_pairs({"train": pairs}, words, [5], max_length=5)
