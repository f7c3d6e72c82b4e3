"""The forms in which people keep conversations, recognised and brought into one.

That one is TRL's: `prompt` and `completion`, both lists of chat messages; the completion is the
last assistant turn. What else a row holds (`tools`, `answer`, ...) stays beside them.
"""

import ast
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Json, Value

from cookbook.files import DataError

Row = dict[str, Any]
Turn = dict[str, Any]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "chatgpt", "ai"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("function_response", "tool_response", "tool_result"), "tool"),
}
TURNS = ("messages", "conversations", "conversation")  # columns that hold whole conversations
OTHER_TURNS = ("chat", "dialogue", "dialog")  # so do these, where they hold no text
PAIRS = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("question", "completion"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("question", "response"),
    ("prompt", "output"),
    ("problem", "solution"),
    ("user", "assistant"),
    ("input", "output"),
    ("input", "target"),
    ("document", "summary"),
    ("prompt", "answer"),
)
TEXT_PARTS = ("text", "input_text", "output_text")  # types of parts of a content
# Where a turn keeps what it says: the names of OpenAI, ShareGPT and Gemini; or a call instead.
CONTENT = ("content", "value", "text", "parts", "tool_calls", "function_call")
SYSTEM = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")  # the second is what OpenAI called them first
BESIDE_INSTRUCTION = ("input", "context")  # Alpaca's and Dolly's names for what it is about
# Columns that are known by these names, to a form or to a recipe.
KNOWN = {
    *(name for pair in PAIRS for name in pair),
    *(*TURNS, *OTHER_TURNS, *SYSTEM, *TOOLS, *BESIDE_INSTRUCTION, "history", "text", "label"),
}
HELD_APART = ("instruction", "question", "query")  # usually without what they are about


class _Unusable(Exception):
    """A row that cannot be trained on; the text is the reason, for the count of dropped rows."""


@dataclass(frozen=True)
class Form:
    """How rows are read: which columns, and what to call it."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], list[Turn]]

    def __str__(self) -> str:
        return f"{self.name} in {', '.join(f'`{one}`' for one in self.columns)}"


def recognise(
    rows: Dataset, name: str = "data", wanted: tuple[str, str] = ("prompt", "completion")
) -> tuple[Form, list[Form]]:
    """Return the form that rows have, and others that they could be read as.

    Raises `DataError` where there is none, with the columns that there are and those `wanted`.
    """
    columns = rows.column_names
    found = [
        form for form in (*_conversations(rows), *_pairs(columns)) if {*form.columns} <= {*columns}
    ]
    if named := {*_named()}:  # what was named so goes before what was not
        found.sort(key=lambda form: -len(named & {*form.columns}))
    if not found:
        one, other = wanted
        raise DataError(
            f"The {name} has the columns {', '.join(sorted(columns))}; needed are `{one}` and "
            f'`{other}`, or `messages`, or another form that the page "Bring your own data" '
            f'lists. Name yours: COOKBOOK_COLUMNS="yours={one},another={other}".'
        )
    return found[0], found[1:]


def _conversations(rows: Dataset) -> list[Form]:
    forms = []
    for column in (*TURNS, *OTHER_TURNS):
        if column in rows.column_names:
            first: Any = next((_parsed(turns) for turns in rows[column] if turns), [])
            turn = first[0] if isinstance(first, list) and first else None
            if column in OTHER_TURNS and not _is_turn(turn):
                continue
            kind = "ShareGPT conversations" if _is_share_gpt(turn) else "conversations"

            def read(row: Row, at: str = column) -> list[Turn]:
                return _with_system(row, row[at])

            forms.append(Form(kind, (column,), read))
    if "text" in rows.column_names:
        text = next((one for one in rows["text"] if one), "")
        if isinstance(text, str) and len(_MARKERS.findall(text)) > 1:
            forms.append(Form("conversations between markers", ("text",), _between_markers))
    return forms


# OpenAssistant-Guanaco's: one string holds a whole conversation.
_MARKERS = re.compile(r"### (Human|Assistant):")


def _between_markers(row: Row) -> list[Turn]:
    """Return the turns of a text like "### Human: a question ### Assistant: its answer"."""
    parts = _MARKERS.split(row["text"] or "")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[1::2], parts[2::2])
    return [{"role": roles[who], "content": said.strip()} for who, said in pairs]


def _is_share_gpt(turn: Any) -> bool:
    return isinstance(turn, dict) and "from" in turn


def _pairs(columns: list[str]) -> list[Form]:
    """Return the readings as question and answer, with and without what the question is about.

    An instruction, or a column that was renamed, is read with it. A prompt by that name is likely
    to hold it already.
    """
    forms = []
    named = {ours for ours, theirs in _named().items() if ours != theirs}
    for asked, answered in PAIRS:
        beside = [one for one in BESIDE_INSTRUCTION if one in columns and asked != "input"]
        readings: list[str | None] = [*beside[:1], None]
        if asked not in HELD_APART and asked not in named:
            readings.reverse()
        for about in readings:
            forms.append(_pair(asked, answered, about))
    return forms


def _pair(asked: str, answered: str, about: str | None) -> Form:
    kind = (
        "instructions (Alpaca)" if asked == "instruction" else f"{_all(asked)} and {_all(answered)}"
    )

    def read(row: Row) -> list[Turn]:
        return _from_pair(row, row[asked], row[answered], row[about] if about else None)

    return Form(kind, (asked, about, answered) if about else (asked, answered), read)


def _all(name: str) -> str:
    """Return the plural of a column's name."""
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def _named() -> dict[str, str]:
    """Return the names that COOKBOOK_COLUMNS gave to columns -> those they have in the file."""
    pairs = [one.partition("=") for one in os.environ.get("COOKBOOK_COLUMNS", "").split(",")]
    return {ours.strip(): theirs.strip() for theirs, _, ours in pairs if ours}


def as_conversations(rows: Dataset, name: str = "data", quiet: bool = False) -> Dataset:
    """Return rows with the columns `prompt` and `completion`, both lists of chat messages.

    The completion is the last assistant turn; earlier ones stay in the prompt. Columns of other
    names stay. Rows that cannot be trained on are dropped and counted, each reason with the numbers
    of its first rows; if none is left, or no form is recognised, `DataError` says so.
    """
    form, others = recognise(rows, name)
    kept: list[Row] = []
    places: list[int] = []
    dropped: dict[str, list[int]] = {}
    cut = 0
    for place, row in enumerate(rows):
        try:
            turns, unanswered = conversation(row, form)
            tools = _tools(row)
        except _Unusable as error:
            dropped.setdefault(str(error), []).append(place + 1)
            continue
        cut += unanswered
        places.append(place)
        kept.append({"prompt": turns[:-1], "completion": turns[-1:]} | tools)
    if not quiet:
        print(f"The {name}: {len(rows)} rows of {form}.")
        _say_others(form, others)
        if cut:
            print(f"Left out what follows the last answer, in {cut} rows of the {name}.")
    report_dropped(dropped, name)
    if not kept:
        raise DataError(
            f"The {name} has no usable row left. Check its prompts and completions ({form})."
        )
    used = {*form.columns, "prompt", "completion", "history", *SYSTEM, *TOOLS}
    rest = rows.select(places).remove_columns([one for one in rows.column_names if one in used])
    features = Features({one: Json() for one in kept[0]})
    return _beside({one: [row[one] for row in kept] for one in kept[0]}, features, rest)


def _beside(columns: dict[str, list[Any]], features: Features, rest: Dataset) -> Dataset:
    """Return a table of columns, and of those of another one."""
    columns |= {one: list(rest[one]) for one in rest.column_names}
    return Dataset.from_dict(columns, features=Features({**features, **rest.features}))


def _say_others(form: Form, others: list[Form]) -> None:
    """Say how the rows could be read too, and what chooses that."""
    theirs = _named()
    if len(form.columns) == 3 and form.columns[0] != "instruction":
        about = form.columns[1]
        kept = [f"{theirs[one]}={one}" for one in theirs if one in form.columns and one != about]
        say = ",".join([*kept, f"{theirs.get(about, about)}=unused"])
        print(f'To leave out `{about}`: COOKBOOK_COLUMNS="{say}".')
    others = [one for one in others if _differs(one, form)]
    if others:
        say = ",".join(f"{theirs.get(one, one)}={one}" for one in others[0].columns)
        print(f'It could be read as {others[0]} too: COOKBOOK_COLUMNS="{say}".')


def _differs(other: Form, form: Form) -> bool:
    """Tell whether another reading is one that somebody may have meant.

    `answer` beside prompt and completion is what the completion comes to, for a program to check.
    """
    if {*other.columns} <= {*form.columns}:
        return False
    return not ("answer" in other.columns and "completion" in form.columns)


def conversation(row: Row, form: Form) -> tuple[list[Turn], bool]:
    """Return a row's turns up to its last answer, and whether others followed that.

    Raises `_Unusable` with the reason for a row that cannot be trained on.
    """
    turns = [_turn(one) for one in form.read(row) if not _is_empty_system(one)]
    last = max((n for n, one in enumerate(turns) if one["role"] == "assistant"), default=-1)
    asked = any(one["role"] == "user" for one in turns[:last])
    if last < 1 or not asked:
        raise _Unusable("no assistant turn after a prompt")
    return turns[: last + 1], last + 1 < len(turns)


def _is_empty_system(turn: Turn) -> bool:
    """Tell whether a system turn says nothing; many data sets write one into every row."""
    said = _said(turn)
    return _role(turn) == "system" and not _text(said).strip()


def _tools(row: Row) -> Row:
    """Return the row's `tools`, if it has any, as a list of their descriptions."""
    named = [one for one in TOOLS if one in row]
    if not named:
        return {}
    tools = next((_parsed(row[one]) for one in named if row[one]), None)
    if tools and not (isinstance(tools, list) and all(isinstance(one, dict) for one in tools)):
        raise _Unusable("tools is not a list of descriptions")
    tools = tools or []
    if all("name" in one and "function" not in one for one in tools):  # OpenAI's first form
        tools = [{"type": "function", "function": one} for one in tools]
    return {"tools": tools or None}


def _parsed(value: Any) -> Any:
    """Return what a text of JSON stands for (tables without lists hold them so), else the value.

    Python's own way of writing it, which `pandas.to_csv` leaves behind, will do.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return value


def _with_system(row: Row, turns: Any) -> list[Turn]:
    turns = _parsed(turns)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _Unusable("the conversation is not a list of turns")
    if turns and _role(turns[0]) == "system" and not _is_empty_system(turns[0]):
        return turns
    return [*_system_of(row), *turns]


def _system_of(row: Row) -> list[Turn]:
    said = next((text for one in SYSTEM if (text := _text(row.get(one)).strip())), "")
    return [{"role": "system", "content": said}] if said else []


def _from_pair(row: Row, asked: Any, answered: Any, about: Any) -> list[Turn]:
    """Return the turns of a row that has what was asked and what was answered."""
    before, after = _parsed_turns(asked), _parsed_turns(answered)
    if isinstance(answered, list) and after is None and len(answered) > 1:
        raise _Unusable("several answers, where one is needed")
    if row.get("label") is False:  # KTO's form
        raise _Unusable("its label is false, so it is an answer to be avoided")
    if after and before is None and _role(after[0]) == "user":
        before = []  # the answer is the whole conversation, as in UltraFeedback's `chosen`
    if before is None:
        if beside := _text(about).strip():
            asked = f"{_text(asked)}\n\n{beside}"
        before = [*_history(row), {"role": "user", "content": asked}]
    if after is None:
        after = [{"role": "assistant", "content": answered}]
    return _with_system(row, before + after)


def _parsed_turns(value: Any) -> list[Turn] | None:
    """Return messages where a prompt or completion holds such, and None where it holds text."""
    found = _parsed(value)
    return found if isinstance(found, list) and found and all(map(_is_turn, found)) else None


def _is_turn(value: Any) -> bool:
    """Tell whether a value is a turn, and not data that have a `role` or a `from` too."""
    return isinstance(value, dict) and _role(value) is not None and bool({*CONTENT} & {*value})


def _said(turn: Turn) -> Any:
    """Return what a turn says, by whichever name."""
    return next((turn[one] for one in CONTENT[:-2] if turn.get(one) is not None), None)


def _history(row: Row) -> list[Turn]:
    """Return earlier questions and answers, as Alpaca's relatives keep them in `history`."""
    found = _parsed(row.get("history"))
    if not found or found != found:
        return []
    if turns := _parsed_turns(found):
        return turns
    if not isinstance(found, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in found
    ):
        raise _Unusable("history is not a list of questions and answers")
    roles = ("user", "assistant")
    return [{"role": role, "content": said} for pair in found for role, said in zip(roles, pair)]


def _role(turn: Turn) -> str | None:
    return ROLES.get(str(turn.get("role", turn.get("from"))).strip().lower())


def _turn(turn: Turn) -> Turn:
    """Return one turn by its standard names, its content as text, its calls as objects."""
    role = _role(turn)
    if role is None:
        found = repr(str(turn.get("role", turn.get("from", "")))[:20])
        raise _Unusable(f"a role ({found}) that is not system, user, assistant or tool")
    if turn.get("train") is False:  # Axolotl's word
        turn = {**turn, "weight": 0}
    said = _said(turn)
    calls = _calls(turn, said)
    if calls and _is_call(turn):
        said = ""
    content = _text(said, role).strip()
    if not content and not calls and role != "tool":
        raise _Unusable("an empty turn")
    kept = {
        key: value
        for key, value in turn.items()
        if key not in ("role", "from", "train", *CONTENT) and value is not None
    }
    return {"role": role, "content": content} | kept | ({"tool_calls": calls} if calls else {})


def _text(said: Any, role: str = "user") -> str:
    """Return content as text: of numbers, of parts, of a tool's objects."""
    if said is None or said != said:  # a number that is missing is no number
        return ""
    if isinstance(said, str):
        return said
    if isinstance(said, bool):
        return str(said).lower()
    if isinstance(said, (int, float)):
        return str(said)
    parts = said.get("parts", [said]) if isinstance(said, dict) else said
    if not isinstance(parts, list):
        raise _Unusable("a content that is no text")
    texts = [one if isinstance(one, str) else _part(one) for one in parts]
    if all(one is not None for one in texts):
        return "\n".join(str(one) for one in texts)
    if role == "tool":
        return json.dumps(said, ensure_ascii=False)
    if isinstance(said, dict):
        raise _Unusable("an object where a text is needed")
    kinds = [str(one["type"])[:20] for one in parts if isinstance(one, dict) and "type" in one]
    other = next((kind for kind in kinds if kind not in TEXT_PARTS), "a picture, a file")
    raise _Unusable(f"a part of its content is no text ({other})")


def _part(part: Any) -> str | None:
    if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS:
        text = part.get("text")
        return text if isinstance(text, str) else None
    return None


def _calls(turn: Turn, said: Any) -> list[dict[str, Any]]:
    """Return a turn's tool calls in the form that chat templates read, arguments as objects."""
    found = _parsed(turn.get("tool_calls")) or []
    if turn.get("function_call"):
        found = [_parsed(turn["function_call"])]
    elif _is_call(turn):
        found = _parsed(said)
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise _Unusable("a tool call that is no object")
    return [_call(one) for one in found]


def _is_call(turn: Turn) -> bool:
    """Tell whether a turn's role says that its text is a call."""
    return str(turn.get("role", turn.get("from"))).strip().lower() == "function_call"


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _Unusable("a tool call without the name of its function")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            pass
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise _Unusable("a tool call whose arguments are no JSON object")
    kept = {key: call[key] for key in ("id",) if isinstance(call.get(key), str)}
    named = {"name": function["name"], "arguments": arguments}
    return kept | {"type": "function", "function": named}


def report_dropped(dropped: dict[str, list[int]] | Counter[str], name: str) -> None:
    """Say how many rows were dropped for which reason, with the numbers of the first ones."""
    for reason, found in dropped.items():
        if isinstance(found, int):
            count, where = found, ""
        else:
            count = len(found)
            first = ", ".join(map(str, found[:5]))
            where = f" (row{'s' if count > 1 else ''} {first}{', ...' if count > 5 else ''})"
        if count:
            print(f"Dropped {count} rows of the {name}: {reason}{where}.")


def as_pairs(rows: Dataset, names: tuple[str, str], name: str = "data") -> Dataset:
    """Return rows with two columns of text called `names`: what was asked and what was answered.

    Rows that have both columns as text, and nothing that belongs to them in others, stay as they
    are. Of conversations the system text stands before the question, and a thought that has a place
    of its own before the answer, between `<think>` and `</think>`; those of several questions, or
    with tools, are dropped and counted.
    """
    asked, answered = names
    if {asked, answered} <= {*rows.column_names} and not _holds_more(rows, names):
        return rows
    recognise(rows, name, names)
    talks = as_conversations(rows, name)
    kept: list[tuple[str, str]] = []
    places: list[int] = []
    for place, row in enumerate(talks):
        *before, question = row["prompt"]
        (answer,) = row["completion"]
        asked_once = {one["role"] for one in before} <= {"system", "user"}
        single = question["role"] == "user" and asked_once
        if single and answer["content"] and not (row.get("tools") or answer.get("tool_calls")):
            texts = [one["content"] for one in (*before, question)]
            kept.append(("\n\n".join(texts), _with_thought(answer)))
            places.append(place)
    dropped = sorted({*range(len(talks))} - {*places})
    reason = "more than one question, or a tool, where this recipe takes one question"
    report_dropped({reason: [place + 1 for place in dropped]}, name)
    if not kept:
        raise DataError(f"The {name} has no usable row left: {reason}.")
    left = talks.select(places)
    known = {"prompt", "completion", "tools", *names}
    left = left.remove_columns([one for one in left.column_names if one in known])
    columns = {one: list(texts) for one, texts in zip(names, zip(*kept))}
    return _beside(columns, Features(dict.fromkeys(names, Value("string"))), left)


def _holds_more(rows: Dataset, names: tuple[str, str]) -> bool:
    """Tell whether rows hold messages, or a system text or the like beside question and answer."""
    if any(_parsed_turns(one) for column in names for one in rows.take(20)[column]):
        return True
    form = recognise(rows)[0] if names in PAIRS else None
    if form is None or (form.columns[0], form.columns[-1]) != names:
        return False
    return len(form.columns) > 2 or bool({*SYSTEM, "history", "tools"} & {*rows.column_names})


def _with_thought(answer: Turn) -> str:
    thought = next((answer[key] for key in THOUGHTS if isinstance(answer.get(key), str)), "")
    said = str(answer["content"])
    return f"<think>\n{thought.strip()}\n</think>\n\n{said}" if thought.strip() else said


THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys under which turns keep thoughts


def result_of(text: str) -> str:
    """Return a worked answer's result, for a program to check; nothing where there is none.

    It is what follows the last `####`, or the whole text where that is not there: one line, of at
    most 64 characters. What is longer, or goes on below, no answer could be compared with.
    """
    result = text.rpartition("####")[2].strip()
    return result if len(result) <= LONGEST_RESULT and "\n" not in result else ""


LONGEST_RESULT = 64  # characters


def with_result(row: Row) -> Row:
    """Return the column `answer`: the result of a row's answer, or of its worked `completion`."""
    worked = row["completion"] if row.get("answer") is None else row["answer"]
    return {"answer": result_of(str(worked or ""))}


def with_shots(prompt: list[Turn], shots: list[Turn]) -> list[Turn]:
    """Return a prompt with example turns after its system turn."""
    at = 1 if prompt and prompt[0]["role"] == "system" else 0
    return [*prompt[:at], *shots, *prompt[at:]]


def as_shot(row: Row) -> list[Turn]:
    """Return a row's last question and its answer, to be shown as an example."""
    asked = [turn for turn in row["prompt"] if turn["role"] == "user"]
    return [*asked[-1:], *row["completion"]]
