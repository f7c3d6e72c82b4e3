"""What the trainings of tiny models have in common."""

from pathlib import Path
from typing import Any


def short(folder: Path, **settings: Any) -> dict[str, Any]:
    """Return the arguments of a training of three steps that leaves nothing behind."""
    return {
        "output_dir": str(folder),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "activation_checkpointing": False,
        "bf16": False,
    } | settings
