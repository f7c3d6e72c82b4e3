"""The rows that the GPU check trains on: as long as is allowed, and enough of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.gpu import examples
from tests.gpu.samples import DISTRIBUTED, FALCON, GPT2, OPT
from tests.hub.repositories import REPOSITORIES

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("falcon")
    REPOSITORIES["models/tiiuae/falcon-7b"].write(folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


COLUMNS = {
    GPT2: {"text"},
    DISTRIBUTED: {"prompt", "completion"},
    FALCON: {"prompt", "completion"},
    OPT: {"text", "label"},
    "03-Instruction-Tuning/Summarization-FLAN-T5": {"document", "summary"},
    "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO": {"prompt", "completion", "answer"},
    "04-Reasoning-Tuning/Financial-Reasoning-Gemma-3": {"prompt", "completion"},
    "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational": {"prompt", "completion"},
    "06-Preference-Tuning/DPO-Preference-Tuning": {"prompt", "chosen", "rejected"},
    "06-Preference-Tuning/KTO-Thumbs-Up-Down": {"prompt", "completion", "label"},
    "06-Preference-Tuning/Reward-Model-and-Best-of-N": {"prompt", "chosen", "rejected"},
}
# What counts against the length; the rest is counted elsewhere or not at all.
COUNTED = {"text", "prompt", "completion", "document"}


@pytest.mark.parametrize("recipe", examples.EXAMPLES)
def test_rows_fill_the_allowed_length(
    recipe: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = {"max_length": 256, "per_device_train_batch_size": 4, "max_completion_length": 80}
    counts = examples.write_examples(tmp_path / "data", recipe, settings, tokenizer, 2, 6)
    assert counts == {"train": examples.SHOTS + examples.LEAST_ROWS, "test": 6}
    train, test = (rows_of(tmp_path / "data" / f"{name}.jsonl") for name in ("train", "test"))
    assert [len(train), len(test)] == list(counts.values())
    assert len({json.dumps(row) for row in [*train, *test]}) == len(train) + len(test)
    assert set(train[0]) == COLUMNS[recipe]

    wanted = 256 - examples.EXAMPLES[recipe].spare
    counted = COUNTED - ({"completion"} if "answer" in train[0] else set())
    for row in [*train[examples.SHOTS :], *test]:
        texts = [text for name, text in row.items() if name in counted]
        if "chosen" in row:  # a pair is two rows, of which the longer one fills the length
            texts.append(max(row["chosen"], row["rejected"], key=len))
        have = sum(len(tokenizer(text)["input_ids"]) for text in texts)
        if recipe == GPT2:  # its tokenizer is yet to be trained: a word is one token or more
            assert len(row["text"].split()) == wanted
        else:
            assert wanted - 8 <= have <= wanted
        if "answer" in row:
            assert row["completion"].endswith(f"\n#### {row['answer']}")
            assert 70 <= len(tokenizer(row["completion"])["input_ids"]) <= 80
    assert len(" ".join(train[0].values())) < 0.6 * len(" ".join(train[-1].values()))


def test_chat_lies_beside_the_problems(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    recipe = "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational"
    settings = {"max_length": 128, "per_device_train_batch_size": 1, "chat_dataset": "an/id"}
    examples.write_examples(tmp_path, recipe, settings, tokenizer, 2, 6)
    chat, problems = (rows_of(folder / "test.jsonl") for folder in (tmp_path / "chat", tmp_path))
    assert len(chat) == len(problems) == 6 and chat != problems


def test_there_are_rows_for_every_step(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    settings = {"block_size": 32, "per_device_train_batch_size": 8}
    settings["gradient_accumulation_steps"] = 4
    counts = examples.write_examples(tmp_path / "data", GPT2, settings, None, 5)
    assert counts == {"train": examples.SHOTS + 5 * 8 * 4, "test": 4 * 8}
    settings["per_device_train_batch_size"] = 1
    assert examples.test_rows_of(settings) == examples.LEAST_TEST_ROWS


def test_how_far_rows_were_filled() -> None:
    settings = {"max_length": 100, "per_device_train_batch_size": 4}
    train = {"steps": 2, "tokens": 760}
    assert examples.fill_of(FALCON, settings, train) == pytest.approx(0.95)
    assert examples.fill_of("04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO", settings, train) is None
    with pytest.raises(LookupError, match="max_length, block_size"):
        examples.length_of({"max_steps": 3})
