"""What `make serve` starts: llama.cpp or vLLM, with which files, for the runs that were named."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cookbook.paths import as_typed
from cookbook.profiles import CookbookError
from cookbook.serving import exporting, runs, vllm
from cookbook.serving.engine import Settings
from cookbook.serving.sampling import sampling
from cookbook.serving.server import Served


def what_is_served(named: str, quant: str) -> tuple[Served, Settings]:
    """Return what llama.cpp is started with for runs, named with commas between.

    What is not exported yet is exported first. Raises `CookbookError` for runs that share no base.
    """
    chosen = [runs.find(one.strip()) for one in named.split(",")]
    if len(chosen) == 1:
        (run,) = chosen
        (made,) = exporting.export(run, "gguf", (quant,))
        return Served(run.name, defaults=sampling(run.weights)), Settings(made.gguf)
    check_share_a_base(chosen)
    files = []
    for run in chosen:
        (made,) = exporting.export(run, "adapter")
        if not (made.folder / "adapter.gguf").is_file():
            raise CookbookError(
                f"{as_typed(run.folder)}: llama.cpp has no place for its adapter "
                f"({made.checks[-1]}). Serve it alone, merged: RUN={as_typed(run.folder)}."
            )
        files.append(made.folder / "adapter.gguf")
    base = Path(runs.public_base(chosen[0])).name.lower()
    served = Served(base, tuple(run.name for run in chosen), sampling(chosen[0].weights))
    return served, Settings(exporting.base_gguf(chosen[0]), tuple(files))


def check_share_a_base(chosen: Sequence[runs.Run]) -> None:
    """Raise `CookbookError` unless all runs are adapters on the same base, each with its name."""
    for run in chosen:
        if run.adapter is None:
            raise CookbookError(
                f"{as_typed(run.folder)} trained all weights: several runs are served together only"
                " as adapters on one base. Serve it alone."
            )
    bases = {(run.settings["model"], run.settings.get("model_files")) for run in chosen}
    if len(bases) > 1:
        shown = ", ".join(sorted({str(name) for name, _ in bases}))
        raise CookbookError(f"These runs have several bases ({shown}): serve them apart.")
    if len({_words(run) for run in chosen}) > 1:
        raise CookbookError(
            "These runs were trained with several tokenizers or chat templates, and a server has "
            "one for all of its adapters: serve them apart, each merged."
        )
    names = [run.name for run in chosen]
    if len({*names}) < len(names):
        raise CookbookError(
            f"Two of these runs would both be called {max(names, key=names.count)}: copy one into "
            "a folder of another name, and serve that."
        )


def _words(run: runs.Run) -> bytes:
    """Return what a run's tokenizer and chat template are made of."""
    files = [run.tokenizer / name for name in ("chat_template.jinja", "tokenizer.json")]
    return b"".join(path.read_bytes() for path in files if path.is_file())


def on_gpu(named: str, program: str, key: str, options: argparse.Namespace) -> vllm.Command:
    """Return vLLM's command for runs: a merged model, or adapters on their base."""
    chosen = [runs.find(one.strip()) for one in named.split(",")]
    place = {"host": options.host, "port": options.port, "key": key, "context": options.context}
    if len(chosen) == 1:
        (made,) = exporting.export(chosen[0], "safetensors")
        return vllm.command(program, str(made.folder), chosen[0].name, **place)
    check_share_a_base(chosen)
    base = runs.base_of(chosen[0])
    name = Path(runs.public_base(chosen[0])).name.lower()
    return vllm.command(program, base, name, chosen, **place)
