"""What is measured: the same work for every contestant."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lora", "qlora", "full", "pretrain", "seq2seq", "grpo", "dpo"]


@dataclass(frozen=True)
class Work:
    """One piece of work. Every contestant trains the same weights on the same rows."""

    name: str
    title: str
    kind: Kind
    contestants: tuple[str, ...]
    max_length: int  # tokens in a row
    examples_per_step: int  # of an optimizer step, however a contestant divides them
    timed_steps: int
    learning_rate: float
    warm_up_steps: int = 1  # not timed: pages are touched and kernels chosen for the first time
    lora_r: int = 16
    lora_alpha: int = 32
    rows: Literal["instructions", "documents"] = "instructions"
    precision: str = "bfloat16"  # what is computed in; "float32" compares losses alone
    order: Literal["sequential"] | None = None  # of rows; None leaves it to each contestant

    @property
    def steps(self) -> int:
        """All steps of a run."""
        return self.warm_up_steps + self.timed_steps


PEERS = ("litgpt", "torchtune", "llamafactory", "axolotl")
# `ours` but for one choice, each: what the choice is worth.
WITHOUT = "without-"
CHOICES = (
    "supervised-loss",
    "kept-memory",
    "plain-attention",
    "like-lengths",
    "lean-casts",
    "half-base",
    "kept-activations",
)
# What the recipes that have no adapter choose beside these.
PRETRAIN_CHOICES = ("kept-memory", "no-dropout")
SEQ2SEQ_CHOICES = ("kept-memory", "like-lengths")
# Of pairs: a prompt read once for both answers, and the reference computed step by step. Without
# the latter it is computed for all pairs before the training (TRL's `precompute_ref_log_probs`).
DPO_CHOICES = ("shared-prompts", "reference-in-step")
# Whole documents, joined and cut to one length: the cost of a token as rows grow.
LENGTHS = (128, 256, 512, 1024, 2048)
TOKENS_PER_STEP = 2048


def _growth(length: int) -> Work:
    return Work(
        f"lora-{length}",
        f"LoRA SFT, SmolLM2-135M, rows of {length} tokens",
        "lora",
        ("ours", "defaults"),
        max_length=length,
        examples_per_step=TOKENS_PER_STEP // length,
        timed_steps=3,
        learning_rate=1e-3,
        rows="documents",
    )


WORKS = {
    work.name: work
    for work in (
        Work(
            "lora",
            "LoRA SFT, SmolLM2-135M",
            "lora",
            ("ours", "defaults", "bare", *PEERS),
            max_length=256,
            examples_per_step=16,
            timed_steps=4,
            learning_rate=1e-3,
        ),
        Work(
            "full",
            "full SFT, SmolLM2-135M",
            "full",
            ("ours", "defaults", "bare", *PEERS),
            max_length=256,
            examples_per_step=16,
            timed_steps=4,
            learning_rate=5e-5,
        ),
        Work(
            "qlora",
            "LoRA SFT on a 4-bit base, SmolLM2-135M",
            "qlora",
            ("ours", "defaults", "bare"),
            max_length=256,
            examples_per_step=16,
            timed_steps=4,
            learning_rate=1e-3,
        ),
        Work(
            "pretrain",
            "GPT-2 from scratch",
            "pretrain",
            ("ours", "defaults", "bare", *map(WITHOUT.__add__, PRETRAIN_CHOICES)),
            max_length=128,
            examples_per_step=8,
            timed_steps=400,
            learning_rate=8e-3,
            warm_up_steps=20,
        ),
        Work(
            "seq2seq",
            "full fine-tuning, T5",
            "seq2seq",
            ("ours", "defaults", "bare", *map(WITHOUT.__add__, SEQ2SEQ_CHOICES)),
            max_length=256,
            examples_per_step=16,
            timed_steps=4,
            learning_rate=3e-4,
        ),
        Work(
            "grpo",
            "GRPO, SmolLM2-135M",
            "grpo",
            ("ours", "defaults", f"{WITHOUT}shared-prompts"),
            max_length=96,
            examples_per_step=64,
            timed_steps=2,
            learning_rate=4e-4,
        ),
        Work(
            "dpo",
            "DPO, SmolLM2-135M",
            "dpo",
            ("ours", "defaults", "bare", *map(WITHOUT.__add__, DPO_CHOICES)),
            max_length=96,
            examples_per_step=16,
            timed_steps=4,
            learning_rate=3e-4,
            order="sequential",  # all start from the same loss, log 2, so only the same pairs tell
        ),
        Work(
            "choices",
            "LoRA SFT, each choice taken away",
            "lora",
            ("ours", *map(WITHOUT.__add__, CHOICES)),
            max_length=256,
            examples_per_step=16,
            timed_steps=6,
            learning_rate=1e-3,
        ),
        *map(_growth, LENGTHS),
    )
}
