"""What only training on a processor needs. A reader with a GPU skips every call of it.

Where there is a CUDA GPU each of these functions does nothing. What the settings are worth, timed
with and without, stands in each notebook under "Why it is fast".
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import PretrainedConfig, PreTrainedModel, Trainer

from cookbook import answers, groups
from cookbook.experts import has_experts
from cookbook.memory import keep_freed_memory
from cookbook.training import keep_4bit_layers_trainable, use_supervised_positions_loss

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer


def attention() -> str | None:
    """Return the attention that trains fastest on a processor; None, the model's own, on a GPU.

    The fused kernel (`sdpa`) has a slow backward pass there for short rows. A GPU's profile that
    is only walked through on a processor keeps it too.
    """
    return "eager" if _is_a_processors_training() else None


def _is_a_processors_training() -> bool:
    """Tell a processor's profile on a processor from a GPU's that is walked through on one."""
    walked = os.environ.get("COOKBOOK_PROFILE") or "cpu"
    return walked == "cpu" and not torch.cuda.is_available()


def prepare(model: PreTrainedModel, *, eager: bool = True, keep_memory: bool = True) -> None:
    """Make a loaded model ready to be trained on a processor. Call it before the model runs.

    Attention becomes `eager`; gradients get through 4-bit layers after an evaluation
    (`keep_4bit_layers_trainable`); what a step frees is kept for the next (`keep_freed_memory`).
    """
    if torch.cuda.is_available():
        return
    if eager and (wanted := attention()):
        model.set_attn_implementation(wanted)
    keep_4bit_layers_trainable(model)
    if keep_memory:
        keep_freed_memory()


def arguments() -> dict[str, Any]:
    """Return the trainer's arguments for a processor: without `use_cpu` it refuses `bf16=True`."""
    if torch.cuda.is_available():
        return {}
    return {"use_cpu": True, "dataloader_pin_memory": False}


def speed_up(trainer: Trainer) -> None:
    """Compute a trainer's loss at supervised positions alone, which is the same loss.

    See `training.use_supervised_positions_loss`. On a GPU TRL does as much itself, in chunks.
    """
    if not torch.cuda.is_available():
        use_supervised_positions_loss(trainer)


def shard() -> None:
    """Let Accelerate shard a model over the processes of a processor, as over GPUs.

    By itself it shards over accelerators alone: on a processor `fsdp=True` is dropped without a
    word, and the model copied into each process (DDP). Told that they have accelerators it calls
    PyTorch's `fully_shard` there too, with gloo in place of NCCL. Call it between the trainer's
    arguments, which find out what there is, and the trainer.
    """
    if not torch.cuda.is_available():
        PartialState().distributed_type = DistributedType.MULTI_GPU


@contextmanager
def sharing(processes: int) -> Iterator[None]:
    """Compute meanwhile with the cores that each of so many processes has, as `launch` gives them.

    On a GPU, which each process has for itself, nothing changes.
    """
    threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def can_share_prompts(config: PretrainedConfig, recomputed: bool) -> bool:
    """Tell whether `share_prompts` does something for a model of this configuration.

    Not on a GPU, nor for a GPU's profile that is only walked through on a processor. Not where
    activations are `recomputed`: all are needed. And not for a Mixture-of-Experts, whose routers
    are balanced over all that was read.
    """
    return _is_a_processors_training() and not recomputed and not has_experts(config)


def share_prompts(trainer: "GRPOTrainer | Any") -> None:
    """Let GRPO, DPO or KTO read a prompt once for all its answers, where it can.

    See `can_share_prompts`. What is computed stays the same but for rounding: see
    `read_prompts_once` of `groups`, and of `answers`.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    recomputed = bool(args.activation_checkpointing or args.gradient_checkpointing)
    if can_share_prompts(model.config, recomputed):
        (groups if hasattr(trainer, "reward_funcs") else answers).read_prompts_once(trainer)
