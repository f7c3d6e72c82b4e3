"""What the loopback Hub holds: tiny random models and small data sets under the real names.

Architecture, file layout, special tokens, columns and splits are those of the real repositories,
so that a notebook meets what it would meet there. Only the sizes and the texts are our own. A new
repository is one function in `models` or `data_sets` and one line in `REPOSITORIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.hub.data_sets import (
    dialogsum,
    finetome_100k,
    fingpt_sentiment_train,
    fino1_reasoning_path_finqa,
    gsm8k,
    kto_mix_14k,
    openassistant_guanaco,
    openmathreasoning_mini,
    openwebtext,
    ultrafeedback_binarized,
)
from tests.hub.models import (
    HEADS,
    LAYERS,
    falcon_7b,
    flan_t5_base,
    gemma_3_1b_it,
    gemma_3_4b_it,
    gpt2,
    opt_1_3b,
    qwen2_5_instruct,
    qwen3,
    smollm2_instruct,
)


@dataclass(frozen=True)
class Repository:
    """How one repository is written, and what is known of it."""

    write: Callable[[Path], None]
    linear_layers: int = 0  # what loading in 4 bits must replace: all but the output layer
    configuration: str | None = None  # of a data set that does not load without naming one


REPOSITORIES = {
    "models/tiiuae/falcon-7b": Repository(falcon_7b, linear_layers=4 * LAYERS),
    "models/HuggingFaceTB/SmolLM2-360M-Instruct": Repository(
        partial(smollm2_instruct, key_value_heads=HEADS // 2), linear_layers=7 * LAYERS
    ),
    "models/HuggingFaceTB/SmolLM2-1.7B-Instruct": Repository(
        partial(smollm2_instruct, key_value_heads=HEADS), linear_layers=7 * LAYERS
    ),
    "models/google/flan-t5-base": Repository(flan_t5_base),
    "models/facebook/opt-1.3b": Repository(opt_1_3b, linear_layers=6 * LAYERS),
    "models/openai-community/gpt2": Repository(gpt2),
    "models/Qwen/Qwen2.5-0.5B-Instruct": Repository(qwen2_5_instruct, linear_layers=7 * LAYERS),
    "models/Qwen/Qwen2.5-1.5B-Instruct": Repository(qwen2_5_instruct, linear_layers=7 * LAYERS),
    "models/Qwen/Qwen3-1.7B": Repository(partial(qwen3, tied=True), linear_layers=7 * LAYERS),
    "models/Qwen/Qwen3-1.7B-Base": Repository(partial(qwen3, tied=True), linear_layers=7 * LAYERS),
    "models/Qwen/Qwen3-4B-Instruct-2507": Repository(
        partial(qwen3, tied=True), linear_layers=7 * LAYERS
    ),
    "models/Qwen/Qwen3-14B": Repository(partial(qwen3, tied=False), linear_layers=7 * LAYERS),
    "models/google/gemma-3-1b-it": Repository(gemma_3_1b_it, linear_layers=7 * LAYERS),
    # Seven in each text layer and six in each vision layer; the projector has none.
    "models/google/gemma-3-4b-it": Repository(gemma_3_4b_it, linear_layers=13 * LAYERS),
    "datasets/timdettmers/openassistant-guanaco": Repository(openassistant_guanaco),
    "datasets/knkarthick/dialogsum": Repository(dialogsum),
    "datasets/FinGPT/fingpt-sentiment-train": Repository(fingpt_sentiment_train),
    "datasets/Skylion007/openwebtext": Repository(openwebtext),
    "datasets/openai/gsm8k": Repository(gsm8k, configuration="main"),
    "datasets/TheFinAI/Fino1_Reasoning_Path_FinQA": Repository(fino1_reasoning_path_finqa),
    "datasets/unsloth/OpenMathReasoning-mini": Repository(openmathreasoning_mini),
    "datasets/mlabonne/FineTome-100k": Repository(finetome_100k),
    "datasets/trl-lib/kto-mix-14k": Repository(kto_mix_14k),
    "datasets/trl-lib/ultrafeedback_binarized": Repository(ultrafeedback_binarized),
}


def write_repositories(root: Path) -> Path:
    """Write every repository below `root` and return it."""
    for name, repository in REPOSITORIES.items():
        (root / name).mkdir(parents=True)
        repository.write(root / name)
    return root
