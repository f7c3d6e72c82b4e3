"""Pairs of answers, and single ones with a thumb, as token ids: checked, scored and planned."""

from collections.abc import Mapping, Sequence
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cookbook import chat, cpu, evaluation, forms
from cookbook.answers import score_answers
from cookbook.chat import IGNORED
from cookbook.data import DataError
from cookbook.models import check_token_ids
from cookbook.planner import Shape

ANSWERS = ("chosen", "rejected")
ONE = ("completion",)  # the answer of a row that has a thumb


def label_pairs(
    splits: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    end_of_turn: Sequence[int],
    max_length: int,
    answers: Sequence[str] = ANSWERS,
) -> DatasetDict:
    """Add `prompt_ids`, `chosen_ids` and `rejected_ids`, which TRL's trainers take, to pairs.

    With `answers=ONE` rows are single answers: `prompt_ids` and `completion_ids`. Each answer
    gets the ids that the model has to generate after exactly the ids of its prompt, up to the token
    that ends its turn: see `chat.supervise_answers`. Rows with an answer that the template refuses,
    or that end over `max_length` tokens, are dropped and counted: cut, an answer would lose its
    end, and the shorter one of a pair would keep it.
    """
    labelled = DatasetDict()
    what = "pairs" if answers == ANSWERS else "answers"
    for name, rows in splits.items():
        each = [_answers(rows, one, tokenizer, end_of_turn) for one in answers]
        both = sorted(set.intersection(*map(set, each)))
        short = [n for n in both if max(len(e[n][0] + e[n][1]) for e in each) <= max_length]
        if over := len(both) - len(short):
            print(f"Dropped {over} {what} of the {name} split over {max_length} tokens.")
        if not short:
            raise DataError(
                f"No row of the {name} split has up to {max_length} tokens: raise `max_length` "
                "(COOKBOOK_MAX_LENGTH), or shorten the answers."
            )
        ids = {"prompt_ids": [each[0][n][0] for n in short]}
        ids |= {f"{one}_ids": [found[n][1] for n in short] for one, found in zip(answers, each)}
        features = Features(dict.fromkeys(ids, List(Value("int64"))))
        kept = forms._beside(ids, features, rows.select(short))
        lengths = [f"{one} {mean(map(len, kept[f'{one}_ids'])):.0f}" for one in answers]
        print(f"{name} {len(kept)} {what}; tokens of an answer: {', '.join(lengths)}")
        labelled[name] = kept
    return labelled


def _answers(
    rows: Dataset, which: str, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> dict[int, tuple[list[int], list[int]]]:
    """Return the ids of prompt and answer by the row's number, for the rows that can be used."""
    names = {"prompt": "prompt", which: "completion", "tools": "tools"}
    talks = rows.select_columns([one for one in names if one in rows.features])
    talks = talks.rename_columns({one: names[one] for one in talks.column_names})
    numbers = {"place": [*range(len(rows))]}
    talks = forms._beside(numbers, Features({"place": Value("int64")}), talks)
    made = chat.supervise_answers(talks, tokenizer, ends, "last")
    chat.check_supervision(made, tokenizer, ends)
    found = {}
    for place, ids, labels in zip(made["place"], made["input_ids"], made["labels"]):
        start = next(n for n, label in enumerate(labels) if label != IGNORED)
        found[place] = ids[:start], ids[start:]
    return found


def in_turns(rows: Dataset, batch_size: int, seed: int) -> Dataset:
    """Return single answers in an order in which prompts, drawn by `seed`, take turns.

    A batch holds several answers to a prompt, up to an eighth of it, where the prompt is read once
    for them. The next row answers another prompt, unless over half of the batch answer one.
    """
    rows = rows.shuffle(seed=seed)
    prompts = [str(prompt) for prompt in rows["prompt"]]
    groups: list[list[int]] = []
    newest: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        if len(newest.get(prompt, ())) in (0, max(1, batch_size // 8)):
            newest[prompt] = []
            groups.append(newest[prompt])
        newest[prompt].append(number)
    order = [number for group in groups for number in group]
    found = []
    for at in range(0, len(order), batch_size):
        batch: dict[str, list[int]] = {}
        for number in order[at : at + batch_size]:
            batch.setdefault(prompts[number], []).append(number)
        # Every second place is taken first, then those between.
        most_first = sorted(batch.values(), key=len, reverse=True)
        seated = [number for own in most_first for number in own]
        half = (len(seated) + 1) // 2
        seated[::2], seated[1::2] = seated[:half], seated[half:]
        found += seated
    return rows.select(found)


def in_one_sequence(pairs: Dataset, which: str) -> Dataset:
    """Return one answer of each row after its prompt, as `input_ids` and `labels`."""
    both = list(zip(pairs["prompt_ids"], pairs[f"{which}_ids"]))
    return Dataset.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in both],
            "labels": [[IGNORED] * len(prompt) + answer for prompt, answer in both],
        }
    )


def log_probabilities(model: PreTrainedModel, pairs: Dataset, batch_size: int) -> torch.Tensor:
    """Return the log-probability of each pair's two answers, in nats: (pairs, 2), chosen first.

    That of an answer is the sum over its tokens. Of single answers: (answers, 1). A processor reads
    a prompt once for all its answers in a batch.
    """
    answers = ANSWERS if "chosen_ids" in pairs.column_names else ONE
    rows = concatenate_datasets([in_one_sequence(pairs, one) for one in answers])
    if cpu.can_share_prompts(model.config, recomputed=False):
        found = _after_prompts(model, rows, batch_size)
    else:
        found = torch.tensor(evaluation.log_probabilities(model, rows, batch_size))
    return found.reshape(len(answers), len(pairs)).T


@torch.inference_mode()
def _after_prompts(model: PreTrainedModel, rows: Dataset, batch_size: int) -> torch.Tensor:
    ids, labels = rows["input_ids"], rows["labels"]
    order = sorted(range(len(ids)), key=lambda n: ids[n])  # those of a prompt together
    found = torch.zeros(len(ids))
    check_token_ids(model, ids)
    with evaluation._evaluating(model), evaluation._autocast(model):
        for at in range(0, len(order), batch_size):
            batch = order[at : at + batch_size]
            read = evaluation._pad([ids[n] for n in batch], 0)
            said = evaluation._pad([labels[n] for n in batch], IGNORED)
            scored: Any = score_answers(model, read.to(model.device), said.to(model.device))
            found[batch] = scored.log_probs.sum(1)
    return found


def shapes(pairs: Dataset, settings: SimpleNamespace, shared: bool) -> tuple[Shape, Shape]:
    """Return the longest and the typical micro-batch of pairs, or of single answers, for a plan.

    `shared` tells whether a prompt is read once for its answers (`cpu.share_prompts`).
    """
    names = [f"{one}_ids" for one in (*ANSWERS, *ONE) if f"{one}_ids" in pairs.features]
    prompts = [len(ids) for ids in pairs["prompt_ids"]]
    answers = [max(map(len, each)) for each in zip(*(pairs[one] for one in names))]
    rows, each = settings.per_device_train_batch_size * len(names), len(names)
    if each == 1:  # as many answers to a prompt as a micro-batch has
        ids = [*map(str, pairs["prompt_ids"])]
        each = round(len(ids) / sum(len({*ids[at : at + rows]}) for at in range(0, len(ids), rows)))

    def shape(prompt: int, answer: int) -> Shape:
        if shared and each > 1:
            return Shape(rows // each, prompt, answer, each)
        return Shape(rows, prompt + answer, answer)

    return shape(max(prompts), max(answers)), shape(round(mean(prompts)), round(mean(answers)))
