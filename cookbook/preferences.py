"""The forms in which people keep preferences, recognised and brought into TRL's two.

Pairs are `prompt`, `chosen` and `rejected`, each a list of chat messages, both answers being one
assistant turn. Single answers are `prompt`, `completion` and a `label`, true for a thumb up.
Ratings and thumbs become pairs where a prompt has answers of both kinds; pairs become two answers.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from statistics import mean
from typing import Any

from datasets import Dataset, DatasetDict, Features, Json, Value, concatenate_datasets

from cookbook import forms
from cookbook.files import DataError
from cookbook.forms import Row, Turn

BETTER_WORSE = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),  # OpenAI's
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),  # StackExchange's
    ("preferred", "dispreferred"),
    ("accepted", "rejected"),
    ("better", "worse"),
)
ASKED = ("prompt", "instruction", "question", "query", "input", "messages", "conversations")
SCORES = (  # of the two answers of a pair
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
RATINGS = ("rating", "score", "stars", "overall_score", "ratings", "scores")
THUMBS = ("label", "thumb", "thumbs", "feedback", "liked")
UP = {"true", "1", "up", "good", "like", "yes", "positive", "thumbs_up", "thumbs up", "👍"}
DOWN = {"false", "0", "-1", "down", "bad", "no", "negative", "dislike"}
DOWN |= {"thumbs_down", "thumbs down", "👎"}
SAME = "the two answers are the same, or were rated the same: a tie says nothing"
SWAPPED = "the rejected answer has the higher score: are the two swapped?"
ALONE = "no other answer to its prompt that was rated higher or lower"
MIDDLE = "rated in the middle: neither up nor down"
# Anthropic's: one string holds a whole conversation.
_SPEAKER = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant): ")
_WANTED = (
    "needed are `chosen` and `rejected` (with `prompt`, or as whole conversations), or `prompt`, "
    "`completion` and a `rating` or a `label`; or, where a program can check answers, `prompt` and "
    "`answer`"
)


def pair_splits(splits: DatasetDict) -> DatasetDict:
    """Return the splits `train` and `test` as pairs, in whatever form they are (see `read`).

    No prompt is in both: a pair of the test split whose prompt is trained on is dropped. Of ratings
    and thumbs all answers to a prompt go to the same split.
    """
    return _apart(splits, single=False)


def thumb_splits(splits: DatasetDict) -> DatasetDict:
    """Return the splits `train` and `test` as single answers: `prompt`, `completion`, `label`.

    A pair becomes two rows. A rating over the middle of the training split's is a thumb up, one
    under it a thumb down. No prompt is in both, as in `pair_splits`. Raises `DataError` where all
    training answers have the same thumb.
    """
    thumbs = _apart(splits, single=True)
    check_both_kinds(thumbs["train"])
    return thumbs


def check_both_kinds(thumbs: Dataset) -> None:
    """Raise `DataError` where all answers have the same thumb."""
    if len({*thumbs["label"]}) < 2:
        only = "up" if thumbs["label"][0] else "down"
        raise DataError(
            f"All training answers have a thumb {only}: what is better is learned from both kinds. "
            "With good answers alone, fine-tune on them: 03-Instruction-Tuning."
        )


def _apart(splits: DatasetDict, single: bool) -> DatasetDict:
    if form_of(splits["train"]) in ("ratings", "thumbs"):
        splits = _kept_together(splits)
    middle = middle_of(splits["train"]) if single else None
    made = DatasetDict({one: read(rows, f"{one} split", middle)[0] for one, rows in splits.items()})
    kept = unseen(made["train"], made["test"])
    if both := len(made["test"]) - len(kept):
        print(f"Dropped {both} rows of the test split: their prompts are trained on.")
    made["test"] = made["test"].select(kept)
    return made


def unseen(train: Dataset, test: Dataset) -> list[int]:
    """Return the numbers of the test rows whose prompt no training row has.

    Raises `DataError` where there is none.
    """
    known = {_key(prompt) for prompt in train["prompt"]}
    kept = [n for n, prompt in enumerate(test["prompt"]) if _key(prompt) not in known]
    if not kept:
        raise DataError(
            "Every prompt of the test split is in the train split too, so a score would be of what "
            "was learned by heart. Hold out pairs of other prompts."
        )
    return kept


def form_of(rows: Dataset) -> str:
    """Return which form rows have: pairs, ratings, thumbs, or problems; nothing for another.

    Problems have a true answer and no others that could be compared with it.
    """
    columns = rows.column_names
    if any({*both} <= {*columns} for both in BETTER_WORSE):
        return "pairs"
    if _named(columns, RATINGS):
        return "ratings"
    if (at := _named(columns, THUMBS)) and any(_thumb(one) is not None for one in rows[at][:20]):
        return "thumbs"
    worked = _named(columns, ("completion", "output", "solution", "response"))
    with_results = bool(worked) and any("####" in str(one) for one in rows[worked][:20])
    return "problems" if "answer" in columns or with_results else ""


def middle_of(rows: Dataset) -> float:
    """Return the middle between the lowest and the highest rating of rows; of thumbs, 0.5."""
    if form_of(rows) != "ratings":
        return 0.5
    found = rows[_named(rows.column_names, RATINGS)]
    every = [one for at in found for one in (at if isinstance(at, list) else [at])]
    numbers = [value for one in every if (value := _rating(one)) is not None]
    return (min(numbers) + max(numbers)) / 2 if numbers else 0.5


def read(
    rows: Dataset, name: str, middle: float | None = None
) -> tuple[Dataset, dict[str, list[int]]]:
    """Return rows as pairs, and by reason the numbers of dropped rows, the first being 1.

    Pairs have the columns `prompt`, `chosen` and `rejected`, lists of chat messages; columns of
    other names stay beside them. With a `middle` rows become single answers, rated over it or under
    it: see `thumb_splits`. What cannot be used is dropped and told; if nothing is left, or no form
    is recognised, `DataError` says so.
    """
    found = form_of(rows)
    if found in ("", "problems"):
        raise DataError(
            f"The {name} has the columns {', '.join(sorted(rows.column_names))}; {_WANTED}. "
            'Name yours: COOKBOOK_COLUMNS="yours=chosen,another=rejected".'
        )
    print(f"The {name}: {len(rows)} rows of {found}.")
    dropped: dict[str, list[int]] = {}
    taken = _pairs(rows, dropped) if found == "pairs" else _compared(rows, found, dropped)
    if middle is not None:
        taken = _apiece(taken) if found == "pairs" else _judged(rows, found, dropped, middle)
    made = [*taken]
    forms.report_dropped(dropped, name)
    if not made:
        raise DataError(f"The {name} has no usable row left; {_WANTED}.")
    if middle is not None:
        up = sum(row["label"] for _, row in made)
        why = f", rated over or under {middle:g}" if found == "ratings" else ""
        print(f"They are answers, {up} with a thumb up and {len(made) - up} with one down{why}.")
    elif found != "pairs":
        print(f"They gave {len(made)} pairs of a better and a worse answer.")
    names = [*made[0][1]]
    features = Features({one: Value("bool") if one == "label" else Json() for one in names})
    used = {*names, *forms.SYSTEM, *forms.TOOLS, *ASKED, *RATINGS, *THUMBS, "completion"}
    used |= {one for both in (*BETTER_WORSE, *SCORES) for one in both}
    rest = rows.select([place for place, _ in made])
    rest = rest.remove_columns([one for one in rest.column_names if one in used])
    columns = {one: [row[one] for _, row in made] for one in names}
    return forms._beside(columns, features, rest), dropped


def _pairs(rows: Dataset, dropped: dict[str, list[int]]) -> Iterator[tuple[int, Row]]:
    """Yield each usable row's number and what it says: prompt, better and worse answer."""
    better, worse = next(both for both in BETTER_WORSE if {*both} <= {*rows.column_names})
    asked = _named(rows.column_names, ASKED)
    scores = next((both for both in SCORES if {*both} <= {*rows.column_names}), None)
    for place, row in enumerate(rows):
        try:
            chosen, tools = _talk(row, asked, row[better])
            rejected, _ = _talk(row, asked, row[worse])
            _check_pair(chosen, rejected, [row[one] for one in scores or ()])
        except forms._Unusable as error:
            dropped.setdefault(str(error), []).append(place + 1)
            continue
        made = {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
        yield place, made | tools


def _check_pair(chosen: list[Turn], rejected: list[Turn], scores: list[Any]) -> None:
    if chosen[:-1] != rejected[:-1]:
        raise forms._Unusable("the two answers follow different conversations")
    numbers = [float(one) for one in scores if isinstance(one, (int, float))]
    if chosen == rejected or (len(numbers) == 2 and numbers[0] == numbers[1]):
        raise forms._Unusable(SAME)
    if len(numbers) == 2 and numbers[0] < numbers[1]:
        raise forms._Unusable(SWAPPED)


def _talk(row: Mapping[str, Any], asked: str, answer: Any) -> tuple[list[Turn], Row]:
    """Return a row's turns up to one of its answers, which comes last, and its tools."""
    beside = {one: row[one] for one in (*forms.SYSTEM, *forms.TOOLS) if one in row}
    answer = forms._parsed(answer)
    if isinstance(answer, dict) and forms._is_turn(answer):
        answer = [answer]
    if not asked:  # the answer is the whole conversation
        whole = _between_speakers(answer) if isinstance(answer, str) else answer
        turns, _ = forms.conversation({"messages": whole} | beside, _WHOLE)
    else:
        prompt = forms._parsed(row[asked])
        if isinstance(prompt, dict) and "messages" in prompt:  # OpenAI's
            beside |= {one: prompt[one] for one in forms.TOOLS if prompt.get(one)}
            prompt = prompt["messages"]
        about = row.get("input") if asked == "instruction" else None
        read = {"prompt": prompt, "completion": answer, "input": about} | beside
        turns, _ = forms.conversation(read, _WITH_INPUT)
    return turns, forms._tools(beside)


def _between_speakers(text: str) -> list[Turn]:
    """Return the turns of a text like "Human: a question Assistant: its answer"."""
    parts = _SPEAKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said} for who, said in zip(parts[1::2], parts[2::2])]


_WHOLE = forms.Form("messages", ("messages",), lambda row: forms._with_system(row, row["messages"]))
_WITH_INPUT = forms._pair("prompt", "completion", "input")


def _apiece(pairs: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """Yield both answers of each pair by themselves, the better one with a thumb up."""
    for place, row in pairs:
        beside = {one: row[one] for one in row if one not in ("chosen", "rejected")}
        for which in ("chosen", "rejected"):
            yield place, beside | {"completion": row[which], "label": which == "chosen"}


def _judged(
    rows: Dataset, form: str, dropped: dict[str, list[int]], middle: float
) -> Iterator[tuple[int, Row]]:
    """Yield each answer by itself, with a thumb up where it is rated over the middle."""
    for place, value, turns, tools in _every_answer(rows, form, dropped):
        if value == middle:
            dropped.setdefault(MIDDLE, []).append(place + 1)
        else:
            said = {"completion": turns[-1:], "label": value > middle}
            yield place, {"prompt": turns[:-1]} | said | tools


def _compared(rows: Dataset, form: str, dropped: dict[str, list[int]]) -> Iterator[tuple[int, Row]]:
    """Yield pairs of the best and the worst answer to each prompt, with the number of the best."""
    groups: dict[str, list[tuple[float, int, list[Turn], Row]]] = {}
    for place, value, turns, tools in _every_answer(rows, form, dropped):
        groups.setdefault(_key(turns[:-1]), []).append((value, place, turns, tools))
    for rated in groups.values():
        best, worst = (choose(rated, key=lambda one: one[0]) for choose in (max, min))
        if best[0] == worst[0] or best[2] == worst[2]:
            reason = ALONE if len(rated) == 1 else SAME
            dropped.setdefault(reason, []).extend(one[1] + 1 for one in rated)
            continue
        made = {"prompt": best[2][:-1], "chosen": best[2][-1:], "rejected": worst[2][-1:]}
        yield best[1], made | best[3]


def _every_answer(
    rows: Dataset, form: str, dropped: dict[str, list[int]]
) -> Iterator[tuple[int, float, list[Turn], Row]]:
    """Yield each usable answer: its row's number, its rating, the turns up to it, and tools."""
    asked = _named(rows.column_names, ASKED)
    answered = _named(rows.column_names, ("completion", "response", "output", "answer"))
    many = _named(rows.column_names, ("completions", "responses", "outputs", "answers"))
    at = _named(rows.column_names, RATINGS if form == "ratings" else THUMBS)
    if not asked or not (answered or many):
        raise DataError(f"There is `{at}`, and no prompt or no answer that it is of; {_WANTED}.")
    for place, row in enumerate(rows):
        try:
            for answer, value in _rated(row, answered, many, at):
                turns, tools = _talk(row, asked, answer)
                yield place, value, turns, tools
        except forms._Unusable as error:
            dropped.setdefault(str(error), []).append(place + 1)


def _rated(
    row: Mapping[str, Any], answered: str, many: str, at: str
) -> Iterator[tuple[Any, float]]:
    """Yield the answers of a row, each with its rating: one, or several in lists."""
    if not many:
        value = _rating(row[at])
        if value is None:
            raise forms._Unusable(f"no number, and neither up nor down, in {at}")
        yield row[answered], value
        return
    answers, values = forms._parsed(row[many]), forms._parsed(row[at])
    both = isinstance(answers, list) and isinstance(values, list)
    if not both or len(answers) != len(values):
        raise forms._Unusable(f"{many} and {at} are not lists of one length")
    for answer, one in zip(answers, values):
        value = _rating(one)
        if value is not None:
            yield answer, value


def _rating(value: Any) -> float | None:
    """Return a rating as a number; thumbs are 1 and 0."""
    try:
        number = float(value if isinstance(value, (int, float)) else str(value))
    except ValueError:
        thumb = _thumb(value)
        return None if thumb is None else float(thumb)
    return number if math.isfinite(number) else None


def _thumb(value: Any) -> bool | None:
    said = str(value).strip().lower().removesuffix(".0")
    return True if said in UP else False if said in DOWN else None


def _named(columns: list[str], names: tuple[str, ...]) -> str:
    """Return the first of the names that is a column's, or nothing."""
    return next((one for one in names if one in columns), "")


def _key(prompt: list[Turn]) -> str:
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def _kept_together(splits: DatasetDict) -> DatasetDict:
    rows = concatenate_datasets([splits["train"], splits["test"]])
    trained, held_out = together(rows, len(splits["train"]))
    return DatasetDict(train=rows.select(trained), test=rows.select(held_out))


def together(rows: Dataset, count: int) -> tuple[list[int], list[int]]:
    """Return the numbers of rows to train and to test on, all answers to a prompt on one side.

    Now the first `count` rows are the training split. A prompt goes where the answer is that comes
    first in the alphabet: so a test split that was cut row by row keeps its size.
    """
    as_they_are = [*range(count)], [*range(count, len(rows))]
    asked = _named(rows.column_names, ASKED)
    if not asked:
        return as_they_are
    prompts = [json.dumps(one, sort_keys=True, default=str) for one in rows[asked]]
    firsts: dict[str, tuple[str, bool]] = {}
    for place, (prompt, row) in enumerate(zip(prompts, rows.remove_columns(asked))):
        mine = json.dumps(row, sort_keys=True, default=str), place >= count
        firsts[prompt] = min(firsts.get(prompt, mine), mine)
    held_out = [n for n, prompt in enumerate(prompts) if firsts[prompt][1]]
    trained = [n for n, prompt in enumerate(prompts) if not firsts[prompt][1]]
    return (trained, held_out) if trained and held_out else as_they_are


def answers(pairs: Dataset) -> Dataset:
    """Return pairs as conversations, two rows each: the better answer, and then the worse one."""
    rows = [row for _, row in _apiece(enumerate(pairs))]
    names = [name for name in ("prompt", "tools", "completion") if name in rows[0]]
    columns = {name: [row[name] for row in rows] for name in names}
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Json())))


def length_bias(pairs: Dataset) -> float:
    """Return the share of pairs whose better answer is the longer one, in characters."""

    both = zip(pairs["chosen"], pairs["rejected"])
    sizes = ([len(str(turns[-1]["content"])) for turns in pair] for pair in both)
    return mean((one > other) + (one == other) / 2 for one, other in sizes)
