"""One run of one peer, in its own environment: `python -m tests.bench.peer PEER TASK RESULT`.

Each is started the way its documentation starts it: LitGPT by the function behind `litgpt
finetune_lora` and `finetune_full`, torchtune by the script behind `tune run`, LLaMA-Factory by the
one behind `llamafactory-cli train`, Axolotl by the one behind `axolotl train`. Batches and
optimizer steps are counted from outside, the same way for all. `--prepare` converts what a peer
wants in a form of its own, once, and measures nothing.
"""

import argparse
import importlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.bench import meter
from tests.bench.meter import Meter
from tests.bench.peer_torchtune import prepare_torchtune, torchtune
from tests.bench.watch import Task, Watch, read

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def litgpt(task: Task, watch: Watch) -> None:
    """Train with LitGPT: https://github.com/Lightning-AI/litgpt/blob/main/tutorials/finetune.md."""
    recipe: Any = importlib.import_module(f"litgpt.finetune.{task.kind}")
    arguments = importlib.import_module("litgpt.args")
    plain: Callable[..., torch.Tensor] = recipe.chunked_cross_entropy

    def noted(*given: Any, **named: Any) -> torch.Tensor:
        loss = plain(*given, **named)
        if torch.is_grad_enabled():
            watch.meter.losses.append(loss.item())
        return loss

    recipe.chunked_cross_entropy = noted
    everything = ("query", "key", "value", "projection", "mlp")
    adapters: dict[str, Any] = {f"lora_{one}": True for one in everything}
    adapters |= {"lora_r": task.lora_r, "lora_alpha": task.lora_alpha, "lora_dropout": 0.0}
    checkpoint = Path(task.prepared) / "SmolLM2-135M-Instruct"
    # It reads its command line once more when it saves its settings.
    chosen = adapters if task.kind == "lora" else {}
    sys.argv = ["litgpt", str(checkpoint), *(f"--{name}={chosen[name]}" for name in chosen)]
    recipe.setup(
        checkpoint,
        out_dir=Path(task.output),
        precision="bf16-true",
        **chosen,
        data=importlib.import_module("litgpt.data").JSON(
            json_path=Path(task.prepared) / "rows", mask_prompt=True, prompt_style="smollm2"
        ),
        train=arguments.TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=task.examples_per_step,
            micro_batch_size=task.examples_per_step,
            lr_warmup_steps=1,  # it divides by it
            epochs=2,
            max_steps=task.steps,
            max_seq_length=task.max_length,
        ),
        eval=arguments.EvalArgs(
            interval=10**6, max_new_tokens=1, max_iters=1, final_validation=False
        ),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": task.learning_rate, "weight_decay": 0.0},
        },
    )


def prepare_litgpt(task: Task) -> None:
    """Convert the checkpoint and the rows to LitGPT's formats."""
    folder = Path(task.prepared) / "SmolLM2-135M-Instruct"
    shutil.copytree(task.model, folder)
    convert = importlib.import_module("litgpt.scripts.convert_hf_checkpoint")
    convert.convert_hf_checkpoint(folder)
    rows = _instructions(task)
    (Path(task.prepared) / "rows").mkdir()
    for name, part in (("train", rows), ("val", rows[:2])):  # it wants both
        path = Path(task.prepared) / "rows" / f"{name}.json"
        path.write_text(json.dumps(part), encoding="utf-8")


def llamafactory(task: Task, watch: Watch) -> None:
    """Train with LLaMA-Factory, after examples/train_lora/qwen3_lora_sft.yaml and its full twin."""
    _keep_logged_losses(watch)
    adapters = {
        "lora_rank": task.lora_r,
        "lora_alpha": task.lora_alpha,
        "lora_target": "all",
        "lora_dropout": 0.0,
    }
    importlib.import_module("llamafactory.train.tuner").run_exp(
        {
            "model_name_or_path": task.model,
            "stage": "sft",
            "do_train": True,
            "finetuning_type": task.kind,
            **(adapters if task.kind == "lora" else {}),
            "dataset_dir": task.prepared,
            "dataset": "rows",
            "template": "smollm2",
            "default_system": SYSTEM,
            "cutoff_len": task.max_length,
            "overwrite_cache": True,
            "output_dir": task.output,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "per_device_train_batch_size": task.examples_per_step,
            "gradient_accumulation_steps": 1,
            "learning_rate": task.learning_rate,
            "max_steps": task.steps,
            "lr_scheduler_type": "linear",
            "bf16": True,
            "use_cpu": True,
            "seed": 0,
        }
    )


def prepare_llamafactory(task: Task) -> None:
    """Write the rows in the Alpaca form, and the list of data sets that names them."""
    rows = [row | {"input": ""} for row in _instructions(task)]
    folder = Path(task.prepared)
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text('{"rows": {"file_name": "rows.json"}}')


def axolotl(task: Task, watch: Watch) -> None:
    """Train with Axolotl, after examples/llama-3/lora-1b.yml.

    It has no setting for `use_cpu`, without which transformers refuses bfloat16 where there is no
    GPU; a plugin, its own way to pass what it has no setting for, passes it.
    """
    _keep_logged_losses(watch)
    plugin = importlib.import_module("axolotl.integrations.base").BasePlugin
    on_cpu = type("OnCpu", (plugin,), {"get_training_args": lambda *_: {"use_cpu": True}})
    setattr(importlib.import_module("tests.bench.peer"), "OnCpu", on_cpu)
    adapters = {
        "adapter": "lora",
        "lora_r": task.lora_r,
        "lora_alpha": task.lora_alpha,
        "lora_dropout": 0.0,
        "lora_target_modules": LINEAR,
        # Kernels for a GPU, which it turns on by itself.
        **{f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o")},
    }
    config = {
        "base_model": task.model,
        "plugins": ["tests.bench.peer.OnCpu"],
        **(adapters if task.kind == "lora" else {}),
        "chat_template": "tokenizer_default",
        "datasets": [
            {
                "path": f"{task.prepared}/rows.jsonl",
                "ds_type": "json",
                "type": "chat_template",
                "field_messages": "messages",
                "roles_to_train": ["assistant"],
                "train_on_eos": "turn",
            }
        ],
        "dataset_prepared_path": f"{task.output}-data",
        "val_set_size": 0,
        "output_dir": task.output,
        "sequence_len": task.max_length,
        "sample_packing": False,
        "micro_batch_size": task.examples_per_step,
        "gradient_accumulation_steps": 1,
        "max_steps": task.steps,
        "optimizer": "adamw_torch",
        "lr_scheduler": "linear",
        "learning_rate": task.learning_rate,
        "bf16": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "weight_decay": 0.0,
        "seed": 0,
    }
    path = Path(f"{task.output}.yaml")
    path.write_text(json.dumps(config), encoding="utf-8")
    importlib.import_module("axolotl.cli.train").do_cli(config=str(path))


def prepare_axolotl(task: Task) -> None:
    """Write the rows as conversations."""
    lines = (json.dumps({"messages": row["prompt"] + row["completion"]}) for row in read(task.rows))
    (Path(task.prepared) / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _instructions(task: Task) -> list[dict[str, str]]:
    """Return the rows in the Alpaca form."""
    return [
        {"instruction": row["prompt"][0]["content"], "output": row["completion"][0]["content"]}
        for row in read(task.rows)
    ]


def _keep_logged_losses(watch: Watch) -> None:
    """Note the losses that transformers' trainer logs."""
    handler = importlib.import_module("transformers.trainer_callback").CallbackHandler
    log = handler.on_log

    def noted(self: Any, args: Any, state: Any, control: Any, logs: dict[str, Any]) -> Any:
        if "loss" in logs:
            watch.meter.losses.append(float(logs["loss"]))
        return log(self, args, state, control, logs)

    handler.on_log = noted


PEERS = {one.__name__: one for one in (litgpt, torchtune, llamafactory, axolotl)}
PREPARE = {
    "litgpt": prepare_litgpt,
    "torchtune": prepare_torchtune,
    "llamafactory": prepare_llamafactory,
    "axolotl": prepare_axolotl,
}


def main() -> None:
    """Run the command line."""
    started = meter.process_start()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("task", type=Path)
    parser.add_argument("result", type=Path, nargs="?")
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    task = SimpleNamespace(**json.loads(options.task.read_text(encoding="utf-8")))
    if options.prepare:
        PREPARE[options.peer](task)
        return
    task.output = f"{task.prepared}/output-{time.time_ns()}"
    watch = Watch(Meter(started))
    watch.start()
    PEERS[options.peer](task, watch)
    names = (*meter.NAMED, options.peer)
    result = watch.meter.result(
        1, trainable_parameters=watch.trainable, parameters=task.parameters
    ) | {"versions": meter.installed(names), "work": task.work, "contestant": options.peer}
    result["matmul_flops_per_second"] = meter.matmul_rate()
    meter.write(options.result, result)


if __name__ == "__main__":
    main()
