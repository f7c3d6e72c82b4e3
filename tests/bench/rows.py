"""The rows that a work trains on, tokenized as the recipes do, or as messages for the peers."""

import re
from itertools import chain
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cookbook import chat, data, forms, models, pairs
from tests.bench.works import Work

MODEL = "offline:SmolLM2-135M-Instruct"
INSTRUCTIONS = "offline:python-documentation"
SUMMARIES = "offline:documentation-summaries"
SUMS = "offline:two-digit-sums"
INSTRUCTION = "Last line: #### and the result."
MESSAGES = ("prompt", *pairs.ANSWERS)
PAIR_IDS = tuple(f"{name}_ids" for name in MESSAGES)
TEXT = "offline:shakespeare"
SUMMARY_TOKENS = 64
GPT2_VOCABULARY = 2048


def tokenizer() -> PreTrainedTokenizerBase:
    """Return SmolLM2's tokenizer."""
    return AutoTokenizer.from_pretrained(models.resolve_model(MODEL))


def conversations() -> Dataset:
    """Return the instruction data as rows of `prompt` and `completion` messages."""
    return forms.as_conversations(data.load_splits(INSTRUCTIONS)["train"], "train split")


def supervised(work: Work) -> Dataset:
    """Return rows of `input_ids` and `labels` for supervised fine-tuning, none too long."""
    words = tokenizer()
    rows = chat.supervise_answers(conversations(), words, words.eos_token_id)
    rows = rows.select_columns(["input_ids", "labels"])
    if work.rows == "documents":
        return _joined(rows, work.max_length)
    return _sample(data.drop_too_long(rows, work.max_length, "train split"), work)


def _sample(rows: Dataset, work: Work) -> Dataset:
    """Return as many rows as a run takes: all contestants see each of them once, in their order.

    From all rows, batches of like length would begin with the longest, which others rarely meet.
    """
    return rows.shuffle(seed=0).take(work.steps * work.examples_per_step)


def fitting_conversations(work: Work) -> Dataset:
    """Return the conversations behind `supervised`, in the same order, for who tokenizes itself."""
    words, rows = tokenizer(), conversations()
    lengths = [
        len(one) for one in chat.supervise_answers(rows, words, words.eos_token_id)["input_ids"]
    ]
    kept = [place for place, length in enumerate(lengths) if length <= work.max_length]
    return _sample(rows.select(kept), work).select_columns(["prompt", "completion"])


def _joined(rows: Dataset, length: int) -> Dataset:
    """Return rows of exactly `length` tokens, cut from all rows in one line."""
    ids = list(chain.from_iterable(rows["input_ids"]))
    labels = list(chain.from_iterable(rows["labels"]))
    starts = range(0, len(ids) - length + 1, length)
    return Dataset.from_dict(
        {
            "input_ids": [ids[start : start + length] for start in starts],
            "labels": [labels[start : start + length] for start in starts],
        }
    )


def blocks(work: Work) -> Dataset:
    """Return blocks of Shakespeare in tokens of a small vocabulary of its own."""
    texts = data.load_splits(TEXT)["train"]["text"][:60]
    words = Tokenizer(BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=GPT2_VOCABULARY, show_progress=False)
    words.train_from_iterator(texts, trainer)
    ids = list(chain.from_iterable(one.ids for one in words.encode_batch(texts)))
    rows = [ids[at : at + work.max_length] for at in range(0, len(ids), work.max_length)][:-1]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def summaries(work: Work) -> Dataset:
    """Return documents as `input_ids` and their summaries as `labels`, for an encoder-decoder."""
    words = tokenizer()
    rows = _sample(data.load_splits(SUMMARIES)["train"], work)
    end = [words.eos_token_id]

    def tokenized(row: dict[str, Any]) -> dict[str, list[int]]:
        document = words(row["document"])["input_ids"][: work.max_length - 1]
        summary = words(row["summary"])["input_ids"][: SUMMARY_TOKENS - 1]
        return {"input_ids": document + end, "labels": summary + end}

    return rows.map(tokenized, remove_columns=rows.column_names)


def sums() -> Dataset:
    """Return the problems for GRPO: `prompt` (messages) and `answer`."""
    rows = data.load_splits(SUMS)["train"].select(range(512))
    return rows.select_columns(["prompt", "answer"])


def preferences(work: Work) -> Dataset:
    """Return sums with a right and a wrong answer: messages, and the recipe's token ids of them."""
    words = tokenizer()
    compared = Dataset.from_list([_compared(row) for row in _sample(sums(), work)])
    ends = [words.eos_token_id]
    return pairs.label_pairs({"train": compared}, words, ends, work.max_length)["train"]


def _compared(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """Return a sum as a pair. What is wrong is the carry: forgotten, or one too many."""
    one, other = map(int, re.findall(r"\d+", row["prompt"]))
    carried = one % 10 + other % 10 >= 10
    right = int(row["answer"])
    wrong = right - 10 if carried else right + 10
    asked = [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": row["prompt"]},
    ]
    return {"prompt": asked, "chosen": _said(right), "rejected": _said(wrong)}


def _said(result: int) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": f"#### {result}"}]
