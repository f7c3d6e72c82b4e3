"""What happens inside the notebook's kernel before its first cell: the memory cap, and the peaks.

Random weights never end an answer, so outside of training answers are cut after a few tokens; and
the notebook asks for those packages alone that it imports.

IPython executes a startup file of the run's own, which calls `begin`; the notebook stays as it is.
Processes that the notebook launches (torchrun gives each a RANK) begin with `begin_process`.
"""

import atexit
import copy
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

STARTUP = """\
from tests.gpu import kernel as _gpu_check

_gpu_check.begin(get_ipython())
del _gpu_check
"""
SITE = """\
import os

if "RANK" in os.environ:
    from tests.gpu import kernel

    kernel.begin_process()
"""
CAP, REPORT = "GPU_CHECK_CAP_BYTES", "GPU_CHECK_REPORT"
PACKAGES, NEW_TOKENS = "GPU_CHECK_PACKAGES", "GPU_CHECK_NEW_TOKENS"


def write_startup(
    folder: Path, report: Path, cap: int | None, packages: Iterable[str], new_tokens: int
) -> dict[str, str]:
    """Write an IPython folder and return the environment that leads a kernel to it.

    With the folder on PYTHONPATH each process reads its `sitecustomize` before anything else.
    """
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-gpu-check.py").write_text(STARTUP, encoding="utf-8")
    (folder / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    return {
        "IPYTHONDIR": str(folder),
        REPORT: str(report),
        CAP: str(cap or ""),
        PACKAGES: ",".join(packages),
        NEW_TOKENS: str(new_tokens),
    }


def with_launched(report: Path) -> dict[str, Any]:
    """Return a kernel's report with the peaks of the processes that it launched, if it did.

    They come one after the other or each on a card of its own, so that the largest counts.
    """
    found: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in [report, *sorted(report.parent.glob(f"{report.stem}-*.json"))]
        if path.is_file()
    ]
    if not found:
        return {}
    peaks = {name: max(one[name] for one in found) for name in found[0] if "peak" in name}
    return found[0] | peaks


def begin_process() -> None:
    """Cap and watch a launched process, until it ends."""
    import torch

    report = Path(os.environ[REPORT])
    watch = _watching(torch, report.with_name(f"{report.stem}-{os.getpid()}.json"))
    atexit.register(watch.after_cell)


def _watching(torch: Any, report: Path) -> "Watch":
    """Return a watch that has begun, under the cap of the environment, where there is a GPU."""
    watch, cap = Watch(torch, report), os.environ.get(CAP)
    if torch.cuda.is_available():
        watch.start(int(cap) if cap else None)
    return watch


def begin(shell: Any, torch: Any = None) -> "Watch":
    """Cap this process's GPU memory and note its peaks after every cell of `shell`."""
    if torch is None:
        import torch
    watch = _watching(torch, Path(os.environ[REPORT]))
    watch.write()  # shows that the cap is in force even if the first cell kills the kernel
    shell.events.register("post_run_cell", watch.after_cell)
    ask_for_what_is_imported(os.environ[PACKAGES].split(","))
    shell.events.register("pre_run_cell", lambda *_: cut_answers(int(os.environ[NEW_TOKENS])))
    return watch


def ask_for_what_is_imported(packages: list[str]) -> None:
    """Let the notebook's check of its environment ask for these packages alone."""
    from packaging.utils import canonicalize_name

    from cookbook import profiles

    every: Callable[..., list[Any]] = profiles.required_packages

    def wanted(*args: Any, **named: Any) -> list[Any]:
        return [one for one in every(*args, **named) if canonicalize_name(one.name) in packages]

    profiles.required_packages = wanted


def cut_answers(new_tokens: int) -> None:
    """Bound what is generated outside of training, once the notebook has imported transformers.

    Within training (GRPO samples there) answers are as long as the profile says: that is measured.
    """
    if (
        "transformers.generation.utils" not in sys.modules
        or "transformers.trainer" not in sys.modules
    ):
        return
    from transformers import GenerationMixin, Trainer

    if hasattr(GenerationMixin.generate, "cut"):
        return
    whole: Callable[..., Any] = GenerationMixin.generate
    train: Callable[..., Any] = Trainer.train
    training: list[bool] = []

    def generate(self: Any, *args: Any, generation_config: Any = None, **named: Any) -> Any:
        if generation_config is not None and generation_config.max_new_tokens and not training:
            generation_config = copy.deepcopy(generation_config)
            least = min(generation_config.max_new_tokens, new_tokens)
            generation_config.max_new_tokens = least
        return whole(self, *args, generation_config=generation_config, **named)

    def trained(self: Any, *args: Any, **named: Any) -> Any:
        training.append(True)
        try:
            return train(self, *args, **named)
        finally:
            training.pop()

    generate.cut = True  # type: ignore[attr-defined]
    GenerationMixin.generate = generate  # type: ignore[method-assign]
    Trainer.train = trained  # type: ignore[method-assign]


class Watch:
    """Peaks of this process's GPU memory, kept in a file, and the cap that it runs under."""

    def __init__(self, torch: Any, report: Path) -> None:
        self._torch, self._report = torch, report
        self.found: dict[str, int | None] = {
            "memory_cap_bytes": None,
            "context_bytes": None,
            "peak_allocated_bytes": 0,
            "peak_reserved_bytes": 0,
        }

    def start(self, cap: int | None) -> None:
        """Begin to watch, under a cap of `cap` bytes if one is given.

        The cap is the whole process's: what CUDA itself has taken for its context is subtracted
        from what the allocator may have. A library that asks how much is free (transformers,
        accelerate, the notebook before a merge) gets the answer of a card of that size.
        """
        cuda = self._torch.cuda
        free, total = cuda.mem_get_info()
        self.found["context_bytes"] = total - free
        if cap is not None:
            cap = min(cap, total)
            allocator = cap - (total - free)
            # The fraction is of the card's memory, and above 1 it is refused.
            cuda.set_per_process_memory_fraction(min(allocator / total, 1.0))
            self.found["memory_cap_bytes"] = cap
            self._answer_as_a_small_card(cap, allocator)
        self._note_before_reset()

    def _answer_as_a_small_card(self, cap: int, allocator: int) -> None:
        cuda = self._torch.cuda
        ask: Callable[..., tuple[int, int]] = cuda.mem_get_info

        def capped(*arguments: Any) -> tuple[int, int]:
            left = allocator - cuda.memory_reserved()
            return max(0, min(ask(*arguments)[0], left)), cap

        cuda.mem_get_info = cuda.memory.mem_get_info = capped
        # The card that is meant, a T4, cannot run these two attention kernels.
        backends = self._torch.backends.cuda
        backends.enable_flash_sdp(False)
        backends.enable_cudnn_sdp(False)

    def _note_before_reset(self) -> None:
        cuda = self._torch.cuda
        reset: Callable[..., None] = cuda.reset_peak_memory_stats

        def noted(*arguments: Any) -> None:
            self.note()
            reset(*arguments)

        cuda.reset_peak_memory_stats = cuda.memory.reset_peak_memory_stats = noted

    def note(self) -> None:
        """Keep the peaks so far: the notebook may start their count anew."""
        cuda = self._torch.cuda
        if not cuda.is_available():
            return
        for name, peak in (
            ("peak_allocated_bytes", cuda.max_memory_allocated()),
            ("peak_reserved_bytes", cuda.max_memory_reserved()),
        ):
            self.found[name] = max(int(self.found[name] or 0), int(peak))

    def write(self) -> None:
        """Write what is known, so that a kernel that dies leaves its last state."""
        partial = self._report.with_suffix(".part")
        partial.write_text(json.dumps(self.found) + "\n", encoding="utf-8")
        partial.replace(self._report)

    def after_cell(self, *_: Any) -> None:
        """Note and write, after each cell."""
        self.note()
        self.write()
