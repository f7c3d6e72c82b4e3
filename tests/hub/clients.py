"""What the unmodified clients get from the Hub of `HF_ENDPOINT`, as JSON on standard output.

A program of its own, since the libraries read their environment when they are imported:
`python -m tests.hub.clients [--stream]`.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from datasets import load_dataset
from huggingface_hub import HfFileSystem, hf_hub_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from tests.hub.repositories import REPOSITORIES

NOWHERE = "nobody/nothing"
TEXT = "#Person1#: Could you repair the old lamp?"


def model(name: str, with_weights: bool) -> dict[str, Any]:
    """Return what tells a loaded model and its tokenizer."""
    config = AutoConfig.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    loaded = auto.from_pretrained(name) if with_weights else auto.from_config(config)
    ids = tokenizer(TEXT)["input_ids"]
    head, embedding = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    return {
        "class": type(loaded).__name__,
        "tokenizer": type(tokenizer).__name__,
        "dtype": str(loaded.dtype),
        "ids": ids,
        "text": tokenizer.decode(ids, skip_special_tokens=True),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "chat_template": tokenizer.chat_template,
        "own_output_layer": head.weight is not embedding.weight,
    }


def data_set(name: str, configuration: str | None) -> dict[str, Any]:
    """Return columns and number of rows of each split."""
    splits = load_dataset(name, configuration)
    return {split: [rows.column_names, len(rows)] for split, rows in splits.items()}


def error_of(call: Callable[[], object]) -> str:
    """Return the name of what a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def streamed(name: str) -> dict[str, Any]:
    """Return what comes of a data set that is streamed, and of a part read from the middle."""
    rows = load_dataset(name, split="train", streaming=True)
    first = f"datasets/{name}/plain_text/train-00000-of-00002.parquet"
    with HfFileSystem().open(first, "rb", block_size=1024) as file:
        file.seek(-4, 2)
        end = file.read(4)
    return {"rows": sum(1 for _ in rows), "columns": rows.column_names, "end": end.decode()}


def main(arguments: list[str]) -> None:
    """Load everything and print what came."""
    found: dict[str, Any] = {"models": {}, "datasets": {}}
    for path, repository in REPOSITORIES.items():
        kind, _, name = path.partition("/")
        with_weights = name != "openai-community/gpt2"
        found[kind][name] = (
            model(name, with_weights)
            if kind == "models"
            else data_set(name, repository.configuration)
        )
    found["errors"] = [
        error_of(lambda: hf_hub_download(NOWHERE, "config.json")),
        error_of(lambda: hf_hub_download("tiiuae/falcon-7b", "nothing.json")),
        error_of(lambda: hf_hub_download("tiiuae/falcon-7b", "config.json", revision="v9")),
        error_of(lambda: load_dataset(NOWHERE)),
        error_of(lambda: load_dataset("openai/gsm8k")),  # which of its configurations?
    ]
    if "--stream" in arguments:
        found["streamed"] = streamed("Skylion007/openwebtext")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
    # Everything is read and printed. While Python shuts down, a reading thread of pyarrow may still
    # want to let go of a streamed file, and then the process aborts now and then with -6
    # (github.com/apache/arrow/issues/45214); datasets works round it for pyarrow up to 24 only.
    sys.stdout.flush()
    os._exit(0)
