"""Files of fewer bits: the same bytes as gguf's own rounding, and llama.cpp's choice of types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import (
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
    TokenType,
    dequantize,
)
from gguf.quants import quantize as round_in_python
from numpy.typing import NDArray

from cookbook.profiles import CookbookError
from cookbook.serving import quantize
from cookbook.serving.quantize import Type

pytestmark = pytest.mark.unit

# The largest error of a weight, as a part of the largest weight of its block, and of all weights
# together, as a part of their size. Half a step, and what a block's rounded scale adds.
ERRORS = {
    Type.Q4_K: (0.12, 0.09),
    Type.Q5_K: (0.06, 0.05),
    Type.Q6_K: (0.05, 0.03),
    Type.Q5_0: (0.08, 0.06),
    Type.Q5_1: (0.08, 0.06),
    Type.Q8_0: (0.005, 0.006),
}
BLOCK = {Type.Q5_0: 32, Type.Q5_1: 32, Type.Q8_0: 32}


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(path: Path, tensors: dict[str, NDArray[Any]], architecture: str = "llama") -> Path:
    """Write a GGUF file in 32 bits with metadata of every kind."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(16)
    writer.add_name("Żółć 日本")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "Ġb", "ż", "<|end|>"])
    writer.add_token_types([TokenType.NORMAL] * 3 + [TokenType.CONTROL])
    writer.add_token_scores([0.0, -1.5, -2.0, 0.0])
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for t in messages %}{{ t.content }}\n{% endfor %}")
    for name, weights in tensors.items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kinds(path: Path) -> dict[str, str]:
    return {tensor.name: Type(tensor.tensor_type).name for tensor in GGUFReader(path).tensors}


def test_eight_bits_are_those_of_gguf_bit_by_bit() -> None:
    weights = normal(48, 96)
    weights[3] = 0  # a block of zeros has no scale
    weights[4] *= 1e-6
    weights[5] *= 1e4
    packed = quantize.round_to(weights, Type.Q8_0)
    assert np.array_equal(packed, round_in_python(weights, Type.Q8_0))


@pytest.mark.parametrize("kind", list(ERRORS))
def test_errors_stay_in_bounds(kind: Any) -> None:
    weights = normal(16, 512) * np.geomspace(1e-3, 1e2, 16, dtype=np.float32)[:, None]
    again = dequantize(quantize.round_to(weights, kind), kind)
    size = BLOCK.get(kind, 32 if kind != Type.Q6_K else 16)
    blocks, error = weights.reshape(-1, size), np.abs(again - weights).reshape(-1, size)
    largest, together = ERRORS[kind]
    # A K format rounds a block's scale by the largest of eight blocks.
    of_eight = np.abs(weights).reshape(-1, 256).max(axis=1).repeat(256 // size)
    assert (error.max(axis=1) / of_eight).max() < largest, kind
    rows = np.linalg.norm(again - weights, axis=1) / np.linalg.norm(weights, axis=1)
    assert rows.max() < together, kind
    assert blocks.shape == error.shape


def test_rows_are_cut_for_threads_and_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = normal(7, 256)
    one = quantize.round_to(weights[:1], Type.Q4_K)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert np.array_equal(quantize.round_to(weights, Type.Q4_K)[:1], one)
    experts = quantize.round_to(normal(3, 5, 256), Type.Q4_K)
    assert experts.shape == (3, 5, 144)


LAYERS = {
    f"blk.{layer}.{part}.weight": normal(4, 256)
    for layer in range(16)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
}
MORE = {0, 1, 4, 7, 10, 13, 14, 15}  # of 16 layers: the first and last eighth, and every third


def test_four_bits_of_a_tied_model(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": normal(4, 256),
        "output_norm.weight": normal(256),
        "blk.0.attn_q.bias": normal(256),
        "blk.0.attn_norm.weight": normal(256),
        **LAYERS,
    }
    source, out = write(tmp_path / "a.gguf", tensors), tmp_path / "b.gguf"
    quantize.quantize(source, out, "q4_k_m")
    found = kinds(out)
    assert found["token_embd.weight"] == "Q6_K"
    assert {found[name] for name in ("output_norm.weight", "blk.0.attn_q.bias")} == {"F32"}
    for part in ("attn_v", "ffn_down"):
        high = {n for n in range(16) if found[f"blk.{n}.{part}.weight"] == "Q6_K"}
        assert high == MORE, part
    for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert {found[f"blk.{n}.{part}.weight"] for n in range(16)} == {"Q4_K"}


def test_four_bits_of_an_untied_model(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": normal(4, 256), "output.weight": normal(4, 256), **LAYERS}
    quantize.quantize(write(tmp_path / "a.gguf", tensors), tmp_path / "b.gguf", "q4_k_m")
    found = kinds(tmp_path / "b.gguf")
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q4_K", "Q6_K")


def test_four_bits_of_falcon(tmp_path: Path) -> None:
    parts = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    layers = {f"blk.{n}.{part}.weight": normal(4, 256) for n in range(16) for part in parts}
    tensors = {"token_embd.weight": normal(4, 256), "output.weight": normal(4, 256), **layers}
    quantize.quantize(write(tmp_path / "a.gguf", tensors, "falcon"), tmp_path / "b", "q4_k_m")
    found = kinds(tmp_path / "b")
    assert found["output.weight"] == "Q8_0"
    assert {found[f"blk.{n}.attn_qkv.weight"] for n in range(16)} == {"Q5_K"}
    assert {found[f"blk.{n}.attn_output.weight"] for n in range(16)} == {"Q4_K"}
    down = {n: found[f"blk.{n}.ffn_down.weight"] for n in range(16)}
    assert down == {n: "Q6_K" if n == 0 else "Q5_K" if n in MORE else "Q4_K" for n in range(16)}


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [(256, ("Q4_K", "Q5_K", "Q6_K")), (64, ("Q5_0", "Q5_1", "Q8_0")), (48, ("F16",) * 3)],
)
def test_rows_that_are_no_whole_blocks(
    tmp_path: Path, columns: int, wanted: tuple[str, str, str]
) -> None:
    names = ("blk.2.ffn_up.weight", "blk.2.attn_qkv.weight", "token_embd.weight")
    tensors = {name: normal(4, columns) for name in names}
    quantize.quantize(write(tmp_path / "a.gguf", tensors), tmp_path / "b.gguf", "q4_k_m")
    assert tuple(kinds(tmp_path / "b.gguf")[name] for name in names) == wanted
    quantize.quantize(tmp_path / "a.gguf", tmp_path / "c.gguf", "q8_0")
    assert set(kinds(tmp_path / "c.gguf").values()) == {"Q8_0" if columns % 32 == 0 else "F16"}


def test_positions_and_routers_stay_as_they_are(tmp_path: Path) -> None:
    names = ("position_embd.weight", "token_types.weight", "blk.0.ffn_gate_inp.weight")
    tensors = {name: normal(4, 256) for name in (*names, "blk.0.ffn_up.weight")}
    quantize.quantize(write(tmp_path / "a.gguf", tensors), tmp_path / "b.gguf", "q4_k_m")
    found = kinds(tmp_path / "b.gguf")
    assert {found[name] for name in names} == {"F32"} and found["blk.0.ffn_up.weight"] == "Q4_K"


def test_metadata_and_weights_are_copied(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": normal(4, 256), "output_norm.weight": normal(256), **LAYERS}
    source, out = write(tmp_path / "a.gguf", tensors), tmp_path / "b.gguf"
    quantize.quantize(source, out, "q8_0")
    before, after = GGUFReader(source), GGUFReader(out)

    def said(reader: GGUFReader) -> dict[str, Any]:
        own = ("GGUF.", "general.file_type", "general.quantization_version")
        kept = [one for one in reader.fields.values() if not one.name.startswith(own)]
        return {field.name: (field.types, field.contents()) for field in kept}

    assert said(before) == said(after) and len(said(after)) > 8
    assert after.fields["general.file_type"].contents() == LlamaFileType.MOSTLY_Q8_0
    assert after.fields["general.quantization_version"].contents() == 2
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert old.name == new.name and list(old.shape) == list(new.shape)
        error = dequantize(new.data, Type(new.tensor_type)) - old.data
        assert np.abs(error).max() < 0.05


@pytest.mark.parametrize("width", [576, 256])  # 576 as of SmolLM2: no whole blocks of 256
def test_fewer_bits_are_smaller_files(tmp_path: Path, width: int) -> None:
    tensors: dict[str, NDArray[Any]] = {"token_embd.weight": normal(512, width)}
    tensors |= {f"blk.{n}.ffn_up.weight": normal(64, width) for n in range(16)}
    half = {name: weights.astype(np.float16) for name, weights in tensors.items()}
    source = write(tmp_path / "16.gguf", half)
    sizes = [source.stat().st_size]
    for name in ("q8_0", "q4_k_m"):
        quantize.quantize(source, tmp_path / name, name)
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_build_without_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize._ggml_quantize_chunk.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    with pytest.raises(CookbookError, match="does not export ggml_quantize_chunk.*QUANT=bf16"):
        quantize.round_to(normal(1, 256), Type.Q4_K)
    quantize._ggml_quantize_chunk.cache_clear()
