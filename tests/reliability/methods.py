"""A small training by each method of the recipes, to be killed.

The models are tiny, the classes and arguments those of the notebooks; dropout, shuffling, gradient
accumulation and a schedule are on, so that everything a checkpoint has to bring back matters.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cookbook import training
from tests.unit import tiny

STEPS = 8
WEIGHTS = "end.safetensors"
COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 7,
}
LORA = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")


def rows() -> Dataset:
    """Return 40 examples of several lengths: five steps are an epoch."""
    ids = [
        [3, *range(6 + n % 20, 10 + n % 20 + n % 5), 4, *range(20, 22 + n % 7), 1]
        for n in range(40)
    ]
    labels = [[-100] * (len(one) // 2) + one[len(one) // 2 :] for one in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def llama() -> LlamaForCausalLM:
    """Return a small Llama with dropout, of a width that bitsandbytes can quantize."""
    return tiny.model(hidden_size=64, intermediate_size=128, attention_dropout=0.1)


def full(folder: Path) -> Trainer:
    """All weights, by transformers' Trainer."""
    return Trainer(
        model=llama(),
        args=TrainingArguments(output_dir=str(folder), **COMMON),
        train_dataset=rows(),
        data_collator=DataCollatorForTokenClassification(tiny.tokenizer()),
        processing_class=tiny.tokenizer(),
    )


def _sft(model: Any, folder: Path) -> Trainer:
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            max_length=None,
            train_sampling_strategy="group_by_length",
            activation_checkpointing=False,
            **COMMON,
        ),
        train_dataset=rows(),
        processing_class=tiny.tokenizer(),
        peft_config=LORA,
    )
    training.use_supervised_positions_loss(trainer)
    return trainer


def lora(folder: Path) -> Trainer:
    """Adapters on a whole base."""
    return _sft(llama(), folder)


def lora_4bit(folder: Path) -> Trainer:
    """Adapters on a base in 4 bits."""
    base = folder.parent / "base"
    llama().save_pretrained(base)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=torch.float32, attention_dropout=0.1
    )
    training.keep_4bit_layers_trainable(model)
    set_seed(0)
    trainer: Any = _sft(model, folder)
    training.train_in_float32(trainer.model)
    made: Trainer = trainer
    return made


def seq2seq(folder: Path) -> Trainer:
    """An encoder-decoder."""
    model = tiny.encoder_decoder(dropout_rate=0.1)
    written = rows().map(lambda row: {"labels": [one for one in row["labels"] if one != -100]})
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(folder), train_sampling_strategy="group_by_length", **COMMON
        ),
        train_dataset=written,
        data_collator=DataCollatorForSeq2Seq(tiny.tokenizer(), model=model),
        processing_class=tiny.tokenizer(),
    )
    training.use_supervised_positions_loss(trainer)
    return trainer


def grpo(folder: Path) -> Trainer:
    """Rewards on what the model writes; generation is part of every step."""

    def many_w1(completions: list[Any], **_: Any) -> list[float | None]:
        return [float(one[0]["content"].count("w1")) for one in completions]

    prompts = [[{"role": "user", "content": f"w{n} w{n + 3}"}] for n in range(12)]
    return GRPOTrainer(
        model=llama(),
        args=GRPOConfig(
            output_dir=str(folder),
            num_generations=4,
            activation_checkpointing=False,
            max_completion_length=6,
            **COMMON,
        ),
        reward_funcs=[many_w1],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tiny.tokenizer(),
    )


METHODS: dict[str, Callable[[Path], Trainer]] = {
    "full": full,
    "lora": lora,
    "lora-4bit": lora_4bit,
    "seq2seq": seq2seq,
    "grpo": grpo,
}


class Announce(TrainerCallback):
    """Print each step's beginning, so that a parent can choose when to kill; or end by SIGTERM."""

    def __init__(self, terminate_at: int | None) -> None:
        self.terminate_at = terminate_at

    def on_step_begin(self, *given: Any, **_: Any) -> None:
        step = given[1].global_step + 1
        print(f"step {step}", flush=True)
        if step == self.terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Train to the end, from the newest whole checkpoint on, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--terminate-at", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in the same order every time
    given.folder.mkdir(parents=True, exist_ok=True)
    trainer = METHODS[given.method](given.folder / "checkpoints")
    trainer.add_callback(Announce(given.terminate_at))
    checkpoint = training.newest_whole_checkpoint(given.folder / "checkpoints")
    print(f"from step {training.step_of(checkpoint)}", flush=True)
    with training.guarded(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)
    model: Any = trainer.model
    trained = {
        name: weight.detach().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    save_file(trained, given.folder / WEIGHTS)
    trainer.state.save_to_json(str(given.folder / "end.json"))
    print("end", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
