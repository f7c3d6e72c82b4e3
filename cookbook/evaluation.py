"""Scores before and after training: loss, answers, intervals and the forgetting check."""

import copy
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cookbook.chat import IGNORED
from cookbook.forms import as_shot, with_shots
from cookbook.models import check_token_ids
from cookbook.training import shifted_labels, supervised_logits

Conversation = list[dict[str, Any]]


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

    The interval is the percentile bootstrap over examples (Efron, 1979).
    """
    pairs = list(zip(values, weights or [1.0] * len(values), strict=True))

    def mean(chosen: Sequence[int]) -> float:
        total = sum(pairs[index][1] for index in chosen)
        return sum(pairs[index][0] * pairs[index][1] for index in chosen) / total

    return resample(mean, len(pairs))


def score_groups(values: Sequence[float], size: int) -> Score:
    """Return the mean over examples that have `size` values each, one after the other.

    An example counts once, with its mean: several answers to a problem are no more problems.
    """
    starts = range(0, len(values), size)
    return score([sum(values[start : start + size]) / size for start in starts])


def resample(
    statistic: Callable[[Sequence[int]], float], examples: int, resamples: int = 2000
) -> Score:
    """Return a statistic of all examples with its percentile bootstrap interval.

    `statistic` takes the indices of the examples to count, some of them more than once. The seed
    is fixed, so that the same examples always give the same interval.
    """
    if examples == 0:
        raise ValueError("There are no values to score.")
    everything = range(examples)
    generator = random.Random(0)
    drawn = sorted(statistic(generator.choices(everything, k=examples)) for _ in range(resamples))
    outside = resamples // 40  # 2.5 % at either end
    bounds = drawn[outside], drawn[-outside - 1]
    return Score(statistic(everything), bounds, examples)


def _pad(rows: Sequence[Sequence[int]], value: int, at: int = sys.maxsize) -> torch.Tensor:
    """Return rows of one length; shorter ones have a gap after their first `at` numbers."""
    longest = max(map(len, rows))
    return torch.tensor([[*row[:at], *[value] * (longest - len(row)), *row[at:]] for row in rows])


def _inputs(
    ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], device: torch.device
) -> dict[str, torch.Tensor]:
    """Return a padded batch: `input_ids`, `attention_mask` and `labels`, each (rows, length)."""
    padded = {
        "input_ids": _pad(ids, 0),
        "attention_mask": _pad([[1] * len(row) for row in ids], 0),
        "labels": _pad(labels, IGNORED),
    }
    return {name: value.to(device) for name, value in padded.items()}


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
    check_token_ids(model, ids)
    with _evaluating(model):
        for batch in _batches([len(one) for one in ids], batch_size):
            rows_labels = [labels[index] for index in batch]
            inputs = _inputs([ids[index] for index in batch], rows_labels, model.device)
            with _autocast(model):
                logits, targets = supervised_logits(model, inputs)
            each = functional.cross_entropy(logits.float(), targets, reduction="none")
            predicted = shifted_labels(model, inputs["labels"])
            owners = (predicted != IGNORED).nonzero()[:, 0]
            for place, index in enumerate(batch):
                own = each[owners == place]
                losses[index], counts[index] = own.mean().item(), float(own.numel())
    return score(losses, counts)


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, rows: Dataset, batch_size: int) -> list[float]:
    """Return of each tokenized row the log-probability of its supervised tokens, in nats.

    It is their sum: that of a whole answer, after what stands before it. `rows` are as those of
    `completion_loss`.
    """
    ids, labels = rows["input_ids"], rows["labels"]
    found = [0.0] * len(ids)
    check_token_ids(model, ids)
    with _evaluating(model):
        for batch in _batches([len(one) for one in ids], batch_size):
            chosen = [labels[index] for index in batch]
            inputs = _inputs([ids[index] for index in batch], chosen, model.device)
            with _autocast(model):
                logits, targets = supervised_logits(model, inputs)
            each = functional.cross_entropy(logits.float(), targets, reduction="none")
            owners = (shifted_labels(model, inputs["labels"]) != IGNORED).nonzero()[:, 0]
            sums = torch.zeros(len(batch), device=each.device).index_add_(0, owners, -each)
            for index, value in zip(batch, sums.tolist(), strict=True):
                found[index] = value
    return found


def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    max_length: int = 256,
) -> Score:
    """Return the mean loss per token of plain text: the forgetting check.

    Text that has nothing to do with the task should not become less likely. Texts are cut at
    `max_length` tokens. An encoder-decoder reads the first half of each and is scored on the rest.
    """
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    read = scored = ids
    if model.config.is_encoder_decoder:
        read = [row[: len(row) // 2] for row in ids]
        scored = [row[len(row) // 2 :] for row in ids]
    rows = Dataset.from_dict({"input_ids": read, "labels": scored})
    return completion_loss(model, rows, batch_size)


@torch.inference_mode()
def next_token_logits(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[int],
    batch_size: int,
) -> torch.Tensor:
    """Return the logits (prompts, tokens) of the given tokens right after each tokenized prompt."""
    found = torch.empty(len(prompts), len(tokens))
    check_token_ids(model, prompts)
    with _evaluating(model):
        for batch in _batches([len(prompt) for prompt in prompts], batch_size):
            rows = [[*prompts[index], tokens[0]] for index in batch]
            # One label a row, so that the output layer runs at that place only.
            labels = [[IGNORED] * (len(row) - 1) + row[-1:] for row in rows]
            with _autocast(model):
                logits, _ = supervised_logits(model, _inputs(rows, labels, model.device))
            found[batch] = logits[:, list(tokens)].float().cpu()
    return found


@dataclass(frozen=True)
class Answers:
    """Generated texts, and the share of them that ended by themselves before the limit."""

    texts: list[str]
    stopped: float


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    settings: GenerationConfig,
    batch_size: int,
    tools: Sequence[Any] | None = None,
    **switches: Any,
) -> Answers:
    """Return the model's answer to each conversation, in the order given.

    `tools` are those of each conversation, if any. `switches` are the chat template's own, like
    Qwen3's `enable_thinking`.
    """
    template: Any = tokenizer.apply_chat_template
    switches |= {"add_generation_prompt": True, "return_dict": False}
    rows = [
        template(one, **switches, **({"tools": own} if own else {}))
        for one, own in zip(prompts, tools or [None] * len(prompts), strict=True)
    ]
    return generate(model, tokenizer, rows, settings, batch_size)


def answer_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    settings: GenerationConfig,
    batch_size: int,
    shots: Dataset | None = None,
    **switches: Any,
) -> Answers:
    """Return the model's answers to the rows' prompts, after the rows `shots` if they are given.

    `switches` are the chat template's own.
    """
    turns = [turn for row in shots or () for turn in as_shot(row)]
    prompts = [with_shots(prompt, turns) for prompt in rows["prompt"]]
    tools = rows["tools"] if "tools" in rows.column_names else None
    return generate_answers(model, tokenizer, prompts, settings, batch_size, tools, **switches)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    settings: GenerationConfig,
    batch_size: int,
) -> Answers:
    """Return what the model writes after each tokenized prompt, in the order given.

    Prompts of a decoder alone are padded on the left, so that every answer continues its prompt
    directly; an encoder-decoder writes a sequence of its own. What all prompts begin with, like
    examples, is read once, and padding comes after it. The model's own sampling settings (its
    temperature, its penalties) have no say: a score called greedy is greedy.
    """
    generate = partial(cast(Any, model.generate), generation_config=settings)
    separate = model.config.is_encoder_decoder
    shared = _shared_beginning(model, rows)
    check_token_ids(model, rows)
    stop = settings.eos_token_id
    ends = {stop} if isinstance(stop, int) else set(stop or ())
    texts, stopped = [""] * len(rows), 0
    gap_at = sys.maxsize if separate else len(shared)
    with _evaluating(model), _autocast(model), _without_own_settings(model):
        read = None
        if shared:
            ids = torch.tensor([shared], device=model.device)
            read = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        for batch in _batches([len(row) for row in rows], batch_size):
            chosen = [rows[index] for index in batch]
            ids = _pad(chosen, tokenizer.pad_token_id, gap_at).to(model.device)
            mask = _pad([[1] * len(row) for row in chosen], 0, gap_at).to(model.device)
            if cache := copy.deepcopy(read):
                cache.batch_repeat_interleave(len(batch))
            # By name: PEFT's model for encoder-decoders takes nothing by position.
            output = generate(input_ids=ids, attention_mask=mask, past_key_values=cache)
            # What a decoder of its own begins with is its start token, which nobody wrote.
            written = output[:, 1 if separate else ids.shape[1] :]
            for index, answer in zip(batch, written, strict=True):
                texts[index] = str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
                stopped += not ends.isdisjoint(answer.tolist())
    return Answers(texts, stopped / len(rows))


def _shared_beginning(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the tokens that all rows begin with, short of any row's last; none below 16.

    None, too, unless every layer sees all that comes before: to a window, or to a layer that
    carries a state along, the padding after the shared tokens is not nothing.
    """
    text = model.config.get_text_config()
    kinds = {"full_attention", *(getattr(text, "layer_types", None) or ())}
    sees_all = len(kinds) == 1 and not getattr(text, "sliding_window", None)
    shared = os.path.commonprefix([list(row[:-1]) for row in rows])
    enough = len(shared) >= 16 and len(rows) > 1 and not model.config.is_encoder_decoder
    return shared if sees_all and enough else []


class _evaluating:
    """Put a model into evaluation mode (no dropout) and back into the mode it was in.

    Routers of experts stay unseen meanwhile: with `output_router_logits`, which TRL sets for its
    auxiliary loss, transformers 5.23 compares the router of a new token with the mask of all tokens
    before it, and generating fails.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._was_training = model, model.training
        self._text: Any = model.config.get_text_config()
        self._routers = getattr(self._text, "output_router_logits", False)

    def __enter__(self) -> None:
        self._model.eval()
        if self._routers:
            self._text.output_router_logits = False

    def __exit__(self, *_: object) -> None:
        self._model.train(self._was_training)
        if self._routers:
            self._text.output_router_logits = self._routers


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Take a model's own generation settings away for a while.

    What a caller leaves open transformers would fill from them: `repetition_penalty`,
    `min_length`, words that must not occur.
    """
    holders = [one for one in model.modules() if hasattr(one, "generation_config")]
    kept = [one.generation_config for one in holders]
    try:
        for one in holders:
            one.generation_config = GenerationConfig()  # type: ignore[assignment]
        yield
    finally:
        for one, settings in zip(holders, kept):
            one.generation_config = settings


def _autocast(model: PreTrainedModel) -> torch.autocast:
    """Compute in the frozen base's half precision, as training does, where it has one."""
    halves = (torch.bfloat16, torch.float16)
    half = next((one.dtype for one in model.parameters() if one.dtype in halves), None)
    return torch.autocast(model.device.type, dtype=half or torch.bfloat16, enabled=half is not None)
