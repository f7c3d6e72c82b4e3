"""The peer torchtune, whose recipes find the classes here by this module's name."""

import importlib
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.bench.watch import PADDING, Task, Watch, read


class Losses:
    """torchtune's interface of a metric logger: keeps the losses."""

    seen: list[float] = []

    def log_dict(self, payload: dict[str, Any], step: int) -> None:
        """Keep the loss of a step."""
        if step:
            Losses.seen.append(float(payload["loss"]))

    def log_config(self, config: Any) -> None:
        """Keep nothing of the configuration."""

    def close(self) -> None:
        """Hold nothing open."""


class Tokenized(torch.utils.data.Dataset[dict[str, list[int]]]):
    """torchtune's interface of a data set, over rows that are tokenized already."""

    def __init__(self, tokenizer: Any, path: str) -> None:
        self.rows = read(path)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        row = self.rows[place]
        return {"tokens": row["input_ids"], "labels": row["labels"]}


def pad_only() -> SimpleNamespace:
    """Return all that torchtune's recipes ask of a tokenizer when rows are tokenized already."""
    return SimpleNamespace(pad_id=PADDING)


def torchtune(task: Task, watch: Watch) -> None:
    """Train with torchtune: https://docs.pytorch.org/torchtune/main/tutorials/lora_finetune.html.

    It has no SmolLM2, which is Qwen2 with no bias: biases of zero are given to it.
    """
    scripts = Path(str(importlib.import_module("torchtune").__file__)).parent.parent / "recipes"
    names = {"lora": "lora_finetune_single_device.py", "full": "full_finetune_single_device.py"}
    watch.watch_loaders(importlib.import_module("torchdata.stateful_dataloader").StatefulDataLoader)
    config = Path(task.output) / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(_torchtune(task)), encoding="utf-8")  # JSON is YAML
    watch.meter.losses = Losses.seen
    given, sys.argv = sys.argv, [names[task.kind], "--config", str(config)]
    try:
        runpy.run_path(str(scripts / names[task.kind]), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = given


def _torchtune(task: Task) -> dict[str, Any]:
    """Return the recipe's configuration, from qwen2/0.5B_{lora,full}_single_device.yaml."""
    shape = json.loads((Path(task.model) / "config.json").read_text(encoding="utf-8"))
    model: dict[str, Any] = {
        "_component_": "torchtune.models.qwen2.qwen2",
        "vocab_size": shape["vocab_size"],
        "num_layers": shape["num_hidden_layers"],
        "num_heads": shape["num_attention_heads"],
        "num_kv_heads": shape["num_key_value_heads"],
        "embed_dim": shape["hidden_size"],
        "intermediate_dim": shape["intermediate_size"],
        "max_seq_len": task.max_length,
        "norm_eps": shape["rms_norm_eps"],
        "rope_base": (shape.get("rope_parameters") or shape)["rope_theta"],
        "tie_word_embeddings": True,
    }
    if task.kind == "lora":
        model |= {
            "_component_": "torchtune.models.qwen2.lora_qwen2",
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True,
            "lora_rank": task.lora_r,
            "lora_alpha": task.lora_alpha,
            "lora_dropout": 0.0,
        }
    return {
        "output_dir": task.output,
        "model": model,
        "tokenizer": {"_component_": "tests.bench.peer_torchtune.pad_only"},
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": f"{task.prepared}/model",
            "checkpoint_files": ["model.safetensors"],
            "recipe_checkpoint": None,
            "output_dir": task.output,
            "model_type": "QWEN2",
        },
        "resume_from_checkpoint": False,
        "dataset": {"_component_": "tests.bench.peer_torchtune.Tokenized", "path": task.tokenized},
        "seed": 0,
        "shuffle": True,
        "batch_size": task.examples_per_step,
        "optimizer": {
            "_component_": "torch.optim.AdamW",
            "fused": True,
            "weight_decay": 0.0,
            "lr": task.learning_rate,
        },
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 0,
        },
        "optimizer_in_bwd": False,
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "epochs": 1,
        "max_steps_per_epoch": task.steps,
        "gradient_accumulation_steps": 1,
        "clip_grad_norm": 1.0,
        "compile": False,
        "metric_logger": {"_component_": "tests.bench.peer_torchtune.Losses"},
        "log_every_n_steps": 1,
        "log_peak_memory_stats": False,
        "device": "cpu",
        "dtype": "bf16",
        # Its GPU recipe recomputes; nobody would on a CPU that has the memory.
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
    }


def prepare_torchtune(task: Task) -> None:
    """Give the checkpoint biases of zero and the name of the family that has them."""
    safetensors = importlib.import_module("safetensors.torch")
    folder = Path(task.prepared) / "model"
    folder.mkdir()
    weights = safetensors.load_file(Path(task.model) / "model.safetensors")
    for name in [one for one in weights if re.search(r"\.[qkv]_proj\.weight$", one)]:
        bias = torch.zeros(len(weights[name]), dtype=weights[name].dtype)
        weights[name.removesuffix("weight") + "bias"] = bias
    safetensors.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(Path(task.model) / "config.json", folder)
