"""What a person reads where loading from the Hub of `HF_ENDPOINT` fails, as JSON.

A program of its own, since the libraries read their environment when they are imported:
`python -m tests.hub.error_cases data:owner/name settings:owner/name ...`, where a configuration of
a data set may follow its name after another colon.
"""

import contextlib
import io
import json
import os
import sys
import time
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from cookbook.hub import check_tokenizer, explained, load_data_set, model_settings


def load(how: str, name: str, configuration: str | None = None) -> Any:
    """Load as a recipe does, and return something that tells what came."""
    if how == "data":
        return {split: rows[:] for split, rows in load_data_set(name, configuration).items()}
    if how == "settings":
        return model_settings(name)
    if how == "stream":
        with explained(name, "data set"):
            return list(load_dataset(name, configuration, split="train", streaming=True))
    with explained(name, "model"):
        if how == "tokenizer":
            tokenizer = AutoTokenizer.from_pretrained(name)
            check_tokenizer(tokenizer, name)
            return len(tokenizer)
        safe = how == "safe weights"
        return type(AutoModelForCausalLM.from_pretrained(name, use_safetensors=safe)).__name__


def outcome(case: str) -> dict[str, Any]:
    """Return what came or, of an error, its type, sentence, traceback and cause."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            came = load(*case.split(":"))
    except Exception as error:
        shown = getattr(error, "_render_traceback_", lambda: ["a traceback"])()
        return {
            "type": type(error).__name__,
            "text": str(error),
            "shown": shown,
            "cause": type(error.__cause__).__name__,
        }
    return {"type": "nothing", "came": came, "printed": printed.getvalue()}


if __name__ == "__main__":
    # Between their tries the libraries wait for half a minute, which shows nothing here.
    time.sleep = lambda _: None
    print(json.dumps({case: outcome(case) for case in sys.argv[1:]}))
    # While Python shuts down, a reading thread of pyarrow may abort the process (see clients.py).
    sys.stdout.flush()
    os._exit(0)
