"""Write model folders with random weights: `python -m tests.gpu.models FOLDER ID... [--tiny]`.

A process of its own, so that neither its memory nor its CUDA context is there any more when the
notebook runs, and one process for several models, since it takes seconds to start. It prints a line
of JSON for each. Nothing is downloaded: tokenizer, chat template and token ids are those of the
loopback Hub's repository (tests/hub), the sizes those of the public model.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from tests.gpu.architectures import ARCHITECTURES, BYTES, Config
from tests.hub.repositories import REPOSITORIES

SEED = 0
SHARD = "2GB"
ROOM = 1.15  # of the weights' bytes: what building them needs, with the layer in hand
# How the published files name weights, where transformers would write other names today.
NAMES = {
    "gemma3": (
        # `save_pretrained` mends the others itself.
        (r"\bvision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    )
}


def configuration(published: Config) -> Any:
    """Return the configuration object of a published `config.json`."""
    return transformers.CONFIG_MAPPING[published["model_type"]].from_dict(dict(published))


def with_token_ids(published: Config, of: Config) -> Config:
    """Return a configuration with the special tokens' ids of another, at every level.

    The tokenizer is a small one: its special tokens have other numbers than the real one's.
    """
    ids = {key: value for key, value in of.items() if key.endswith(("_token_id", "_token_index"))}
    inner = {
        key: with_token_ids(value, of[key])
        for key, value in published.items()
        if isinstance(value, dict) and isinstance(of.get(key), dict)
    }
    return published | ids | inner


def parameters(model_class: str, published: Config) -> int:
    """Return the number of weights of a model, without making any."""
    return int(build(model_class, published, torch.float32, "meta").num_parameters())


def build(model_class: str, published: Config, dtype: torch.dtype, device: str) -> Any:
    """Return a model with random weights, each as its class initialises it."""
    torch.manual_seed(SEED)
    config = configuration(published)
    with _default_dtype(dtype), torch.device(device):
        model = getattr(transformers, model_class)(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if _two_tables(published) and head.weight is embedding.weight:
        # T5 ties the two on construction, whatever its configuration says; FLAN-T5 has two.
        own = torch.empty_like(head.weight).normal_(std=head.weight.shape[1] ** -0.5)
        head.weight = torch.nn.Parameter(own)
    return model


def _two_tables(published: Config) -> bool:
    return published.get("tie_word_embeddings") is False


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def choose_device(size: int) -> str:
    """Return where `size` bytes of weights are built: on the GPU, else in RAM.

    Raises MemoryError where neither has room.
    """
    needed = ROOM * size
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > needed:
        return "cuda"
    available = psutil.virtual_memory().available
    if available > needed:
        return "cpu"
    raise MemoryError(
        f"building the weights needs {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} "
        "are free"
    )


def write_model(name: str, folder: Path, tiny: bool = False) -> int:
    """Write the folder of the model `name` and return its number of weights.

    `tiny` keeps the sizes of the loopback Hub's model, for a rehearsal on a CPU.
    """
    architecture = ARCHITECTURES[name]
    folder.mkdir(parents=True, exist_ok=True)
    REPOSITORIES[f"models/{name}"].write(folder)
    small = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    published = small if tiny else with_token_ids(architecture.config, small)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        path.unlink()
    generation = folder / "generation_config.json"
    published_bytes = generation.read_bytes() if generation.is_file() else None
    count = parameters(architecture.model_class, published)
    if architecture.weights:
        device = choose_device(count * BYTES[architecture.dtype])
        dtype = getattr(torch, architecture.dtype)
        model = build(architecture.model_class, published, dtype, device)
        model.save_pretrained(folder, max_shard_size=SHARD, state_dict=published_weights(model))
    else:
        configuration(published).save_pretrained(folder)
    if _two_tables(published):
        _say_two_tables(folder / "config.json")
    if published_bytes:  # the library's own would come of the configuration alone
        generation.write_bytes(published_bytes)
    return count


def published_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Return the weights under their published names; None where the library writes just those."""
    if model.config.model_type not in NAMES:
        return None
    found: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        for pattern, new in NAMES[model.config.model_type]:
            name = re.sub(pattern, new, name)
        if name != "lm_head.weight":  # the embedding, which is not written twice
            found[name] = weight
    return found


def _say_two_tables(path: Path) -> None:
    """Write into a `config.json` that the output layer is its own, as FLAN-T5's says.

    transformers' configuration of T5 turns what it was told into another setting when it is saved.
    """
    content = json.loads(path.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
    content.pop("scale_decoder_outputs", None)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def folder_of(name: str, root: Path) -> Path:
    """Return where below `root` the model `name` is written."""
    return root / Path(name).name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=ARCHITECTURES)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    for name in options.names:
        started = time.monotonic()
        try:
            count = write_model(name, folder_of(name, options.folder), options.tiny)
            found: dict[str, Any] = {"parameters": count}
        except MemoryError as error:
            found = {"no_room": str(error)}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        found |= {"name": name, "seconds": round(time.monotonic() - started, 1)}
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
