"""The memory cap and the peak, in a kernel that is none, on a card that is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cookbook import profiles
from cookbook.profiles import ROOT
from tests.gpu import kernel
from tests.gpu.records import GIB

pytestmark = pytest.mark.unit


class Card:
    """`torch.cuda` of a card on which `context` bytes are taken before anything is allocated."""

    def __init__(self, total: int, context: int) -> None:
        self.total, self.context = total, context
        self.reserved = self.peak = 0
        self.fraction: float | None = None
        self.memory = SimpleNamespace()

    def is_available(self) -> bool:
        return True

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return self.total - self.context - self.reserved, self.total

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        assert 0 <= fraction <= 1, "torch refuses others"
        self.fraction = fraction

    def memory_reserved(self) -> int:
        return self.reserved

    def max_memory_allocated(self) -> int:
        return self.peak // 2

    def max_memory_reserved(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.reserved

    def take(self, size: int) -> None:
        self.reserved = self.peak = size


class Backends:
    """`torch.backends.cuda`, with every attention kernel on."""

    def __init__(self) -> None:
        self.on = {"flash", "cudnn", "mem_efficient"}

    def enable_flash_sdp(self, enabled: bool) -> None:
        assert not enabled
        self.on.discard("flash")

    def enable_cudnn_sdp(self, enabled: bool) -> None:
        assert not enabled
        self.on.discard("cudnn")


class Shell:
    """IPython's shell, as far as the startup file asks it."""

    def __init__(self) -> None:
        self.hooks: list[Callable[..., None]] = []
        self.events = self

    def register(self, event: str, hook: Callable[..., None]) -> None:
        assert event in ("pre_run_cell", "post_run_cell")
        if event == "post_run_cell":
            self.hooks.append(hook)

    def run_cell(self) -> None:
        for hook in self.hooks:
            hook(None)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Shell]]:
    """A function that executes the startup file, as a kernel would, on a card that is none."""

    monkeypatch.setattr(profiles, "required_packages", profiles.required_packages)

    def begin(card: Card, cap: int | None) -> tuple[Any, Shell]:
        fake = SimpleNamespace(cuda=card, backends=SimpleNamespace(cuda=Backends()))
        environment = kernel.write_startup(
            tmp_path / "ipython", tmp_path / "memory.json", cap, ["torch"], 32
        )
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (startup,) = Path(environment["IPYTHONDIR"]).glob("profile_default/startup/*.py")
        shell = Shell()
        names: dict[str, Any] = {"get_ipython": lambda: shell}
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "torch", fake)
            exec(compile(startup.read_text(encoding="utf-8"), startup, "exec"), names)
        assert set(names) <= {"get_ipython", "__builtins__"}, "the notebook would see our names"
        return fake, shell

    return begin


def found(tmp_path: Path) -> dict[str, int | None]:
    content: dict[str, int | None] = json.loads((tmp_path / "memory.json").read_text())
    return content


def test_a_launched_process_counts_too(tmp_path: Path) -> None:
    """torchrun's processes are watched as the kernel is; the peak is that of the largest."""
    report = tmp_path / "memory.json"
    environment = kernel.write_startup(tmp_path / "ipython", report, 15 * GIB, ["torch"], 32)
    path = os.pathsep.join([environment["IPYTHONDIR"], str(ROOT)])
    for number in range(2):
        environment["RANK"] = str(number)
        there = os.environ | environment | {"PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", "pass"], env=there, check=True)
    assert len(list(tmp_path.glob("memory-*.json"))) == 2
    assert kernel.with_launched(tmp_path / "none.json") == {}
    kernels = {"memory_cap_bytes": 15 * GIB, "peak_reserved_bytes": 1, "peak_allocated_bytes": 5}
    report.write_text(json.dumps(kernels), encoding="utf-8")
    launched = next(tmp_path.glob("memory-*.json"))
    launched.write_text(json.dumps(kernels | {"peak_reserved_bytes": 9, "memory_cap_bytes": 0}))
    assert kernel.with_launched(report) == kernels | {"peak_reserved_bytes": 9}


def test_the_cap_is_that_of_the_whole_process(start: Any, tmp_path: Path) -> None:
    fake, _ = start(Card(80 * GIB, context=GIB), 15 * GIB)
    assert fake.cuda.fraction == pytest.approx(14 / 80)
    assert found(tmp_path)["memory_cap_bytes"] == 15 * GIB
    assert found(tmp_path)["context_bytes"] == GIB
    assert fake.backends.cuda.on == {"mem_efficient"}, "a T4 has no other"
    # Who asks gets the answer of a card of 15 GiB.
    assert fake.cuda.mem_get_info() == (14 * GIB, 15 * GIB)
    fake.cuda.take(6 * GIB)
    assert fake.cuda.mem_get_info(0) == fake.cuda.memory.mem_get_info() == (8 * GIB, 15 * GIB)


def test_a_smaller_card_is_its_own_cap(start: Any, tmp_path: Path) -> None:
    fake, _ = start(Card(14 * GIB, context=GIB), 15 * GIB)
    assert fake.cuda.fraction == pytest.approx(13 / 14)
    assert found(tmp_path)["memory_cap_bytes"] == 14 * GIB


def test_without_a_cap_nothing_is_limited(start: Any, tmp_path: Path) -> None:
    fake, shell = start(Card(80 * GIB, context=GIB), None)
    fake.cuda.take(60 * GIB)
    shell.run_cell()
    assert fake.cuda.fraction is None
    assert "flash" in fake.backends.cuda.on
    assert fake.cuda.mem_get_info() == (19 * GIB, 80 * GIB)
    assert found(tmp_path)["memory_cap_bytes"] is None
    assert found(tmp_path)["peak_reserved_bytes"] == 60 * GIB


def test_the_peak_outlives_a_new_count(start: Any, tmp_path: Path) -> None:
    """A notebook that compares two trainings starts the count anew before each."""
    fake, shell = start(Card(80 * GIB, context=GIB), 15 * GIB)
    fake.cuda.take(12 * GIB)
    fake.cuda.reserved = GIB
    fake.cuda.reset_peak_memory_stats()
    assert fake.cuda.max_memory_reserved() == GIB
    shell.run_cell()
    assert found(tmp_path)["peak_reserved_bytes"] == 12 * GIB
    assert found(tmp_path)["peak_allocated_bytes"] == 6 * GIB


def test_the_notebook_asks_for_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU need not have JupyterLab, nor what another recipe of the group needs."""
    every = profiles.required_packages
    monkeypatch.setattr(profiles, "required_packages", every)
    present = {"torch", "transformers", "peft"}
    versions = {name: "9.9" for name in present}
    monkeypatch.setattr(profiles, "_installed_version", versions.get)
    monkeypatch.setenv("COOKBOOK_ANY_VERSION", "1")
    with pytest.raises(profiles.CookbookError, match="rouge-score is not installed"):
        profiles.check_environment("peft")
    kernel.ask_for_what_is_imported(sorted(present))
    table = profiles.check_environment("peft")
    assert "peft" in table and "bitsandbytes" not in table


CUT = """
import torch
from tests.gpu import kernel

kernel.cut_answers(4)  # nothing is imported yet, so there is nothing to do
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=46, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=4, pad_token_id=0, eos_token_id=None,
))
settings = GenerationConfig(max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None)

def length():
    ids = torch.ones(1, 3, dtype=torch.long)
    return model.generate(ids, generation_config=settings).shape[1] - 3

transformers.Trainer.train = lambda self: length()  # a training that samples
kernel.cut_answers(4)
kernel.cut_answers(4)
assert (length(), transformers.Trainer.train(None), length()) == (4, 9, 4)
assert settings.max_new_tokens == 9
"""


def test_answers_are_cut_outside_of_training_alone() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CUT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
