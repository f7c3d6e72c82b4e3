"""Peaks are counted anew, and freed memory is kept."""

import os
import subprocess
import sys

import pytest
import torch

from cookbook.memory import peak_memory_bytes, reset_peak

pytestmark = pytest.mark.unit


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets a peak")
def test_the_peak_falls_once_a_large_tensor_is_freed_and_rises_again() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 256 * 2**20
    large = torch.ones(size // 4, device=device)
    whole = peak_memory_bytes()
    del large
    assert peak_memory_bytes() == pytest.approx(whole, rel=0.02)
    reset_peak()
    rest = peak_memory_bytes()
    assert rest < whole - 0.9 * size
    smaller = torch.ones(size // 8, device=device)
    assert peak_memory_bytes() > rest + 0.9 * smaller.nbytes


STEPS_THAT_FREE_ALL = """
import resource, sys
import torch
from cookbook import memory

if sys.argv[1] == "keep":
    assert memory.keep_freed_memory()
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**22) for _ in range(8)]  # 16 MiB each
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    # In small pages, so that every one that is asked for again is counted; and with a fixed
    # threshold for mappings, which glibc else moves by what was freed when, each time otherwise.
    tunables = f"glibc.malloc.mmap_threshold={128 * 2**10}"
    environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "0", "GLIBC_TUNABLES": tunables}
    faults = {
        way: int(
            subprocess.run(
                [sys.executable, "-c", STEPS_THAT_FREE_ALL, way],
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
        for way in ("keep", "plain")
    }
    assert faults["keep"] < faults["plain"] / 10, faults
