"""A model of one's own is used whole, or refused before it is loaded with the mend."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    set_seed,
)

from cookbook import evaluation, models
from cookbook.files import DataError
from cookbook.profiles import CookbookError
from tests.unit import tiny

pytestmark = pytest.mark.unit

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds a whole tiny model and its tokenizer."""
    return _saved(tmp_path / "model", tiny.model())


def _saved(path: Path, model: Any, **named: Any) -> Path:
    model.save_pretrained(path, **named)
    tiny.tokenizer().save_pretrained(path)
    return path


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_whole_model_is_taken_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.resolve_model(str(folder)) == str(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert models.resolve_model("~/model") == str(folder)


# --- Refused by name ------------------------------------------------------------------------


def _without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def _pointing(name: str) -> Callable[[Path], None]:
    def point(folder: Path) -> None:
        (folder / name).write_text(POINTER, encoding="utf-8")

    return point


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _as_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")


def _gguf_alone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")


def _in_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tiny.model().save_pretrained(folder, max_shard_size="20KB")


def _lacking_a_shard(folder: Path) -> None:
    _in_shards(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _lacking_the_index(folder: Path) -> None:
    _in_shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def _with_torn_index(folder: Path) -> None:
    _in_shards(folder)
    (folder / "model.safetensors.index.json").write_text("{", encoding="utf-8")


def _quantized(method: str) -> Callable[[Path], None]:
    return lambda folder: _config(folder, quantization_config={"quant_method": method, "bits": 4})


def _code_of_its_own(folder: Path) -> None:
    _config(folder, model_type="mine", auto_map={"AutoConfig": "code.Config"})
    code = 'from pathlib import Path\nPath(__file__).with_name("it ran").touch()\n'
    (folder / "code.py").write_text(code, encoding="utf-8")


def _one_level_up(folder: Path) -> None:
    inside = folder / "checkpoint-10"
    inside.mkdir()
    for path in [one for one in folder.iterdir() if one.is_file()]:
        path.rename(inside / path.name)


def _written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _with_index(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        _in_shards(folder)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    return change


def _cast(kind: torch.dtype) -> Callable[[Path], None]:
    """Give the matrices another type of number, and say nothing of it in config.json."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        cast = {name: one.to(kind) if one.dim() == 2 else one for name, one in tensors.items()}
        save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _legacy_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.json").write_text('{"chat_template": "x"}', encoding="utf-8")


def _in_the_cache(folder: Path) -> None:
    inside = folder / "snapshots" / "0123abc"
    inside.mkdir(parents=True)
    for path in [one for one in folder.iterdir() if one.is_file()]:
        path.rename(inside / path.name)


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pointer in place of weights": (
        _pointing("model.safetensors"),
        r"model\.safetensors is only a pointer.*git lfs pull` in .*model\.",
    ),
    "a pointer in place of a tokenizer": (_pointing("tokenizer.json"), "tokenizer.json is only a"),
    "a pointer in place of a vocabulary": (_pointing("spiece.model"), "spiece.model is only a"),
    "truncated weights": (_truncated, "model.safetensors is not whole.*download the model anew"),
    "a missing shard": (_lacking_a_shard, r"lacks 1 of \d+ files of weights, model-00002-of"),
    "a missing index": (_lacking_the_index, "model-00001-of-.* but neither model.safetensors nor"),
    "a torn index": (_with_torn_index, "index.json is no JSON.*download the model anew"),
    "pickled weights": (_pickled, "pickled weights are not loaded.*save_pretrained"),
    "no weights": (_without("model.safetensors"), r"has no \*.safetensors weights"),
    "no tokenizer": (_without(*TOKENIZER), "no tokenizer.*save_pretrained"),
    "no configuration": (_without("config.json"), "no config.json, so it is no model folder"),
    "an index that is no object": (_with_index("[]"), "index.json is no JSON"),
    "an index without weights": (_with_index("{}"), "index.json names no weights"),
    "a torn tokenizer": (
        _written("tokenizer.json", '{"version"'),
        "tokenizer of .* cannot be read",
    ),
    "an empty tokenizer": (_written("tokenizer.json", ""), "tokenizer of .* cannot be read"),
    "torn settings of a tokenizer": (_written("tokenizer_config.json", "{"), "cannot be read"),
    "a legacy template": (_legacy_template, "chat_template.json.*into chat_template.jinja"),
    "a configuration that is a list": (_written("config.json", "[1]"), "config.json .*"),
    "another vocabulary": (lambda folder: _config(folder, vocab_size=60), "46 x 32.*says 60 x 32"),
    "another width": (lambda folder: _config(folder, hidden_size=64), "46 x 32.*says 46 x 64"),
    "MLX": (
        lambda folder: _config(folder, quantization={"group_size": 32, "bits": 4}),
        "quantized already .4 bits",
    ),
    "numbers of eight bits": (_cast(torch.float8_e4m3fn), "quantized already .*F8_E4M3"),
    "numbers that hold others": (_cast(torch.int32), "quantized already .*I32"),
    "a cache of the Hub": (_in_the_cache, "no config.json.*snapshots/0123abc has one"),
    "a folder too high": (_one_level_up, "no config.json.*/model/checkpoint-10 has one"),
    "a torn configuration": (
        lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"),
        "config.json.* cannot be read",
    ),
    "GGUF beside a configuration": (_as_gguf, "as GGUF.*Set COOKBOOK_MODEL to the model that it"),
    "a folder of GGUF": (_gguf_alone, "as GGUF, quantized for llama.cpp"),
    "GPTQ": (_quantized("gptq"), "quantized already .gptq.*model that it was made from"),
    "bitsandbytes": (_quantized("bitsandbytes"), "quantized already .bitsandbytes"),
    "an unknown architecture": (
        lambda folder: _config(folder, model_type="mine"),
        "no architecture 'mine'.*names. Set COOKBOOK_MODEL",
    ),
    "no architecture": (lambda folder: _config(folder, model_type=None), "no architecture None"),
    "code of its own": (_code_of_its_own, "'mine'.*code that it brings of its own is not run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_before_it_is_loaded(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, complaint = REFUSED[case]
    damage(folder)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(CookbookError, match=f"(?s){complaint}"):
        models.resolve_model(str(folder))
    assert not (folder / "it ran").exists()


def test_a_file_or_an_absent_folder_is_no_model(folder: Path) -> None:
    gguf = folder / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(CookbookError, match="as GGUF"):
        models.resolve_model(str(gguf))
    with pytest.raises(CookbookError, match="is a file. Set COOKBOOK_MODEL to the folder"):
        models.resolve_model(str(folder / "model.safetensors"))
    for name in (str(folder / "absent"), "./absent", "a/b/c"):
        with pytest.raises(CookbookError, match="does not exist. Set COOKBOOK_MODEL"):
            models.resolve_model(name)


def test_a_model_to_train_from_nothing_needs_no_weights(folder: Path) -> None:
    _without("model.safetensors", *TOKENIZER)(folder)
    assert models.resolve_model(str(folder), weights=False) == str(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CookbookError, match="no config.json"):
        models.resolve_model(str(folder), weights=False)


def test_a_whole_model_in_shards_is_taken(folder: Path) -> None:
    _in_shards(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert models.resolve_model(str(folder)) == str(folder)


_SMALL: dict[str, Any] = {
    "vocab_size": 46,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SMALL)),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**_SMALL)),
    "modernbert": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(**_SMALL, cls_token_id=1, sep_token_id=2)
    ),
    "distilbert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(vocab_size=46, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    ),
    "bert-for-classes": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**_SMALL)
    ),
}


NO_LANGUAGE: dict[str, tuple[Callable[[], Any], str]] = {
    "a classifier": (
        lambda: transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**_SMALL)),
        "a classifier or a judge .LlamaForSequenceClassification.*scores and no words",
    ),
    "the encoder of T5": (
        lambda: transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=46, d_model=16, d_kv=8, num_layers=1, num_heads=2)
        ),
        r"an encoder \(t5\)",
    ),
    "both ways": (
        lambda: transformers.XLNetLMHeadModel(
            transformers.XLNetConfig(vocab_size=46, d_model=16, n_layer=1, n_head=2)
        ),
        r"an encoder \(xlnet\)",
    ),
    "embeddings of Gemma": (
        lambda: transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**_SMALL, head_dim=8, use_bidirectional_attention=True)
        ),
        r"an encoder \(gemma3_text\)",
    ),
    "eyes alone": (
        lambda: transformers.ViTModel(
            transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
        r"no language model \(vit\)",
    ),
}


@pytest.mark.parametrize("kind", NO_LANGUAGE)
def test_what_writes_no_texts_is_refused_in_every_recipe(kind: str, tmp_path: Path) -> None:
    made, complaint = NO_LANGUAGE[kind]
    path = _saved(tmp_path / "model", made())
    for both in (False, True):
        with pytest.raises(CookbookError, match=complaint):
            models.resolve_model(str(path), encoder_decoder=both)


def test_what_nobody_reads_does_not_matter(folder: Path) -> None:
    """After `git lfs pull -I "*.safetensors"` the rest are pointers still."""
    before = models.identity_of(str(folder))
    for name in ("picture.png", "pytorch_model.bin", "README.md"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    assert models.resolve_model(str(folder)) == str(folder)
    (folder / "pytorch_model.bin").unlink()
    assert models.identity_of(str(folder)) == before
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("x", encoding="utf-8")
    assert models.identity_of(str(folder)) != before


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_refused_in_every_recipe(kind: str, tmp_path: Path) -> None:
    path = _saved(tmp_path / "model", ENCODERS[kind]())
    for both in (False, True):
        with pytest.raises(CookbookError, match=rf"is an encoder \({kind.partition('-')[0]}\)"):
            models.resolve_model(str(path), encoder_decoder=both)


def test_bert_made_a_decoder_is_a_language_model(tmp_path: Path) -> None:
    config = transformers.BertConfig(**_SMALL, is_decoder=True)
    path = _saved(tmp_path / "model", transformers.BertLMHeadModel(config))
    assert models.resolve_model(str(path)) == str(path)


def _bart() -> Any:
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    both: dict[str, Any] = {
        f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()
    }
    config = transformers.BartConfig(vocab_size=46, d_model=16, **both)
    return transformers.BartForConditionalGeneration(config)


@pytest.mark.parametrize("made", [tiny.encoder_decoder, _bart])
def test_an_encoder_decoder_is_taken_where_the_recipe_takes_one(
    made: Callable[[], Any], tmp_path: Path
) -> None:
    path = _saved(tmp_path / "model", made())
    assert models.resolve_model(str(path), encoder_decoder=True) == str(path)
    with pytest.raises(CookbookError, match="is an encoder-decoder.*Summarization-FLAN-T5.ipynb"):
        models.resolve_model(str(path))


def test_a_hub_id_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    read = {"model_type": "falcon", "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}}
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", lambda _: (read, {}))
    assert models.resolve_model("tiiuae/falcon-7b") == "tiiuae/falcon-7b"
    read["model_type"] = "bert"
    with pytest.raises(CookbookError, match="google-bert/bert-base-cased is an encoder"):
        models.resolve_model("google-bert/bert-base-cased")


def test_the_embedded_default_must_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_OFFLINE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make offline"):
        models.resolve_model("offline:SmolLM2-135M-Instruct")


# --- Adapters -------------------------------------------------------------------------------


def _adapter(base: Path, folder: Path, task: str = "CAUSAL_LM") -> Any:
    """Save an adapter that changes its base, and return the two as one model."""
    seq2seq = task == "SEQ_2_SEQ_LM"
    family = transformers.AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    targets = ["q", "v"] if seq2seq else ["q_proj", "v_proj"]
    tuned: Any = peft.get_peft_model(
        family.from_pretrained(base),
        peft.LoraConfig(task_type=task, target_modules=targets, init_lora_weights=False),
    )
    tuned.save_pretrained(folder)
    return tuned.eval()


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
@pytest.mark.parametrize("words", [True, False])
def test_an_adapter_is_refused_with_a_command_that_merges_it(
    task: str, words: bool, tmp_path: Path
) -> None:
    seq2seq = task == "SEQ_2_SEQ_LM"
    base = _saved(tmp_path / "base", tiny.encoder_decoder() if seq2seq else tiny.model())
    folder = tmp_path / "my adapter"
    tuned = _adapter(base, folder, task)
    if words:
        tiny.tokenizer().save_pretrained(folder)
    with pytest.raises(CookbookError, match="holds an adapter") as caught:
        models.resolve_model(str(folder), encoder_decoder=seq2seq)
    assert str(base) in str(caught.value)
    command, _, setting = str(caught.value).partition("train from that: ")[2].rpartition(" and ")
    python, flag, code = shlex.split(command)
    assert (python, flag) == (".venv/bin/python", "-c")
    exec(code, {})  # as it stands there; a process of its own would import for ten seconds
    (merged,) = shlex.split(setting.removesuffix(".").removeprefix("COOKBOOK_MODEL="))
    assert models.resolve_model(merged, encoder_decoder=seq2seq) == merged
    family = transformers.AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    inputs = {"input_ids": torch.tensor([[3, 6, 7, 8]])}
    if seq2seq:
        inputs["decoder_input_ids"] = torch.tensor([[0, 9]])
    with torch.no_grad():
        wanted = tuned(**inputs).logits
        found = family.from_pretrained(merged)(**inputs).logits
        untuned = family.from_pretrained(base)(**inputs).logits
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, untuned)


def test_an_adapter_beside_a_configuration_is_one_all_the_same(
    folder: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    _adapter(folder, both)
    shutil.copy(folder / "config.json", both)
    tiny.tokenizer().save_pretrained(both)
    with pytest.raises(CookbookError, match="holds an adapter"):
        models.resolve_model(str(both))


# --- Models that also see -------------------------------------------------------------------

_TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
_EYES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_IN_THREE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_QWEN_IDS = {
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}
_QWEN_EYES = {"depth": 1, "num_heads": 2, "patch_size": 8}
SEEING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        "gemma3_text",
        {
            "text_config": _TEXT | {"head_dim": 16, "sliding_window": 8},
            "vision_config": _EYES,
            "mm_tokens_per_image": 4,
            "image_token_index": 60,
        },
    ),
    "qwen2-vl": (
        "Qwen2VL",
        "qwen2",
        {
            "text_config": _TEXT | {"rope_parameters": _IN_THREE},
            "vision_config": _QWEN_EYES | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
            **_QWEN_IDS,
        },
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VL",
        "qwen2",
        {
            "text_config": _TEXT | {"rope_parameters": _IN_THREE},
            "vision_config": _QWEN_EYES
            | {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24},
            **_QWEN_IDS,
        },
    ),
    "qwen3-vl": (
        "Qwen3VL",
        "qwen3",
        {
            "text_config": _TEXT | {"rope_parameters": _IN_THREE, "head_dim": 16},
            "vision_config": _QWEN_EYES
            | {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
            | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            **_QWEN_IDS,
        },
    ),
    "smolvlm": (
        "SmolVLM",
        "llama",
        {
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _EYES,
            "image_token_id": 60,
            "scale_factor": 1,
        },
    ),
    "idefics3": (
        "Idefics3",
        "llama",
        {
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _EYES,
            "image_token_id": 60,
            "scale_factor": 1,
        },
    ),
    "llava": (
        "Llava",
        "llama",
        {
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _EYES | {"model_type": "clip_vision_model", "projection_dim": 8},
            "image_token_index": 60,
        },
    ),
    "mistral3": (
        "Mistral3",
        "mistral",
        {
            "text_config": _TEXT | {"model_type": "mistral", "head_dim": 16},
            "vision_config": _EYES | {"model_type": "pixtral", "head_dim": 8},
            "image_token_index": 60,
        },
    ),
    "internvl": (
        "InternVL",
        "qwen2",
        {
            "text_config": _TEXT | {"model_type": "qwen2"},
            "vision_config": _EYES
            | {"model_type": "internvl_vision", "image_size": [16, 16], "patch_size": [8, 8]},
            "image_token_id": 60,
        },
    ),
}


def _seeing(name: str, tied: bool) -> Any:
    family, _, settings = SEEING[name]
    set_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings, tie_word_embeddings=tied)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    return model.float().eval()


def _loaded(path: Path) -> Any:
    """Return a model and what `from_pretrained` says of its weights."""
    return AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)


def _logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 9, 20, 33, 7]])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return torch.as_tensor(logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", SEEING)
def test_the_text_part_of_a_model_that_sees_is_loaded_and_saved_whole(
    name: str, tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _seeing(name, tied)
    path = _saved(tmp_path / "whole", whole)
    assert models.resolve_model(str(path)) == str(path)
    config, kind = models.config_of(str(path)), SEEING[name][1]
    assert f"its text part ({kind}) is trained, alone" in capsys.readouterr().out
    part = models.from_pretrained(str(path), dtype=torch.float32)
    assert type(part.config) is type(config) and config.model_type == kind
    assert not any(re.search("vision|visual|image", key) for key, _ in part.named_parameters())
    models.fit_vocabulary(part, tiny.tokenizer())
    assert torch.allclose(_logits(part), _logits(whole), atol=1e-5)
    part.save_pretrained(tmp_path / "part")
    again, loaded = _loaded(tmp_path / "part")
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    assert again.config.model_type == kind
    assert torch.equal(_logits(again), _logits(part))


def test_a_model_of_text_is_loaded_by_the_usual_class(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.config_of(str(folder)).model_type == "llama"
    model = models.from_pretrained(str(folder), dtype=torch.float32)
    assert type(model) is transformers.LlamaForCausalLM
    assert capsys.readouterr().out == ""


def test_experts_are_saved_under_the_names_of_their_file(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**_TEXT, num_local_experts=2)
    path = _saved(tmp_path / "model", transformers.MixtralForCausalLM(config))
    with safe_open(path / "model.safetensors", framework="pt") as file:
        names = {*file.keys()}
    model = AutoModelForCausalLM.from_pretrained(path)
    models.fit_vocabulary(model, tiny.tokenizer())
    model.save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again" / "model.safetensors", framework="pt") as file:
        assert {*file.keys()} == names


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        (3, r"9 of the model's tensors are not .*layers\.2\."),  # would be made up
        (1, r"9 tensors of layers .* model.layers\.1\."),  # would be forgotten
    ],
)
def test_weights_of_another_number_of_layers_are_refused(
    layers: int, complaint: str, tmp_path: Path
) -> None:
    path = _saved(tmp_path / "model", tiny.model())
    _config(path, num_hidden_layers=layers)
    with pytest.raises(CookbookError, match=complaint):
        models.from_pretrained(str(path))


# --- Vocabularies ---------------------------------------------------------------------------


def _tied(model: Any) -> bool:
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_get_rows_which_are_said_and_saved(
    tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = tiny.model(tie_word_embeddings=tied)
    words: Any = tiny.tokenizer()
    known = model.get_input_embeddings().weight.detach().clone()
    models.fit_vocabulary(model, words)
    assert len(model.get_input_embeddings().weight) == 46 and capsys.readouterr().out == ""
    words.add_tokens(["<|call|>", "<|result|>"])
    models.fit_vocabulary(model, words)
    assert "2 tokens were added to the tokenizer" in capsys.readouterr().out
    assert torch.equal(model.get_input_embeddings().weight[:46], known)
    assert model.get_output_embeddings().weight.shape[0] == model.config.vocab_size == 48
    assert _tied(model) is tied
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("w1 <|result|>", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[7, 47]] and _tied(again) is tied
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("trained", [False, True])
def test_tied_layers_stay_tied_after_a_merge(trained: bool, tmp_path: Path) -> None:
    model, words = tiny.model(tie_word_embeddings=True), tiny.tokenizer()
    words.add_tokens(["<|call|>"])
    models.fit_vocabulary(model, words)
    targets = ["q_proj", "v_proj"]
    rows: dict[str, Any] = {"trainable_token_indices": [46]} if trained else {}
    settings = peft.LoraConfig(target_modules=targets, init_lora_weights=False, **rows)
    tuned: Any = peft.get_peft_model(model, settings)
    tuned.eval()
    ids = torch.tensor([[3, 46, 7]])
    with torch.no_grad():
        wanted = tuned(ids).logits
    merged = tuned.merge_and_unload()
    assert _tied(merged)
    merged.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.tie_word_embeddings and _tied(again)
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, wanted, atol=1e-5)


def test_a_tokenizer_of_another_model_is_noticed() -> None:
    small = tiny.model(vocab_size=40)
    with pytest.raises(DataError, match="token id 45, but the model has only 40 tokens"):
        models.fit_vocabulary(small, tiny.tokenizer())
    model = tiny.model()
    models.check_token_ids(model, [[0, 45], []])
    with pytest.raises(DataError, match="token id 46, but the model has only 46 tokens"):
        models.check_token_ids(model, [[3], [0, 46]])
    rows = Dataset.from_dict({"input_ids": [[3, 99]], "labels": [[3, 99]]})
    with pytest.raises(DataError, match="do not belong together"):
        evaluation.completion_loss(model, rows, 1)
    with pytest.raises(DataError, match="do not belong together"):
        evaluation.next_token_logits(model, [[3, 99]], [1], 1)
    with pytest.raises(DataError, match="do not belong together"):
        evaluation.generate(model, tiny.tokenizer(), [[3, 99]], GenerationConfig(), 1)


# --- What a run was made of -----------------------------------------------------------------


def _rows(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts)})


def test_the_identity_of_a_model_follows_what_its_files_hold(folder: Path, tmp_path: Path) -> None:
    identity = models.identity_of(str(folder))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    assert models.identity_of(str(copy)) == identity
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = models.identity_of(str(copy))
    assert changed["model_files"] != identity["model_files"]
    assert changed["rows"] == identity["rows"]
    weights.write_bytes(content)
    (copy / "chat_template.jinja").write_text("another", encoding="utf-8")
    assert models.identity_of(str(copy)) != identity


@pytest.mark.parametrize("at", [0, -1])
def test_the_ends_of_large_files_count(at: int, tmp_path: Path) -> None:
    content = bytearray(3 * 2**20)
    (tmp_path / "model.safetensors").write_bytes(content)
    before = models.identity_of(str(tmp_path))
    content[at] = 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert models.identity_of(str(tmp_path)) != before


def test_the_identity_of_rows_follows_their_content_and_order(folder: Path) -> None:
    def rows(*parts: Dataset) -> str:
        return models.identity_of(str(folder), parts)["rows"]

    same = rows(_rows("a", "b"), _rows("c"))
    assert rows(_rows("a", "b").select([0, 1]), _rows("c")) == same
    others = [
        rows(_rows("a", "x"), _rows("c")),
        rows(_rows("b", "a"), _rows("c")),
        rows(_rows("a"), _rows("b", "c")),
        rows(_rows("a", "b")),
        rows(_rows("a", "b").rename_column("text", "prompt"), _rows("c")),
    ]
    assert len({same, *others}) == 6


def test_a_hub_id_counts_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for commit in ("one", "one", "two"):
        config = PreTrainedConfig()
        config._commit_hash = commit
        monkeypatch.setattr(AutoConfig, "from_pretrained", lambda _, of=config: of)
        found.append(models.identity_of("somebody/something")["model_files"])
    assert found[0] == found[1] != found[2]


# --- A model's own generation settings ------------------------------------------------------

OWN_SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 5.0},
    {"min_length": 20},
    {"min_new_tokens": 8},
    {"temperature": 9.0, "do_sample": True, "top_k": 40},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[number] for number in range(6, 46)]},
    {"suppress_tokens": [*range(6, 46)]},
    {"forced_eos_token_id": 1},
    {"num_beams": 3, "length_penalty": -5.0},
]


@pytest.mark.parametrize("own", OWN_SETTINGS, ids=lambda own: "+".join(own))
def test_a_models_own_settings_do_not_colour_what_is_called_greedy(own: dict[str, Any]) -> None:
    model, words = tiny.model(), tiny.tokenizer()
    with torch.no_grad():  # a fixed order of tokens, so that a penalty could not be missed
        model.lm_head.weight.copy_(nn.init.orthogonal_(torch.empty(46, 32)))
    prompts = [[3, 6, 7, 1, 4], [3, 9, 1, 4], [3, 9, 9, 9, 9, 1, 4]]
    asked = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=[1], pad_token_id=0)
    plain = evaluation.generate(model, words, prompts, asked, 2)
    model.generation_config = GenerationConfig(**own, eos_token_id=1, pad_token_id=0)
    kept = model.generation_config.to_dict()
    assert evaluation.generate(model, words, prompts, asked, 2) == plain
    assert model.generation_config.to_dict() == kept
    tuned: Any = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    assert evaluation.generate(tuned, words, prompts, asked, 2) == plain


def test_the_settings_above_would_change_the_answers() -> None:
    """Without the care of `evaluation.generate` these answers do differ."""
    model: Any = tiny.model()
    asked = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=0)
    ids = torch.tensor([[3, 9, 1, 4]])
    plain = model.generate(ids, generation_config=asked)
    model.generation_config.repetition_penalty = 5.0
    penalised = model.generate(ids, generation_config=asked)
    assert plain.tolist() != penalised.tolist()
