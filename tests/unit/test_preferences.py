"""Preferences in the forms in which people keep them become pairs, and pairs become token ids."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from cookbook import chat, data, pairs, preferences
from cookbook.files import DataError
from tests.unit import templates

pytestmark = pytest.mark.unit

Row = dict[str, Any]


def as_pairs(rows: Dataset) -> Dataset:
    """Return rows as pairs, without what was dropped."""
    return preferences.read(rows, "data")[0]


def turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def gpt(content: str) -> Row:
    return {"from": "gpt", "value": content}


ASKED, GOOD, BAD = turn("user", "Why?"), turn("assistant", "Because."), turn("assistant", "No.")
HELLO = [turn("user", "Hello."), turn("assistant", "Hello!")]
SYSTEM = turn("system", "Be short.")
CALL = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]

# A row as people have it, and what it is: prompt, better and worse answer.
FORMS: dict[str, tuple[Row, list[Row]]] = {
    "text": ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, [ASKED]),
    "text and a system text": (
        {"question": "Why?", "chosen": "Because.", "rejected": "No.", "system": "Be short."},
        [SYSTEM, ASKED],
    ),
    "messages": ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, [ASKED]),
    "messages as JSON in a table": (
        {"prompt": json.dumps([ASKED]), "chosen": json.dumps([GOOD]), "rejected": str([BAD])},
        [ASKED],
    ),
    "whole conversations": (
        {"chosen": [*HELLO, ASKED, GOOD], "rejected": [*HELLO, ASKED, BAD]},
        [*HELLO, ASKED],
    ),
    "whole conversations beside the prompt": (
        {"prompt": "Why?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        [ASKED],
    ),
    "one string, as Anthropic's": (
        {
            name: f"\n\nHuman: Hello.\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant: {said}"
            for name, said in (("chosen", "Because."), ("rejected", "No."))
        },
        [*HELLO, ASKED],
    ),
    "OpenAI's": (
        {
            "input": {"messages": [SYSTEM, ASKED], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        [SYSTEM, ASKED],
    ),
    "LLaMA-Factory's": (
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": gpt("Because."),
            "rejected": gpt("No."),
        },
        [ASKED],
    ),
    "Alpaca's with two answers": (
        {"instruction": "Explain.", "input": "Why?", "chosen": "Because.", "rejected": "No."},
        [turn("user", "Explain.\n\nWhy?")],
    ),
    "StackExchange's": (
        {"question": "Why?", "response_j": "Because.", "response_k": "No.", "qid": 7},
        [ASKED],
    ),
    "scores that agree": (
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
        | {"score_chosen": 9.0, "score_rejected": 2.0},
        [ASKED],
    ),
    "answers and ratings in lists": (
        {"prompt": "Why?", "responses": ["No.", "Hm.", "Because."], "ratings": [1, 3, 5]},
        [ASKED],
    ),
}


@pytest.mark.parametrize(("row", "prompt"), FORMS.values(), ids=list(FORMS))
def test_a_form_is_read(row: Row, prompt: list[Row]) -> None:
    (found,) = as_pairs(Dataset.from_list([row]))
    assert found["prompt"] == prompt
    assert found["chosen"] == [GOOD] and found["rejected"] == [BAD]


RATED = {
    "stars": ("stars", [5, 1, 3]),
    "as text": ("rating", ["4.5", "1", " 2 "]),
    "booleans": ("label", [True, False, False]),
    "numbers": ("label", [1, 0, 0]),
    "words": ("feedback", ["Good", "bad", "BAD"]),
    "signs": ("thumb", ["\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}", "\N{THUMBS DOWN SIGN}"]),
}


@pytest.mark.parametrize(("name", "values"), RATED.values(), ids=list(RATED))
def test_ratings_and_thumbs_become_pairs(
    name: str, values: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The best answer to a prompt against the worst; one alone, or a tie, gives nothing."""
    rows = [
        {"prompt": "Why?", "completion": said, name: value}
        for said, value in zip(("Because.", "No.", "Hm."), values, strict=True)
    ]
    rows += [{"prompt": "How?", "completion": "So.", name: values[0]}]
    rows += [{"prompt": "Who?", "completion": said, name: values[1]} for said in ("I.", "You.")]
    (found,) = as_pairs(Dataset.from_list(rows))
    assert found["prompt"] == [ASKED] and found["chosen"] == [GOOD]
    assert found["rejected"][0]["content"] in ("No.", "Hm.")
    printed = capsys.readouterr().out
    assert f"Dropped 1 rows of the data: {preferences.ALONE} (row 4)." in printed
    assert f"Dropped 2 rows of the data: {preferences.SAME} (rows 5, 6)." in printed


@pytest.mark.parametrize("value", [None, "", "nan", float("nan"), "inf", "so so", [1]])
def test_what_is_no_rating_is_dropped_and_counted(
    value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "Why?", "completion": said, "rating": json.dumps(one)}
        for said, one in (("Because.", 5), ("No.", 1))
    ]
    rows.append({"prompt": "Why?", "completion": "Hm.", "rating": str(value)})
    (found,) = as_pairs(Dataset.from_list(rows))
    assert found["chosen"] == [GOOD] and found["rejected"] == [BAD]
    assert "Dropped 1 rows of the data: no number, and neither up nor down" in (
        capsys.readouterr().out
    )
    assert preferences._rating(value) is None


DROPPED = {
    "a tie": ({"chosen": " No. "}, preferences.SAME),
    "scores that are equal": ({"score_chosen": 3, "score_rejected": 3}, preferences.SAME),
    "swapped": ({"score_chosen": 1, "score_rejected": 4}, preferences.SWAPPED),
    "an empty answer": ({"chosen": "  "}, "an empty turn"),
    "a missing answer": ({"rejected": None}, "an empty turn"),
    "no prompt": ({"prompt": ""}, "an empty turn"),
    "another conversation": (
        {"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([turn("user", "Who?"), BAD])},
        "the two answers follow different conversations",
    ),
}


@pytest.mark.parametrize(("changed", "reason"), DROPPED.values(), ids=list(DROPPED))
def test_what_says_nothing_is_dropped_and_counted(
    changed: Row, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"score_chosen": 9, "score_rejected": 2}
    right = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."} | scores
    found = as_pairs(Dataset.from_list([right, right | changed]))
    assert len(found) == 1
    assert f"Dropped 1 rows of the data: {reason} (row 2)." in capsys.readouterr().out
    with pytest.raises(DataError, match="no usable row left"):
        as_pairs(Dataset.from_list([right | changed]))


def test_an_answer_that_tells_of_speakers_is_an_answer() -> None:
    """Not a whole conversation: there is a prompt; and within one, names in a line are no turns."""
    said = "A play.\n\nHuman: Who is it?\n\nAssistant: I."
    row = {"prompt": "Write a play.", "chosen": said, "rejected": "No."}
    (found,) = as_pairs(Dataset.from_list([row]))
    assert found["chosen"] == [turn("assistant", said)]
    told = "\n\nHuman: Why?\n\nAssistant: the Human: I, and the Assistant: you"
    (found,) = as_pairs(
        Dataset.from_list([{"chosen": told, "rejected": "\n\nHuman: Why?\n\nAssistant: No."}])
    )
    assert found["prompt"] == [ASKED] and found["rejected"] == [BAD]
    assert found["chosen"][0]["content"] == "the Human: I, and the Assistant: you"


def test_other_columns_and_tools_stay() -> None:
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "id": 7, "tools": CALL}
    (found,) = as_pairs(Dataset.from_list([row]))
    assert found["id"] == 7 and found["tools"] == CALL


def test_what_is_needed_is_said() -> None:
    with pytest.raises(DataError, match="`chosen` and `rejected`.*COOKBOOK_COLUMNS"):
        as_pairs(Dataset.from_list([{"text": "Why?"}]))
    with pytest.raises(DataError, match="no prompt or no answer"):
        as_pairs(Dataset.from_list([{"completion": "Why?", "rating": 3}]))


THUMBS: dict[str, tuple[Row, list[tuple[str, bool]]]] = {
    "thumbs": (
        {"prompt": ["Why?", "How?"], "completion": ["So.", "No."], "label": ["up", "down"]},
        [("So.", True), ("No.", False)],
    ),
    "numbers": (
        {"question": ["Why?", "How?"], "response": ["So.", "No."], "thumbs": [1, -1]},
        [("So.", True), ("No.", False)],
    ),
    "stars": (
        {"prompt": ["Why?"] * 5, "completion": [*"abcde"], "stars": [1, 2, 3, 4, 5]},
        [("a", False), ("b", False), ("d", True), ("e", True)],
    ),
    "lists": (
        {"prompt": ["Why?"], "completions": [["a", "b", "c"]], "ratings": [[9, 1, 5]]},
        [("a", True), ("b", False)],
    ),
    "pairs": (
        {"prompt": ["Why?"], "chosen": ["a"], "rejected": ["b"], "score": [3]},
        [("a", True), ("b", False)],
    ),
}


@pytest.mark.parametrize("form", THUMBS)
def test_preferences_become_single_answers(form: str) -> None:
    columns, expected = THUMBS[form]
    rows = Dataset.from_dict(columns)
    found, _ = preferences.read(rows, "data", preferences.middle_of(rows))
    assert [one[0]["content"] for one in found["completion"]] == [text for text, _ in expected]
    assert found["label"] == [thumb for _, thumb in expected]
    assert {one[0]["role"] for one in found["prompt"]} == {"user"}


def test_both_splits_have_the_training_split_s_middle() -> None:
    """A small test split without the lowest stars would call good answers bad."""
    train = [{"prompt": f"{n}", "completion": "a", "stars": n % 5 + 1} for n in range(10)]
    test = [{"prompt": f"t{n}", "completion": "a", "stars": stars} for n, stars in enumerate("245")]
    found = preferences.thumb_splits(
        splits(train, [row | {"stars": int(row["stars"])} for row in test])
    )
    assert found["test"]["label"] == [False, True, True]
    disliked = [{"prompt": f"{n}", "completion": "a", "label": "down"} for n in range(3)]
    with pytest.raises(DataError, match="All training answers have a thumb down"):
        preferences.thumb_splits(
            splits(disliked, [{"prompt": "t", "completion": "a", "label": "up"}])
        )


def test_the_middle_is_that_of_the_rows_that_are_trained_on() -> None:
    """Answers to a prompt are put together first: the lowest star may come from the test split."""
    train = [{"prompt": "a", "completion": f"a{n}", "stars": n} for n in (3, 4, 5)]
    train += [{"prompt": f"{n}", "completion": f"b{n}", "stars": n} for n in (3, 5)]
    test = [{"prompt": "a", "completion": "z", "stars": 1}]
    test += [{"prompt": f"t{n}", "completion": "c", "stars": n} for n in (2, 4)]
    found = preferences.thumb_splits(splits(train, test))
    assert len(found["train"]) == 4, "3 is the middle of 1 to 5"
    assert found["test"]["label"] == [False, True]


@pytest.mark.parametrize("batch_size", [4, 8, 64])
@pytest.mark.parametrize("each", [1, 8])
def test_prompts_take_turns(batch_size: int, each: int) -> None:
    """KTO compares a prompt with its neighbour's answer: that must be another prompt's.

    A micro-batch of eight, which GPUs take, once held the eight answers to a single prompt.
    """
    rows = Dataset.from_list(
        [
            {"prompt": [turn("user", f"{n}?")], "number": each * n + k}
            for n in range(64)
            for k in range(each)
        ]
    )
    found = pairs.in_turns(rows, batch_size, seed=0)
    assert sorted(found["number"]) == [*range(64 * each)]
    said = [one[0]["content"] for one in found["prompt"]]
    same = 0
    for at in range(0, len(said), batch_size):
        batch = said[at : at + batch_size]
        same += sum(one == other for one, other in zip(batch, [*batch[1:], batch[0]]))
        if (batch_size, each) == (64, 8):
            assert len({*batch}) == 8, "the answers to a prompt are together"
    assert same == 0
    again, other = (pairs.in_turns(rows, batch_size, seed)["number"] for seed in (0, 1))
    assert again == found["number"] != other


PROBLEMS = [{"prompt": "1+1?", "answer": "2"}, {"question": "1+1?", "output": "So.\n#### 2"}]


@pytest.mark.parametrize("row", PROBLEMS)
def test_problems_are_told_from_pairs(row: Row) -> None:
    assert preferences.form_of(Dataset.from_list([row])) == "problems"
    both = row | {"chosen": "a", "rejected": "b"}
    assert preferences.form_of(Dataset.from_list([both])) == "pairs"
    assert preferences.form_of(Dataset.from_list([{"prompt": "a", "completion": "b"}])) == ""


def splits(train: list[Row], test: list[Row]) -> DatasetDict:
    return DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test))


def test_no_prompt_is_in_both_splits(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(4)]
    found = preferences.pair_splits(splits(rows[:3], rows[2:]))
    assert [one[0]["content"] for one in found["test"]["prompt"]] == ["3?"]
    assert "Dropped 1 rows of the test split" in capsys.readouterr().out
    with pytest.raises(DataError, match="learned by heart"):
        preferences.pair_splits(splits(rows, rows[:1]))


def test_a_cut_does_not_part_the_answers_to_a_prompt(tmp_path: Path) -> None:
    """Ratings have a row an answer, and a test split is cut row by row."""
    words = "amber bridge candle desert engine forest garden harbor island jacket".split()
    dice = random.Random(0)
    rows = [
        {"prompt": f"Number {n}?", "completion": " ".join(dice.choices(words, k=9)), "rating": k}
        for n in range(50)
        for k in range(4)
    ]
    path = tmp_path / "ratings.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = preferences.pair_splits(data.load_splits(str(path)))
    asked = {name: [one[0]["content"] for one in rows["prompt"]] for name, rows in found.items()}
    assert len(asked["train"]) + len(asked["test"]) == 50
    assert len({*asked["train"], *asked["test"]}) == 50
    assert 1 <= len(asked["test"]) <= 12


@pytest.mark.parametrize("kind", templates.KINDS)
def test_ids_are_those_of_the_answers(kind: str) -> None:
    known = templates.KINDS[kind]
    tokenizer = known.tokenizer()
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": f"{n} or {n + 1}, or so"}
        for n in range(4)
    ]
    found = as_pairs(Dataset.from_list(rows))
    chat.fit_template(tokenizer, found.select_columns("prompt").take(1))
    ends = chat.end_tokens(tokenizer)
    made = pairs.label_pairs({"train": found}, tokenizer, ends, 256)["train"]
    for row, want in zip(made, rows, strict=True):
        for name in pairs.ANSWERS:
            ids = row[f"{name}_ids"]
            said = tokenizer.decode(ids)
            assert said.endswith(known.end), said
            assert want[name] in said
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)
        assert row["prompt_ids"] == list(prompt["input_ids"])
    sequence = pairs.in_one_sequence(made, "rejected")[0]
    assert sequence["input_ids"] == made[0]["prompt_ids"] + made[0]["rejected_ids"]


def test_a_pair_with_a_long_answer_goes_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = templates.KINDS["ChatML"].tokenizer() if "ChatML" in templates.KINDS else None
    tokenizer = tokenizer or next(iter(templates.KINDS.values())).tokenizer()
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": "So and so." * n} for n in (1, 90)]
    found = as_pairs(Dataset.from_list(rows))
    ends = chat.end_tokens(tokenizer)
    made = pairs.label_pairs({"train": found}, tokenizer, ends, 64)["train"]
    assert len(made) == 1
    assert "Dropped 1 pairs of the train split over 64 tokens." in capsys.readouterr().out
    with pytest.raises(DataError, match="COOKBOOK_MAX_LENGTH"):
        pairs.label_pairs({"train": found.select([1])}, tokenizer, ends, 64)


def test_length_bias_counts_ties_half() -> None:
    rows = [("long one", "short"), ("long one", "short"), ("a", "long"), ("same", "size")]
    found = Dataset.from_list([{"chosen": [turn("assistant", one)]} for one, _ in rows])
    found = found.add_column("rejected", [[turn("assistant", other)] for _, other in rows])
    assert preferences.length_bias(found) == pytest.approx(2.5 / 4)
