"""A saved model is whole, has open modes, and says the same to transformers 4 and 5."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaTokenizer,
    PreTrainedModel,
    set_seed,
)

from cookbook import saving
from cookbook.profiles import CookbookError
from cookbook.saving import make_readable, minimum_transformers, save
from tests.unit import tiny

pytestmark = pytest.mark.unit

IDS = torch.tensor([[(7 * at * at + 3 * at + 5) % 40 + 6 for at in range(40)]])
SIZES: dict[str, Any] = {
    "vocab_size": 46,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 4,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
LAYERS = ["sliding_attention", "full_attention"]


def rope(theta: float = 5e4, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": kind, **more}


def build(architecture: str, **changes: Any) -> PreTrainedModel:
    """Return a random model whose attention is wide enough for a wrong rotation to show."""
    set_seed(0)
    sizes = SIZES | changes
    if architecture == "olmo3":
        del sizes["head_dim"]
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **sizes)
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    return model


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS[:, :20]} if model.config.is_encoder_decoder else {}
    found: torch.Tensor = model.eval()(input_ids=IDS, **more).logits
    return found


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save(tiny.model(), tiny.tokenizer(), folder)
    return folder


@pytest.fixture
def umask() -> Iterator[None]:
    """Let the group read and nobody else, while a test runs."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in paths}


@pytest.mark.usefixtures("umask")
def test_files_and_folders_have_the_modes_that_the_umask_allows(tmp_path: Path) -> None:
    tuned = get_peft_model(tiny.model(), LoraConfig(target_modules="all-linear"))
    tuned.add_adapter("second", LoraConfig(target_modules="all-linear"))
    save(tuned, tiny.tokenizer(), tmp_path / "deeper" / "adapters")
    found = modes(tmp_path / "deeper" / "adapters")
    assert {"adapter_model.safetensors", "second/adapter_model.safetensors"} < set(found)
    folders = {".", "second"}
    assert {name: mode for name, mode in found.items() if name in folders} == dict.fromkeys(
        folders, 0o750
    )
    assert {mode for name, mode in found.items() if name not in folders} == {0o640}


ROPES = [
    pytest.param("llama", rope(), {"rope_theta": 5e4, "rope_scaling": None}, id="llama"),
    pytest.param(
        "llama",
        rope(kind="linear", factor=4.0),
        {"rope_theta": 5e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        id="llama-linear",
    ),
    pytest.param("qwen3", rope(1e6), {"rope_theta": 1e6, "rope_scaling": None}, id="qwen3"),
    pytest.param("qwen3_moe", rope(1e6), {"rope_theta": 1e6, "num_experts": 4}, id="qwen3_moe"),
    pytest.param(
        "phi",
        rope(partial_rotary_factor=0.25),
        {"rope_theta": 5e4, "partial_rotary_factor": 0.25, "rope_scaling": None},
        id="phi",
    ),
    pytest.param(
        "gpt_neox",
        rope(partial_rotary_factor=0.5),
        {"rotary_emb_base": 5e4, "rotary_pct": 0.5, "rope_scaling": None},
        id="gpt_neox",
    ),
    pytest.param(
        "gemma3_text",
        {
            "full_attention": rope(5e5, "linear", factor=8.0),
            "sliding_attention": rope(2e4),
        },
        {
            "rope_theta": 5e5,
            "rope_local_base_freq": 2e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        id="gemma3",
    ),
    pytest.param(
        "olmo3",
        {"full_attention": rope(), "sliding_attention": rope()},
        {"rope_theta": 5e4, "rope_scaling": None},
        id="olmo3",
    ),
]


@pytest.mark.parametrize(("architecture", "parameters", "old"), ROPES)
def test_a_configuration_has_the_old_names_and_loads_as_the_same_model(
    architecture: str, parameters: dict[str, Any], old: dict[str, Any], tmp_path: Path
) -> None:
    layers = {"layer_types": LAYERS} if "full_attention" in parameters else {}
    model = build(architecture, rope_parameters=parameters, **layers)
    save(model, tiny.tokenizer(), tmp_path / "model")
    written = read(tmp_path / "model" / "config.json")
    assert {name: written.get(name, "absent") for name in old} == old
    assert written["dtype"] == written["torch_dtype"] == "float32"
    assert minimum_transformers(tmp_path / "model") == saving.OLDEST_TRANSFORMERS
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(logits(again), logits(model))


def test_a_text_configuration_inside_another_has_the_old_names_too(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "dtype": "bfloat16", "eos_token_id": 1}
    text["rope_parameters"] = {"full_attention": rope(1e6), "sliding_attention": rope(1e4)}
    config = {"model_type": "gemma3", "text_config": text, "id2label": {"0": "no"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    make_readable(tmp_path, tiny.tokenizer(), end_tokens=[1, 5])
    written = read(tmp_path / "config.json")
    inside = written["text_config"]
    assert (inside["rope_theta"], inside["rope_local_base_freq"]) == (1e6, 1e4)
    assert (inside["torch_dtype"], inside["eos_token_id"]) == ("bfloat16", [1, 5])
    assert written["id2label"] == {"0": "no"}
    assert minimum_transformers(tmp_path) == saving.OLDEST_TRANSFORMERS


def test_what_the_old_names_cannot_say_is_left_out_and_needs_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    different = {"full_attention": rope(5e4), "sliding_attention": rope(2e4)}
    model = build("olmo3", rope_parameters=different, layer_types=LAYERS)
    save(model, tiny.tokenizer(), tmp_path / "model")
    assert capsys.readouterr().out == "model: needs transformers 5 or newer.\n"
    assert minimum_transformers(tmp_path / "model") == "5.0.0"
    assert "rope_theta" not in read(tmp_path / "model" / "config.json")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "never_tried"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"rope_scaling": {"rope_type": "proportional"}},
    ],
)
def test_what_was_not_tried_with_4_needs_5(changes: dict[str, Any], model_folder: Path) -> None:
    assert minimum_transformers(model_folder) == saving.OLDEST_TRANSFORMERS
    path = model_folder / "config.json"
    path.write_text(json.dumps(read(path) | changes), encoding="utf-8")
    assert minimum_transformers(model_folder) == "5.0.0"


def unscaled(folder: Path, own_output_layer: bool) -> PreTrainedModel:
    """Return a T5 as FLAN-T5 is, with or without an output layer beside its embeddings."""
    model = tiny.encoder_decoder(tie_word_embeddings=False)
    weights = model.state_dict()
    if own_output_layer:
        weights["lm_head.weight"] = torch.randn(46, 32)
    else:
        del weights["lm_head.weight"]
    model.save_pretrained(folder, state_dict=weights)
    config = read(folder / "config.json") | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(folder)
    return loaded


@pytest.mark.parametrize(
    ("own_output_layer", "oldest"), [(True, saving.OLDEST_TRANSFORMERS), (False, "5.0.0")]
)
def test_an_output_layer_beside_the_embeddings_is_told_of(
    own_output_layer: bool, oldest: str, tmp_path: Path
) -> None:
    model = unscaled(tmp_path / "base", own_output_layer)
    save(model, tiny.tokenizer(), tmp_path / "model")
    written = read(tmp_path / "model" / "config.json")
    assert written["tie_word_embeddings"] is not own_output_layer
    assert ("lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")) is (
        own_output_layer
    )
    assert minimum_transformers(tmp_path / "model") == oldest
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    assert again.config.scale_decoder_outputs is False
    assert torch.equal(logits(again), logits(model))


def test_a_tokenizer_has_names_that_both_know_and_says_the_same(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["w3"]})
    save(tiny.model(), tokenizer, tmp_path / "model")
    written = read(tmp_path / "model" / "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["w3"]
    assert "extra_special_tokens" not in written  # of which 4 expects names
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    turns = [{"role": "user", "content": "w1 w3 w7"}]
    for one in (again, tokenizer):
        text = one.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = one(text)["input_ids"]
        assert ids == [3, 7, 9, 13, 1, 4]
        assert one.decode(ids, skip_special_tokens=True) == "user w1 w7 assistant"
        assert (one.eos_token, one.pad_token) == ("<end>", "<pad>")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_tokenizer_says_which_tokens_it_adds(first: bool, last: bool, tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5}
    settings = {"add_bos_token": first, "add_eos_token": last}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a")], **settings)
    save(tiny.model(), tokenizer, tmp_path / "model")
    written = read(tmp_path / "model" / "tokenizer_config.json")
    assert written["tokenizer_class"] == "LlamaTokenizer"
    assert {name: written[name] for name in settings} == settings
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again("a")["input_ids"] == [1] * first + [5] + [2] * last


def test_all_end_tokens_and_how_the_base_samples_are_saved(tmp_path: Path) -> None:
    model = tiny.model()
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    model.generation_config = GenerationConfig(eos_token_id=1, bos_token_id=2, **sampling)
    before = model.generation_config.to_dict()
    save(model, tiny.tokenizer(), tmp_path / "model", end_tokens=[5, 1])
    written = read(tmp_path / "model" / "generation_config.json")
    del written["transformers_version"]
    ends = {"eos_token_id": [5, 1], "bos_token_id": 2, "pad_token_id": 0}
    assert written == sampling | ends
    assert read(tmp_path / "model" / "config.json")["eos_token_id"] == [5, 1]
    assert model.generation_config.to_dict() == before
    assert model.config.eos_token_id == 1


def test_one_end_token_stays_and_the_tokenizer_has_one_where_the_model_has_none(
    model_folder: Path, tmp_path: Path
) -> None:
    assert read(model_folder / "generation_config.json")["eos_token_id"] == [1]
    assert read(model_folder / "config.json")["eos_token_id"] == 1
    save(tiny.model(eos_token_id=None), tiny.tokenizer(), tmp_path / "without")
    assert read(tmp_path / "without" / "generation_config.json")["eos_token_id"] == [1]
    assert read(tmp_path / "without" / "config.json")["eos_token_id"] == 1


def test_a_temperature_without_sampling_is_kept_as_it_was(tmp_path: Path) -> None:
    model = tiny.model()
    model.generation_config = GenerationConfig(temperature=0.9, do_sample=False, eos_token_id=1)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.save_pretrained(tmp_path / "refused")
    save(model, tiny.tokenizer(), tmp_path / "model")
    written = read(tmp_path / "model" / "generation_config.json")
    assert (written["temperature"], written["do_sample"]) == (0.9, False)
    assert model.generation_config.temperature == 0.9


def test_code_of_the_base_that_is_not_in_the_folder_is_not_named(tmp_path: Path) -> None:
    model = tiny.model()
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_own.Own"}
    save(model, tiny.tokenizer(), tmp_path / "model")
    assert "auto_map" not in read(tmp_path / "model" / "config.json")


def test_adapters_are_saved_as_named_with_their_generation_settings(tmp_path: Path) -> None:
    tuned = get_peft_model(
        tiny.model(), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    tuned.add_adapter("reference", LoraConfig(target_modules="all-linear"))
    folder = tmp_path / "adapter"
    save(tuned, tiny.tokenizer(), folder, end_tokens=[1, 5], selected_adapters=["default"])
    assert not (folder / "reference").exists() and not (folder / "config.json").exists()
    again = PeftModel.from_pretrained(tiny.model(), folder)
    assert torch.equal(logits(again), logits(tuned))
    assert not torch.equal(logits(again), logits(tiny.model()))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [1, 5]
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny.TEMPLATE
    with pytest.raises(CookbookError, match="no config.json.*base model"):
        minimum_transformers(folder)


def test_arguments_reach_the_model_and_every_shard_is_open(tmp_path: Path) -> None:
    save(tiny.model(), tiny.tokenizer(), tmp_path / "model", max_shard_size="20KB")
    shards = list((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 1
    assert {path.stat().st_mode for path in shards} == {
        (tmp_path / "model" / "config.json").stat().st_mode
    }


def test_what_a_trainer_saved_is_mended_in_place(tmp_path: Path) -> None:
    model = build("llama", rope_parameters=rope())
    model.generation_config.repetition_penalty = 1.5
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    make_readable(tmp_path, tiny.tokenizer(), end_tokens=[5])
    assert read(tmp_path / "config.json")["rope_theta"] == 5e4
    assert read(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    settings = read(tmp_path / "generation_config.json")
    assert (settings["repetition_penalty"], settings["eos_token_id"]) == (1.5, [5, 1])
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def weights_of(seed: int) -> torch.Tensor:
    weight: torch.Tensor = tiny.model(seed).lm_head.weight
    return weight


def saved_weights(folder: Path) -> torch.Tensor:
    weight: torch.Tensor = load_file(folder / "model.safetensors")["lm_head.weight"]
    return weight


def test_a_folder_is_replaced_as_a_whole(model_folder: Path) -> None:
    (model_folder / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier save")
    save(tiny.model(1), tiny.tokenizer(), model_folder)
    assert torch.equal(saved_weights(model_folder), weights_of(1))
    assert len(list(model_folder.glob("*.safetensors"))) == 1
    assert [one.name for one in model_folder.parent.iterdir()] == ["model"]


KILLED_WHILE_SAVING = """
import os, signal, sys
from cookbook import saving
from tests.unit import tiny

saving.make_readable = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
saving.save(tiny.model(1), tiny.tokenizer(), sys.argv[1])
"""


def test_a_killed_save_leaves_what_was_there_and_the_next_one_clears_up(
    model_folder: Path,
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(model_folder)])
    assert killed.returncode == -signal.SIGKILL
    part = model_folder.with_name("model.part")
    assert torch.equal(saved_weights(part), weights_of(1))
    assert torch.equal(saved_weights(model_folder), weights_of(0))
    save(tiny.model(2), tiny.tokenizer(), model_folder)
    assert torch.equal(saved_weights(model_folder), weights_of(2))
    assert not part.exists()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving, "make_readable", full)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_named_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder)
    with pytest.raises(CookbookError, match="disk of .* is full.*Make room"):
        save(tiny.model(1), tiny.tokenizer(), folder)
    assert torch.equal(saved_weights(folder), weights_of(0))
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("full_disk")
def test_a_save_that_stopped_between_the_renamings_is_put_back_first(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "model.old")
    with pytest.raises(CookbookError):
        save(tiny.model(1), tiny.tokenizer(), tmp_path / "model")
    assert torch.equal(saved_weights(tmp_path / "model"), weights_of(0))


@pytest.mark.parametrize("other", ["run.json", "checkpoints/trainer_state.json", ".git/config"])
def test_what_is_more_than_a_saved_model_is_not_replaced(other: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / other).parent.mkdir(parents=True)
    (folder / other).write_text("{}", encoding="utf-8")
    if other != "run.json":
        (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CookbookError, match="a folder of its own"):
        save(tiny.model(), tiny.tokenizer(), folder)
    assert (folder / other).is_file()
    assert not (tmp_path / "run.part").exists()
