"""The contestants of `make bench WORK=gpu`; `gpu_run` trains one work with one of them.

`ours` has the settings of the recipes' GPU profiles. Each `ours-...` leaves one of them out, so
that the figures can say what it is worth, or samples by another engine; `ours-compiled` adds one.
`trl-default` leaves to TRL (to transformers' Trainer where no adapter and no chat is) all but the
work: batch, lengths, precision. `liger` and `unsloth` are what their own pages ask for beside that.
Weights are random: no speed hangs on what they are.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cookbook import training
from cookbook.gpu import use_flash_attention
from tests.bench import gpu_rows
from tests.bench.gpu_meter import GpuMeter
from tests.bench.gpu_works import DEFAULT, MASKED, OURS, RECOMPUTED, UNCOMPILED, GpuWork
from tests.gpu.models import build, configuration

SEED = 0
LEARNING_RATE = 1e-4
UNSLOTH_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def on_gpu() -> bool:
    """Return whether there is a GPU; without one this is a rehearsal."""
    return torch.cuda.is_available()


def lora(work: GpuWork) -> LoraConfig:
    """Return the adapters: all linear layers but the output layer."""
    return LoraConfig(
        r=work.lora_r,
        lora_alpha=2 * work.lora_r,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def load(work: GpuWork, contestant: str) -> Any:
    """Return the model that is trained, with random weights, where it is trained."""
    config = dict(work.config)
    if work.kind == "pretrain" and contestant != DEFAULT:  # the recipe's choice
        config |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config["vocab_size"] = 64 * -(-config["vocab_size"] // 64)
    dtype = torch.bfloat16 if work.adapted else torch.float32
    model = build(work.model_class, config, dtype, "cuda" if on_gpu() else "cpu")
    if work.kind == "qlora":
        model = in_4_bits(model)
    if contestant.startswith(OURS) and contestant != MASKED and work.kind != "grpo":
        # A compiled model would get a dense mask even for blocks, where nothing is padded.
        if not use_flash_attention(model, blocks=not work.mean_length):
            raise ValueError(f"{contestant}: {work.model_class} cannot train without a mask")
    if isinstance(model.config, GPT2Config) and contestant != DEFAULT:
        # By its class name transformers does not know the loss, which breaks the compiled graph.
        model.loss_type = "ForCausalLM"
    return model


def quantization() -> BitsAndBytesConfig:
    """Return NF4 with double quantization, computed in bfloat16."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def in_4_bits(model: Any) -> Any:
    """Return the model with its linear layers in 4 bits, by transformers' own loader."""
    return type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=torch.bfloat16,
        quantization_config=quantization(),
        device_map={"": torch.cuda.current_device()} if on_gpu() else None,
    )


def common(work: GpuWork, folder: Path) -> dict[str, Any]:
    """Return what is no contestant's choice: the work, and what is switched off to time it."""
    return {
        "output_dir": str(folder / "out"),
        "max_steps": work.steps,
        "per_device_train_batch_size": work.rows_in_batch,
        "gradient_accumulation_steps": work.accumulation,
        "learning_rate": LEARNING_RATE,
        "bf16": True,
        "use_cpu": not on_gpu(),
        "dataloader_pin_memory": on_gpu(),
        "logging_steps": work.steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }


def own(work: GpuWork, contestant: str) -> dict[str, Any]:
    """Return the trainer's arguments that `ours` and its variants set, beyond `common`."""
    chosen: dict[str, Any] = {"activation_checkpointing": contestant == RECOMPUTED}
    if contestant == RECOMPUTED:
        chosen["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    if work.mean_length:
        chosen["train_sampling_strategy"] = "group_by_length"
    if work.kind not in ("pretrain", "grpo"):
        chosen["max_length"] = None  # no row is longer
    if contestant == "ours-compiled" or (work.kind == "pretrain" and contestant != UNCOMPILED):
        chosen["torch_compile"] = True
    if contestant == "ours-continuous":
        pages = -(-(work.max_length + work.new_tokens) // 256)  # as in the recipe
        answers = work.rows_in_batch * work.accumulation
        chosen |= {
            "use_transformers_continuous_batching": True,
            "transformers_continuous_batching_config": {
                "num_blocks": answers * pages,
                "max_batch_tokens": 1024,
            },
            # TRL 1.16 would cast the trained float32 weights to bfloat16 in place.
            "bf16": False,
        }
    if contestant == "ours-vllm":
        chosen |= {"use_vllm": True, "vllm_mode": "colocate"}
    return chosen


def arguments(work: GpuWork, contestant: str, folder: Path) -> dict[str, Any]:
    """Return all arguments of a contestant's trainer."""
    found = common(work, folder)
    if work.kind == "grpo":
        found |= {
            "num_generations": work.generations,
            "max_completion_length": work.new_tokens,
            "temperature": 1.0,
            "beta": work.beta,
        }
    if contestant.startswith(OURS):
        return found | own(work, contestant)
    if work.kind not in ("pretrain", "grpo"):
        found["max_length"] = work.max_length
    return found | ({"use_liger_kernel": True} if contestant == "liger" else {})


def distinct_words(completions: list[str], **_: Any) -> list[float | None]:
    """Reward answers by something in which they differ; nothing is to be learned here."""
    return [len(set(text.split())) / (1 + len(text.split())) for text in completions]


def trainer_of(work: GpuWork, contestant: str, folder: Path) -> Any:
    """Return a contestant's trainer, ready to train."""
    settings = arguments(work, contestant, folder)
    rows = gpu_rows.rows(work)
    if work.kind == "pretrain":
        return Trainer(
            load(work, contestant),
            TrainingArguments(**settings),
            train_dataset=rows,
            data_collator=default_data_collator,
        )
    words = gpu_rows.tokenizer(work.config["vocab_size"])
    if work.kind == "grpo":
        return _grpo(work, contestant, folder, settings)
    model = _unsloth(work, folder) if contestant == "unsloth" else load(work, contestant)
    adapted = work.adapted and contestant != "unsloth"  # whose adapters are there already
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings),
        train_dataset=rows,
        processing_class=words,
        peft_config=lora(work) if adapted else None,
    )
    if contestant.startswith(OURS):
        trained: Any = trainer.model
        training.train_in_float32(trained)
    return trainer


def _grpo(work: GpuWork, contestant: str, folder: Path, settings: dict[str, Any]) -> Any:
    model = load(work, contestant)
    if contestant == "ours-vllm":  # its engine reads the model from a folder
        model = AutoModelForCausalLM.from_pretrained(
            written(work, model, folder), dtype=torch.bfloat16
        )
    ready = contestant.startswith(OURS)
    if ready:
        model = get_peft_model(model, lora(work))
        training.train_in_float32(model)
    return GRPOTrainer(
        model=model,
        args=GRPOConfig(**settings),
        reward_funcs=distinct_words,
        train_dataset=gpu_rows.rows(work),
        processing_class=gpu_rows.tokenizer(work.config["vocab_size"]),
        peft_config=None if ready else lora(work),
    )


def written(work: GpuWork, model: Any, folder: Path) -> str:
    """Write a model and its tokenizer into a folder and return its path."""
    target = folder / "model"
    model.save_pretrained(target)
    gpu_rows.tokenizer(work.config["vocab_size"]).save_pretrained(target)
    return str(target)


def _unsloth(work: GpuWork, folder: Path) -> Any:
    """Return Unsloth's model with adapters, as its notebooks make it."""
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]

    bare = build(work.model_class, work.config, torch.bfloat16, "cuda" if on_gpu() else "cpu")
    path = written(work, bare, folder)
    del bare
    model, _ = FastLanguageModel.from_pretrained(
        model_name=path,
        max_seq_length=work.max_length,
        dtype=torch.bfloat16,
        load_in_4bit=work.kind == "qlora",
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=work.lora_r,
        lora_alpha=2 * work.lora_r,
        lora_dropout=0,
        bias="none",
        target_modules=list(UNSLOTH_TARGETS),
        use_gradient_checkpointing="unsloth",
        random_state=SEED,
    )


def run(work: GpuWork, contestant: str, folder: Path) -> tuple[GpuMeter, Any]:
    """Train and return the meter and the trained model."""
    transformers.set_seed(SEED)
    trainer = trainer_of(work, contestant, folder)
    seen = GpuMeter(work)
    if work.kind == "grpo":
        seen.watch_sampling(trainer)
    else:
        trainer.data_collator = seen.counted(trainer.data_collator)
    trainer.add_callback(seen)
    # As the recipes: what autocast computes in bfloat16 need not be cast to float32 first. GRPO's
    # sampling and what runs without autocast does need the casts.
    lean = contestant.startswith(OURS) and work.kind in ("lora", "qlora")
    with seen.watching(), disable_input_dtype_casting(trainer.model) if lean else nullcontext():
        trainer.train()
    return seen, trainer.model


def parameters(work: GpuWork) -> int:
    """Return the number of a model's weights; 4-bit storage hides it."""
    with torch.device("meta"):
        model = getattr(transformers, work.model_class)(configuration(work.config))
    return int(model.num_parameters())
