"""Rows of random tokens in the lengths of real ones, and a tokenizer with a word for each token.

Nothing is downloaded, and what the tokens are changes no speed.
"""

import math
import random
from functools import cache
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cookbook.chat import IGNORED
from tests.bench.gpu_works import GpuWork

SPECIAL = ("<pad>", "<end>", "<unk>")  # the first token ids
SPREAD = 0.6  # of the logarithm of a chat's length
SHORTEST = 8  # tokens
SEED = 0


@cache
def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose vocabulary is the model's: `size` words, `w3`, `w4` and so on."""
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), size))]
    vocabulary = {word: number for number, word in enumerate(words)}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[2]))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, end, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token=pad, eos_token=end, unk_token=unknown
    )


def lengths(work: GpuWork) -> list[int]:
    """Return the rows' lengths in tokens: lognormal as chats' are, or all the longest."""
    if not work.mean_length:
        return [work.max_length] * work.rows
    drawn = random.Random(SEED)
    middle = math.log(work.mean_length) - SPREAD**2 / 2  # so that the mean is `mean_length`
    return [
        min(work.max_length, max(SHORTEST, round(drawn.lognormvariate(middle, SPREAD))))
        for _ in range(work.rows)
    ]


def rows(work: GpuWork) -> Dataset:
    """Return `input_ids` and `labels`: a chat's second half is supervised, a block's every token.

    GRPO's rows are `prompt`, as text.
    """
    drawn = random.Random(SEED + 1)
    words = range(len(SPECIAL), work.config["vocab_size"])
    found = [drawn.choices(words, k=one) for one in lengths(work)]
    if work.kind == "grpo":
        return Dataset.from_dict({"prompt": [" ".join(f"w{one}" for one in ids) for ids in found]})
    return Dataset.from_list([_supervised(work, ids) for ids in found])


def _supervised(work: GpuWork, ids: list[int]) -> dict[str, Any]:
    asked = len(ids) // 2 if work.mean_length else 0
    return {"input_ids": ids, "labels": [IGNORED] * asked + ids[asked:]}
