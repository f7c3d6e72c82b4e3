"""Random weights that end their turns: a notebook need not wait for noise up to its limit."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def end_soon(
    model: PreTrainedModel,
    end: int,
    starts: Iterable[int],
    says: float = 0.16,
    listens: float = 2.0,
) -> None:
    """Change random weights so that an answer has one token or a few, and then the token `end`.

    The first coordinate of the hidden states is set apart. The embedding of each token `says` there
    that an answer is under way, but for the `starts`, with which prompts end. The output layer's
    row of `end` `listens` to it and to nothing else. In the other coordinates an embedding has
    about 0.02, and both numbers are chosen beside that.
    """
    embedding: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings().weight
    width = embedding.shape[1]
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == width:
            # Layers do not write there. Not zero: a block of zeros has no scale in 4 bits.
            module.weight[0] *= 1e-3
        elif isinstance(module, torch.nn.Embedding) and module.embedding_dim == width:
            module.weight[:, 0] = 0  # nor do positions
    embedding[:, 0] = says
    # Small, so that what the layers make of the prompt, and no echo, chooses the first token.
    embedding[list(starts)] *= 0.1
    embedding[list(starts), 0] = 0
    head[end] = 0
    head[end, 0] = listens


def before_answers(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that prompts end with, by the chat templates here and in the notebooks."""
    ids = sorted(tokenizer.get_vocab().values())
    return [one for one in ids if str(tokenizer.decode([one])).endswith((":", "\n"))]
