"""Will it fit? The arithmetic of training memory, before anything is loaded."""

import ctypes
import gc
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig

GIB = 2**30
# NF4 with double quantization: 4 bits a weight, and 0.127 bits for the two levels of scales
# (QLoRA, section 3: https://arxiv.org/abs/2305.14314).
NF4_BITS = 4.127
# glibc's switches, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a training step needs, part by part."""

    base_weights: float
    adapter_weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All parts together, in bytes."""
        return sum(float(getattr(self, field.name)) for field in fields(self))

    def __str__(self) -> str:
        rows = [(field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)]
        rows.append(("total", self.total))
        return "\n".join(f"{name:<16} {size / GIB:7.2f} GiB" for name, size in rows)


def linear_weights(config: PretrainedConfig) -> tuple[int, int]:
    """Return (weights, summed in+out features) of all linear layers inside the decoder blocks.

    Reads Llama-like and Falcon configurations: attention, then a gated (three matrices) or a plain
    (two matrices) feed-forward part.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    falcon = config.model_type == "falcon"
    inner = (config.ffn_hidden_size or 4 * hidden) if falcon else config.intermediate_size
    key_value = _key_value_heads(config) * head_dim
    attention = heads * head_dim
    if falcon:
        shapes = [(hidden, attention + 2 * key_value), (attention, hidden)]
        shapes += [(hidden, inner), (inner, hidden)]
    else:
        shapes = [(hidden, attention), (hidden, key_value), (hidden, key_value)]
        shapes += [(attention, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]
    weights = sum(rows * columns for rows, columns in shapes)
    features = sum(rows + columns for rows, columns in shapes)
    return weights * config.num_hidden_layers, features * config.num_hidden_layers


def _key_value_heads(config: PretrainedConfig) -> int:
    if config.model_type == "falcon":
        if config.new_decoder_architecture:
            return int(config.num_kv_heads)
        return 1 if config.multi_query else int(config.num_attention_heads)
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def plan_qlora(
    config: PretrainedConfig,
    *,
    rank: int,
    per_device_train_batch_size: int,
    max_length: int,
    activation_checkpointing: bool,
    half_precision: bool = True,
) -> MemoryPlan:
    """Estimate a QLoRA step: 4-bit base, float32 adapters of `rank` on all linear layers, AdamW.

    Activations follow Korthikanti et al. (https://arxiv.org/abs/2205.05198): about 34 bytes per
    token, layer and hidden unit in half precision with fused attention; with checkpointing one
    kept input a layer, plus one layer's worth. An estimate: allocators add 10 to 20 %.
    """
    weights, features = linear_weights(config)
    width = 2 if half_precision else 4
    embedding = config.vocab_size * config.hidden_size
    tables = 1 if config.tie_word_embeddings else 2
    adapter = rank * features * 4.0
    tokens = per_device_train_batch_size * max_length
    layer = 17.0 * width * tokens * config.hidden_size
    kept = width * tokens * config.hidden_size * float(config.num_hidden_layers) + layer
    return MemoryPlan(
        base_weights=weights * NF4_BITS / 8 + tables * embedding * width,
        adapter_weights=adapter,
        gradients=adapter,
        optimizer=2 * adapter,
        activations=kept if activation_checkpointing else layer * config.num_hidden_layers,
        # Logits and their gradient in float32, as if every position carried a label.
        logits=2.0 * 4 * tokens * config.vocab_size,
    )


def free_bytes() -> int:
    """Return the memory that is free where models go: on the GPU if there is one, else in RAM."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def reset_peak() -> None:
    """Start the count of peak memory anew, so that what follows is measured alone.

    On a GPU through torch; for a process on Linux through the kernel (proc(5), clear_refs). Other
    systems have no such switch: there the peak stays that of the whole process.
    """
    gc.collect()
    switch = Path("/proc/self/clear_refs")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif switch.exists():
        switch.write_text("5", encoding="ascii")


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for the next step's tensors; tell whether it will.

    After each training step glibc hands gigabytes back to the kernel, which has to clear every page
    of them before the next step gets them again. For training on a CPU, on Linux with glibc;
    elsewhere nothing changes. Until it ends the process then holds as much as it ever needed.
    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and libc.mallopt(_M_MMAP_MAX, 0))
