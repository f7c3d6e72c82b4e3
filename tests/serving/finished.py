"""Folders of finished runs without training: tiny models whose random weights all matter.

The loopback Hub's models end their answers after a token or two, and their layers hardly speak.
Here they are as loud as trained ones, so that a wrong order of heads or a lost adapter shows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel, set_seed
from transformers.models.falcon import modeling_falcon

from cookbook import chat, models, saving
from cookbook.experts import lora_targets
from tests.hub import models as hub

BASES: dict[str, Callable[[Path], None]] = {
    "falcon": hub.falcon_7b,
    "smollm2": partial(hub.smollm2_instruct, key_value_heads=2),
    "t5": hub.flan_t5_base,
    "opt": hub.opt_1_3b,
    "qwen2.5": hub.qwen2_5_instruct,
    "qwen3": partial(hub.qwen3, tied=False),
    "gemma3": hub.gemma_3_1b_it,
    "gemma3-sees": hub.gemma_3_4b_it,
    "gpt2": hub.gpt2,
}
# As in the notebooks that train base models.
TEMPLATE = (
    "{% for turn in messages %}### {{ turn.role | capitalize }}: {{ turn.content }}"
    "{% if turn.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:{% endif %}"
)
SIXTH = 6
RECIPE = "02-PEFT/Falcon-7B-LoRA"
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8}


def write_base(name: str, folder: Path) -> Path:
    """Write one of `BASES` into a new folder, its random weights loud, and return the folder."""
    folder.mkdir(parents=True)
    # llama.cpp knows Gemma's every sixth layer as the one that sees the whole text.
    layers = SIXTH if name.startswith("gemma") else hub.LAYERS
    with mock.patch.object(hub, "LAYERS", layers):
        BASES[name](folder)
    if name == "gpt2":
        set_seed(0)
        GPT2LMHeadModel(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    _make_loud(folder)
    return folder


def _make_loud(folder: Path) -> None:
    """Replace a folder's weights by random ones whose answers depend on every layer."""
    random = torch.Generator().manual_seed(0)
    gemma = "gemma" in json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            note = file.metadata()
        weights = {key: _loud(key, one, random, gemma) for key, one in load_file(path).items()}
        save_file(weights, path, metadata=note)


def _loud(name: str, weight: torch.Tensor, random: torch.Generator, gemma: bool) -> torch.Tensor:
    if gemma and name.endswith("model.norm.weight"):
        return torch.full_like(weight, 7.0)  # times eight: its table is small, see below
    if weight.ndim != 2 or "vision" in name:
        return weight
    table = any(part in name for part in ("embed", "wte", "wpe", "shared", "lm_head"))
    size = 0.3 if table else weight.shape[1] ** -0.5
    if table and gemma:  # which multiplies what it reads from it by the root of the width
        size /= hub.WIDTH**0.5
    return (size * torch.randn(weight.shape, generator=random)).to(weight.dtype)


def tokenizer_of(base: Path) -> Any:
    """Return a base's tokenizer as the notebooks prepare it, with a chat template and padding."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = TEMPLATE
    if tokenizer.pad_token is None:
        ends = chat.end_tokens(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[-1])
    return tokenizer


def adapted(base: Path, tokenizer: Any, seed: int = 1, **changes: Any) -> PeftModel:
    """Return a base with a LoRA adapter on all of its linear layers that changes what it says.

    `changes` are settings of `LoraConfig`.
    """
    # As Falcon's notebook does, and here for this model alone: other tests need the true class.
    with mock.patch.object(modeling_falcon, "FalconLinear", torch.nn.Linear):
        model = models.from_pretrained(str(base), dtype=torch.float32)
    models.fit_vocabulary(model, tokenizer)
    both = model.config.is_encoder_decoder
    kind = TaskType.SEQ_2_SEQ_LM if both else TaskType.CAUSAL_LM
    settings = {**LORA, "task_type": kind, **lora_targets(model.config), **changes}
    set_seed(seed)
    made: PeftModel = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape))
            elif weight.requires_grad and "lora_" not in name:  # modules_to_save and the like
                weight.mul_(1.2)
    return made


def write_run(
    folder: Path,
    base: Path | None,
    model: Any,
    tokenizer: Any,
    kind: str = "adapter",
    named: str | None = None,
) -> Path:
    """Write the folder of a finished run that saved `model` as `kind`, and return it.

    `named` is the name under which the base was trained, by default its folder's path. No `base`
    is a run from scratch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = models.identity_of(str(base)) if base else {"rows": "0" * 16}
    name = named or str(base or "gpt2")
    settings = {"seed": 0, "model": name, "dataset": "offline:rows", "max_steps": 40}
    write_json(folder / "run.json", settings | identity)
    ends = chat.end_tokens(tokenizer) if tokenizer.chat_template else [tokenizer.eos_token_id]
    saving.save(model, tokenizer, folder / kind, end_tokens=ends)
    recipe = "/".join(folder.parts[-3:-1])
    write_json(folder / "metrics.json", _metrics(recipe, name, folder.name))
    return folder


def _metrics(recipe: str, model: str, profile: str) -> dict[str, Any]:
    """Return what `report.write_metrics` writes, with few of its numbers."""
    interval = {"before": [3.7, 4.1], "after": [2.9, 3.1]}
    return {
        "recipe": recipe,
        "profile": profile,
        "seed": 0,
        "model": Path(model).name if os.path.isabs(model) else model,
        "dataset": "offline:python-documentation",
        "metrics": [
            {
                "name": "held_out_loss",
                "split": "test",
                "higher_is_better": False,
                "examples": 96,
                "before": 3.8954769,
                "after": 3.0324348,
                "ci95": interval,
                "stages": {},
                "baselines": {},
            }
        ],
        "forgetting": {
            "name": "general_text_loss",
            "before": 3.1869051,
            "after": 3.0839255,
            "ci95": interval,
        },
        "train": {
            "steps": 40,
            "tokens": 27779,
            "seconds": 81.4,
            "tokens_per_second": 341.3,
            "peak_memory_bytes": 5873803264,
            "resumed_from_step": 0,
        },
        "hardware": {"device": "Intel Xeon", "count": 1, "threads": 2, "precision": "bfloat16"},
        "versions": {"torch": "2.15.0", "transformers": "5.23.0", "peft": "0.21.2"},
    }


def write_json(path: Path, content: Any) -> None:
    """Write a file as the package writes those of a run."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def with_size(record: str, name: str, size: int) -> str:
    """Return an export's record that knows a file of this size, which a test put there."""
    content = json.loads(record)
    content["files"][name] = size
    return json.dumps(content)
