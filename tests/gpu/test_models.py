"""What the GPU check builds: the published sizes and names, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cookbook.profiles import ROOT
from tests.gpu import check, examples, models
from tests.gpu.architectures import ARCHITECTURES
from tests.gpu.records import GIB
from tests.hub.notebooks import settings_of
from tests.hub.repositories import REPOSITORIES

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_has_the_published_number_of_weights(name: str) -> None:
    architecture = ARCHITECTURES[name]
    built = models.parameters(architecture.model_class, architecture.config)
    assert built == architecture.parameters


@pytest.mark.parametrize("profile", check.PROFILES)
@pytest.mark.parametrize("recipe", check.notebooks())
def test_every_recipe_can_be_checked(recipe: str, profile: str) -> None:
    settings = settings_of(ROOT / f"{recipe}.ipynb", profile)
    assert recipe in examples.EXAMPLES
    assert settings["model"] in ARCHITECTURES
    assert f"models/{settings['model']}" in REPOSITORIES
    assert examples.length_of(settings) > 2 * examples.EXAMPLES[recipe].spare


def test_special_tokens_are_those_of_the_small_tokenizer() -> None:
    small = {"eos_token_id": 7, "vocab_size": 9, "text_config": {"bos_token_id": 3, "hidden": 1}}
    full = {"vocab_size": 900, "text_config": {"hidden": 100}, "vision_config": {"hidden": 50}}
    assert models.with_token_ids(full, small) == {
        "vocab_size": 900,
        "eos_token_id": 7,
        "text_config": {"hidden": 100, "bos_token_id": 3},
        "vision_config": {"hidden": 50},
    }


def test_a_model_folder_is_whole(tmp_path: Path) -> None:
    count = models.write_model("google/flan-t5-base", tmp_path, tiny=True)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.num_parameters() == count
    head, embedding = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert head is not None and head.weight is not embedding.weight, "FLAN-T5 has two tables"
    assert loaded.config.eos_token_id == AutoTokenizer.from_pretrained(tmp_path).eos_token_id


def tensors(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


@pytest.mark.parametrize("name", [one for one in ARCHITECTURES if ARCHITECTURES[one].weights])
def test_files_name_the_weights_as_the_hub_does(name: str, tmp_path: Path) -> None:
    models.write_model(name, tmp_path / "built", tiny=True)
    (tmp_path / "hub").mkdir()
    REPOSITORIES[f"models/{name}"].write(tmp_path / "hub")
    assert tensors(tmp_path / "built") == tensors(tmp_path / "hub") != set()
    kept = "generation_config.json"
    if (tmp_path / "hub" / kept).is_file():
        assert (tmp_path / "built" / kept).read_bytes() == (tmp_path / "hub" / kept).read_bytes()


def test_a_full_size_folder_has_the_full_size(tmp_path: Path) -> None:
    """GPT-2 is trained from no weights, so that its folder is small at full size too."""
    assert models.write_model("openai-community/gpt2", tmp_path) == 124_439_808
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["n_embd"], config["n_layer"], config["vocab_size"]) == (768, 12, 50_257)
    assert not list(tmp_path.glob("*.safetensors"))


def test_no_room_to_build_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MemoryError, match=r"needs [0-9.]{9} GiB of memory, .* are free"):
        models.choose_device(2**50)
    assert models.choose_device(1000) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * GIB, 16 * GIB))
    assert models.choose_device(8 * GIB) == "cuda"
