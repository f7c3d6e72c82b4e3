"""The operations that a work needs, from the model and from what it was really given.

An operation is a multiplication or an addition. Matrix products with weights and those of attention
are counted apart; sums, norms and activations are not, and what activation checkpointing computes a
second time is not either: utilization by what the model needs (MFU), not by what the hardware did.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from tests.bench.gpu_works import GpuWork
from tests.bench.results import FORWARD, FROZEN, TRAINED
from tests.gpu.models import build


@dataclass(frozen=True)
class Weights:
    """Numbers of weights by how often a token meets them."""

    body: int  # multiplied at every token; no table that is only looked up
    head: int  # the output layer, multiplied where a token is predicted
    adapters: int  # trained beside a frozen base, multiplied at every token
    attention: int  # elements of a query, all heads and layers together


@dataclass(frozen=True)
class Given:
    """What steps were given, without padding."""

    tokens: int = 0
    outputs: int = 0  # tokens that are predicted
    squares: int = 0  # of the rows' lengths, added up

    def __add__(self, other: "Given") -> "Given":
        return Given(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Passes:
    """Operations a weight and token, and passes through attention in units of a forward one."""

    base: int
    adapters: int
    attention: int


def weights(work: GpuWork, adapters: int = 0) -> Weights:
    """Return the weights of a work's model; `adapters` is how many are trained beside it."""
    model = build(work.model_class, work.config, torch.float32, "meta")
    return of_model(model, adapters)


def of_model(model: Any, adapters: int = 0) -> Weights:
    """Return the weights of a model that has neither adapters nor 4-bit layers yet."""
    head = model.get_output_embeddings()
    body = sum(
        layer.weight.numel()
        for layer in model.modules()
        if isinstance(layer, (torch.nn.Linear, Conv1D)) and layer is not head
    )
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * width
    return Weights(body, head.weight.numel(), adapters, attention)


def passes(work: GpuWork, old_log_probabilities: bool = False) -> Passes:
    """Return what a step of a work does with each weight.

    GRPO samples, reads the reference if `beta` is above 0, and trains. `old_log_probabilities`
    tells whether it reads the answers once more, to correct what another engine sampled.
    """
    if not work.adapted:
        return Passes(base=TRAINED, adapters=0, attention=3)
    trained = Passes(base=FROZEN, adapters=TRAINED, attention=3)
    if work.kind != "grpo":
        return trained
    with_adapters = 1 + old_log_probabilities  # sampling
    reading = with_adapters + (work.beta > 0)  # the reference has the adapters off
    return Passes(
        base=reading * FORWARD + trained.base,
        adapters=with_adapters * FORWARD + trained.adapters,
        attention=reading + trained.attention,
    )


def of_weights(has: Weights, seen: Given, done: Passes) -> float:
    """Return the operations of the products with weights."""
    base = done.base * (has.body * seen.tokens + has.head * seen.outputs)
    return float(base + done.adapters * has.adapters * seen.tokens)


def of_attention(has: Weights, seen: Given, done: Passes) -> float:
    """Return the operations of attention: queries with keys, then with values.

    A token attends to those before it, half of a row's square of pairs.
    """
    pairs = seen.squares / 2
    return done.attention * 2 * FORWARD * has.attention * pairs
