"""A reward model: scores of answers, what they are worth, and the best of several."""

import copy
import functools
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from cookbook import cpu, pairs, planner
from cookbook.answers import beside
from cookbook.evaluation import Conversation, _autocast, _batches, _evaluating, _pad
from cookbook.groups import check_kept, read_apart, without_shell
from cookbook.profiles import CookbookError

Ids = tuple[int, ...]


def begin_from(model: PreTrainedModel, pad_token_id: int) -> PreTrainedModel:
    """Return a new reward model that reads as a language model does, and gives one number.

    It is a copy of `model`, its adapter merged, with a linear layer of one random row in place of
    the output layer. Draw the row by setting the seed before. Raises `CookbookError` where
    transformers has no such classifier of the architecture.
    """
    language: Any = copy.deepcopy(model)
    if hasattr(language, "merge_and_unload"):
        language = language.merge_and_unload()
    config = copy.deepcopy(language.config)
    config.num_labels, config.pad_token_id = 1, pad_token_id
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    with torch.device("meta"):
        classifier: Any = kind and kind(config)
    # Others pool, or put layers of their own in between.
    reads_one_token = isinstance(getattr(classifier, "score", None), torch.nn.Linear)
    if not reads_one_token or language.base_model_prefix != kind.base_model_prefix:
        raise CookbookError(
            f"transformers has no classifier of the architecture {config.model_type} that could be "
            "a reward model: set COOKBOOK_MODEL to another."
        )
    setattr(classifier, kind.base_model_prefix, language.base_model)
    head = torch.nn.Linear(classifier.score.in_features, 1, bias=False)
    torch.nn.init.normal_(head.weight, std=getattr(config, "initializer_range", 0.02))
    classifier.score = head.to(language.device, language.dtype)
    made: PreTrainedModel = classifier.requires_grad_(False)
    return made


def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    texts: Sequence[str],
    end: int,
    batch_size: int,
) -> torch.Tensor:
    """Return the reward of each text as the answer to its conversation: (texts,).

    `end` is the token that ends the assistant's turn. See `score`.
    """
    template: Any = tokenizer.apply_chat_template
    asked = [template(one, add_generation_prompt=True, return_dict=False) for one in prompts]
    said = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    return score(model, asked, said, batch_size)


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int,
) -> torch.Tensor:
    """Return the reward of each answer to its prompt: (answers,), in float32.

    `model` is one for sequence classification with one label, which reads a reward off the last
    token that is no padding. What occurs several times is scored once, and a processor reads a
    prompt once for all its answers.
    """
    different = sorted({(tuple(prompt), tuple(said)) for prompt, said in zip(prompts, answers)})
    inner = without_shell(model)
    if cpu.can_share_prompts(model.config, recomputed=False):
        starts = range(0, len(different), batch_size)
        batches = [different[at : at + batch_size] for at in starts]
        of_batch = _after_prompts
    else:
        lengths = [len(prompt) + len(said) for prompt, said in different]
        batches = [[different[n] for n in batch] for batch in _batches(lengths, batch_size)]
        of_batch = _whole
    found: dict[tuple[Ids, Ids], float] = {}
    with _evaluating(model), _autocast(model):
        for batch in batches:
            found.update(zip(batch, of_batch(inner, batch).float().tolist(), strict=True))
    return torch.tensor([found[tuple(one), tuple(said)] for one, said in zip(prompts, answers)])


def _whole(model: Any, batch: Sequence[tuple[Ids, Ids]]) -> torch.Tensor:
    """Return the rewards of prompts with answers, read as the trainer reads them."""
    rows = [[*prompt, *said] for prompt, said in batch]
    pad = model.config.get_text_config().pad_token_id
    ids, mask = _pad(rows, pad), _pad([[1] * len(row) for row in rows], 0)
    read = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    logits: torch.Tensor = read.logits
    return logits[:, 0]


def _after_prompts(model: Any, batch: Sequence[tuple[Ids, Ids]]) -> torch.Tensor:
    """Return the rewards of answers, whose prompts are read once each but for the last token."""
    prompts = [prompt[:-1] for prompt, _ in batch]
    said = [(*prompt[-1:], *answer) for prompt, answer in batch]
    ids, mask, positions = beside(prompts, said)
    start = max(map(len, prompts))
    _, rest, _ = read_apart(model.base_model, ids, mask, start, positions)
    # Classifiers of transformers look for the last token that is not the one to pad with: where
    # that ends answers, too, it is the one before the end.
    pad = model.config.get_text_config().pad_token_id
    last = [max(n for n, one in enumerate(row) if one != pad or n == 0) for row in said]
    hidden = rest.last_hidden_state[torch.arange(len(said)), torch.tensor(last)]
    logits: torch.Tensor = model.score(hidden)
    return logits[:, 0]


def read_prompts_once(trainer: Any) -> None:
    """Let a `RewardTrainer` read once what several answers of a batch begin with.

    Both answers of a pair follow one prompt, and so do those of other pairs with it: the more of
    them a batch has, the less is read (`by_prompt`). Rewards and gradients stay the same but for
    rounding. Meant for the CPU. Raises ValueError if activations are recomputed, which leaves no
    keys and values.
    """
    check_kept(trainer)
    model = without_shell(trainer.model)
    usual = model.forward

    @functools.wraps(usual)
    def forward(*args: Any, **inputs: Any) -> Any:
        ids, mask = (inputs.get(name) for name in ("input_ids", "attention_mask"))
        if not model.training or ids is None or mask is None or len(ids) % 2:
            return usual(*args, **inputs)
        rows = [tuple(row[:count]) for row, count in zip(ids.tolist(), mask.sum(1).tolist())]
        logits = _after_prompts(model, _apart(rows))
        return SequenceClassifierOutputWithPast(logits=logits[:, None])

    model.forward = forward


def _apart(rows: Sequence[Ids]) -> list[tuple[Ids, Ids]]:
    """Return what each row begins with, and the rest.

    The first half of the rows are the better answers, the second the worse ones: a pair begins
    alike up to where its answers differ, and other pairs with less of it share that.
    """
    half = len(rows) // 2
    both = [*zip(rows[:half], rows[half:])]
    alike = [tuple(os.path.commonprefix(one))[: min(map(len, one)) - 1] for one in both]
    starts = sorted({*alike}, key=len)
    shortest = [next(one for one in starts if start[: len(one)] == one) for start in alike] * 2
    return [(start, row[len(start) :]) for start, row in zip(shortest, rows)]


def by_prompt(rows: Dataset, seed: int) -> Dataset:
    """Return pairs with those of a prompt one after the other, the prompts in random order."""
    rows = rows.shuffle(seed=seed)
    order: dict[str, list[int]] = {}
    for number, prompt in enumerate(rows["prompt_ids"]):
        order.setdefault(str(prompt), []).append(number)
    return rows.select([number for own in order.values() for number in own])


def shapes(
    rows: Dataset, settings: SimpleNamespace, shared: bool
) -> tuple[planner.Shape, planner.Shape]:
    """Return the longest and the typical micro-batch of pairs for a plan.

    `rows` are in the order in which they are trained on. `shared` tells whether prompts are read
    once for all answers (`read_prompts_once`); else there is one output for each answer.
    """
    longest, typical = pairs.shapes(rows, settings, shared)
    if not shared:
        return replace(longest, outputs=1), replace(typical, outputs=1)
    size, ids = settings.per_device_train_batch_size, [*map(str, rows["prompt_ids"])]
    different = [len({*ids[at : at + size]}) for at in range(0, len(ids), size)]
    count = round(mean(different))
    answers = max(1, round(2 * min(size, len(ids)) / count))
    return longest, replace(typical, rows=count, answers=answers)


def best_of(scores: Sequence[float], values: Sequence[float], count: int) -> float:
    """Return the mean value of the best-scored of `count` answers, over all ways to draw them.

    Of answers in ascending order of their scores, the one at place i is the best in
    C(i, count - 1) of C(all, count) draws ([Nakano et al., 2021](https://arxiv.org/abs/2112.09332),
    appendix I): no draw decides. Like scores share their places.
    """
    by_score: dict[float, list[float]] = defaultdict(list)
    for one, value in zip(scores, values, strict=True):
        by_score[one].append(value)
    total, below = 0.0, 0
    for one in sorted(by_score):
        own = by_score[one]
        draws = math.comb(below + len(own), count) - math.comb(below, count)
        total += mean(own) * draws
        below += len(own)
    return total / math.comb(below, count)


def voted(answers: Sequence[str], weights: Sequence[float]) -> str:
    """Return the answer whose weights add up to most; of like ones the first.

    Weights of 1 are a majority vote, or self-consistency ([Wang et al., 2022](
    https://arxiv.org/abs/2203.11171)).
    """
    found: dict[str, float] = defaultdict(float)
    for answer, weight in zip(answers, weights, strict=True):
        found[answer] += weight
    return max(found, key=lambda one: found[one])


def calibration(margins: torch.Tensor, bins: Sequence[float]) -> list[tuple[float, float, int]]:
    """Return (promised, held, pairs) of the pairs between each two of `bins`, by their margin.

    A margin, the better answer's reward less the other's, promises the share sigmoid(|margin|) of
    right comparisons; `held` is the share that was. Bins are of that share, from 0.5 to 1.
    """
    promised, right = torch.sigmoid(margins.abs()), (margins > 0).float()
    found = []
    for low, high in zip(bins, bins[1:]):
        inside = (promised >= low) & ((promised < high) | (high >= 1))
        if count := int(inside.sum()):
            found.append((float(promised[inside].mean()), float(right[inside].mean()), count))
    return found
