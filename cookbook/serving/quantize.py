"""GGUF files in 8 and 4 bits, as llama.cpp's `llama-quantize` writes them.

The package that brings llama.cpp has no such program, but the function beneath it. Which tensor
gets how many bits follows `llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp`, without an
importance matrix.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    ReaderTensor,
    dequantize,
    quant_shape_to_byte_shape,
)
from numpy.typing import NDArray

from cookbook.profiles import CookbookError

Type = GGMLQuantizationType
FORMATS = {"q8_0": LlamaFileType.MOSTLY_Q8_0, "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M}
BLOCK_K = 256  # weights in a block of the K formats; a row of another length takes what is beside
_BESIDE = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
_WHOLE = re.compile(r"(_norm|ffn_gate_inp|position_embd|token_types)\.weight$")
_NEVER_COPIED = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_ver")


def quantize(source: Path, out: Path, name: str) -> None:
    """Write the 16-bit or 32-bit GGUF file `source` as `out`, in the format `name` of `FORMATS`.

    Tensors are read, rounded and written one by one. Raises `CookbookError` where llama.cpp was
    built without the function.
    """
    reader = GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    chosen = types(reader, name)
    writer = GGUFWriter(out, architecture)
    _copy_fields(reader, writer)
    writer.add_file_type(FORMATS[name])
    writer.add_quantization_version(2)
    for tensor in reader.tensors:
        kind, shape = chosen[tensor.name], tuple(int(n) for n in reversed(tensor.shape))
        packed = shape if kind is tensor.tensor_type else quant_shape_to_byte_shape(shape, kind)
        as_is = kind is tensor.tensor_type
        dtype = tensor.data.dtype if as_is else np.dtype(np.uint8)
        given = tensor.data.shape if as_is else packed
        size = tensor.n_bytes if as_is else int(np.prod(packed))
        writer.add_tensor_info(tensor.name, given, dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(_rounded(tensor, chosen[tensor.name]))
    writer.close()


def types(reader: GGUFReader, name: str) -> dict[str, GGMLQuantizationType]:
    """Return each tensor's format in a file of the format `name`."""
    fields = {key: reader.fields[key] for key in reader.fields if key.endswith(".block_count")}
    layers = int(next(iter(fields.values())).contents()) if fields else 0
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    falcon = reader.fields["general.architecture"].contents() == "falcon"
    return {
        tensor.name: _type(tensor, name, layers, tied, falcon) if _is_rounded(tensor) else kept
        for tensor in reader.tensors
        for kept in [Type(tensor.tensor_type)]
    }


def _is_rounded(tensor: ReaderTensor) -> bool:
    matrix = len(tensor.shape) > 1 and tensor.name.endswith("weight")
    return matrix and not _WHOLE.search(tensor.name)


def _type(
    tensor: ReaderTensor, name: str, layers: int, tied: bool, falcon: bool
) -> GGMLQuantizationType:
    wanted = Type.Q8_0 if name == "q8_0" else _mixed(tensor.name, layers, tied, falcon)
    columns = int(tensor.shape[0])
    if columns % BLOCK_K and wanted in _BESIDE:
        wanted = _BESIDE[wanted]
    return wanted if columns % GGML_QUANT_SIZES[wanted][0] == 0 else Type.F16


def _mixed(tensor: str, layers: int, tied: bool, falcon: bool) -> GGMLQuantizationType:
    """Return a tensor's format in Q4_K_M: 4 bits, and 5 or 6 where rounding costs most."""
    if tensor == "output.weight" or (tied and tensor == "token_embd.weight"):
        return Type.Q8_0 if falcon else Type.Q6_K
    found = re.match(r"blk\.(\d+)\.", tensor)
    layer = int(found[1]) if found else 0
    if "attn_qkv" in tensor:
        return Type.Q5_K
    if "attn_v." in tensor:
        return Type.Q6_K if _takes_more(layer, layers) else Type.Q4_K
    if "ffn_down" in tensor:
        if falcon:
            more = Type.Q5_K if _takes_more(layer, layers) else Type.Q4_K
            return Type.Q6_K if layer < layers // 16 else more
        return Type.Q6_K if _takes_more(layer, layers) else Type.Q4_K
    return Type.Q4_K


def _takes_more(layer: int, layers: int) -> bool:
    """Whether a layer is in the first or last eighth, or each third of those between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _copy_fields(reader: GGUFReader, writer: GGUFWriter) -> None:
    for field in reader.fields.values():
        if not field.name.startswith(_NEVER_COPIED):
            kind = field.types[0]
            inside = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inside)


def _rounded(tensor: ReaderTensor, kind: GGMLQuantizationType) -> NDArray[Any]:
    if kind is Type(tensor.tensor_type):
        return np.asarray(tensor.data)
    weights = dequantize(tensor.data, Type(tensor.tensor_type)).astype(np.float32)
    if kind is Type.F16:
        return weights.astype(np.float16)
    return round_to(weights, kind)


def round_to(weights: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Return weights, rows of whole blocks, as bytes of the format `kind`."""
    shape = quant_shape_to_byte_shape(weights.shape, kind)
    rows = np.ascontiguousarray(weights.reshape(-1, weights.shape[-1]), dtype=np.float32)
    packed = np.empty((len(rows), shape[-1]), dtype=np.uint8)

    def part(place: slice) -> None:
        _ggml_quantize_chunk()(
            int(kind),
            rows[place].ctypes.data_as(ctypes.c_void_p),
            packed[place].ctypes.data_as(ctypes.c_void_p),
            0,
            len(rows[place]),
            rows.shape[1],
            None,
        )

    with ThreadPoolExecutor() as pool:  # the function lets other threads run meanwhile
        list(pool.map(part, _parts(len(rows))))
    return packed.reshape(shape)


def _parts(rows: int) -> Iterator[slice]:
    step = max(1, -(-rows // (os.cpu_count() or 1)))
    return (slice(start, start + step) for start in range(0, rows, step))


@cache
def _ggml_quantize_chunk() -> Any:
    """Return `size_t ggml_quantize_chunk(type, src, dst, start, nrows, n_per_row, imatrix)`."""
    from xllamacpp import xllamacpp

    try:
        function = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    except (AttributeError, OSError) as error:
        raise CookbookError(
            "This build of xllamacpp does not export ggml_quantize_chunk, so nothing is rounded to "
            "fewer bits here. Use QUANT=bf16, and llama.cpp's own `llama-quantize` on that file."
        ) from error
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return function
