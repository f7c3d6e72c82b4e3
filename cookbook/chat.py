"""The chat template: what it takes, how a turn ends in it, and which tokens are to be learned."""

import html
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from datasets import Dataset, DatasetDict, Features, Json, List, Value
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from cookbook.data import drop_too_long
from cookbook.files import DataError
from cookbook.forms import THOUGHTS, Row, Turn, report_dropped
from cookbook.hub import check_tokenizer
from cookbook.profiles import CookbookError

IGNORED = -100  # the label that torch's cross entropy leaves out
TURNS = ("all", "last")  # which assistant turns of a conversation are learned

# System turns go into the user turn after them, or before them where the answer comes next.
_SYSTEM = """\
{%- set fit = namespace(turns=[], rules='') -%}
{%- for turn in messages -%}
{%- if turn.role == 'system' and not FIRST -%}
{%- set fit.rules = fit.rules ~ turn.content ~ '\\n\\n' -%}
{%- elif turn.role == 'user' and fit.rules -%}
{%- set fit.turns = fit.turns + [dict(turn, content=fit.rules ~ turn.content)] -%}
{%- set fit.rules = '' -%}
{%- else -%}
{%- set fit.turns = fit.turns + [turn] -%}
{%- endif -%}
{%- if fit.rules and fit.turns and fit.turns[-1].role == 'user' and \
(loop.last or loop.nextitem.role == 'assistant') -%}
{%- set fit.turns = fit.turns[:-1] + [dict(fit.turns[-1], content=fit.turns[-1].content ~ \
'\\n\\n' ~ fit.rules.rstrip('\\n'))] -%}
{%- set fit.rules = '' -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = fit.turns -%}
"""
# What can stand before a template that does not take all that rows hold. Each rewrites the
# messages, so that whoever renders the saved template later (TRL, a server) does the same.
_BEFORE = {
    "tools": """\
{%- set fit = namespace(turns=[], rules='') -%}
{%- if tools -%}
{%- set fit.rules = '# Tools\\n\\nYou may call functions: write name and arguments as JSON between \
<tool_call> and </tool_call>.\\n<tools>' -%}
{%- for tool in tools -%}{%- set fit.rules = fit.rules ~ '\\n' ~ (tool | tojson) -%}{%- endfor -%}
{%- set fit.rules = fit.rules ~ '\\n</tools>' -%}
{%- if not messages or messages[0].role != 'system' -%}
{%- set fit.turns = [{'role': 'system', 'content': fit.rules}] -%}
{%- endif -%}
{%- endif -%}
{%- for turn in messages -%}
{%- if turn.role == 'system' and loop.first and fit.rules -%}
{%- set fit.turns = [{'role': 'system', 'content': turn.content ~ '\\n\\n' ~ fit.rules}] -%}
{%- elif turn.tool_calls -%}
{%- set call = namespace(text=turn.content or '') -%}
{%- for one in turn.tool_calls -%}
{%- set call.text = call.text ~ ('\\n' if call.text else '') ~ '<tool_call>\\n' ~ ({'name': \
one.function.name, 'arguments': one.function.arguments} | tojson) ~ '\\n</tool_call>' -%}
{%- endfor -%}
{%- set fit.turns = fit.turns + [{'role': turn.role, 'content': call.text}] -%}
{%- elif turn.role == 'tool' -%}
{%- set fit.turns = fit.turns + [{'role': 'user', \
'content': '<tool_response>\\n' ~ turn.content ~ '\\n</tool_response>'}] -%}
{%- else -%}
{%- set fit.turns = fit.turns + [turn] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages, tools = fit.turns, none -%}
""",
    "system": _SYSTEM.replace("FIRST", "false"),
    "later": _SYSTEM.replace("FIRST", "loop.first"),
    "greeting": """\
{%- set fit = namespace(turns=[], asked=false) -%}
{%- for turn in messages -%}
{%- set fit.asked = fit.asked or turn.role == 'user' -%}
{%- if fit.asked or turn.role != 'assistant' -%}
{%- set fit.turns = fit.turns + [turn] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = fit.turns -%}
""",
    "alternate": """\
{%- set fit = namespace(turns=[]) -%}
{%- for turn in messages -%}
{%- if fit.turns and fit.turns[-1].role == turn.role and turn.role != 'tool' \
and not (turn.tool_calls or fit.turns[-1].tool_calls) -%}
{%- set fit.turns = fit.turns[:-1] \
+ [dict(turn, content=fit.turns[-1].content ~ '\\n\\n' ~ turn.content)] -%}
{%- else -%}
{%- set fit.turns = fit.turns + [turn] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = fit.turns -%}
""",
    "parts": """\
{%- set fit = namespace(turns=[]) -%}
{%- for turn in messages -%}
{%- set fit.turns = fit.turns \
+ [dict(turn, content=[{'type': 'text', 'text': turn.content}])] -%}
{%- endfor -%}
{%- set messages = fit.turns -%}
""",
}
# Words of our own by which a rendered conversation is searched.
_ASKED, _SAID, _RULE = "probed question", "probed answer", "probed rule"
_CALL = {"name": "probed_function", "arguments": {"probed_argument": "probed value"}}
_TOOL: dict[str, Any] = {
    "name": "probed_function",
    "description": "probed use",
    "parameters": {"type": "object", "properties": {}},
}
# What is said of a template's answers.
_MARKED_OTHERWISE = (
    "The chat template's generation markers enclose {} otherwise than the model has to generate "
    "them: the latter is supervised."
)
_LEFT_OUT = (
    "The chat template leaves out the thoughts of {}: they are supervised between <think> and "
    "</think>."
)
_CLOSED = (
    "The thoughts of {} are left out: their prompts close the thought before the answer begins."
)
_JOINED = "The chat template does not tell {} from the one before: both are learned as one."
_WRITTEN = (
    "{} hold the end of a turn as text. The chat template writes it: give texts without it, or the "
    "model learns to write it twice."
)
_INSIDE = (
    "The chat template's prompts open a thought, and {} have none: they are supervised as they "
    "stand, right after <think>."
)


def _turn(role: str, content: str, **more: Any) -> Turn:
    return {"role": role, "content": content, **more}


def _part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], **switches: Any) -> str:
    """Return a conversation as the text that the template makes of it.

    Keys that a table filled with nothing are left out: a template may ask whether they are there.
    """
    clean = [
        {key: value for key, value in turn.items() if value is not None or key == "content"}
        for turn in turns
    ]
    try:
        return str(tokenizer.apply_chat_template(clean, tokenize=False, **switches))
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        # What a template does not look after, such as a text joined to a number.
        raise TemplateError(f"{type(error).__name__}: {error}") from error


def _tries(tokenizer: PreTrainedTokenizerBase, *turns: Turn, **switches: Any) -> str:
    """Return what the template makes of a conversation, or nothing where it refuses.

    One that demands a system turn gets one.
    """
    told = [] if not turns or turns[0]["role"] == "system" else [[_turn("system", ""), *turns]]
    for one in [[*turns], *told]:
        try:
            return render(tokenizer, one, **switches)
        except (TemplateError, ValueError):
            continue
    return ""


def fit_template(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row]) -> None:
    """Make the tokenizer's chat template take all that the conversations hold, and say how.

    `rows` has `prompt` and `completion`, maybe `tools`. Where the template refuses or leaves out a
    system turn, that goes into the first user turn; where it demands that turns alternate,
    neighbours of one role are joined; where it knows no tools, they are written as text, as Hermes
    and Qwen do; where it has no generation prompt, it gets the assistant's header as one. The
    template itself is changed, so that it is saved with the model. Of several templates by name
    the one is kept that the rows need.
    """
    check_tokenizer(tokenizer, str(tokenizer.name_or_path))
    needs = _Needs()
    for row in rows:
        needs.add(row)
    tools = needs.tools
    _choose_template(tokenizer, tools)
    user, rule = _turn("user", _ASKED), _turn("system", _RULE)
    answer = _turn("assistant", _SAID)
    needed: dict[str, str] = {}

    def tried(*turns: Turn) -> str:
        if "parts" in needed:
            turns = tuple({**turn, "content": _part(turn["content"])} for turn in turns)
        return _tries(tokenizer, *turns)

    if _ASKED not in tried(user, answer):
        needed["parts"] = "takes content in parts: texts are given so"
        if _ASKED not in tried(user, answer):
            del needed["parts"]
    if tools and not _takes_tools(tokenizer, needs):
        needed["tools"] = "takes no tools: they are written as text, between <tool_call> and so on"
    # Tools written as text stand in a system turn, and their answers in user turns.
    if (needs.system or "tools" in needed) and _RULE not in tried(rule, user, answer):
        needed["system"] = "takes no system turn: its text goes into the user turn beside it"
    elif needs.later and _RULE not in tried(user, answer, rule, user, answer):
        needed["later"] = "takes no system turn but the first: others go into the user turn beside"
    if needs.greeting and not tried(answer, user, answer):
        needed["greeting"] = "demands that a user begins: what was said before that is left out"
    if (needs.together or "tools" in needed) and not tried(user, user, answer):
        needed["alternate"] = "demands that turns alternate: neighbours of one role are joined"
    before = "".join(text for name, text in _BEFORE.items() if name in needed)
    tokenizer.chat_template = f"{before}{tokenizer.chat_template}"
    if header := _missing_header(tokenizer):
        needed["header"] = f"has no generation prompt: it gets {header!r}"
        asked = "{%- if add_generation_prompt -%}{{ " + json.dumps(header) + " }}{%- endif -%}"
        tokenizer.chat_template = f"{tokenizer.chat_template}{asked}"
    for what in needed.values():
        print(f"The chat template {what}.")


class _Needs:
    """What conversations hold that not every template takes."""

    def __init__(self) -> None:
        self.system = self.later = self.greeting = self.together = self.tools = False
        # Mistral's templates want nine letters or digits. Where one call has no number, none has.
        self.number: str | None = "probed000"
        self.described = {*_TOOL}  # what is told of each tool

    def add(self, row: Row) -> None:
        """Take note of a conversation."""
        turns = [*row["prompt"], *(row.get("completion") or ())]
        roles = [turn["role"] for turn in turns]
        first_asked = roles.index("user") if "user" in roles else len(roles)
        self.system |= "system" in roles
        self.later |= "system" in roles[1:]
        self.greeting |= "assistant" in roles[:first_asked]
        self.together |= any(one == other != "tool" for one, other in zip(roles, roles[1:]))
        calls = [call for turn in turns for call in turn.get("tool_calls") or ()]
        self.tools |= bool(row.get("tools") or calls) or "tool" in roles
        for call in calls:
            self.number = self.number and call.get("id")
        for tool in row.get("tools") or ():
            self.described &= {*(tool.get("function") or tool)}


def _choose_template(tokenizer: PreTrainedTokenizerBase, tools: bool) -> None:
    """Leave a tokenizer one template; `CookbookError` where it has none."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        name = "tool_use" if tools and "tool_use" in templates else "default"
        if name not in templates:
            raise CookbookError(
                f"None of the tokenizer's chat templates ({', '.join(templates)}) is called "
                "`default`. Set `tokenizer.chat_template` to the one that is meant."
            )
        print(f"Of the tokenizer's chat templates `{name}` is taken.")
        tokenizer.chat_template = templates[name]
    elif not templates:
        raise CookbookError(
            "The tokenizer has no chat template. Put one into chat_template.jinja beside the model."
        )


def _takes_tools(tokenizer: PreTrainedTokenizerBase, needs: _Needs) -> bool:
    number = {"id": needs.number} if needs.number else {}
    call = {**number, "type": "function", "function": _CALL}
    called = _turn("assistant", "", tool_calls=[call])
    answer_to = {"tool_call_id": needs.number} if needs.number else {}
    answered = _turn("tool", "probed result", name="probed_function", **answer_to)
    tool = {key: value for key, value in _TOOL.items() if key in needs.described}
    turns = [_turn("user", _ASKED), called, answered, _turn("assistant", _SAID)]
    text = _tries(tokenizer, *turns, tools=[{"type": "function", "function": tool}])
    wanted = ["probed_function", "probed_argument", "probed value", "probed result"]
    wanted += [_TOOL["description"]] * ("description" in tool)
    return all(one in text for one in wanted) and text.count("probed_function") > 1


def _missing_header(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the template writes before an answer but not as a generation prompt."""
    asked = _turn("user", _ASKED)
    prompt = _tries(tokenizer, asked)
    prompted = _tries(tokenizer, asked, add_generation_prompt=True)
    whole = _tries(tokenizer, asked, _turn("assistant", _SAID))
    if prompted != prompt or not whole.startswith(prompt) or _SAID not in whole:
        return ""
    # Without the blank before an answer, which tokenizers make one token with its first word.
    header = whole[len(prompt) : whole.rindex(_SAID)].rstrip(" ")
    return header if header.strip() else ""


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids at which generation has to stop, the end of the assistant's turn first.

    It is read off the template: the first of the tokenizer's own tokens after an answer. A base
    model with a ChatML template ends turns with `<|im_end|>` and documents with another token;
    trained towards the wrong one it never stops. A tool call may have an end of its own, and the
    end-of-sequence token follows where it is another. Raises `CookbookError` where there is none.
    """
    own = {
        str(token): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if str(token).strip()  # a line end that is a token ends lines, too
    }
    if tokenizer.eos_token is not None:
        own[str(tokenizer.eos_token)] = int(tokenizer.eos_token_id)
    call = {"id": "probed000", "type": "function", "function": _CALL}
    said, called = (
        [token for _, _, token in sorted(_places(own, _after(tokenizer, *one)))]
        for one in ((_SAID, {}), ("probed value", {"tool_calls": [call]}))
    )
    found = [own[token] for token in said[:1]]
    if said and said[0] not in called:
        # The last one: those before it close the call, and another one may follow.
        found += [own[token] for token in called[-1:]]
    if tokenizer.eos_token_id is not None:
        found.append(int(tokenizer.eos_token_id))
    if not found:
        raise CookbookError(
            "The tokenizer has no end-of-sequence token, and its chat template ends a turn with no "
            "token of its own, so the model could never learn to stop. Set `eos_token` in its "
            "tokenizer_config.json to the token that ends a text."
        )
    return list(dict.fromkeys(found))


def _after(tokenizer: PreTrainedTokenizerBase, last: str, more: Turn) -> str:
    """Return what the template writes after an answer, of which `last` is the last part."""
    answer = _turn("assistant", "" if more else last, **more)
    text = _tries(tokenizer, _turn("user", _ASKED), answer)
    return text[text.rindex(last) + len(last) :] if last in text else ""


def _places(tokens: Iterable[str], text: str) -> list[tuple[int, int, str]]:
    """Return where tokens begin in a text, of two at one place the longer one first."""
    return [(text.index(one), -len(one), one) for one in tokens if one and one in text]


# --- Labels ---------------------------------------------------------------------------------


def supervise_answers(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    end_of_turn: int | Sequence[int],
    turns: str | None = None,
) -> Dataset:
    """Add `input_ids` and `labels` to conversations; the loss sees what the assistant says.

    `turns` is `all`, or `last` for the completion alone; COOKBOOK_TURNS sets it. What is supervised
    of a turn is what the model has to generate after the prompt for it: no header, and nothing
    after the token that ends the turn (of `end_of_turn` the first is looked for first). A
    comparison with what the prompt alone gives tells it; one line says where generation markers of
    the template tell otherwise. Where a template writes earlier turns otherwise than the model has
    to say them (without their thoughts), every turn becomes a row of its own. A turn with `weight`
    0 is not learned. Columns `tools` and `chat_template_kwargs` (a dict) reach the template. Rows
    that it refuses are dropped and counted.
    """
    if not rows:
        raise DataError("No example is left to train or test on: give more rows.")
    turns = turns or os.environ.get("COOKBOOK_TURNS") or "all"
    labeller = _Labeller(tokenizer, end_of_turn, turns)
    refused: dict[str, list[int]] = {}
    places: list[int] = []
    made: list[Row] = []
    for place, row in enumerate(rows):
        try:
            parts = labeller.examples(row)
        except TemplateError as error:
            refused.setdefault(f"the chat template says: {error.message}", []).append(place + 1)
            continue
        if not parts:
            refused.setdefault("no turn to learn (`weight` is 0)", []).append(place + 1)
        places += [place] * len(parts)
        made += parts
    report_dropped(refused, "data")
    if not made:
        raise DataError(f"No row can be learned: {next(iter(refused))}.")
    if len(made) > len({*places}):
        print(
            f"{len({*places})} conversations became {len(made)} rows, one for each answer: "
            "earlier answers stand otherwise in the whole than the model has to generate them."
        )
    labeller.report()
    return _with_columns(rows, places, made)


def label_splits(
    splits: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    end_of_turn: int | Sequence[int],
    max_length: int,
) -> DatasetDict:
    """Return conversations with `input_ids` and `labels`, each split checked, long rows dropped.

    See `supervise_answers`, `drop_too_long` and `check_supervision`, whose sentence is printed.
    """
    labelled = DatasetDict()
    for name, rows in splits.items():
        rows = supervise_answers(rows, tokenizer, end_of_turn)
        labelled[name] = drop_too_long(rows, max_length, f"{name} split")
        print(name, check_supervision(labelled[name], tokenizer, end_of_turn))
    return labelled


def in_one_sequence(rows: Dataset) -> Dataset:
    """Return an encoder-decoder's examples with what is written after what is read, to be shown."""

    def joined(row: Row) -> Row:
        masked = [IGNORED] * len(row["input_ids"])
        return {"input_ids": row["input_ids"] + row["labels"], "labels": masked + row["labels"]}

    return rows.map(joined)


def check_pairs(
    splits: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    end_of_text: Sequence[int],
    max_length: int,
) -> DatasetDict:
    """Return an encoder-decoder's examples, each split checked, without too long documents.

    It is for them what `label_splits` is for a decoder's.
    """
    checked = DatasetDict()
    for name, rows in splits.items():
        checked[name] = drop_too_long(rows, max_length, f"{name} split")
        print(name, check_supervision(in_one_sequence(checked[name]), tokenizer, end_of_text))
    return checked


def _with_columns(rows: Dataset, places: Sequence[int], made: Sequence[Row]) -> Dataset:
    """Return the rows at `places` with what was made of each.

    Columns are made anew, since `add_column` knows none of JSON. Turns are JSON, since some may
    have got a key more than others.
    """
    own = {"input_ids": List(Value("int64")), "labels": List(Value("int64"))}
    features = Features({**rows.features, **own, "prompt": Json(), "completion": Json()})
    columns: dict[str, list[Any]] = {}
    for name in features:
        if name in made[0]:
            columns[name] = [one[name] for one in made]
        else:
            values = list(rows[name])
            columns[name] = [values[place] for place in places]
    return Dataset.from_dict(columns, features=features)


class _Labeller:
    """Turns a conversation into token ids and labels, and counts what has to be said of it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: int | Sequence[int], turns: str
    ) -> None:
        if turns not in TURNS:
            raise CookbookError(f"COOKBOOK_TURNS is {turns!r}: choose {' or '.join(TURNS)}.")
        self._tokenizer, self._turns = tokenizer, turns
        self._ends = [ends] if isinstance(ends, int) else [*ends]
        self._end = str(tokenizer.convert_ids_to_tokens(self._ends[0]))
        template = str(tokenizer.chat_template)
        self._marked = re.search(r"\{%-?\s*generation\s*-?%\}", template) and tokenizer.is_fast
        self._found: Counter[str] = Counter()

    def report(self) -> None:
        """Say what was found in the template, with the number of answers."""
        for what, count in self._found.items():
            if count:
                print(what.format(f"{count} answers"))

    def examples(self, row: Row) -> list[Row]:
        """Return a row's example, or one for each of its answers; `TemplateError` if refused."""
        switches = dict(row.get("chat_template_kwargs") or {})
        if row.get("tools"):
            switches["tools"] = row["tools"]
        turns = self._fitted([*row["prompt"], *row["completion"]])
        answers = [n for n, turn in enumerate(turns) if self._is_learned(turns, n)]
        each = [self._alone(turns[: n + 1], switches) for n in answers]
        made = [
            _example(ids, [(start, len(ids))])
            | {"prompt": turns[:n], "completion": turns[n : n + 1]}
            for n, (ids, start) in zip(answers, each)
        ]
        if each and all(each[-1][0][: len(ids)] == ids for ids, _ in each):
            # Every answer is written in the last one's prompt as it was generated.
            spans = [(start, len(ids)) for ids, start in each]
            return [made[-1] | _example(each[-1][0], spans)]
        return made

    def _fitted(self, turns: list[Turn]) -> list[Turn]:
        """Return turns as the template can tell them apart.

        Answers that stand side by side become one, unless each gets a header and an end of its own.
        Thoughts within answers get the key by which the template has a place for them.
        """
        found: list[Turn] = []
        for turn in turns:
            said = str(turn["content"] or "")
            self._found[_WRITTEN] += turn["role"] == "assistant" and self._end in said
            if self._thought_key and turn["role"] == "assistant":
                thought, said = _thought_and_rest(turn)
                if thought and not any(turn.get(key) for key in THOUGHTS):
                    turn = {**turn, self._thought_key: thought, "content": said}
            last = found[-1] if found else turn
            both = last["role"] == turn["role"] == "assistant" and bool(found)
            if both and not last.get("tool_calls") and not self._keeps_apart:
                if last.get("weight") != turn.get("weight"):
                    raise TemplateError("two answers side by side are one, and differ in `weight`")
                said = "\n\n".join(one["content"] for one in (last, turn) if one["content"])
                found[-1] = {**last, **turn, "content": said}
                self._found[_JOINED] += 1
            else:
                found.append(turn)
        return found

    @cached_property
    def _keeps_apart(self) -> bool:
        """Tell whether the template writes two answers in a row as two turns."""
        asked, first = _turn("user", _ASKED), _turn("assistant", _SAID)
        second = _turn("assistant", "another answer")
        prompt = _tries(self._tokenizer, asked, first, add_generation_prompt=True)
        begin, once = (
            _tries(self._tokenizer, asked, add_generation_prompt=prompted)
            for prompted in (True, False)
        )
        header = begin.removeprefix(once)
        after = prompt.partition(_SAID)[2]
        return (
            bool(header and after.removesuffix(header).strip())
            and after.endswith(header)
            and _tries(self._tokenizer, asked, first, second).startswith(prompt)
        )

    @cached_property
    def _thought_key(self) -> str:
        """Return the key from which the template takes a thought, where it finds none in a text."""
        template = str(self._tokenizer.chat_template)
        if "</think>" in template:
            return ""
        named = rf"\.({'|'.join(THOUGHTS)})\b|['\"]({'|'.join(THOUGHTS)})['\"]"
        found = re.search(named, template)
        return (found[1] or found[2]) if found else ""

    def _is_learned(self, turns: list[Turn], number: int) -> bool:
        turn, last = turns[number], len(turns) - 1
        if turn["role"] != "assistant" or turn.get("weight") == 0:
            return False
        before = any(one["role"] == "user" for one in turns[:number])
        return number == last or (self._turns == "all" and before)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _alone(self, turns: list[Turn], switches: Row) -> tuple[list[int], int]:
        """Return the ids of the last turn after exactly its prompt, and where it begins in them."""
        prompt = render(self._tokenizer, turns[:-1], add_generation_prompt=True, **switches)
        text = render(self._tokenizer, turns, **switches)
        answer = self._answer(turns, prompt, text, switches)
        before, ids = self._ids(prompt), self._ids(text)
        if prompt + answer == text and ids[: len(before)] == before:
            after = ids[len(before) :]
            self._compare_markers(turns, ids, len(before), switches)
        else:
            # Where tokens would merge across the border, too: a prompt does not know what follows.
            after = self._continued(answer)
        return before + after[: self._length(after)], len(before)

    def _answer(self, turns: list[Turn], prompt: str, text: str, switches: Row) -> str:
        """Return what has to be generated after the prompt."""
        border = len(prompt)
        if not text.startswith(prompt):
            border = self._border(turns, prompt, text, switches)
        answer = text[border:]
        thought, said = _thought_and_rest(turns[-1])
        if prompt.rstrip().endswith("</think>"):  # no thought is left to be generated
            self._found[_CLOSED] += bool(thought)
            _, closed, rest = answer.partition("</think>")
            return rest.lstrip("\n") if closed and border < len(prompt) else answer
        opened = prompt.rstrip().endswith("<think>")
        if _squeezed(thought) in _squeezed(answer):
            self._found[_INSIDE] += opened and "</think>" not in answer
            return answer
        self._found[_LEFT_OUT] += 1
        at = max(answer.find(said), 0)
        begun = "" if opened else "<think>\n"
        return f"{begun}{thought}\n</think>\n\n{answer[at:]}"

    def _border(self, turns: list[Turn], prompt: str, text: str, switches: Row) -> int:
        """Return where an answer begins in a text that does not begin with its prompt."""
        # A word of ours in place of the answer, which may begin with the prompt's own letters.
        turn = {key: value for key, value in turns[-1].items() if key not in THOUGHTS}
        probed = render(self._tokenizer, [*turns[:-1], turn | {"content": _SAID}], **switches)
        head = os.path.commonprefix([text, probed.partition(_SAID)[0]])
        asked = render(self._tokenizer, turns[:-1], **switches)
        before = len(os.path.commonprefix([asked, prompt]))
        same = len(os.path.commonprefix([head, prompt]))
        if same >= before:
            return same
        # Earlier turns are written otherwise, too: look for the header, or for its beginning.
        header = prompt[before:]
        lengths = range(len(header) - 1, min(3, len(header) - 1), -1)
        part = next((n for n in lengths if head.endswith(header[:n])), 0)
        whole = head.rfind(header)
        if part and len(head) - part > whole:
            return len(head)
        if whole < 0 or not header:
            raise TemplateError("the prompt for an answer does not stand before that answer")
        return whole + len(header)

    def _continued(self, text: str) -> list[int]:
        """Return the ids of a text that does not begin one: SentencePiece adds a blank to those."""
        line, ids = self._ids("\n"), self._ids(f"\n{text}")
        return ids[len(line) :] if ids[: len(line)] == line else self._ids(text)

    def _length(self, answer: list[int]) -> int:
        """Return how many tokens of an answer are generated: up to the last end of turn."""
        first = [place for place, token in enumerate(answer) if token in self._ends[:1]]
        ends = first or [place for place, token in enumerate(answer) if token in self._ends]
        return ends[-1] + 1 if ends else len(answer)

    def _compare_markers(
        self, turns: list[Turn], ids: list[int], start: int, switches: Row
    ) -> None:
        """Count an answer that the template's generation markers enclose otherwise.

        They may leave out the end of the turn, and enclose what follows that. The last bytes of a
        letter may be missing: transformers marks its first token.
        """
        if not self._marked:
            return
        template: Any = self._tokenizer.apply_chat_template
        marked = template(turns, return_dict=True, return_assistant_tokens_mask=True, **switches)
        mask = list(marked["assistant_masks"])
        end = start + self._length(ids[start:])
        otherwise = any(mask[start - 1 : start]) or not all(mask[start : end - 4])
        self._found[_MARKED_OTHERWISE] += otherwise


def _thought_and_rest(turn: Turn) -> tuple[str, str]:
    """Return an answer's thought, from a key of its own or between marks, and what follows it."""
    said = str(turn["content"] or "")
    thought = next((turn[key] for key in THOUGHTS if isinstance(turn.get(key), str)), "")
    if not thought and "</think>" in said:
        thought, _, said = said.partition("</think>")
        thought = thought.replace("<think>", "", 1)
    return thought.strip(), said.strip()


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _example(ids: list[int], spans: Sequence[tuple[int, int]]) -> Row:
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return {"input_ids": ids, "labels": labels}


def check_supervision(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, end_of_turn: int | Sequence[int]
) -> str:
    """Check the labels of every tokenized row and return one sentence that says what was seen.

    Each row must have supervised tokens, must not be supervised throughout, must supervise one of
    the `end_of_turn` token ids (or the model never learns to stop) and must not begin with two BOS.
    """
    ends = [end_of_turn] if isinstance(end_of_turn, int) else list(end_of_turn)
    bos = tokenizer.bos_token_id
    supervised = total = 0
    for number, (ids, labels) in enumerate(zip(rows["input_ids"], rows["labels"], strict=True)):
        targets = [label for label in labels if label != IGNORED]
        masked = [label == IGNORED for label in [*labels[1:], IGNORED]]
        lasts = [one for one, last in zip(labels, masked) if last and one != IGNORED]
        if not targets:
            raise DataError(f"Row {number} is fully masked: it would teach nothing.")
        if len(targets) == len(labels):
            raise DataError(f"Row {number} supervises its prompt too: check the prompt's length.")
        if not {*lasts} <= {*ends}:
            tokens = " or ".join(tokenizer.convert_ids_to_tokens(ends))
            raise DataError(
                f"Row {number} does not supervise the end-of-turn token {tokens}: the model would "
                "not learn to stop. The chat template must end the assistant's turn with it: write "
                "`{{ eos_token }}` after the assistant's content in its chat_template.jinja."
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
