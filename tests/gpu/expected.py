"""How long a trial should take on a GPU, from bytes and operations: `check --plan` shows it.

An estimate to choose by, made before anything was measured. Each constant says where it comes from;
records hold what a trial really took, beside what was expected of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.gpu import examples
from tests.gpu.architectures import ARCHITECTURES

# An H100 SXM, dense: operations a second in 16 bits, and bytes a second of its memory
# (https://www.nvidia.com/en-us/data-center/h100/). A T4's cap on memory does not make it slower.
PEAK, BANDWIDTH = 989e12, 3.35e12
FLOAT32 = 67e12  # without tensor cores, as Gemma and T5 compute under gpu16
REACHED = 0.3  # of the peak in training; others measure 0.33 to 0.46 (tests/bench/README.md)
# What a kernel costs the processor that launches it, and how many a layer takes: a forward pass of
# a decoder layer is some 25 kernels with adapters, and its backward pass twice as many.
LAUNCH, KERNELS = 8e-6, 25
# Bytes a second from a file in memory to the GPU, and back into a file while building.
READ, WRITE = 3e9, 2e9
BUILDER = 4.0  # seconds: a third of a process with torch, which builds three models or more
NOTEBOOK = 18.0  # seconds: two processes, imports, pictures, and all else that is no computing
COMPILING = 35.0  # seconds for `torch.compile` of twelve layers
SCORINGS = 5  # before, prompted with examples, after, and such
BYTES_16 = 2


@dataclass(frozen=True)
class Seconds:
    """What a trial is made of, in seconds."""

    build: float
    start: float
    train: float
    score: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.build + self.start + self.train + self.score


def trial(
    settings: dict[str, Any],
    profile: str,
    steps: int,
    new_tokens: int,
    built: bool = False,
    merges: bool = False,
) -> Seconds:
    """Return what a trial of a profile's `settings` should take.

    `new_tokens` is how long answers are that are sampled outside of training. A model that is
    `built` already is only read. A recipe that `merges` reads it once more, writes the merged one
    and reads that.
    """
    architecture = ARCHITECTURES[str(settings["model"])]
    config = architecture.config.get("text_config", architecture.config)
    named = ("num_hidden_layers", "n_layer", "num_layers")
    layers = int(next(config[name] for name in named if name in config))
    layers *= 2 if config.get("is_encoder_decoder") else 1
    held = architecture.parameters * BYTES_16
    launches = layers * KERNELS * LAUNCH  # of one forward pass
    build = 0.0 if built or not architecture.weights else BUILDER + architecture.size / WRITE
    start = NOTEBOOK + architecture.size / READ

    rows = examples.rows_a_step(settings)
    passes = max(1, rows // int(settings["per_device_train_batch_size"]))
    answer = int(settings.get("max_completion_length", 0))
    tokens = rows * (examples.length_of(settings) + answer)
    full = "lora_r" not in settings or "full_learning_rate" in settings
    again = 4 / 3 if settings.get("activation_checkpointing") else 1.0
    operations = again * (6 if full else 4) * architecture.parameters * tokens
    sampling = answer * (launches + held / BANDWIDTH)  # a token at a time for all answers of a step
    step = operations / (rate(settings, profile) * REACHED) + 3 * passes * launches + sampling
    trainings = 2 if "full_learning_rate" in settings else 1
    train = trainings * steps * step + COMPILING * bool(settings.get("torch_compile"))

    if "max_new_tokens" in settings or answer:
        held_out = examples.test_rows_of(settings) * examples.length_of(settings)
        reading = 2 * architecture.parameters * held_out / (rate(settings, profile) * REACHED)
        score = SCORINGS * (reading + new_tokens * (launches + held / BANDWIDTH))
    else:
        score = 2.0
    score += merges * (2 * architecture.size / READ + architecture.size / WRITE)
    return Seconds(build, start, train, score)


def rate(settings: dict[str, Any], profile: str) -> float:
    """Return the peak operations a second in the precision that a profile computes in.

    FLAN-T5 and Gemma 3 overflow in float16, so on the small card's profile they use float32.
    """
    family = str(settings["model"]).partition("/")[2].partition("-")[0]
    return FLOAT32 if profile == "gpu16" and family in ("flan", "gemma") else PEAK
