"""The trap that the Falcon notebook steps around: 4-bit loading that quantizes nothing.

If the first test fails, the libraries mended it, and the notebook's workaround can go.
"""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, FalconConfig
from transformers.models.falcon import modeling_falcon

pytestmark = pytest.mark.unit

LAYERS = 2
LINEAR = 4 * LAYERS  # query_key_value, dense, dense_h_to_4h, dense_4h_to_h


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = FalconConfig(
        vocab_size=128, hidden_size=64, num_attention_heads=4, num_hidden_layers=LAYERS
    )
    folder = tmp_path_factory.mktemp("falcon")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _count_4bit(folder: Path) -> int:
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )
    assert model.is_loaded_in_4bit
    return sum(isinstance(layer, Linear4bit) for layer in model.modules())


def test_falcon_says_4_bits_and_has_none(falcon: Path) -> None:
    assert _count_4bit(falcon) == 0


def test_with_the_plain_class_every_linear_layer_is_quantized(
    falcon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_falcon, "FalconLinear", torch.nn.Linear)
    assert _count_4bit(falcon) == LINEAR
