"""The reader's own model: whether it can be trained as it is, and what has to be said of it."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from cookbook import hub
from cookbook.data import EMBEDDED
from cookbook.files import DataError
from cookbook.offline import offline_path
from cookbook.profiles import CookbookError

_POINTER = b"version https://git-lfs"
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "tokenizer_config.json")
_ENDS = 2**20  # bytes at either end of a large file that stand for it in a run's identity


def resolve_model(name: str, weights: bool = True, encoder_decoder: bool = False) -> str:
    """Return a folder or Hub id that `from_pretrained` takes, after checking that it is usable.

    `offline:<name>` is a model of the embedded default. A folder must hold `config.json` and, if
    `weights` are wanted, safetensors (whole ones) and a tokenizer; pickled weights are refused,
    since loading them can run code. So are an adapter without its base, an architecture that needs
    code of the model's own or that is no language model, weights that are quantized already, and an
    encoder-decoder unless the recipe takes one.
    """
    if name.startswith(EMBEDDED):
        return str(offline_path(name.removeprefix(EMBEDDED)))
    return _given_model(name, weights, encoder_decoder)


def _given_model(name: str, weights: bool, encoder_decoder: bool) -> str:
    """Return a reader's own model, or the Hub's, checked; `proof` knows this name."""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise CookbookError(_of_a_file(folder))
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise CookbookError(
                f"The model folder {name} does not exist. Set COOKBOOK_MODEL to a folder with "
                "config.json and *.safetensors, or to a Hub id such as HuggingFaceTB/SmolLM2-135M."
            )
        _check_architecture(name, encoder_decoder)
        return name
    _check_folder(folder, weights)
    _check_architecture(str(folder), encoder_decoder)
    if weights:
        _check_shapes(folder)
        _check_tokenizer(folder)
    return str(folder)


def _of_a_file(path: Path) -> str:
    if path.suffix == ".gguf":
        return _GGUF.format(path)
    return f"{path} is a file. Set COOKBOOK_MODEL to the folder that holds config.json."


_GGUF = (
    "{} holds its weights as GGUF, quantized for llama.cpp, from which nothing is trained here. "
    "Set COOKBOOK_MODEL to the model that it was made from."
)


def _check_folder(folder: Path, weights: bool) -> None:
    """Raise `CookbookError` for a folder from which no model could be loaded whole."""
    # Beside a config.json, too: transformers would load the adapter's base.
    if (folder / "adapter_config.json").is_file():
        raise CookbookError(_of_an_adapter(folder))
    if not (folder / "config.json").is_file():
        if list(folder.glob("*.gguf")):
            raise CookbookError(_GGUF.format(folder))
        below = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
        inside = sorted(path.parent for path in below)
        found = f" {inside[0]} has one." if inside else ""
        raise CookbookError(
            f"{folder} has no config.json, so it is no model folder. Check the path.{found}"
        )
    for path in sorted(one for one in folder.iterdir() if one.is_file() and _is_read(one)):
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise CookbookError(
                    f"{path} is only a pointer to the file. Fetch it: `git lfs pull` in {folder}."
                )
    if not weights:
        return
    found_weights = _weights(folder) or sorted(folder.glob("*.safetensors"))
    if not found_weights:
        if list(folder.glob("*.gguf")):
            raise CookbookError(_GGUF.format(folder))
        raise CookbookError(
            f"{folder} has no *.safetensors weights, and pickled weights are not loaded because "
            "they can run code. Convert them: `model.save_pretrained(folder)` writes safetensors."
        )
    if missing := [path.name for path in _weights(folder) if not path.is_file()]:
        raise CookbookError(
            f"{folder} lacks {len(missing)} of {len(found_weights)} files of weights, {missing[0]} "
            "first. Copy or download the model anew."
        )
    if not _weights(folder):
        raise CookbookError(
            f"{folder} has {found_weights[0].name}, but neither model.safetensors nor "
            "model.safetensors.index.json. Copy or download the model anew, whole."
        )
    for path in found_weights:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise CookbookError(
                f"{path} is not whole ({error}). Copy or download the model anew."
            ) from error
    if not any(path for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise CookbookError(
            f"{folder} has no tokenizer (tokenizer.json). Save it beside the weights: "
            f"`AutoTokenizer.from_pretrained(<its base>).save_pretrained({str(folder)!r})`."
        )


_INDEX = "model.safetensors.index.json"


def _weights(folder: Path) -> list[Path]:
    """Return the files that the weights are loaded from, there or not; none where no name fits."""
    if (folder / _INDEX).is_file():
        parts = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise CookbookError(f"{folder / _INDEX} names no weights. Copy the model anew.")
        return sorted({folder / str(part) for part in parts.values()})
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else []


def _is_read(path: Path) -> bool:
    """Tell whether a file of a model's folder is read by those who train from it."""
    if path.suffix == ".safetensors":
        return path in (_weights(path.parent) or [path])
    return path.suffix in (".json", ".jinja", ".model") or path.name.startswith("vocab.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except ValueError as error:
        raise CookbookError(
            f"{path} is no JSON ({error}). Copy or download the model anew."
        ) from error


_TABLES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "shared.weight",
    "lm_head.weight",
)
_OF_INTEGERS = {"U8", "I8", "U32", "I32", "F8_E4M3", "F8_E5M2"}


def _check_shapes(folder: Path) -> None:
    """Raise `CookbookError` where the table of tokens is not of the size that config.json says.

    transformers would say so in a list of all tensors, or of numbers that stand for others
    (quantized weights) nothing at all.
    """
    settings = _read_json(folder / "config.json")
    settings = settings.get("text_config") or settings
    for path in _weights(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                if part.get_dtype() in _OF_INTEGERS and name.endswith(".weight"):
                    raise CookbookError(_QUANTIZED.format(folder, f"{name}: {part.get_dtype()}"))
                if not name.endswith(_TABLES) or len(part.get_shape()) != 2:
                    continue
                rows, width = part.get_shape()
                wanted = settings.get("vocab_size", rows), settings.get("hidden_size", width)
                projected = {"word_embed_proj_dim", "embedding_size"} & {*settings}
                if rows != wanted[0] or (width != wanted[1] and not projected):
                    raise CookbookError(
                        f"{name} in {path} is {rows} x {width}, and config.json says {wanted[0]} "
                        f"x {wanted[1]} (vocab_size, hidden_size): they are not of one model. "
                        "Copy or download it anew."
                    )


def _check_tokenizer(folder: Path) -> None:
    """Raise `CookbookError` for a tokenizer that cannot be loaded."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # tokenizers and transformers raise anything, Exception itself too
        said = hub.words(error)
        raise CookbookError(
            f"The tokenizer of {folder} cannot be read ({said}). Copy tokenizer.json and "
            "tokenizer_config.json anew from where the model comes."
        ) from error
    if tokenizer.chat_template is None and (folder / "chat_template.json").is_file():
        raise CookbookError(
            f"{folder} keeps its chat template in chat_template.json, which tokenizers do not "
            "read. Write its text into chat_template.jinja beside it."
        )


def _of_an_adapter(folder: Path) -> str:
    settings = _read_json(folder / "adapter_config.json")
    base = settings.get("base_model_name_or_path") or "its base"
    merged = f"{str(folder).rstrip('/')}-merged"
    kind = "Seq2SeqLM" if settings.get("task_type") == "SEQ_2_SEQ_LM" else "CausalLM"
    words = folder if any(folder.glob("tokenizer*")) else base
    code = (
        f"from peft import AutoPeftModelFor{kind} as M; from transformers import AutoTokenizer as "
        f"T; M.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained({merged!r}); "
        f"T.from_pretrained({str(words)!r}).save_pretrained({merged!r})"
    )
    return (
        f"{folder} holds an adapter, which is nothing without its base model ({base}). Merge the "
        f'two, and train from that: .venv/bin/python -c "{code}" and COOKBOOK_MODEL="{merged}".'
    )


def _check_architecture(name: str, encoder_decoder: bool) -> None:
    """Raise `CookbookError` for a folder or Hub id whose `config.json` no recipe can train from."""
    if not Path(name).is_dir():
        settings = hub.model_settings(name)
    else:
        try:
            settings, _ = PreTrainedConfig.get_config_dict(name)
            if not isinstance(settings, dict):
                raise ValueError("no object")
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CookbookError(f"The config.json of {name} cannot be read: {error}") from error
    kind = settings.get("model_type")
    if kind not in CONFIG_MAPPING:
        own = " The code that it brings of its own is not run." if "auto_map" in settings else ""
        raise CookbookError(
            f"transformers knows no architecture {kind!r}, which the config.json of {name} names."
            f"{own} Set COOKBOOK_MODEL to a model of an architecture that it knows."
        )
    if quantized := settings.get("quantization_config") or settings.get("quantization"):
        found = quantized if isinstance(quantized, dict) else {}
        method = found.get("quant_method") or f"{found.get('bits', 4)} bits"
        raise CookbookError(_QUANTIZED.format(name, method))
    if other := _no_language_model(settings):
        raise CookbookError(
            f"{name} is {other}, so it cannot be trained to answer. Set COOKBOOK_MODEL to a "
            "language model, such as HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    both = settings.get("is_encoder_decoder", False) or (
        kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and "is_decoder" not in settings
    )
    if both and not encoder_decoder:
        raise CookbookError(
            f"{name} is an encoder-decoder ({kind}), and this recipe trains decoders. Take "
            "03-Instruction-Tuning/Summarization-FLAN-T5.ipynb, or another model."
        )


_QUANTIZED = (
    "The weights of {} are quantized already ({}), which recipes do by themselves. Set "
    "COOKBOOK_MODEL to the model that it was made from."
)
_HEADS = re.compile(r"For(Sequence|Token|Image|Audio)Classification|ForQuestionAnswering|Reward")


def _no_language_model(settings: dict[str, Any]) -> str:
    """Return what a model is that writes no texts, or nothing for one that does.

    An encoder was made to fill gaps, sees what follows, and is neither a decoder nor half of two.
    """
    kind = settings["model_type"]
    made_as = next(iter(settings.get("architectures") or []), "")
    encoder = f"an encoder ({kind}): it reads texts and writes none"
    scores = f"a classifier or a judge ({made_as}): its last layer gives scores and no words"
    judges = scores if _HEADS.search(made_as) else ""
    if made_as.endswith("EncoderModel"):
        return encoder
    if kind in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES or "audio" in kind:
        return f"a model of sound ({kind}) and not of text"
    if (settings.get("text_config") or settings).get("use_bidirectional_attention") is True:
        return encoder
    if kind in _BOTH_WAYS:
        return encoder
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or settings.get("is_decoder"):
        return judges
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return encoder
    writes = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in _SEES
    return judges if writes else f"no language model ({kind}): it writes no texts"


_BOTH_WAYS = ("xlnet",)  # transformers counts it among causal models; its tokens see all others
_SEES = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}


def config_of(model_path: str) -> PreTrainedConfig:
    """Return the configuration of the model that `from_pretrained` here loads; say if in part."""
    config, part, _ = _text_part(model_path)
    if part is not None:
        print(f"This model also sees: its text part ({config.model_type}) is trained, alone.")
    return config


def from_pretrained(model_path: str, **options: Any) -> PreTrainedModel:
    """Return a language model, whole, from the class of transformers that it needs.

    `options` are those of transformers' `from_pretrained`, which this calls: on
    `AutoModelForCausalLM`, on `AutoModelForSeq2SeqLM` for an encoder-decoder, or, of a model that
    also sees, on the class of its text part. That one's weights have other names in the file:
    without a mapping transformers would find none of them and start from random ones.

    Raises `CookbookError` where weights are missing from the files, or layers left over.
    """
    config, part, names = _text_part(model_path)
    kind = part or (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM)
    options = {"config": config, "key_mapping": names, "output_loading_info": True} | options
    model: PreTrainedModel
    model, loaded = cast(Any, kind).from_pretrained(model_path, **options)
    _check_loaded(loaded)
    return model


def _text_part(model_path: str) -> tuple[PreTrainedConfig, Any, dict[str, str] | None]:
    """Return a model's configuration; of one that also sees, that of its text, and the class and
    the `key_mapping` with which that is loaded alone.
    """
    whole = AutoConfig.from_pretrained(model_path)
    text = whole.get_text_config()
    if text is whole or whole.model_type not in _SEES:
        return whole, None, None
    text = _as_text_alone(text)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CookbookError(
            f"transformers has no class for the text part of {whole.model_type} alone. Set "
            "COOKBOOK_MODEL to a model of text."
        )
    text.tie_word_embeddings = getattr(whole, "tie_word_embeddings", text.tie_word_embeddings)
    return text, MODEL_FOR_CAUSAL_LM_MAPPING[type(text)], dict(_TEXT_NAMES)


_TEXT_NAMES = {
    r"^(model\.)?(language_model|text_model)\.lm_head\.": "lm_head.",
    r"^(model\.)?(language_model|text_model)\.(model\.)?": "model.",
}
# Text parts that are models of text but for positions in two dimensions, which text has not.
_SAME_AS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}


def _as_text_alone(text: PreTrainedConfig) -> PreTrainedConfig:
    """Return a text part's configuration as that of the model of text which it is."""
    kind = _SAME_AS.get(text.model_type)
    if kind is None:
        return text
    settings = text.to_dict()
    rope = settings.get("rope_parameters") or {}
    settings["rope_parameters"] = {k: v for k, v in rope.items() if not k.startswith("mrope")}
    settings.pop("model_type")
    return CONFIG_MAPPING[kind](**settings)


def _check_loaded(loaded: dict[str, Any]) -> None:
    """Raise `CookbookError` where weights are missing from a model's files, or layers left over.

    `loaded` is what `from_pretrained(output_loading_info=True)` returns beside the model.
    transformers starts missing weights from random numbers and forgets those that it has no place
    for, with a printed report and no error.
    """
    layers = [name for name in loaded["unexpected_keys"] if re.search(r"\.\d+\..*weight$", name)]
    if layers and not loaded["missing_keys"] and not _beside_text(layers):
        raise CookbookError(
            f"The model's files hold {len(layers)} tensors of layers that its config.json does not "
            f"count, {layers[0]} first. Check that weights and config.json belong together."
        )
    if missing := sorted(loaded["missing_keys"]):
        raise CookbookError(
            f"{len(missing)} of the model's tensors are not in its files, {missing[0]} first, and "
            "would be random weights. Check that weights and config.json belong together."
        )


def _beside_text(names: Sequence[str]) -> bool:
    """Tell whether layers belong to what a model has beside its text: eyes, ears, or a draft."""
    beside = (
        r"vis|image|patch|audio|multi_modal|projector|mtp|resampler|encoder|perceiver|connector"
    )
    return all(re.search(beside, name) for name in names)


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model a row for each token that was added to its tokenizer, and say so.

    Tokens that nobody added and that have no row mean another model's tokenizer: `DataError`.
    What a text part's weights were called in the file is forgotten, so that it is saved under the
    names of the model of text that it is.
    """
    _keep_names(model)
    table: Any = model.get_input_embeddings()
    rows = table.weight.shape[0]
    beyond = sorted(number for number in tokenizer.get_vocab().values() if number >= rows)
    if not beyond:
        return
    added = {*tokenizer.added_tokens_decoder}
    if not {*beyond} <= added:
        _refuse_tokenizer(beyond[-1], rows)
    model.resize_token_embeddings(beyond[-1] + 1)
    print(
        f"{len(beyond)} tokens were added to the tokenizer: the model got rows for them, which "
        "begin as the mean of all others. With LoRA they stay so (`trainable_token_indices` of "
        "LoraConfig trains them)."
    )


def _keep_names(model: PreTrainedModel) -> None:
    """Let a model be saved under its own names: transformers would give back those of the file."""
    renamed = getattr(model, "_weight_conversions", None)
    if renamed:
        others = [one for one in renamed if not {*one._original_source_patterns} & {*_TEXT_NAMES}]
        model._weight_conversions = others  # type: ignore[assignment]


def _refuse_tokenizer(largest: int, known: int) -> None:
    raise DataError(
        f"The tokenizer made the token id {largest}, but the model has only {known} tokens: "
        "they do not belong together. Take tokenizer and config.json from the same model."
    )


def check_token_ids(model: PreTrainedModel, rows: Iterable[Sequence[int]]) -> None:
    """Raise `DataError` for a token id that the model has no row for.

    The tokenizer is then another model's. A CPU calls it an index out of range, and a GPU nothing
    that a person could read.
    """
    table: Any = model.get_input_embeddings()
    known = table.weight.shape[0]
    largest = max((max(row) for row in rows if len(row)), default=0)
    if largest >= known:
        _refuse_tokenizer(largest, known)


# --- What a run was made of -----------------------------------------------------------------


def identity_of(model: str, rows: Iterable[Dataset] = ()) -> dict[str, str]:
    """Return digests of a model's files and of rows, by which a run knows what it was made of.

    Of a file over 2 MiB its size and both ends count: hashing tens of gigabytes takes minutes, and
    other weights have other numbers everywhere. A Hub id counts by its commit.
    """
    digest = hashlib.sha256()
    folder = Path(model)
    if folder.is_dir():
        templates = folder.glob("additional_chat_templates/*")
        for path in sorted(one for one in [*folder.iterdir(), *templates] if _counts(one)):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_ENDS))
                file.seek(max(file.tell(), path.stat().st_size - _ENDS))
                digest.update(file.read())
    else:
        commit = getattr(AutoConfig.from_pretrained(model), "_commit_hash", None)
        digest.update(f"{model} {commit}".encode())
    return {"model_files": digest.hexdigest()[:16], "rows": digest_of(rows)}


def _counts(path: Path) -> bool:
    """Tell whether a file makes a model what it is: a README or a picture beside it does not."""
    return path.is_file() and (_is_read(path) or path.suffix in (".txt", ".bin", ".py"))


def digest_of(parts: Iterable[Dataset]) -> str:
    """Return a digest of all that tables hold."""
    digest = hashlib.sha256()
    for rows in parts:
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]
