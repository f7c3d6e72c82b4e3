"""What a training needs on a GPU to be fast, and a processor does not."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask
from transformers.utils.import_utils import is_flash_attn_2_available

from cookbook.profiles import CookbookError

PADDED, BLOCKS = "sdpa_right_padded", "sdpa_blocks"
# Architectures of which a test shows that loss and gradients stay the same.
PROVEN = frozenset({"gemma3_text", "gpt2", "llama", "mistral", "opt", "qwen2", "qwen3"})


def use_flash_attention(model: PreTrainedModel, blocks: bool = False) -> bool:
    """Let `model` train with PyTorch's own flash kernel; return whether its architecture can.

    `scaled_dot_product_attention` takes that kernel only where it gets no mask
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html),
    and transformers gives it one for every batch with padding. Under causal attention a row that is
    padded on its right needs none: no token sees what comes after it, and padding has no label. So
    while gradients are computed the mask of full causal attention is left out; what is computed
    stays the same. Sliding windows and packed rows keep theirs, and so does all scoring and
    sampling, which may pad on the left.

    With `blocks` rows have no padding and are not packed, so that no mask is built while training
    under `torch.compile` either, where transformers cannot look at positions.

    Architectures not in `PROVEN` are left as they are. Training raises `CookbookError` where rows
    are padded on the left.
    """
    config: Any = model.config
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    windows = windows or bool(getattr(config, "sliding_window", None))
    proven = config.model_type in PROVEN and config._attn_implementation == "sdpa"
    if not proven or (blocks and windows):
        return False
    AttentionInterface.register(PADDED, _attention)
    AttentionMaskInterface.register(PADDED, _mask_unless_training)
    AttentionInterface.register(BLOCKS, _attention)
    AttentionMaskInterface.register(BLOCKS, _no_mask_in_training)
    model.set_attn_implementation(BLOCKS if blocks else PADDED)
    return True


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' `sdpa` does, queries (batch, heads, length, size).

    Without a mask `sdpa` leaves it to the kernel that several heads share keys and values, which
    the flash kernel can and the one for older cards and for float32 cannot: PyTorch would fall
    back to plain products, and keep every score for the backward pass. There they are repeated.
    """
    groups = int(getattr(module, "num_key_value_groups", 1))
    asked: Any = module
    if attention_mask is None and groups > 1 and query.shape[2] > 1 and not _flash_can(query):
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        asked = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    found: tuple[torch.Tensor, None] = sdpa_attention_forward(
        asked, query, key, value, attention_mask, **named
    )
    return found


def _flash_can(query: torch.Tensor) -> bool:
    """Tell whether PyTorch's flash kernel runs on this device and in this precision."""
    return bool(
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _no_mask_in_training(
    attention_mask: torch.Tensor | None = None, **named: Any
) -> torch.Tensor | None:
    if torch.is_grad_enabled():
        return None
    return sdpa_mask(attention_mask=attention_mask, **named)


def _mask_unless_training(
    attention_mask: torch.Tensor | None = None, **named: Any
) -> torch.Tensor | None:
    """Return the mask (batch, 1, queries, keys), or None for a batch that trains and needs none."""
    plain = named["mask_function"] is causal_mask_function and named["allow_is_causal_skip"]
    if not plain or not torch.is_grad_enabled() or named["q_length"] != named["kv_length"]:
        return sdpa_mask(attention_mask=attention_mask, **named)
    # Looking at a tensor's content waits for the GPU, a fraction of a millisecond in each step.
    if attention_mask is not None and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
        raise CookbookError(
            "Rows are padded on the left, where attention without a mask would see the padding. "
            'Set `tokenizer.padding_side = "right"` for training.'
        )
    return None


def sampling_engine(settings: SimpleNamespace, dtype: torch.dtype) -> dict[str, Any]:
    """Return GRPO's arguments for the best engine that is installed to sample by, and name it.

    On a GPU a token takes as long for one answer as for hundreds, so all answers of a step are
    sampled together: by vLLM, in the same process; else by transformers' continuous batching where
    flash-attn is, without whose kernel every answer's attention to all the others is computed, only
    to be masked; else by `generate`, which needs no arguments. `settings` is the notebook's
    `config`.
    """
    from trl.import_utils import is_vllm_available

    longest = settings.max_prompt_length + settings.max_completion_length
    engine: dict[str, Any] = {}
    if is_vllm_available():
        engine = {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_max_model_length": longest,
            "vllm_gpu_memory_utilization": 0.2,  # its share of the card; training needs the rest
        }
    elif is_flash_attn_2_available() and dtype != torch.float16:
        pages = -(-longest // 256)  # of the cache of keys and values, for each answer
        answers = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        engine = {
            "use_transformers_continuous_batching": True,
            "transformers_continuous_batching_config": {
                "num_blocks": answers * pages,
                "max_batch_tokens": 1024,
            },
            # With True, TRL 1.16 casts the adapters to bfloat16 to sample, and leaves them so.
            "bf16": False,
        }
    print(f"sampling by {next(iter(engine), 'generate')}")
    return engine
