"""Recipes, machines and a trial that the tests of the GPU check speak of."""

from typing import Any

from cookbook.profiles import ROOT
from tests.gpu.records import GIB
from tests.gpu.trial import Trial

FALCON = "02-PEFT/Falcon-7B-LoRA"
DISTRIBUTED = "01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning"
OPT = "03-Instruction-Tuning/Financial-Sentiment-OPT"
GPT2 = "01-Full-Fine-Tuning/GPT-2-From-Scratch"
NO_GPU = {"cuda": False, "device": "Some Processor"}
H100 = {"cuda": True, "device": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * GIB}
T4 = {"cuda": True, "device": "Tesla T4", "memory_bytes": 14 * GIB}


def a_trial(recipe: str = FALCON, profile: str = "gpu16", **other: Any) -> Trial:
    """Return a trial of a recipe; nothing is started."""
    settings: dict[str, Any] = {"steps": 4, "cap": 15 * GIB, "timeout": 60}
    return Trial(ROOT / f"{recipe}.ipynb", profile, **(settings | other))
