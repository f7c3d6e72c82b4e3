"""What `make bench WORK=gpu` measures, at full size and at a size for a rehearsal on a CPU."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

from tests.bench.results import ON_A_GPU
from tests.gpu.architectures import ARCHITECTURES, Config

Kind = Literal["lora", "full", "qlora", "pretrain", "grpo"]

OURS, DEFAULT = "ours", "trl-default"
# Each leaves out one of the profiles' choices: no mask, compiling, keeping activations. The last
# takes a step in one micro-batch, which the others have no memory for.
MASKED, UNCOMPILED, RECOMPUTED = "ours-masked", "ours-uncompiled", "ours-recomputed"
PARTS = {"qlora": 2, "grpo": 4}  # micro-batches of a step where activations are kept
# Contestants that need a package which this project does not install, and the package's module.
NEEDS = {"liger": "liger_kernel", "unsloth": "unsloth", "ours-vllm": "vllm"}


@dataclass(frozen=True)
class GpuWork:
    """One piece of work. Every contestant trains like weights on the same rows."""

    name: str
    title: str
    kind: Kind
    model_class: str  # in transformers
    config: Config
    contestants: tuple[str, ...]
    max_length: int  # tokens in a row; of GRPO, in a prompt
    rows_in_batch: int  # of GRPO, answers
    timed_steps: int
    expected_seconds: float  # of a run, start included: a guess, until one was measured
    mean_length: float = 0.0  # tokens; 0: every row has `max_length`
    accumulation: int = 1  # micro-batches a step
    warm_up_steps: int = 3  # not timed: kernels are compiled and memory is allocated
    lora_r: int = 16
    generations: int = 0  # answers to a prompt
    new_tokens: int = 0  # of an answer, at most
    beta: float = 0.0

    @property
    def steps(self) -> int:
        """All steps of a run."""
        return self.warm_up_steps + self.timed_steps

    @property
    def rows(self) -> int:
        """Rows that a run trains on, each once; of GRPO, prompts."""
        return self.steps * self.accumulation * self.rows_in_batch // (self.generations or 1)

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained and the base is frozen."""
        return self.kind in ("lora", "qlora", "grpo")


def _llama(**sizes: Any) -> Config:
    return {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, **sizes}


QWEN = ARCHITECTURES["Qwen/Qwen2.5-1.5B-Instruct"]
GPT2 = ARCHITECTURES["openai-community/gpt2"]
# Sizes of Llama 3.2 1B and of Llama 2 7B, from their published `config.json`.
LLAMA_1B = _llama(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131_072,
    rope_theta=500_000.0,
    tie_word_embeddings=True,
)
LLAMA_7B = _llama(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
TINY_VOCABULARY = 512
TINY: Config = {
    "vocab_size": TINY_VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY_GPT2: Config = {
    "vocab_size": TINY_VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
}

FULL_SCALE = (
    GpuWork(
        "gpu-lora",
        "LoRA, Qwen2.5-1.5B, chats",
        "lora",
        QWEN.model_class,
        QWEN.config,
        (OURS, DEFAULT, MASKED, "liger", "unsloth"),
        max_length=1024,
        mean_length=400,
        rows_in_batch=16,
        # Transformers sorts by length within a quarter of all steps, here six. The first three
        # alone would leave out the longest rows, so that the first six are.
        warm_up_steps=6,
        timed_steps=18,
        expected_seconds=40,
    ),
    GpuWork(
        "gpu-full",
        "full fine-tuning, Llama 1B, blocks of 2,048",
        "full",
        "LlamaForCausalLM",
        LLAMA_1B,
        (OURS, DEFAULT, "ours-compiled", "liger"),
        max_length=2048,
        rows_in_batch=8,
        timed_steps=10,
        expected_seconds=45,
    ),
    GpuWork(
        "gpu-qlora",
        "LoRA on a 4-bit base, Llama 7B, chats",
        "qlora",
        "LlamaForCausalLM",
        LLAMA_7B,
        (OURS, DEFAULT, MASKED, RECOMPUTED, "liger", "unsloth"),
        max_length=1024,
        mean_length=400,
        rows_in_batch=16,
        timed_steps=9,
        expected_seconds=60,
    ),
    GpuWork(
        "gpu-pretrain",
        "GPT-2 124M from scratch, blocks of 1,024",
        "pretrain",
        GPT2.model_class,
        GPT2.config,
        (OURS, DEFAULT, UNCOMPILED),
        max_length=1024,
        rows_in_batch=32,  # planned: 41 GiB without dropout and without compiling
        accumulation=4,
        timed_steps=8,
        expected_seconds=35,
    ),
    GpuWork(
        "gpu-grpo",
        "GRPO, Qwen2.5-1.5B, 8 prompts x 8 answers of 256",
        "grpo",
        QWEN.model_class,
        QWEN.config,
        (OURS, DEFAULT, "ours-continuous", "ours-vllm"),
        max_length=128,
        rows_in_batch=64,
        generations=8,
        new_tokens=256,
        beta=0.01,
        # A step samples for many seconds, and compiles nothing.
        warm_up_steps=1,
        timed_steps=2,
        expected_seconds=70,
    ),
)


def tiny(work: GpuWork) -> GpuWork:
    """Return a work at a size that a CPU trains in seconds: the same classes and settings."""
    own = TINY_GPT2 if work.kind == "pretrain" else TINY
    return replace(
        work,
        config={**work.config, **own},
        max_length=32,
        mean_length=min(work.mean_length, 20),
        rows_in_batch=4,
        accumulation=min(work.accumulation, 2),
        lora_r=4,
        generations=min(work.generations, 2),
        new_tokens=min(work.new_tokens, 8),
        warm_up_steps=1,
        timed_steps=2,
    )


def divided(work: GpuWork, contestant: str) -> GpuWork:
    """Return a work as a contestant divides its steps into micro-batches."""
    if not contestant.startswith(OURS) or contestant == RECOMPUTED:
        return work
    parts = PARTS.get(work.kind, 1)
    rows = work.rows_in_batch // parts
    return replace(work, rows_in_batch=rows, accumulation=work.accumulation * parts)


SCALES: dict[str, dict[str, GpuWork]] = {
    "full": {work.name: work for work in FULL_SCALE},
    "tiny": {work.name: tiny(work) for work in FULL_SCALE},
}
ALL = ON_A_GPU.rstrip("-")  # names all of them


def chosen(names: list[str]) -> list[str]:
    """Return the names of the GPU works that are meant, in their order; `gpu` means all."""
    works = list(SCALES["full"])
    return works if ALL in names else [name for name in works if name in names]


def why_absent(contestant: str) -> str | None:
    """Return why a contestant cannot run here, or None if it can."""
    module = NEEDS.get(contestant)
    if module is None:
        return None
    if module == "vllm":  # TRL takes only some of its versions
        from trl.import_utils import is_vllm_available

        there = is_vllm_available()
    else:
        there = find_spec(module) is not None
    return None if there else "not installed, left out"
