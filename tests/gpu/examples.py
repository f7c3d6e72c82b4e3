"""Data of our own for each recipe, long enough to fill what its profile allows.

Rows reach `max_length`, so that the memory measured is the profile's worst case in training. Only
the first training rows are short: some recipes show them as examples in a prompt, which with long
ones would be longer than any real one. The split `test` has as many rows as the largest evaluation
batch, within bounds: more would take time alone, and random weights score nothing.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from tests.hub import texts

Row = dict[str, Any]
Settings = dict[str, Any]

# Rows of the test split for each row of a training batch: no recipe evaluates in larger batches.
TEST_BATCHES = 4
LEAST_TEST_ROWS = 8
TEST_TOKENS = 2**15  # of the test split: scoring must not take longer than training
SHOTS = 4  # first training rows, which may come to stand in a prompt
LEAST_ROWS = 96  # other training rows
SHOT_SHARE = 1 / 3  # of the length of the others
END_OF_TURN = 2  # tokens that a template writes after a completion
LABELS = ("negative", "neutral", "positive")
WORDS = 60_000  # different ones: more than the 50,257 tokens that GPT-2's tokenizer is to learn
FEW_WORDS = 400
FULL = 0.9  # share of `max_length` that rows must reach for a run to count as a worst case


@dataclass(frozen=True)
class Examples:
    """How one recipe's rows are made.

    `make` takes a writer of texts, how many tokens a row may have, and a number that tells rows
    apart. `spare` are the tokens that the recipe's instruction adds to a row, and its own template
    where the tokenizer has none; what the tokenizer's template adds is counted.
    """

    make: Callable[["Writer", int, int], Row]
    spare: int = 0
    # Whether the tokens that the trainer counts are those of whole rows.
    counted: bool = True
    # Which share of its length a row fills on average where each is as long as it can be.
    fill: float = 1.0


class Writer:
    """Texts of a wanted number of tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        seed: str,
        completion: int = 0,
        words: int = WORDS,
    ) -> None:
        self._tokenizer, self.random = tokenizer, Random(seed)
        self.words = words  # different ones, for a recipe that learns its tokens from them
        self.completion = completion  # tokens, for recipes that count them apart from the prompt's

    def count(self, text: str) -> int:
        """Return how many tokens a text has, special ones left out."""
        assert self._tokenizer is not None
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, tokens: int) -> str:
        """Return a text of at most that many tokens, and few less."""
        words = texts.paragraph(self.random, 4).split()
        while self.count(" ".join(words)) <= tokens:
            words += texts.paragraph(self.random, len(words) // 8).split()  # about as many again
        low, high = 0, len(words)  # so many words fit, so many do not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.count(" ".join(words[:middle])) <= tokens
            low, high = (middle, high) if fits else (low, middle)
        return " ".join(words[:low])


def _ended(write: Writer, tokens: int, end: str) -> str:
    return write.text(tokens - write.count(end)) + end


def _pair(write: Writer, tokens: int, number: int) -> Row:
    prompt = write.text(tokens // 4)
    answer = _ended(write, tokens - write.count(prompt), f"\n#### {number}")
    return {"prompt": prompt, "completion": answer}


def _problem(write: Writer, tokens: int, number: int) -> Row:
    """Return a problem for GRPO; its completion serves the warm-up."""
    completion = _ended(write, write.completion, f"\n#### {number}")
    return {"prompt": write.text(tokens), "completion": completion, "answer": str(number)}


def _compared(write: Writer, tokens: int, number: int) -> Row:
    """Return a pair whose longer answer fills the row."""
    prompt = write.text(tokens // 4)
    rest = tokens - write.count(prompt)
    better, worse = (rest, rest * 3 // 4) if number % 2 else (rest * 3 // 4, rest)
    return {"prompt": prompt, "chosen": write.text(better), "rejected": write.text(worse)}


def _judged(write: Writer, tokens: int, number: int) -> Row:
    """Return an answer with a thumb, one of three up."""
    return _pair(write, tokens, number) | {"label": "down" if number % 3 else "up"}


def _labelled(write: Writer, tokens: int, number: int) -> Row:
    return {"text": write.text(tokens), "label": LABELS[number % len(LABELS)]}


def _document(write: Writer, tokens: int, number: int) -> Row:
    return {"document": write.text(tokens), "summary": write.text(min(tokens // 4, 96))}


def _words(write: Writer, tokens: int, number: int) -> Row:
    """Return a document of as many words, each of them one token or more."""
    words, some = _vocabulary(), write.words
    return {"text": " ".join(words[write.random.randrange(some)] for _ in range(tokens))}


def template_tokens(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return how many tokens a chat template writes around a prompt and its answer."""
    if tokenizer is None or tokenizer.chat_template is None:
        return 0
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    return len(whole)


@cache
def _vocabulary() -> tuple[str, ...]:
    random, letters = Random(0), "abcdefghijklmnopqrstuvwxyz"
    found: set[str] = set()
    while len(found) < WORDS:
        found.add("".join(random.choices(letters, k=random.randint(4, 9))))
    return tuple(sorted(found))


EXAMPLES = {
    "01-Full-Fine-Tuning/GPT-2-From-Scratch": Examples(_words, counted=False),  # cut into blocks
    "01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning": Examples(_pair, spare=4),
    "02-PEFT/Falcon-7B-LoRA": Examples(_pair, spare=16),
    "03-Instruction-Tuning/Financial-Sentiment-OPT": Examples(_labelled, spare=56),
    "03-Instruction-Tuning/Summarization-FLAN-T5": Examples(_document, spare=24),
    "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO": Examples(_problem, counted=False),
    "04-Reasoning-Tuning/Financial-Reasoning-Gemma-3": Examples(_pair, spare=48),
    # A quarter of its rows are direct answers: a prompt, a quarter of the length, and a figure.
    "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational": Examples(_pair, spare=44, fill=0.82),
    # Two rows a pair, which is what its trainer counts.
    "06-Preference-Tuning/DPO-Preference-Tuning": Examples(_compared, spare=8, counted=False),
    "06-Preference-Tuning/KTO-Thumbs-Up-Down": Examples(_judged, spare=8),
    "06-Preference-Tuning/Reward-Model-and-Best-of-N": Examples(_compared, spare=8, counted=False),
}
LENGTHS = ("max_length", "block_size", "max_prompt_length")  # as the recipes name it


def length_of(settings: Settings) -> int:
    """Return how many tokens a row may have on a profile.

    Raises LookupError for a table that does not say so.
    """
    for name in LENGTHS:
        if name in settings:
            return int(settings[name])
    raise LookupError(f"the SETTINGS table has none of {', '.join(LENGTHS)}")


def rows_a_step(settings: Settings) -> int:
    """Return how many rows one step of the optimizer takes."""
    at_once = settings["per_device_train_batch_size"]
    accumulated = at_once * settings.get("gradient_accumulation_steps", 1)
    return int(settings.get("global_batch_size", accumulated))


def test_rows_of(settings: Settings) -> int:
    """Return how many rows fill the largest evaluation batch of a profile, within `TEST_TOKENS`."""
    at_once = TEST_BATCHES * int(settings["per_device_train_batch_size"])
    batch = max(at_once, int(settings.get("per_device_eval_batch_size", 0)))
    return max(min(batch, TEST_TOKENS // length_of(settings)), LEAST_TEST_ROWS)


def write_examples(
    folder: Path,
    recipe: str,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase | None,
    steps: int,
    test_rows: int | None = None,
) -> dict[str, int]:
    """Write `train.jsonl` and `test.jsonl` into `folder`; return how many rows each has.

    There are as many training rows as the steps take, so that none comes twice, and enough for the
    short ones not to matter. With `test_rows`, in a rehearsal, there are few rows, which come again
    and again, and few different words: a vocabulary learned from them is small.
    """
    examples = EXAMPLES[recipe]
    tokens = length_of(settings) - examples.spare - template_tokens(tokenizer)
    every = 0 if test_rows else steps * rows_a_step(settings)
    counts = {
        "train": SHOTS + max(every, LEAST_ROWS),
        "test": test_rows or test_rows_of(settings),
    }
    # A recipe that mixes in chat takes it from the folder beside its problems.
    folders = [folder] + [folder / "chat"] * ("chat_dataset" in settings)
    for place, (split, count) in product(folders, counts.items()):
        place.mkdir(parents=True, exist_ok=True)
        completion = settings.get("max_completion_length", 0) - END_OF_TURN
        words = FEW_WORDS if test_rows else WORDS
        writer = Writer(tokenizer, f"{recipe} {place.name} {split}", completion, words)
        short = SHOTS if split == "train" else 0
        lengths = [round(tokens * SHOT_SHARE)] * short + [tokens] * (count - short)
        with (place / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number, length in enumerate(lengths):
                file.write(json.dumps(examples.make(writer, length, number)) + "\n")
    return counts


def fill_of(recipe: str, settings: Settings, train: dict[str, Any]) -> float | None:
    """Return which share of the tokens it can have a trained row had; None where none can tell.

    `train` is that part of `metrics.json`.
    """
    if not EXAMPLES[recipe].counted:
        return None
    rows = int(train["steps"]) * rows_a_step(settings)
    return int(train["tokens"]) / (rows * length_of(settings) * EXAMPLES[recipe].fill)
