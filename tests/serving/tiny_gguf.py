"""A tiny model with two adapters, as llama.cpp reads them: random weights, a token for each byte.

Greedy answers are printable ASCII and never end by themselves: the rows of all other tokens in the
output layer are zeros, and of a hundred random scores one is above zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, RANK = 2, 64, 128, 4, 2, 4
LENGTH = 16384  # tokens that the model says it was trained with
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Tiny:
    """The files of a model and of two adapters for it."""

    model: Path
    adapters: tuple[Path, Path]


def _byte_letters() -> list[str]:
    """Return the letter that GPT-2's tokenizer writes for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(256 + hidden.index(byte) if byte in hidden else byte) for byte in range(256)]


def _shapes() -> dict[str, tuple[int, int]]:
    """Return (out, in) of each matrix of a layer."""
    narrow = WIDTH * KV_HEADS // HEADS
    return {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (narrow, WIDTH),
        "attn_v": (narrow, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }


def _random(random: np.random.Generator, shape: Sequence[int], size: float) -> Weights:
    return (random.standard_normal(shape) * size).astype(np.float32)


def _written(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = [*SPECIAL, *_byte_letters(), "Ġt"]
    types = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * 257
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["Ġ t"])  # llama.cpp asks for one at least
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(SPECIAL.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def write_model(path: Path, seed: int = 0) -> None:
    """Write a Llama of random weights; two seeds give two models."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer)
    vocabulary = len(SPECIAL) + 257
    output = _random(random, (vocabulary, WIDTH), 1.0)
    printable = np.zeros(vocabulary, dtype=bool)
    printable[[len(SPECIAL) + byte for byte in range(32, 127)]] = True
    output[~printable] = 0
    writer.add_tensor("token_embd.weight", _random(random, (vocabulary, WIDTH), 1.0))
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, dtype=np.float32))
        for name, shape in _shapes().items():
            weights = _random(random, shape, 2 / np.sqrt(shape[1]))
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights)
    _written(writer)


def write_adapter(path: Path, seed: int) -> None:
    """Write a LoRA adapter whose change is as large as the weights that it changes."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in range(LAYERS):
        for name, (out, inside) in _shapes().items():
            first = _random(random, (RANK, inside), 1 / np.sqrt(inside))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", first)
            second = _random(random, (out, RANK), 1 / np.sqrt(RANK))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", second)
    _written(writer)
