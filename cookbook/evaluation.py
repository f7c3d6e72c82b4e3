"""Scores before and after training: loss, answers, intervals and the forgetting check."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cookbook.data import IGNORED
from cookbook.training import supervised_logits

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Score:
    """A mean over held-out examples with its 95 % bootstrap interval."""

    value: float
    interval: tuple[float, float]
    examples: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] over {self.examples} examples"


def score(values: Sequence[float], weights: Sequence[float] | None = None) -> Score:
    """Return the mean of one value per example, weighted where `weights` are given.

    The interval is the percentile bootstrap over examples (Efron, 1979) with 2,000 resamples and a
    fixed seed, so that the same values always give the same interval.
    """
    if not values:
        raise ValueError("There are no values to score.")
    weights = weights or [1.0] * len(values)
    pairs = list(zip(values, weights, strict=True))
    generator = random.Random(0)
    means = sorted(_mean(generator.choices(pairs, k=len(pairs))) for _ in range(2000))
    return Score(_mean(pairs), (means[50], means[1949]), len(pairs))


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


def _pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> torch.Tensor:
    longest = max(map(len, rows))
    gaps = [[value] * (longest - len(row)) for row in rows]
    padded = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps, strict=True)]
    return torch.tensor(padded)


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return indices in batches of like length; the longest first, since it fails if any does."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.inference_mode()
def completion_loss(model: PreTrainedModel, rows: Dataset, batch_size: int) -> Score:
    """Return the mean loss per supervised token, in nats, over tokenized rows.

    `rows` has `input_ids` and `labels`; examples count by their number of supervised tokens.
    """
    ids, labels = rows["input_ids"], rows["labels"]
    losses, counts = [0.0] * len(ids), [0.0] * len(ids)
    with _evaluating(model):
        for batch in _batches([len(one) for one in ids], batch_size):
            inputs = {
                "input_ids": _pad([ids[index] for index in batch], 0),
                "attention_mask": _pad([[1] * len(ids[index]) for index in batch], 0),
                "labels": _pad([labels[index] for index in batch], IGNORED),
            }
            inputs = {key: value.to(model.device) for key, value in inputs.items()}
            with _autocast(model):
                logits, targets = supervised_logits(model, inputs)
            each = functional.cross_entropy(logits.float(), targets, reduction="none")
            owners = (inputs["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
            for place, index in enumerate(batch):
                own = each[owners == place]
                losses[index], counts[index] = own.mean().item(), float(own.numel())
    return score(losses, counts)


def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    max_length: int = 256,
) -> Score:
    """Return the mean loss per token of plain text: the forgetting check.

    Text that has nothing to do with the task should not become less likely. Texts are cut at
    `max_length` tokens.
    """
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return completion_loss(model, Dataset.from_dict({"input_ids": ids, "labels": ids}), batch_size)


@dataclass(frozen=True)
class Answers:
    """Generated texts, and the share of them that ended by themselves before the limit."""

    texts: list[str]
    stopped: float


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    settings: GenerationConfig,
    batch_size: int,
) -> Answers:
    """Return the model's answer to each conversation, in the order given.

    Prompts are padded on the left, so that every answer continues its prompt directly.
    """
    template: Any = tokenizer.apply_chat_template
    rows = [template(one, add_generation_prompt=True, return_dict=False) for one in prompts]
    generate: Any = model.generate
    stop = settings.eos_token_id
    ends = {stop} if isinstance(stop, int) else set(stop or ())
    texts, stopped = [""] * len(rows), 0
    with _evaluating(model):
        for batch in _batches([len(row) for row in rows], batch_size):
            ids = _pad([rows[index] for index in batch], tokenizer.pad_token_id, left=True)
            mask = _pad([[1] * len(rows[index]) for index in batch], 0, left=True)
            with _autocast(model):
                output = generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    generation_config=settings,
                )
            for index, answer in zip(batch, output[:, ids.shape[1] :], strict=True):
                texts[index] = str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
                stopped += not ends.isdisjoint(answer.tolist())
    return Answers(texts, stopped / len(rows))


class _evaluating:
    """Put a model into evaluation mode (no dropout) and back into the mode it was in."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._was_training = model, model.training

    def __enter__(self) -> None:
        self._model.eval()

    def __exit__(self, *_: object) -> None:
        self._model.train(self._was_training)


def _autocast(model: PreTrainedModel) -> torch.autocast:
    """Compute in the frozen base's half precision, as training does, where it has one."""
    halves = (torch.bfloat16, torch.float16)
    half = next((one.dtype for one in model.parameters() if one.dtype in halves), None)
    return torch.autocast(model.device.type, dtype=half or torch.bfloat16, enabled=half is not None)
