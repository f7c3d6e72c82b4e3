"""What a training needs on a GPU to be fast, and a processor does not."""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

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

    With `blocks` there is no mask ever: for rows without padding. Under `torch.compile`
    transformers would build one, since it cannot look at positions while it traces.

    Architectures not in `PROVEN` are left as they are. Training raises `CookbookError` where rows
    are padded on the left.
    """
    config: Any = model.config
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    windows = windows or bool(getattr(config, "sliding_window", None))
    proven = config.model_type in PROVEN and config._attn_implementation == "sdpa"
    if not proven or (blocks and windows):
        return False
    AttentionInterface.register(PADDED, sdpa_attention_forward)
    AttentionMaskInterface.register(PADDED, _mask_unless_training)
    AttentionInterface.register(BLOCKS, sdpa_attention_forward)  # unknown to masks, so without any
    model.set_attn_implementation(BLOCKS if blocks else PADDED)
    return True


def _mask_unless_training(
    attention_mask: torch.Tensor | None = None, **named: Any
) -> torch.Tensor | None:
    """Return the mask (batch, 1, queries, keys), or None for a batch that trains and needs none."""
    plain = named["mask_function"] is causal_mask_function and named["allow_is_causal_skip"]
    if not plain or not torch.is_grad_enabled() or named["q_length"] != named["kv_length"]:
        return sdpa_mask(attention_mask=attention_mask, **named)
    # Looking at a tensor's content waits for the GPU, a fraction of a millisecond in each step.
    if attention_mask is not None and not attention_mask[:, 0].all():
        raise CookbookError(
            "Rows are padded on the left, where attention without a mask would see the padding. "
            'Set `tokenizer.padding_side = "right"` for training.'
        )
    return None
