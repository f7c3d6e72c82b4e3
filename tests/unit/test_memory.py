"""The planner's arithmetic against models that are really built."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig, PretrainedConfig

from cookbook.memory import GIB, linear_weights, plan_qlora, reset_peak
from cookbook.report import peak_memory_bytes

pytestmark = pytest.mark.unit

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, num_key_value_heads=2, intermediate_size=96),
        FalconConfig(**SMALL, multi_query=True),
        FalconConfig(**SMALL, new_decoder_architecture=True, num_kv_heads=2),
    ],
    ids=["llama", "falcon-7b", "falcon-40b"],
)
def test_linear_weights_are_those_of_the_model(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    layers = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    ]
    weights = sum(layer.weight.numel() for layer in layers)
    features = sum(layer.in_features + layer.out_features for layer in layers)
    assert linear_weights(config) == (weights, features)


FALCON_7B = FalconConfig(
    vocab_size=65024, hidden_size=4544, num_attention_heads=71, num_hidden_layers=32
)


def test_falcon_7b_in_4_bits_takes_under_5_gib() -> None:
    plan = plan_qlora(
        FALCON_7B,
        rank=16,
        per_device_train_batch_size=2,
        max_length=512,
        activation_checkpointing=True,
    )
    assert 3.5 * GIB < plan.base_weights < 5 * GIB
    assert plan.total < 15 * GIB
    assert "total" in str(plan)


def test_checkpointing_saves_activations_and_nothing_else() -> None:
    plans = [
        plan_qlora(
            FALCON_7B,
            rank=16,
            per_device_train_batch_size=2,
            max_length=512,
            activation_checkpointing=on,
        )
        for on in (True, False)
    ]
    assert plans[0].activations < plans[1].activations / 8
    assert plans[0].optimizer == plans[1].optimizer


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
    # In small pages, so that every one that is asked for again is counted.
    environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}
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
