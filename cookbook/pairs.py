"""Pairs of answers as token ids: checked, scored and planned."""

from collections.abc import Mapping, Sequence
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cookbook import chat, evaluation
from cookbook.chat import IGNORED
from cookbook.data import DataError
from cookbook.planner import Shape

ANSWERS = ("chosen", "rejected")


def label_pairs(
    splits: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    end_of_turn: Sequence[int],
    max_length: int,
) -> DatasetDict:
    """Add `prompt_ids`, `chosen_ids` and `rejected_ids`, which TRL's trainers take, to pairs.

    Each answer gets the ids that the model has to generate after exactly the ids of its prompt, up
    to the token that ends its turn: see `chat.supervise_answers`. Pairs with an answer that the
    template refuses, or that end over `max_length` tokens, are dropped and counted: cut, an answer
    would lose its end, and the shorter one of a pair would keep it.
    """
    labelled = DatasetDict()
    for name, rows in splits.items():
        each = [_answers(rows, one, tokenizer, end_of_turn) for one in ANSWERS]
        both = sorted({*each[0]} & {*each[1]})
        same = [n for n in both if each[0][n][0] == each[1][n][0]]
        short = [n for n in same if max(len(e[n][0] + e[n][1]) for e in each) <= max_length]
        if over := len(same) - len(short):
            print(f"Dropped {over} pairs of the {name} split over {max_length} tokens.")
        if not short:
            raise DataError(
                f"No pair of the {name} split has up to {max_length} tokens: raise `max_length` "
                "(COOKBOOK_MAX_LENGTH), or shorten the answers."
            )
        ids = {"prompt_ids": [each[0][n][0] for n in short]}
        ids |= {f"{one}_ids": [found[n][1] for n in short] for one, found in zip(ANSWERS, each)}
        kept = _beside(rows.select(short), ids, List(Value("int64")))
        lengths = [f"{one} {mean(map(len, kept[f'{one}_ids'])):.0f}" for one in ANSWERS]
        print(f"{name} {len(kept)} pairs; tokens of an answer: {', '.join(lengths)}")
        labelled[name] = kept
    return labelled


def _answers(
    rows: Dataset, which: str, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> dict[int, tuple[list[int], list[int]]]:
    """Return the ids of prompt and answer by the row's number, for the rows that can be used."""
    names = {"prompt": "prompt", which: "completion", "tools": "tools"}
    talks = rows.select_columns([one for one in names if one in rows.features])
    talks = talks.rename_columns({one: names[one] for one in talks.column_names})
    talks = _beside(talks, {"place": [*range(len(rows))]}, Value("int64"))
    made = chat.supervise_answers(talks, tokenizer, ends, "last")
    chat.check_supervision(made, tokenizer, ends)
    found = {}
    for place, ids, labels in zip(made["place"], made["input_ids"], made["labels"]):
        start = next(n for n, label in enumerate(labels) if label != IGNORED)
        found[place] = ids[:start], ids[start:]
    return found


def _beside(rows: Dataset, columns: dict[str, list[Any]], kind: Any) -> Dataset:
    """Return rows with more columns; `add_column` knows none of JSON, so all are made anew."""
    features = Features(rows.features | dict.fromkeys(columns, kind))
    return Dataset.from_dict({one: list(rows[one]) for one in rows.features} | columns, features)


def in_one_sequence(pairs: Dataset, which: str = "chosen") -> Dataset:
    """Return one answer of each pair after its prompt, as `input_ids` and `labels`."""
    both = list(zip(pairs["prompt_ids"], pairs[f"{which}_ids"]))
    return Dataset.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in both],
            "labels": [[IGNORED] * len(prompt) + answer for prompt, answer in both],
        }
    )


def log_probabilities(model: PreTrainedModel, pairs: Dataset, batch_size: int) -> torch.Tensor:
    """Return the log-probability of each pair's two answers, in nats: (pairs, 2), chosen first.

    That of an answer is the sum over its tokens.
    """
    rows = concatenate_datasets([in_one_sequence(pairs, one) for one in ANSWERS])
    found = torch.tensor(evaluation.log_probabilities(model, rows, batch_size))
    return found.reshape(2, len(pairs)).T


def shapes(pairs: Dataset, settings: SimpleNamespace, shared: bool) -> tuple[Shape, Shape]:
    """Return the longest and the typical micro-batch of pairs, for a plan.

    `shared` tells whether a prompt is read once for both answers (`cpu.share_prompts_of_pairs`).
    """
    prompts = [len(ids) for ids in pairs["prompt_ids"]]
    answers = [max(map(len, both)) for both in zip(pairs["chosen_ids"], pairs["rejected_ids"])]
    rows = settings.per_device_train_batch_size

    def shape(prompt: int, answer: int) -> Shape:
        if shared:
            return Shape(rows, prompt, answer, answers=2)
        return Shape(2 * rows, prompt + answer, answer)

    return shape(max(prompts), max(answers)), shape(round(mean(prompts)), round(mean(answers)))
