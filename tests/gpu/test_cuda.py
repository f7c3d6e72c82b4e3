"""What only a CUDA GPU can show: that the cap holds, and a rehearsal under it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cookbook.profiles import ROOT
from tests.gpu import check, kernel
from tests.gpu.records import GIB

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]

RECIPE = "03-Instruction-Tuning/Financial-Sentiment-OPT"
TAKE = """
import torch
from types import SimpleNamespace
from tests.gpu import kernel
watch = kernel.begin(SimpleNamespace(events=SimpleNamespace(register=lambda *_: None)))
free, total = torch.cuda.mem_get_info()
kept = [torch.empty(2**28, dtype=torch.uint8, device="cuda") for _ in range({pieces})]
watch.after_cell()
print(free, total)
"""


def take(pieces: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Take that many quarters of a GiB in a process that may have 2 GiB."""
    report = folder / "memory.json"
    environment = os.environ | {
        kernel.CAP: str(2 * GIB),
        kernel.REPORT: str(report),
        kernel.PACKAGES: "torch",
        kernel.NEW_TOKENS: "32",
    }
    command = [sys.executable, "-c", TAKE.format(pieces=pieces)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_cap_holds(tmp_path: Path) -> None:
    result = take(2, tmp_path)
    assert result.returncode == 0, result.stderr
    free, total = map(int, result.stdout.split())
    found = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert total == 2 * GIB == found["memory_cap_bytes"]
    assert free <= total - found["context_bytes"]
    assert found["peak_reserved_bytes"] >= GIB // 2
    result = take(9, tmp_path)
    assert result.returncode != 0
    assert "out of memory" in result.stderr.lower()


FLASH = """
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM
from cookbook import gpu

config = LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
)
model = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
ids = torch.randint(1, 64, (2, 64), device="cuda")
mask = torch.ones_like(ids)
mask[0, 40:] = 0
labels = ids.masked_fill(mask == 0, -100)
usual = model(input_ids=ids, attention_mask=mask, labels=labels).loss
assert gpu.use_flash_attention(model)
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # any other kernel is an error here
    fast = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    fast.backward()
assert abs(float(usual) - float(fast)) < 0.01, (usual, fast)
"""


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0),
    reason="this card has no flash kernel",
)
def test_training_takes_the_flash_kernel() -> None:
    result = subprocess.run(
        [sys.executable, "-c", FLASH], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_rehearsal_under_the_cap(tmp_path: Path) -> None:
    arguments = ["--scale", "tiny", "--results", str(tmp_path), "--recipe", RECIPE]
    assert check.main([*arguments, "--profile", "gpu16"]) == 0
    (path,) = (tmp_path / RECIPE).glob("gpu16-*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["memory"]["memory_cap_bytes"] <= 15 * GIB
    assert 0 < record["memory"]["peak_allocated_bytes"] <= record["memory"]["peak_reserved_bytes"]
    assert record["metrics_json"]["hardware"]["precision"] == "float16"
