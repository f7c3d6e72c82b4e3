"""Problems, shown answers, and a model's own answers with their scores."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

from cookbook import cpu, own_answers
from cookbook.files import DataError
from tests.unit import tiny

pytestmark = pytest.mark.unit

CONFIG = SimpleNamespace(
    eval_samples=2, per_device_eval_batch_size=3, temperature=1.0, max_completion_length=4
)


def problems(count: int) -> DatasetDict:
    """Rows of a problem and its answer, one of them without."""
    rows = [{"prompt": f"What is w{n}?", "answer": str(n), "more": 1} for n in range(count)]
    rows.append({"prompt": "What?", "answer": None, "more": 1})
    return DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:2]))


def test_problems_become_prompts_after_an_instruction() -> None:
    splits = own_answers.problem_splits(problems(9), own=False)
    assert splits["train"].column_names == ["prompt", "answer"] and len(splits["train"]) == 9
    turns = splits["train"][3]["prompt"]
    assert [one["role"] for one in turns] == ["system", "user"]
    assert turns[0]["content"] == own_answers.INSTRUCTION and turns[1]["content"] == "What is w3?"


def test_the_readers_own_problems_may_end_in_their_result() -> None:
    rows = [{"prompt": f"w{n}?", "completion": f"steps\n#### {n}"} for n in range(9)]
    splits = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:2]))
    made = own_answers.problem_splits(splits, own=True)
    assert made["train"]["answer"] == [str(n) for n in range(9)]


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(DataError, match="Fewer than 8 problems"):
        own_answers.problem_splits(problems(7), own=False)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"prompt": "a", "answer": "5"}, [{"role": "assistant", "content": "#### 5"}]),
        ({"prompt": "a", "chosen": [1], "rejected": [2]}, [1]),
        ({"prompt": "a", "completion": [3], "label": True}, [3]),
    ],
)
def test_what_the_first_training_shows(row: dict[str, Any], shown: list[Any]) -> None:
    assert own_answers.as_shown(row) == {"completion": shown}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("#### 85", True),
        ("40+45\n#### 85 \n", True),
        ("#### 8", False),
        ("#### 850", False),
        ("85", False),
        ("####85", False),
        ("", False),
    ],
)
def test_a_right_answer_ends_in_the_result(text: str, right: bool) -> None:
    assert own_answers.is_right(text, " 85") is right


def test_repetition_is_counted_in_runs_of_four_words() -> None:
    assert own_answers.without_repetition("a b c d e f") == 1.0
    assert own_answers.without_repetition("a b c d a b c d a b c d") == pytest.approx(4 / 9)
    assert own_answers.without_repetition("a b") == 1.0


def test_a_base_models_tokenizer_gets_what_a_chat_needs() -> None:
    words: Any = tiny.tokenizer()
    words.chat_template = own_answers.PLAIN_TEMPLATE
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    assert words.apply_chat_template(turns, tokenize=False) == "[user] w1\n[assistant] w2<end>"


def asker(problems: bool) -> own_answers.Asker:
    """One of a tiny random model, and three prompts."""
    rows = [
        {"prompt": [{"role": "user", "content": said}], "answer": "7"}
        for said in ("w1 w2 w3", "w4", "w5 w6")
    ]
    test = Dataset.from_list(rows)
    model = tiny.model(3, initializer_range=0.5)  # of other answers to other prompts
    return own_answers.Asker(model, tiny.tokenizer(), test, [1], CONFIG, problems)


@pytest.mark.parametrize("once", [False, True])
def test_a_stage_scores_greedy_sampled_and_prompted_answers(
    once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "can_share_prompts", lambda *_, **__: once)
    monkeypatch.setattr(own_answers, "is_right", lambda text, answer: "w3" in text.split())
    asks = asker(problems=True)
    shots = asks.test.map(lambda row: {"completion": [{"role": "assistant", "content": "w9"}]})
    stage = asks.stage(shots)
    assert len(stage.texts) == 3 and stage.greedy.examples == stage.sampled.examples == 3
    expected = [float("w3" in text.split()) for text in stage.texts]
    assert stage.greedy.value == pytest.approx(sum(expected) / 3)
    assert stage.prompted and "prompted" in str(stage)
    plain = asker(problems=False).stage()
    assert plain.prompted is None and "prompted" not in str(plain)
    assert asker(problems=False).score == "without_repetition" and asks.score == "exact_match"


def test_several_answers_come_prompt_by_prompt_and_prompts_are_read_once() -> None:
    asks = asker(problems=True)
    read: list[int] = []
    model: Any = asks.model
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: read.append(inputs[0].numel())
    )
    torch.manual_seed(0)
    found = asks.several(asks.test, 6)
    hook.remove()
    assert [len(texts) for texts in found] == [6, 6, 6]
    assert all(len({*texts}) > 1 for texts in found), "drawn, so not all alike"
    # Three batches of six: a prompt's tokens but the last once, then a token an answer and step.
    prompts = [len(words) + 4 for words in (["w1"] * 3, ["w4"], ["w5"] * 2)]
    assert sum(read) <= sum(prompts) * 2 + 18 * CONFIG.max_completion_length


def test_answers_after_a_shared_beginning_are_those_read_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts that begin alike are read from there, once for like ones: greedy answers stay."""
    asks = asker(problems=True)
    long = " ".join(tiny.WORDS[:20])
    rows = [
        {"prompt": [{"role": "user", "content": f"{long} {end}"}], "answer": "7"}
        for end in ("w1 w2", "w3", "w3", "w1 w2", "w30 w31 w32")
    ]
    texts = []
    for once in (False, True):
        monkeypatch.setattr(cpu, "can_share_prompts", lambda *_, once=once, **__: once)
        texts.append(asks._answers(Dataset.from_list(rows), sampled=False, batch_size=3))
    assert texts[0] == texts[1] and len({*texts[0]}) > 1
