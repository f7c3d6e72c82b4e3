"""Prompts that are read once for all their answers: GRPO, and what `answers` makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, PreTrainedModel

from cookbook.training import output_layer_at

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer


def read_prompts_once(trainer: "GRPOTrainer") -> None:
    """Let `trainer` read a prompt once for all its answers: sampling, reference and training.

    The answers of a group begin with the same prompt. Its keys and values, computed once, serve
    them all, and gradients add up in them ([Prefix Grouper](https://arxiv.org/abs/2506.05433)).
    What is computed stays the same but for rounding. It also keeps the output layer off padding,
    and samples in the precision of training. Meant for the CPU, with short answers; not measured
    on a GPU. Raises ValueError if activations are recomputed, which leaves no keys and values.
    """
    check_kept(trainer)
    from peft.helpers import disable_input_dtype_casting

    sample: Any = trainer._generate_single_turn

    def log_probabilities(
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        if compute_aux_loss or any(value is not None for value in others.values()):
            raise NotImplementedError("Prompts are shared for text and dense models only.")
        size = batch_size or len(input_ids)
        with trainer.accelerator.autocast(), disable_input_dtype_casting(model):
            parts = [
                answer_log_probabilities(model, *both, logits_to_keep, trainer.temperature)
                for both in zip(input_ids.split(size), attention_mask.split(size))
            ]
        log_probs, entropies = (torch.cat(each) for each in zip(*parts))
        return log_probs, entropies if compute_entropy else None, None

    def generate(*args: Any, **kwargs: Any) -> Any:
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        with (
            trainer.accelerator.autocast(),
            disable_input_dtype_casting(model),
            generating_from_shared_prompts(model),
        ):
            return sample(*args, **kwargs)

    changed: Any = trainer
    changed._get_per_token_logps_and_entropies = log_probabilities
    changed._generate_single_turn = generate


def check_kept(trainer: Any) -> None:
    """Raise ValueError if a trainer recomputes activations, and keeps no keys and values."""
    if trainer.args.activation_checkpointing or trainer.args.gradient_checkpointing:
        raise ValueError("Set `activation_checkpointing=False`: prompts are kept to be shared.")


def without_shell(model: Any) -> Any:
    """Return a model as its adapters are in it, without peft's class around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def answer_log_probabilities(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    length: int,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies (batch, length) of the last `length` tokens.

    `input_ids` and `attention_mask` are (batch, prompt + length): prompts padded on the left,
    answers on the right. Where an answer is padding, both results are 0. Entropies carry no
    gradient, as in TRL.
    """
    mask = attention_mask[:, -length:].bool()
    logits, targets = answer_logits(model, input_ids, attention_mask, length)
    rows = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = rows.gather(-1, targets[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(rows.exp() * rows).sum(-1)
    return in_place(chosen, mask), in_place(entropy, mask)


def answer_logits(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    length: int,
    position_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (tokens, vocabulary) that predict answers, and those tokens (tokens,).

    Answers are the last `length` places; see `answer_log_probabilities` for the shapes. First
    tokens come first, then the others row by row, as `in_place` takes them. `position_ids` say
    where rows' tokens stand; without them the model counts padding, too.
    """
    answers, mask = input_ids[:, -length:], attention_mask[:, -length:].bool()
    wanted = torch.zeros_like(input_ids[:, :-1], dtype=torch.bool)
    wanted[:, -length] = True  # the prompt's last position predicts an answer's first token
    wanted[:, wanted.shape[1] - length + 1 :] = mask[:, 1:]
    read, rest, place = read_apart(
        model,
        input_ids[:, :-1],
        attention_mask[:, :-1],
        input_ids.shape[1] - length,
        None if position_ids is None else position_ids[:, :-1],
        wanted,
    )
    begun = mask[:, 0]
    logits, targets = read.logits[place[begun]], answers[begun, 0]
    if rest is None:
        return logits, targets
    return torch.cat([logits, rest.logits]), torch.cat([targets, answers[:, 1:][mask[:, 1:]]])


def read_apart(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    start: int,
    position_ids: torch.Tensor | None = None,
    wanted: torch.Tensor | None = None,
) -> tuple[Any, Any, torch.Tensor]:
    """Read rows (batch, length) whose first `start` places are often alike: those once.

    Returns what `model` gave for the different beginnings, what it gave for the other places of
    each row, None where there are none, and the beginning of each row (batch,). `wanted` tells the
    places (batch, length) at which the output layer runs, of a model that has one.
    """
    place, first = _groups(input_ids[:, :start], attention_mask[:, :start])

    def read(rows: torch.Tensor | slice, places: slice, cache: Cache | None) -> Any:
        positions = {} if position_ids is None else {"position_ids": position_ids[rows, places]}
        with nullcontext() if wanted is None else output_layer_at(model, wanted[rows, places]):
            return model(
                input_ids=input_ids[rows, places],
                attention_mask=attention_mask[rows, : places.stop],
                past_key_values=cache,
                use_cache=True,
                **positions,
            )

    begun = read(first, slice(0, start), None)
    if start == input_ids.shape[1]:
        return begun, None, place
    begun.past_key_values.batch_select_indices(place)
    rest = read(slice(None), slice(start, None), begun.past_key_values)
    return begun, rest, place


def in_place(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Spread first tokens' values and then the others', row by row, over (batch, length)."""
    first, rest = mask[:, :1], mask[:, 1:]
    count = int(first.sum())
    parts = [
        torch.zeros_like(part, dtype=values.dtype).masked_scatter(part, some)
        for part, some in ((first, values[:count]), (rest, values[count:]))
    ]
    return torch.cat(parts, dim=1)


def _groups(prompts: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the group of each row (batch,), and the first row of each group (groups,)."""
    both = torch.cat([prompts, mask], dim=1)
    different, place = torch.unique(both, dim=0, return_inverse=True)
    rows = torch.arange(len(place), device=place.device)
    first = rows.new_full((len(different),), len(place))
    return place, first.scatter_reduce(0, place, rows, "amin")


@contextmanager
def generating_from_shared_prompts(model: Any) -> Iterator[None]:
    """Let `model.generate` begin from keys and values that were computed once for like prompts."""
    generate = model.generate

    def from_shared(**inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] > 1:
            begun = inputs.get("past_key_values")
            cache = _read_but_last(model, inputs["input_ids"], inputs["attention_mask"], begun)
            inputs["past_key_values"] = cache
        return generate(**inputs)

    model.generate = from_shared  # on the object, over its class
    try:
        yield
    finally:
        del model.generate


@torch.no_grad()
def _read_but_last(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    begun: Cache | None = None,
) -> Cache:
    """Return keys and values of all prompt tokens but the last, which generation reads itself.

    `begun` has those of the tokens with which all prompts begin, for each row.
    """
    place, first = _groups(input_ids, attention_mask)
    known = 0
    if begun is not None:
        known = begun.get_seq_length()
        if known == input_ids.shape[1] - 1:
            return begun
        begun.batch_select_indices(first)
    ids, mask = input_ids[first, known:-1], attention_mask[first, :-1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # as `generate` counts them: not the padding
    nowhere = torch.zeros_like(ids, dtype=torch.bool)
    with output_layer_at(model, nowhere):
        read = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions[:, known:],
            past_key_values=begun,
            use_cache=True,
        )
    cache: Cache = read.past_key_values
    cache.batch_select_indices(place)
    return cache
