"""Run llama.cpp's converter on a saved model, or on a LoRA adapter; a script of its own.

`cookbook.serving.converter` starts it in a process whose path begins with the converter's archive:
that brings a newer module `gguf` than the package of this name, and both cannot be in one process.

python convert.py model FOLDER OUT.gguf       a whole model, in bfloat16, or with --float32
python convert.py adapter FOLDER OUT.gguf     a LoRA adapter, its base's config.json beside it
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from conversion import get_model_class
from conversion.base import ModelBase, TextModel
from safetensors.torch import load_file

UNSUPPORTED = 3  # exit status: llama.cpp has no such architecture, or GGUF no place for something
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a tokenizer cuts a text before byte pairs are merged -> llama.cpp's name for it. The converter
# knows published vocabularies by a hash; these rules hold for one that was trained or extended.
_CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    ("Punctuation", "ByteLevel", "Digits", "Split [0-9][0-9][0-9]"): "falcon",
    (f"Split {_LLAMA3}" + r"\p{N}" + _REST, "ByteLevel"): "qwen2",
    (f"Split {_LLAMA3}" + r"\p{N}{1,3}" + _REST, "ByteLevel"): "llama-bpe",
}
_ADDS_BOS = gguf.Keys.Tokenizer.ADD_BOS
_load_hparams = ModelBase.load_hparams


class Unsupported(Exception):
    """What GGUF or llama.cpp cannot hold, in a sentence."""


def settings_of(folder: Path, is_mistral_format: bool = False) -> dict[str, Any]:
    """Return a model's configuration with what the converter still looks for by older names."""
    settings: dict[str, Any] = _load_hparams(folder, is_mistral_format)
    if settings["model_type"] == "gpt2":
        settings.setdefault("n_ctx", settings["n_positions"])
    # transformers 5 writes the number of query heads here, where there is one head for all keys.
    one_head = settings.get("multi_query") and not settings.get("new_decoder_architecture")
    if settings["model_type"] == "falcon" and one_head:
        settings["num_kv_heads"] = 1
    return settings


def cuts_of(folder: Path) -> str | None:
    """Return llama.cpp's name for how a folder's tokenizer cuts texts; None for an unknown way."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    cut = json.loads(path.read_text(encoding="utf-8")).get("pre_tokenizer") or {}
    steps = cut["pretokenizers"] if cut.get("type") == "Sequence" else [cut]
    return _CUTS.get(tuple(map(_step, steps)))


def _step(step: dict[str, Any]) -> str:
    pattern = step.get("pattern", {})
    text = pattern.get("Regex", pattern.get("String", ""))
    return f"{step.get('type')} {text}".strip()


def sentencepiece_of(folder: Path) -> bytes | None:
    """Return a SentencePiece model made from `tokenizer.json`, for Gemma, which is read from one.

    transformers 5 saves the tokenizer without it. Pieces are merged in the order of their scores,
    so that a piece gets the rank of the merge that first makes it, below nought.
    """
    from sentencepiece import sentencepiece_model_pb2

    pieces: Any = sentencepiece_model_pb2  # made by protobuf when it is imported
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if content["model"]["type"] != "BPE" or not content["model"].get("byte_fallback"):
        return None
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(content["model"]["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(pair), rank)
    added = {one["content"]: one["special"] for one in content["added_tokens"]}
    made = pieces.ModelProto()
    made.trainer_spec.model_type = pieces.TrainerSpec.BPE
    made.trainer_spec.byte_fallback = True
    made.normalizer_spec.add_dummy_prefix = False
    made.normalizer_spec.remove_extra_whitespaces = False
    kinds = pieces.ModelProto.SentencePiece
    for text, _ in sorted(content["model"]["vocab"].items(), key=lambda one: one[1]):
        piece = made.pieces.add(piece=text, score=-float(ranks.get(text, len(ranks))))
        if text == content["model"].get("unk_token"):
            piece.type = kinds.UNKNOWN
        elif text in added:
            piece.type = kinds.CONTROL if added[text] else kinds.USER_DEFINED
        elif len(text) == 6 and text.startswith("<0x"):
            piece.type = kinds.BYTE
    return bytes(made.SerializeToString())


def patch() -> None:
    """Teach the converter what `settings_of` and `cuts_of` know."""
    by_hash = TextModel.get_vocab_base_pre

    def by_hash_or_rule(self: TextModel, tokenizer: Any) -> str:
        try:
            return str(by_hash(self, tokenizer))
        except NotImplementedError:
            cut = cuts_of(self.dir_model)
            if cut is None:
                raise Unsupported(
                    "llama.cpp does not know how this tokenizer cuts texts into words"
                ) from None
            return cut

    TextModel.get_vocab_base_pre = by_hash_or_rule
    ModelBase.load_hparams = staticmethod(settings_of)


def converter_for(
    folder: Path, out: Path, file_type: Any = gguf.LlamaFileType.MOSTLY_BF16, name: str = ""
) -> Any:
    """Return llama.cpp's converter for the model whose configuration is in `folder`."""
    settings = settings_of(folder)
    (architecture,) = settings["architectures"]
    try:
        kind = get_model_class(architecture)
    except NotImplementedError:
        raise Unsupported(f"llama.cpp has no architecture {architecture}") from None
    return kind(folder, file_type, out, model_name=name or None)


def convert_model(folder: Path, out: Path, name: str, without_bos: bool, file_type: Any) -> None:
    """Write a saved model as GGUF of a file type, `without_bos` if texts begin with none.

    The file says its `name`; the converter would make one from that of the folder.
    """
    if without_bos:
        writer: Any = gguf.GGUFWriter
        writer.add_add_bos_token = lambda self, _: self.add_bool(_ADDS_BOS, False)
    with tempfile.TemporaryDirectory() as place:
        staged = Path(place) / name
        staged.mkdir()
        for path in folder.iterdir():
            (staged / path.name).symlink_to(path.resolve())
        gemma = settings_of(folder)["model_type"].startswith("gemma")
        if gemma and not (folder / "tokenizer.model").exists():
            if (made := sentencepiece_of(folder)) is not None:
                (staged / "tokenizer.model").write_bytes(made)
        with torch.inference_mode():
            converter_for(staged, out, file_type, name).write()


def convert_adapter(folder: Path, out: Path) -> None:
    """Write a LoRA adapter as GGUF, for the model whose configuration lies beside it."""
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    converter = converter_for(folder, out)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[converter.model_arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter["lora_alpha"]))
    for name, down, up in pairs(load_file(folder / "adapter_model.safetensors")):
        new_name, rows = place_of(converter, name, down, up, bool(adapter["fan_in_fan_out"]))
        # llama.cpp scales by alpha / rank; what this adapter means by it is put into the weights.
        scale = scale_of(adapter, name, len(down)) * len(down) / adapter["lora_alpha"]
        writer.add_tensor(f"{new_name}.lora_a", down.float().contiguous().numpy())
        writer.add_tensor(f"{new_name}.lora_b", (scale * up.float())[rows].contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pairs(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield (the layer's name, A, B) of each adapted layer, and refuse all that is no such pair."""
    prefix, ends = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
    odd = [name for name in tensors if not name.endswith(ends)]
    if odd:
        raise Unsupported(f"GGUF has no place for {odd[0].removeprefix(prefix)} of an adapter")
    for name in tensors:
        if name.endswith(ends[0]):
            layer = name.removesuffix(ends[0])
            yield layer.removeprefix(prefix), tensors[name], tensors[layer + ends[1]]


def scale_of(adapter: dict[str, Any], layer: str, rank: int) -> float:
    """Return by what PEFT multiplies a layer's B A: alpha / rank, or with rsLoRA alpha / its root.

    A layer whose rank or alpha the adapter sets apart has that one in `alpha_pattern`.
    """
    own = [
        value
        for pattern, value in (adapter.get("alpha_pattern") or {}).items()
        if re.fullmatch(rf"(.*\.)?({pattern})", layer)
    ]
    alpha = float(own[0] if own else adapter["lora_alpha"])
    return alpha / (rank**0.5 if adapter.get("use_rslora") else rank)


def place_of(
    converter: Any, layer: str, down: torch.Tensor, up: torch.Tensor, transposed: bool
) -> tuple[str, torch.Tensor]:
    """Return a layer's name in GGUF, and the order that its rows have there.

    Converters put a weight's rows into another order (Llama's queries and keys, Falcon's fused
    ones). Which one is read off a weight that holds the number of its row everywhere.
    """
    rows, columns = len(up), down.shape[1]
    numbers = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, columns)
    given = numbers.T if transposed else numbers
    number = next((int(part) for part in layer.split(".") if part.isdigit()), None)
    try:
        ((name, made),) = converter.modify_tensors(given.contiguous(), f"{layer}.weight", number)
    except (ValueError, RuntimeError) as error:
        raise Unsupported(f"llama.cpp has no single weight for {layer} ({error})") from None
    order = made[:, 0].long()
    if made.shape != (rows, columns) or not torch.equal(made, numbers[order]):
        raise Unsupported(f"llama.cpp keeps {layer} in a form that an adapter cannot follow")
    return str(name), order


def main() -> int:
    """Exit status 0, or 3 with one sentence on stderr for what GGUF cannot hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("model", "adapter"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="model")
    parser.add_argument("--without-bos", action="store_true")
    parser.add_argument("--float32", action="store_true")
    options = parser.parse_args()
    patch()
    try:
        if options.what == "model":
            kinds = gguf.LlamaFileType
            file_type = kinds.ALL_F32 if options.float32 else kinds.MOSTLY_BF16
            convert_model(options.folder, options.out, options.name, options.without_bos, file_type)
        else:
            convert_adapter(options.folder, options.out)
    except Unsupported as error:
        print(error, file=sys.stderr)
        return UNSUPPORTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
