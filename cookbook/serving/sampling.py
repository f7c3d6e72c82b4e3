"""How a saved model samples, by llama.cpp's names; read without transformers, for quick starts."""

import json
from pathlib import Path
from typing import Any

_NAMES = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


def sampling(folder: Path) -> dict[str, Any]:
    """Return what a model's `generation_config.json` says of sampling; greedy unless it samples.

    Without the file nothing is said, and llama.cpp samples as it does.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    settings = json.loads(path.read_text(encoding="utf-8"))
    penalty = {"repeat_penalty": settings.get("repetition_penalty") or 1.0}
    if not settings.get("do_sample"):
        return {"temperature": 0.0, **penalty}
    said = {own: settings.get(name) for name, own in _NAMES.items()}
    return {name: value for name, value in said.items() if value is not None} | penalty
