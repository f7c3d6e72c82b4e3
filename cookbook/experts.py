"""Mixture-of-Experts models: what LoRA trains of them, and how much of them is in 4 bits.

A router sends each token through a few of many experts. Transformers 5 keeps all experts of a layer
in one tensor of three dimensions, which is no `nn.Linear`: what looks for linear layers, like
`target_modules="all-linear"` and bitsandbytes, does not see it.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from cookbook.profiles import CookbookError

# How many experts a token goes through, by the names that configurations have for it.
_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_k",
)
# peft 0.21 takes linear layers of these names for the experts of transformers 4, in any model whose
# checkpoints were converted: it drops them from `target_modules`, and adapts experts and router.
_TAKEN_FOR_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def lora_targets(model: PretrainedConfig | PreTrainedModel) -> dict[str, Any]:
    """Return what `LoraConfig` needs so that LoRA trains the linear layers and all experts.

    Takes a model's configuration, or a model, which may be on the meta device. A model without
    experts gets `target_modules="all-linear"`. Otherwise `target_modules` and `target_parameters`
    name everything: under "all-linear", peft 0.21 leaves out the experts of some models (Granite,
    gpt-oss), and for others (Qwen3-MoE, Mixtral) doubles the rank of a part of each expert and
    trains the router, too. Here each expert gets adapters of rank `r`; `lora_dropout` must be 0,
    since peft adapts tensors without it.

    The router is left as it is, like a shared expert's gate. It decides which expert learns from a
    token, its work is learned in pretraining with a balance that few examples do not keep, and it
    is tiny. Unsloth leaves it out for stability (https://unsloth.ai/docs/models/qwen3.5/fine-tune).
    Full fine-tuning trains it.
    """
    whole = _on_meta(model) if isinstance(model, PretrainedConfig) else model
    tensors = list(_expert_tensors(whole))
    if not tensors and "mamba" not in str(whole.config.model_type):
        return {"target_modules": "all-linear"}
    if not tensors:  # peft refuses the layers of Mamba that its kernels compute themselves
        linear = {
            _in_layer(name)
            for name, layer in whole.named_modules()
            if isinstance(layer, nn.Linear) and layer is not whole.get_output_embeddings()
        }
        return {"target_modules": sorted(one for one in linear if "out_proj" not in one)}
    layers, parameters = set(), {_in_layer(name) for name, _ in tensors}
    routers, head = _routers(whole, tensors), whole.get_output_embeddings()
    for name, layer in whole.named_modules():
        if not isinstance(layer, nn.Linear) or layer is head or name in routers:
            continue
        if name.rpartition(".")[2] in _TAKEN_FOR_EXPERTS:
            parameters.add(_in_layer(f"{name}.weight"))
        else:
            layers.add(_in_layer(name))
    return {"target_modules": sorted(layers), "target_parameters": sorted(parameters)}


def has_experts(config: PretrainedConfig) -> bool:
    """Tell whether a model is a Mixture-of-Experts, by its configuration."""
    return _experts_per_token(config) is not None


def active_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many weights a token goes through, and how many there are. Adapters do not count.

    They are the same number for a model without experts.
    """
    names = ((name, one) for name, one in model.named_parameters() if "lora_" not in name)
    whole = sum(_count(one) for _, one in names)
    per_token = _experts_per_token(model.config)
    idle = 0.0
    for name, tensor in _expert_tensors(model):
        if per_token is not None and "shared" not in name:  # shared experts see every token
            idle += tensor.numel() * max(0.0, 1 - per_token / len(tensor))
    return whole - round(idle), whole


def quantize(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold a model's linear layers in NF4 but for its output layer, as transformers loads it."""
    from bitsandbytes import nn as layers

    kinds: Any = layers
    head = model.get_output_embeddings()  # type: ignore[operator]
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer is not head:
                small = kinds.Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=layer.bias is not None,
                    compute_dtype=dtype,
                    quant_type="nf4",
                )
                small.weight = kinds.Params4bit(
                    layer.weight.data, requires_grad=False, quant_type="nf4"
                )
                small.bias = layer.bias
                setattr(parent, name, small.to(layer.weight.device))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # where peft looks


def in_4bit(model: nn.Module) -> tuple[int, int]:
    """Return how many weights are in 4 bits, and how many there are. Adapters do not count."""
    weights = [one for name, one in model.named_parameters() if "lora_" not in name]
    return sum(_count(one) for one in weights if _is_4bit(one)), sum(map(_count, weights))


def check_4bit(model: nn.Module) -> str:
    """Return two sentences: how many linear layers are in 4 bits, and how many weights.

    Raises `CookbookError` unless all are, but for the output layer. transformers replaces layers
    whose type is exactly `nn.Linear` and says nothing of others, like Falcon's subclass.
    """
    from bitsandbytes.nn.modules import Linear4bit

    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [one for one in model.modules() if isinstance(one, nn.Linear) and one is not head]
    if left := sum(type(one) is not Linear4bit for one in layers):
        raise CookbookError(
            f"{left} of {len(layers)} linear layers are not in 4 bits: the model class hides them "
            "from transformers. Set `load_in_4bit` to False, or take another model."
        )
    return f"{len(layers)} linear layers in 4 bits\n{in_4bit_text(model)}"


def in_4bit_text(model: nn.Module) -> str:
    """Return a sentence that says how many weights are in 4 bits; none at all is an error.

    Experts are not among them: transformers 5.23 quantizes linear layers alone. bitsandbytes 0.50
    can quantize their tensors (`replace_parameter_4bit`), but peft 0.21 cannot put adapters on
    such a tensor: it does not come off after a forward pass, and the second fails.
    """
    few, whole = in_4bit(model)
    if not few:
        raise CookbookError(
            "No weight of the model is in 4 bits: bitsandbytes found no nn.Linear layer in it. "
            "Set `load_in_4bit` to False, or take another model."
        )
    text = f"{few:,} of {whole:,} weights in 4 bits ({few / whole:.0%})"
    sizes = {one.element_size() for _, one in _expert_tensors(model) if not _is_4bit(one)}
    if sizes:
        bits = " and ".join(str(8 * size) for size in sorted(sizes))
        text += (
            f"; the experts' weights stay in {bits} bits: bitsandbytes quantizes nn.Linear "
            "layers alone"
        )
    return text


def _expert_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of experts, all experts of a layer in each: (experts, ..., ...).

    Other tensors of three dimensions, like a convolution's, are in no module called after experts.
    """
    for owner, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            called = f"{owner}.{type(module).__name__}".lower()
            if tensor.dim() == 3 and "expert" in called:
                yield f"{owner}.{name}", tensor


def _routers(model: nn.Module, tensors: list[tuple[str, torch.Tensor]]) -> set[str]:
    """Return the names of linear layers beside experts that weigh experts: one output for each, or
    a single one.
    """
    found = set()
    for name, tensor in tensors:
        block = name.rpartition(".")[0].rpartition(".")[0]
        for inside, layer in model.get_submodule(block).named_modules(prefix=block):
            if isinstance(layer, nn.Linear) and layer.out_features in (1, len(tensor)):
                found.add(inside)
    return found


def _in_layer(name: str) -> str:
    """Return a name without what numbers its layer: the same for every layer."""
    return re.sub(r"^.*\.\d+\.", "", name)


def _experts_per_token(config: PretrainedConfig) -> int | None:
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in _PER_TOKEN)
    return next((one for one in found if isinstance(one, int)), None)


def _is_4bit(weight: torch.Tensor) -> bool:
    return type(weight).__name__ == "Params4bit"


def _count(weight: torch.Tensor) -> int:
    """Return the number of weights in a tensor; bitsandbytes packs several into one element."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else prod(state.shape)


def _on_meta(config: PretrainedConfig) -> PreTrainedModel:
    pairs = config.is_encoder_decoder
    kind: Any = AutoModelForSeq2SeqLM if pairs else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config if pairs else config.get_text_config())
    return model
