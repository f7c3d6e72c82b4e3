"""Saved models that others can read: whole, with open modes, by transformers 4 and 5 alike."""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cookbook.profiles import CookbookError

OLDEST_TRANSFORMERS = "4.57.6"  # with which the architectures below gave equal logits
_READ_BY_4 = frozenset(
    "arcee bart biogpt bloom codegen cohere cohere2 deepseek_v3 ernie4_5 exaone4 falcon gemma "
    "gemma3 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite "
    "granitemoe helium hunyuan_v1_dense lfm2 llama mamba ministral mistral mixtral mpt mt5 "
    "nemotron olmo olmo2 olmo3 olmoe opt pegasus persimmon phi phi3 qwen2 qwen2_moe qwen3 "
    "qwen3_moe seed_oss smollm3 stablelm starcoder2 t5".split()
)
_ROPES_READ_BY_4 = frozenset({"default", "linear", "dynamic", "yarn", "llama3", "longrope"})
_NEEDS_5 = "5.0.0"
_RENAMED = {"qwen3_moe": {"num_experts": "num_local_experts"}}  # of an architecture: old, new
# To these tokenizers transformers 4 adds a first token unless told otherwise, and no last one.
_WITH_ENDS = ("CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer")
_OF_A_SAVE = ("config.json", "adapter_config.json", "tokenizer_config.json")
_TEMPLATES = "additional_chat_templates"  # the one folder that a tokenizer makes


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    end_tokens: Sequence[int] = (),
    **named: Any,
) -> None:
    """Save a model, or a model's adapters, and its tokenizer as one folder that others can read.

    `model` is a transformers model or a PeftModel, whose `save_pretrained` gets what is `named`.
    `end_tokens` end an answer, beside those that the model has. An existing folder is replaced
    once the new one is whole. See `make_readable` for what is written beside the weights.
    Prints one line where transformers 4 cannot read the model.
    """
    target = Path(folder).resolve()
    part, old = _beside(target, "part"), _beside(target, "old")
    if old.exists() and not target.exists():  # stopped between the two renamings
        old.rename(target)
    _check_replaceable(target)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    settings = _settings(model)
    try:
        with _settings_set_aside(model):
            model.save_pretrained(part, **named)
        tokenizer.save_pretrained(part)
        make_readable(part, tokenizer, settings, end_tokens)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError) and "No space left" in str(error):
            raise CookbookError(
                f"The disk of {target} is full: nothing was saved, and what was there before is "
                "as it was. Make room and run this again."
            ) from error
        raise
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    if (target / "config.json").is_file() and minimum_transformers(target) == _NEEDS_5:
        print(f"{target.name}: needs transformers 5 or newer.")


def make_readable(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerationConfig | None = None,
    end_tokens: Sequence[int] = (),
) -> None:
    """Mend in place what `save_pretrained` wrote to `folder`, or a trainer's `save_model`.

    Files get the modes that the umask allows. `config.json` and `tokenizer_config.json` say what
    they say under the names of transformers 4 too. The generation settings, by default those in
    the folder, keep how the model samples, and name every token that ends an answer and the one
    that pads.
    """
    settings = settings or _saved_settings(folder)
    ends = _end_tokens(settings, tokenizer, end_tokens)
    settings.eos_token_id = ends or None
    if tokenizer.pad_token_id is not None:
        settings.pad_token_id = tokenizer.pad_token_id
    # With the first of these transformers 4 would make the settings anew from config.json.
    dropped = ["_from_model_config", "compile_config"]
    settings.to_json_file(folder / "generation_config.json", keys_to_pop=dropped)
    with _edited(folder / "config.json") as config:
        _write_old_names(config, folder)
        _write_end_tokens(config, ends)
        if not any(folder.glob("*.py")):
            config.pop("auto_map", None)  # names code of the base model's, which is not here
    with _edited(folder / "tokenizer_config.json") as config:
        _write_tokenizer_for_both(config, tokenizer)
    _open_modes(folder)


def minimum_transformers(folder: Path | str) -> str:
    """Return the oldest transformers that is known to read the model saved in `folder` rightly.

    Known means tried: an architecture that was not, or whose rotary embeddings the older names
    cannot describe, needs version 5.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CookbookError(
            f"{folder} holds no config.json: an adapter is read together with its base model. "
            "Name the folder of a whole model."
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    tried = config.get("model_type") in _READ_BY_4 and "quantization_config" not in config
    ropes = all(map(_rope_read_by_4, _parts(config)))
    scale = not _unscaled(config) or config.get("tie_word_embeddings") is False
    return OLDEST_TRANSFORMERS if tried and ropes and scale else _NEEDS_5


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is no saved model: a file, a run, a folder with a repository."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if folder.is_dir() and any((folder / name).is_file() for name in _OF_A_SAVE):
        below = [one for one in folder.iterdir() if one.is_dir() and one.name != _TEMPLATES]
        if all((one / "adapter_config.json").is_file() for one in below):
            return
    raise CookbookError(
        f"{folder} holds more than a saved model, and saving would replace all of it. "
        "Give the model a folder of its own."
    )


def _settings(model: Any) -> GenerationConfig | None:
    settings = getattr(model, "generation_config", None)
    return copy.deepcopy(settings) if isinstance(settings, GenerationConfig) else None


@contextmanager
def _settings_set_aside(model: Any) -> Iterator[None]:
    """Let a model be saved without its generation settings, which are written afterwards.

    transformers refuses to save some that it loaded, such as a temperature without sampling, once
    a trainer has changed the end token in them.
    """
    if not isinstance(model, PreTrainedModel) or _settings(model) is None:
        yield
        return
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _saved_settings(folder: Path) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig()


def _end_tokens(
    settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase, given: Sequence[int]
) -> list[int]:
    """Return every token that ends an answer, the given ones first."""
    own = settings.eos_token_id
    known = [own] if isinstance(own, int) else list(own or ())
    both = list(dict.fromkeys([*map(int, given), *known]))
    if not both and tokenizer.eos_token_id is not None:
        return [tokenizer.eos_token_id]
    return both


@contextmanager
def _edited(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what a JSON file holds, and write it back as it then is; without a file, to nowhere."""
    there = path.is_file()
    content = json.loads(path.read_text(encoding="utf-8")) if there else {}
    yield content
    if there:
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a configuration and those inside it: of the text, of the images."""
    inside = [part for part in config.values() if isinstance(part, dict) and "model_type" in part]
    return [config, *inside]


def _write_old_names(config: dict[str, Any], folder: Path) -> None:
    """Say in a configuration under transformers 4's names, too, what 5 has other names for."""
    for part in _parts(config):
        if part.get("dtype") is not None:
            part["torch_dtype"] = part["dtype"]
        kind = str(part.get("model_type"))
        for old, new in _RENAMED.get(kind, {}).items():
            part.setdefault(old, part[new])
        part.update(_old_rope(kind, part.get("rope_parameters") or {}))
    # Of this entry transformers 4 concludes both that there is an output layer and that its input
    # is not scaled. 5 sees by itself whether there is one, and takes the entry for the scale.
    if _unscaled(config) and _has_output_layer(folder):
        config["tie_word_embeddings"] = False


def _old_rope(kind: str, rope: dict[str, Any]) -> dict[str, Any]:
    """Return what transformers 4 calls a configuration's `rope_parameters`; {} if it cannot."""
    if "rope_theta" in rope:
        old = _flat_rope(rope)
        if kind == "gpt_neox":
            old["rotary_emb_base"] = old.pop("rope_theta")
            old["rotary_pct"] = old.pop("partial_rotary_factor")
        if kind == "phi3" and rope["rope_type"] == "longrope":  # it knows these three alone
            scaling = {name: rope[name] for name in ("short_factor", "long_factor")}
            old["rope_scaling"] = {"type": "longrope", **scaling}
        return old
    far, near = rope.get("full_attention"), rope.get("sliding_attention")
    if not far or not near or near["rope_type"] != "default":
        return {}
    if kind == "gemma3_text":
        return {**_flat_rope(far), "rope_local_base_freq": near["rope_theta"]}
    if kind == "olmo3" and near["rope_theta"] == far["rope_theta"]:
        return _flat_rope(far)
    return {}


def _flat_rope(rope: dict[str, Any]) -> dict[str, Any]:
    apart = ("rope_theta", "partial_rotary_factor")
    old = {name: rope[name] for name in apart if name in rope}
    scaling = {name: value for name, value in rope.items() if name not in apart}
    return old | {"rope_scaling": None if scaling == {"rope_type": "default"} else scaling}


def _unscaled(config: dict[str, Any]) -> bool:
    """Whether a model of the T5 family does not scale what goes into its output layer."""
    return config.get("model_type") == "mt5" or config.get("scale_decoder_outputs") is False


def _has_output_layer(folder: Path) -> bool:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if "lm_head.weight" in file.keys():
                return True
    return False


def _rope_read_by_4(config: dict[str, Any]) -> bool:
    rope = config.get("rope_parameters")
    if not rope:
        return True
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type", "default")
    return "rope_scaling" in config and kind in _ROPES_READ_BY_4


def _write_end_tokens(config: dict[str, Any], ends: list[int]) -> None:
    """Name the same end tokens as the generation settings, wherever a configuration names some."""
    if ends:
        for part in _parts(config):
            if "eos_token_id" in part:
                part["eos_token_id"] = ends[0] if len(ends) == 1 else ends


def _write_tokenizer_for_both(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer's class and its additional special tokens names that 4 and 5 know."""
    if config.get("tokenizer_class") in _WITH_ENDS:
        ids = tokenizer("a")["input_ids"]
        config["add_bos_token"] = ids[0] == tokenizer.bos_token_id
        config["add_eos_token"] = ids[-1] == tokenizer.eos_token_id
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if named := config.get("model_specific_special_tokens"):
        config["extra_special_tokens"] = named


def _open_modes(folder: Path) -> None:
    """Give all below a folder its own mode, files without the right to execute.

    safetensors writes files that nobody else may read. A new folder has what the umask allows.
    """
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)
