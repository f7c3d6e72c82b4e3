"""The traps that the Falcon notebook steps around: 4-bit layers that are none, or pass no gradient.

If a test of a library's fault fails, the libraries mended it, and the workaround can go.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, FalconConfig
from transformers.models.falcon import modeling_falcon

from cookbook import training

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


def _layer() -> Any:
    torch.manual_seed(0)
    untyped: Any = Linear4bit
    layer = untyped(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    return layer.to("cpu")  # quantizes the weights


def _gradient_after_an_evaluation(layer: Any) -> Any:
    """Return what a loss says of a layer's input, once the layer was evaluated."""
    with torch.no_grad():
        layer.eval()(torch.ones(3, 64, dtype=torch.bfloat16))
    inputs = torch.ones(3, 64, dtype=torch.bfloat16, requires_grad=True)
    layer.train()(inputs).float().sum().backward()
    return inputs.grad


@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit. an autograd kernel:UserWarning")
def test_evaluated_4bit_layers_pass_no_gradient() -> None:
    layer = _layer()
    if not layer.support_avx512bf16_for_cpu:
        pytest.skip("bitsandbytes repacks on processors with AVX512-BF16 only")
    assert _gradient_after_an_evaluation(layer) is None


def test_gradients_pass_through_evaluated_4bit_layers() -> None:
    layer = _layer()
    stored: Any = layer.weight
    weights = dequantize_4bit(stored.data, stored.quant_state).float()
    training.keep_4bit_layers_trainable(layer)
    gradient = _gradient_after_an_evaluation(layer)
    assert gradient is not None
    expected = weights.sum(dim=0).expand(3, -1)
    torch.testing.assert_close(gradient.float(), expected, rtol=0.02, atol=0.02)
