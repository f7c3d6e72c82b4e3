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
        assert event == "post_run_cell"
        self.hooks.append(hook)

    def run_cell(self) -> None:
        for hook in self.hooks:
            hook(None)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Shell]]:
    """A function that executes the startup file, as a kernel would, on a card that is none."""

    def begin(card: Card, cap: int | None) -> tuple[Any, Shell]:
        fake = SimpleNamespace(cuda=card, backends=SimpleNamespace(cuda=Backends()))
        environment = kernel.write_startup(tmp_path / "ipython", tmp_path / "memory.json", cap)
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
    environment = kernel.write_startup(tmp_path / "ipython", report, 15 * GIB)
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
