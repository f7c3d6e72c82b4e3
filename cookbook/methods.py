"""What training, scoring and keeping need, to be the same for every method of PEFT."""

import gc
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerState,
)

from cookbook import evaluation, memory, saving, training
from cookbook.chat import IGNORED
from cookbook.experts import has_experts
from cookbook.profiles import CookbookError

ATTENTION = ("attn", "attention")  # in the names of modules
Cell = dict[str, Any]  # what came of one method with one learning rate and one seed


def check_dense(config: PretrainedConfig) -> None:
    """Raise `CookbookError` for a Mixture-of-Experts: most methods cannot reach its experts."""
    if has_experts(config):
        raise CookbookError(
            f"{config.model_type} is a Mixture-of-Experts. Most of the methods that are compared "
            "here train linear layers alone, and experts are none: name a dense model, or train "
            "this one with 02-PEFT/Falcon-7B-LoRA.ipynb."
        )


def attention_targets(config: PretrainedConfig) -> list[str]:
    """Return the linear layers of attention alone, by the last two parts of their names."""
    with torch.device("meta"):  # names, and no weights
        model = AutoModelForCausalLM.from_config(config)
    found = set()
    for name, layer in model.named_modules():
        names = name.split(".")[-2:]
        if isinstance(layer, nn.Linear) and any(part in names[0] for part in ATTENTION):
            found.add(".".join(names))
    if not found:
        raise CookbookError("No linear layer lies in a module called attention: take `lora_r8`.")
    return sorted(found)


def make_ready(model: PreTrainedModel) -> None:
    """Let any of peft's methods be trained and scored as LoRA is.

    What is trained becomes float32. Two of peft 0.21's methods lack an attribute that its helper
    `disable_input_dtype_casting` asks every adapter for. With prompt tuning the hidden states of
    the virtual tokens are dropped before the output layer, so that logits belong to the rows'
    own tokens, as they do elsewhere.
    """
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if hasattr(layer, "disable_adapters") and not hasattr(layer, "cast_input_dtype_enabled"):
            layer.cast_input_dtype_enabled = True
    virtual = virtual_tokens(model)

    def own_tokens(_: Any, hidden: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        # One position is the last, of which alone generating wants logits.
        return (hidden[0][:, virtual:],) if hidden[0].shape[1] > virtual else None

    if virtual:
        model.get_output_embeddings().register_forward_pre_hook(own_tokens)
    training.train_in_float32(model)


def virtual_tokens(model: PreTrainedModel) -> int:
    """Return how many trained vectors stand in front of each row: 0 but for prompt tuning."""
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    return max(
        (getattr(one, "num_virtual_tokens", None) or 0 for one in configs.values()), default=0
    )


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    settings: GenerationConfig,
    batch_size: int,
) -> list[str]:
    """Return the model's answers to the rows' prompts.

    With prompt tuning what all prompts begin with cannot be read once and kept, as
    `evaluation.answer_rows` does: peft puts the trained vectors before what is left.
    """
    if not virtual_tokens(model):
        return evaluation.answer_rows(model, tokenizer, rows, settings, batch_size).texts
    texts: list[str] = []
    template: Any = tokenizer.apply_chat_template
    generate: Any = model.generate
    was_training = model.training
    model.eval()
    for at in range(0, len(rows), batch_size):
        prompts = rows[at : at + batch_size]["prompt"]
        ids = template(prompts, add_generation_prompt=True, return_dict=False)
        batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        read = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode(), evaluation._autocast(model):
            written = generate(**read, generation_config=settings)[:, batch["input_ids"].shape[1] :]
        texts += [one.strip() for one in tokenizer.batch_decode(written, skip_special_tokens=True)]
    model.train(was_training)
    return texts


def held_before() -> int:
    """Return the memory in use before a method begins, in bytes, and count its peak from here.

    What the libraries hold is left out of later collections, each of which would take a second.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
    memory.reset_peak()
    return memory.peak_memory_bytes()


def costs(trainer: Any, before: int, started: float) -> Cell:
    """Return what a training took: seconds, tokens, peak memory over `before`, and its curve.

    From `started` on, on the clock `time.monotonic`, it was prepared.

    The curve is (step, loss of that step's rows before it, seconds of training so far).
    """
    history = trainer.state.log_history
    curve = [[one["step"], one["loss"], one["train_runtime"]] for one in history if "loss" in one]
    return {
        "weights_trained": training.trainable_weights(trainer.model),
        "seconds": history[-1]["train_runtime"],
        "ready_seconds": time.monotonic() - started - history[-1]["train_runtime"],
        "trained_tokens": int(trainer.state.num_input_tokens_seen),
        "steps": trainer.state.global_step,
        "held_bytes": before,
        "peak_memory_bytes": memory.peak_memory_bytes() - before,
        "curve": curve,
    }


def losses(model: PreTrainedModel, labelled: Dataset, batch_size: int) -> Cell:
    """Return of each row the loss of its labelled tokens, in nats, and how many it has.

    `labelled` has `input_ids` and `labels`.
    """
    found = evaluation.log_probabilities(model, labelled, batch_size)
    tokens = [sum(one != IGNORED for one in labels) for labels in labelled["labels"]]
    return {"losses": [-one for one in found], "tokens": tokens}


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    ends: Sequence[int],
    keep: bool,
) -> int:
    """Save what a method has to ship, and return the bytes of its weights on the disk.

    Of an adapter that is the adapter alone. A whole model becomes one of 16 bits first. It stays in
    `folder` only if it is to be kept.
    """
    if not hasattr(model, "peft_config"):
        model.to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as scratch:
        target = folder if keep else Path(scratch, "made")
        saving.save(model, tokenizer, target, end_tokens=ends)
        return sum(one.stat().st_size for one in target.rglob("*.safetensors"))


def quantized_text(model: PreTrainedModel) -> str:
    """Return how many layers are quantized. Raises `CookbookError` for a model without one.

    Falcon's layers, for one, are hidden from transformers, which says all the same that the model
    was loaded in 4 bits: see 02-PEFT/Falcon-7B-LoRA.ipynb.
    """
    kinds = {"Linear4bit": 4, "Linear8bitLt": 8}
    bits = [kinds[name] for one in model.modules() if (name := type(one).__name__) in kinds]
    if not bits:
        raise CookbookError(
            f"No linear layer of {model.config.model_type} was quantized: its layers are a class "
            "of their own. Leave out the methods whose names begin with qlora."
        )
    return f"{len(bits)} linear layers in {bits[0]} bits"


def as_trainer(cell: Cell) -> Any:
    """Return what `report.write_metrics` reads of a trainer, from a cell that was kept."""
    history: list[dict[str, float]] = [
        {"step": step, "loss": loss} for step, loss, _ in cell["curve"]
    ]
    history.append({"step": cell["steps"], "train_runtime": cell["seconds"]})
    state = TrainerState(
        global_step=cell["steps"],
        num_input_tokens_seen=cell["trained_tokens"],
        log_history=history,
    )
    return SimpleNamespace(state=state)


def compared(plan: Any, cell: Cell) -> dict[str, dict[str, float]]:
    """Show a plan beside what a training took, and return both for `report.write_metrics`.

    The first step counts as any other: before it the longest rows were tried, which is no part of a
    plan, and here of twenty steps.
    """
    times = [seconds for _, _, seconds in cell["curve"]]
    each = (times[-1] - times[0]) / max(1, len(times) - 1)
    measured = {
        "seconds": cell["steps"] * each if len(times) > 1 else cell["seconds"],
        "peak_memory_bytes": float(cell["held_bytes"] + cell["peak_memory_bytes"]),
    }
    planned = {"seconds": plan.seconds, "peak_memory_bytes": plan.memory.total}
    for name, unit, size in (("seconds", "seconds", 1), ("peak_memory_bytes", "GiB", memory.GIB)):
        ends = planned[name] / size, measured[name] / size
        print(f"{cell['method']}, {unit}: {ends[0]:.2f} planned, {ends[1]:.2f} measured")
    return {name: {"planned": planned[name], "measured": measured[name]} for name in measured}
