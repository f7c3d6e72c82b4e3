"""Serve finished runs with an OpenAI-compatible API on 127.0.0.1.

`python -m cookbook.commands.serve RUN[,RUN...]` is what `make serve` calls. One run is served as a
merged model; several are adapters on the base that they share, chosen by a request's `model`. A
GGUF file, or the folder of an export, is served as it is, without loading torch.
"""

import argparse
import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cookbook.paths import start_command, typed_path
from cookbook.serving.engine import MOST_CONTEXT, Settings, complaint
from cookbook.serving.sampling import sampling
from cookbook.serving.server import Served, serve

KEY = "COOKBOOK_API_KEY"


def _gguf(named: str) -> Path | None:
    """Return the GGUF file that a person named, itself or by the folder of an export."""
    path = typed_path(named) if named else None
    if path is None or not path.exists():
        return None
    inside = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))
    if path.name.endswith((".part", ".old")):
        raise complaint(f"{named} is a half-written export: `make export` completes it.")
    return inside[0].resolve() if len(inside) == 1 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="", help="finished runs, with commas between")
    parser.add_argument("--quant", default="q8_0", help="f32, bf16, q8_0 or q4_k_m")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--parallel", type=int, default=4, help="answers at once")
    parser.add_argument("--context", type=int, help="tokens of each, prompt and answer together")
    parser.add_argument("--log", type=typed_path, help="a file that llama.cpp's own log goes to")
    options = parser.parse_args(arguments)
    start_command()
    try:
        file = _gguf(options.run)
        if file:
            served, settings = Served(file.stem, defaults=sampling(file.parent)), Settings(file)
        else:
            served, settings = _of_runs(options)
        settings = replace(
            settings,
            context=options.context or MOST_CONTEXT,
            parallel=options.parallel,
            log=options.log,
        )
        key = os.environ.get(KEY, "")
        return serve(served, settings, key=key, host=options.host, port=options.port)
    except RuntimeError as error:
        if not _is_a_sentence(error):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _of_runs(options: argparse.Namespace) -> tuple[Served, Settings]:
    """Return what serves runs on the processor; where vLLM and a GPU are, become vLLM."""
    import torch

    from cookbook.serving import choice, vllm
    from cookbook.serving.merging import quiet

    quiet()
    if program := vllm.installed():
        key = os.environ.get(KEY) or secrets.token_urlsafe()
        command = choice.on_gpu(options.run, program, key, options)
        if not os.environ.get(KEY):
            print(f"Key, for this run alone: {key}")
        print(shlex.join(command.arguments), flush=True)
        os.execvpe(program, command.arguments, {**os.environ, **command.environment})
    if torch.cuda.is_available():
        shown = choice.on_gpu(options.run, "vllm", "...", options)
        print(
            "There is a GPU and no vLLM, so llama.cpp serves on the processor. For the GPU:\n"
            f"  {vllm.INSTALL}\n  {vllm.KEY}=... {shlex.join(shown.arguments)}",
            flush=True,
        )
    return choice.what_is_served(options.run, options.quant)


def _is_a_sentence(error: RuntimeError) -> bool:
    """Tell whether an error was written for a person; their classes are in modules with torch."""
    names = {one.__name__ for one in type(error).__mro__}
    return bool(names & {"CookbookError", "OfflineError"})


if __name__ == "__main__":
    sys.exit(main())
