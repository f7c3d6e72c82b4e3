"""Runs of every architecture, exported in every form: what is checked, what a check finds.

The checks belong to the export: each loads what was written by llama.cpp, or by transformers, and
asks it. Here they are shown to pass on what is right, and each to fail on what is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from datasets import Dataset
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cookbook import models, saving
from cookbook.commands import export as command
from cookbook.offline import offline_folder
from cookbook.offline.download import fetch
from cookbook.profiles import ROOT, CookbookError
from cookbook.serving import checks, converter, exporting, measuring, merging, quantize, runs
from cookbook.serving.checks import NotEqual, check_adapter_gguf, check_gguf
from cookbook.serving.engine import Settings
from cookbook.serving.exporting import Export, export
from tests.hub import tokenizing
from tests.serving import finished
from tests.serving.finished import write_json

pytestmark = pytest.mark.unit

# llama.cpp's converter once for each line of its input, forked from a process that has torch and
# transformers: by themselves they start for some seconds.
CONVERTERS = """
import json, os, runpy, sys
script, main = sys.argv[1], None
module = runpy.run_path(script)
for line in sys.stdin:
    given = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(given["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv = [script, *given["arguments"]]
        status = 1
        try:
            status = module["main"]()
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _forked_converter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    archive = fetch(converter.CONVERTER, offline_folder() / "archives")
    err = tmp_path_factory.mktemp("converter") / "err"
    environment = {**os.environ, "PYTHONPATH": str(archive), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CONVERTERS, str(converter.SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin and process.stdout

    def run(arguments: list[str], **_: Any) -> SimpleNamespace:
        print(json.dumps({"arguments": arguments[3:], "err": str(err)}), file=process.stdin)
        process.stdin.flush()  # type: ignore[union-attr]
        status = int(process.stdout.readline())  # type: ignore[union-attr]
        return SimpleNamespace(returncode=status, stderr=err.read_text("utf-8"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(converter, "subprocess", SimpleNamespace(run=run))
        # Threads of llama.cpp wait for each other awake, which takes long where others work, too.
        patched.setattr(checks, "Settings", partial(Settings, threads=1))
        yield
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Bases, runs and their exports, made when a test first asks for them."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COOKBOOK_RUNS", str(folder / "runs"))
        yield folder


def base_of(shop: Path, name: str) -> Path:
    folder = shop / "bases" / name
    return folder if folder.exists() else finished.write_base(name, folder)


def adapted(shop: Path, name: str, own: str = "", **changes: Any) -> runs.Run:
    """Return a run with a LoRA adapter; one of its `own` name has settings of its own."""
    folder = shop / "runs" / "02-PEFT" / f"Tiny-{name}{own}" / "cpu"
    if not folder.exists():
        base = base_of(shop, name)
        tokenizer = finished.tokenizer_of(base)
        model = finished.adapted(base, tokenizer, **changes)
        finished.write_run(folder, base, model, tokenizer)
    return runs.read(folder)


def whole(shop: Path, name: str) -> runs.Run:
    """Return a run that trained all weights."""
    folder = shop / "runs" / "01-Full-Fine-Tuning" / f"Tiny-{name}" / "cpu"
    if not folder.exists():
        base = base_of(shop, name)
        tokenizer = finished.tokenizer_of(base)
        model = finished.adapted(base, tokenizer).merge_and_unload()
        merging.in_precision(model, torch.bfloat16)
        finished.write_run(folder, base, model, tokenizer, kind="model")
    return runs.read(folder)


def copied(run: runs.Run, to: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """Return a copy of a run that a test may change; its exports go beside it."""
    folder = to / "runs" / run.folder.parent.parent.name / run.folder.parent.name / "cpu"
    shutil.copytree(run.folder, folder)
    monkeypatch.setenv("COOKBOOK_RUNS", str(to / "runs"))
    return runs.read(folder)


def said(exports: list[Export]) -> str:
    return "\n".join(check for one in exports for check in one.checks)


def assert_names_no_path(folder: Path, shop: Path) -> None:
    """Look for this machine's folders in every file, in texts as in the heads of weights."""
    for path in (one for one in folder.rglob("*") if one.is_file()):
        content = path.read_bytes()
        for place in (shop, ROOT, Path.home(), Path(sys.prefix)):
            assert str(place) == "/" or str(place).encode() not in content, f"{path}: {place}"
        assert b"/tmp/" not in content, path


def assert_nothing_beside(place: Path) -> None:
    """Nothing but whole exports lies in a run's place."""
    for path in place.iterdir():
        assert path.suffix not in (".part", ".old", ".folder"), path
        assert path.is_file() or (path / exporting.RECORD).is_file(), path


ON_LLAMA = ("smollm2", "falcon", "qwen2.5", "qwen3", "gemma3", "gemma3-sees", "gpt2")


# --- What is right ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_LLAMA)
def test_an_adapter_in_every_form(shop: Path, name: str) -> None:
    run = adapted(shop, name)
    quants = ("bf16", "q8_0", "q4_k_m")
    files = export(run, "gguf", quants)
    for one, quant in zip(files, quants, strict=True):
        assert "3 of 3 answers word for word as unmerged" in one.checks[0]
        assert "46 texts: the same token ids" in one.checks[1]
        assert "chat template writes the same" in one.checks[2]
        assert one.checks[3] == "3 prompts: as many tokens as in training"
        assert "its template writes ten conversations" in one.checks[-1]
        assert one.gguf.name == f"tiny-{name}-{quant}.gguf"
        assert (one.folder / "Modelfile").is_file() and (one.folder / "README.md").is_file()
        fields = GGUFReader(one.gguf).fields
        assert fields["general.name"].contents() == run.name
    # Rows of 64 take the same in 8 bits, and less in 4.
    sizes = [one.gguf.stat().st_size for one in files]
    assert sizes[0] > sizes[1] > sizes[2]

    (weights,) = export(run, "safetensors")
    assert "equal weights, 3 equal answers, chat template kept" in weights.checks[1]
    (adapter,) = export(run, "adapter")
    assert "nats each against float32" in adapter.checks[-1]
    assert (adapter.folder / "adapter.gguf").is_file()
    for one in (*files, weights, adapter):
        assert_names_no_path(one.folder, shop)
    assert_names_no_path(shop / "runs" / "exports" / "bases", shop)
    assert_nothing_beside(exporting.place_of(run))


@pytest.mark.parametrize("name", ["smollm2", "falcon"])
def test_whole_weights(shop: Path, name: str) -> None:
    run = whole(shop, name)
    (file,) = export(run, "gguf", ("f32",))
    assert file.checks[0] == "whole weights: nothing to merge"
    (weights,) = export(run, "safetensors")
    assert "loaded again: equal weights" in weights.checks[1]
    for one in (file, weights):
        assert_names_no_path(one.folder, shop)
    with pytest.raises(CookbookError, match="trained all weights and has no adapter"):
        export(run, "adapter")


def test_from_scratch_with_a_tokenizer_of_its_own(shop: Path) -> None:
    words = tokenizing.byte_level(["<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=128, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    folder = shop / "runs" / "01-Full-Fine-Tuning" / "From-Scratch" / "cpu"
    run = runs.read(finished.write_run(folder, None, model, tokenizer, kind="model"))
    (made,) = export(run, "gguf", ("bf16",))
    assert "answers end at <|endoftext|>" in made.checks
    card = (made.folder / "README.md").read_text("utf-8")
    assert "trained from random weights" in card and "base_model" not in card
    assert "FROM ./from-scratch-bf16.gguf" in (made.folder / "Modelfile").read_text("utf-8")


def test_what_llama_does_not_run(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, reason in (
        ("opt", "llama.cpp has no architecture OPTForCausalLM"),
        ("t5", "is an encoder-decoder (t5), which llama.cpp's server does not run"),
    ):
        run = adapted(shop, name)
        with pytest.raises(converter.CannotConvert) as refused:
            export(run, "gguf", ("q8_0",))
        assert reason in str(refused.value) and "FORMAT=safetensors" in str(refused.value)
        (weights,) = export(run, "safetensors")
        assert "3 equal answers" in weights.checks[1]
        (adapter,) = export(run, "adapter")
        assert f"no GGUF: {reason[:9]}"[:9] in adapter.checks[-1] and reason in adapter.checks[-1]
        assert not (adapter.folder / "adapter.gguf").exists()
        assert reason in capsys.readouterr().out
        assert_names_no_path(adapter.folder, shop)
        assert_nothing_beside(exporting.place_of(run))


@pytest.mark.parametrize(
    ("own", "changes"),
    [
        ("-rslora", {"use_rslora": True, "lora_alpha": 3}),
        ("-patterns", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 24}}),
        ("-layers", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    ],
)
def test_scales_of_special_adapters(shop: Path, own: str, changes: dict[str, Any]) -> None:
    (adapter,) = export(adapted(shop, "smollm2", own, **changes), "adapter")
    assert (adapter.folder / "adapter.gguf").is_file()


@pytest.mark.parametrize(
    ("name", "own", "changes", "named"),
    [
        ("smollm2", "-dora", {"use_dora": True}, "lora_magnitude_vector"),
        ("smollm2", "-head", {"modules_to_save": ["embed_tokens"]}, "embed_tokens.weight"),
        ("smollm2", "-tokens", {"trainable_token_indices": [5, 7]}, "embed_tokens.token_adapter"),
        ("qwen2.5", "-bias", {"lora_bias": True, "target_modules": ["q_proj"]}, "lora_B.bias"),
    ],
)
def test_adapters_that_gguf_has_no_place_for(
    shop: Path, name: str, own: str, changes: dict[str, Any], named: str
) -> None:
    run = adapted(shop, name, own, **changes)
    (adapter,) = export(run, "adapter")
    assert "no GGUF: GGUF has no place for" in adapter.checks[-1], adapter.checks
    assert named in adapter.checks[-1]
    (file,) = export(run, "gguf", ("bf16",))
    assert "3 of 3 answers word for word" in file.checks[0]


def test_an_added_token(shop: Path) -> None:
    base = base_of(shop, "smollm2")
    tokenizer = finished.tokenizer_of(base)
    tokenizer.add_tokens(["<thought>", "</thought>"])
    folder = shop / "runs" / "02-PEFT" / "Tiny-added" / "cpu"
    run = runs.read(finished.write_run(folder, base, finished.adapted(base, tokenizer), tokenizer))
    (file,) = export(run, "gguf", ("bf16",))
    assert len(GGUFReader(file.gguf).fields["tokenizer.ggml.tokens"].data) == len(tokenizer)
    (adapter,) = export(run, "adapter")  # whose rows are untrained: those of the base's file
    assert (adapter.folder / "adapter.gguf").is_file()
    # A run without it has another file of the same base.
    other = exporting.base_gguf(adapted(shop, "smollm2"))
    assert exporting.base_gguf(run) != other


def test_a_first_token_that_the_template_does_not_write(shop: Path) -> None:
    base = base_of(shop, "gemma3")
    tokenizer = finished.tokenizer_of(base)
    tokenizer.chat_template = finished.TEMPLATE
    folder = shop / "runs" / "02-PEFT" / "Tiny-no-bos" / "cpu"
    run = runs.read(finished.write_run(folder, base, finished.adapted(base, tokenizer), tokenizer))
    assert merging.bos_left_out(merging.load_tokenizer(run.tokenizer))
    (file,) = export(run, "gguf", ("bf16",))
    assert "3 prompts: as many tokens as in training" in file.checks
    assert GGUFReader(file.gguf).fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_letters_in_parts_are_tokens_too(shop: Path) -> None:
    """Llama.cpp tells nothing of a token that is a part of a letter until the letter is whole."""
    run = adapted(shop, "smollm2")
    (file,) = export(run, "gguf", ("bf16",))
    tokenizer = merging.load_tokenizer(run.tokenizer)
    model, _, _ = merging.merged(run)
    merging.in_precision(merging.in_precision(model, torch.bfloat16), torch.float32)
    prompt = merging.prompts(tokenizer)[0]
    answer = tokenizer("日本 👩 ż", add_special_tokens=False)["input_ids"]
    with checks.opened(file.gguf) as llama:
        theirs = llama.log_probabilities(prompt, answer)
    ours = merging.log_probability(model, prompt, answer)
    assert np.allclose(ours, theirs, atol=0.3) and len(theirs) == len(answer)


def test_a_file_s_loss_is_its_model_s(shop: Path) -> None:
    """More rows than are scored at once, of other lengths, each with a loss of its own."""
    run = adapted(shop, "smollm2")
    (file,) = export(run, "gguf", ("f32",))
    model, tokenizer, _ = merging.merged(run)
    asked, *_ = merging.prompts(tokenizer)
    texts = [f"{'word ' * number}and 日本, {number} times" for number in range(measuring.SLOTS + 3)]
    answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = Dataset.from_list(
        [
            {"input_ids": asked + ids, "labels": [-100] * len(asked) + ids[:-1] + [-100]}
            for ids in answers
        ]
    )
    ours, theirs = measuring.losses(model, rows), measuring.served_losses(file.gguf, rows)
    assert len({round(loss, 2) for loss in ours}) > len(ours) / 2
    assert np.allclose(ours, theirs, atol=0.02)


def test_positions_are_not_rounded_with_the_weights(shop: Path) -> None:
    model, _, _ = merging.merged(adapted(shop, "smollm2"))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    merging.in_precision(model, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_every_end_of_an_answer_survives_merging(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = adapted(shop, "smollm2")
    wanted = json.loads((run.weights / "generation_config.json").read_text("utf-8"))
    monkeypatch.setattr(merging, "MARGIN", 1e12)  # no memory for float32, where nothing is asked
    monkeypatch.setattr(models, "from_pretrained", _without_settings(models.from_pretrained))
    model, _, proof = merging.merged(run)
    assert "float32 does not fit here" in proof
    assert model.generation_config.eos_token_id == wanted["eos_token_id"]


def _without_settings(load: Callable[..., Any]) -> Callable[..., Any]:
    def loaded(*given: Any, **options: Any) -> Any:
        model = load(*given, **options)
        model.generation_config.eos_token_id = None
        return model

    return loaded


# --- What is wrong ---------------------------------------------------------------------------


def rewritten(
    path: Path, out: Path, fields: dict[str, Any], tensors: dict[str, Callable[[Any], Any]]
) -> Path:
    """Write a GGUF file again with other fields (None leaves one out) and changed tensors."""
    reader = GGUFReader(path)
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "general.architecture")):
            continue
        value = fields.get(field.name, field.contents())
        if value is not None:
            kind = field.types[0]
            inside = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, value, kind, sub_type=inside)
    for name in set(fields) - set(reader.fields):
        writer.add_bool(name, fields[name])
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        change = tensors.get(tensor.name)
        writer.add_tensor(
            tensor.name, change(data) if change else data, raw_dtype=tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def heads_permuted(rows: Any) -> Any:
    return np.roll(rows, len(rows) // 4, axis=0)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Callable[[Any], Any]], str]] = {
    "heads": ({}, {"blk.0.attn_q.weight": heads_permuted}, "nats a token less likely"),
    "a layer": ({}, {"blk.1.ffn_down.weight": np.zeros_like}, "nats a token less likely"),
    "no template": ({"tokenizer.chat_template": None}, {}, "runs the chat template otherwise"),
    "a template": (
        {"tokenizer.chat_template": "{% for t in messages %}{{ t.content }}{% endfor %}"},
        {},
        "runs the chat template otherwise",
    ),
    "an end": ({"tokenizer.ggml.eos_token_id": 9}, {}, "does not end an answer at"),
    "a cut": ({"tokenizer.ggml.pre": "llama-bpe"}, {}, "into other tokens than the tokenizer"),
    "a first token": ({"tokenizer.ggml.add_bos_token": True}, {}, "into other tokens"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_each_check_fails_on_what_it_is_for(shop: Path, tmp_path: Path, wrong: str) -> None:
    run = adapted(shop, "smollm2")
    (right,) = export(run, "gguf", ("bf16",))
    fields, tensors, sentence = WRONG[wrong]
    broken = rewritten(right.gguf, tmp_path / "broken.gguf", fields, tensors)
    model, tokenizer, _ = merging.merged(run)
    wanted = checks.wanted_of(model, tokenizer)
    if wrong == "an end":  # which llama.cpp knows by its name besides
        tokens = GGUFReader(right.gguf).fields["tokenizer.ggml.tokens"].contents()
        other = {"tokenizer.ggml.tokens": [str(one).replace("im_end", "odd") for one in tokens]}
        broken = rewritten(right.gguf, tmp_path / "end.gguf", fields | other, tensors)
        with pytest.raises(NotEqual, match=sentence), checks.opened(broken) as llama:
            checks._ends(llama, wanted, tokenizer)
        return
    with pytest.raises(NotEqual, match=sentence):
        check_gguf(broken, wanted, tokenizer, "bf16")


def test_a_prompt_with_a_token_twice_is_found(shop: Path, tmp_path: Path) -> None:
    (right,) = export(adapted(shop, "smollm2"), "gguf", ("bf16",))
    tokenizer = merging.load_tokenizer(adapted(shop, "smollm2").tokenizer)
    twice = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0}
    broken = rewritten(right.gguf, tmp_path / "twice.gguf", twice, {})
    with pytest.raises(NotEqual, match="tokens of a prompt that had"):
        with checks.opened(broken) as llama:
            checks._prompts(llama, tokenizer)


def test_a_wrong_scale_of_an_adapter_is_found(shop: Path, tmp_path: Path) -> None:
    run = adapted(shop, "smollm2")
    (right,) = export(run, "adapter")
    model, tokenizer = merging.load(run, torch.float32), merging.load_tokenizer(run.tokenizer)
    gguf_of = right.folder / "adapter.gguf"
    alpha = {"adapter.lora.alpha": 3.0 * finished.LORA["lora_alpha"]}
    broken = rewritten(gguf_of, tmp_path / "scale.gguf", alpha, {})
    base = exporting.base_gguf(run)
    with pytest.raises(NotEqual, match="nats a token less likely"):
        check_adapter_gguf(base, broken, checks.wanted_of(model, tokenizer), tokenizer)


def test_windows_that_llama_does_not_know_are_found(tmp_path: Path) -> None:
    """Of two layers of a Gemma the second sees all; llama.cpp takes every sixth for that one."""
    folder = tmp_path / "bases" / "gemma"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finished, "SIXTH", 2)
        patched.setenv("COOKBOOK_RUNS", str(tmp_path / "runs"))
        finished.write_base("gemma3", folder)
        tokenizer = finished.tokenizer_of(folder)
        to = tmp_path / "runs" / "02-PEFT" / "Gemma" / "cpu"
        run = runs.read(
            finished.write_run(to, folder, finished.adapted(folder, tokenizer), tokenizer)
        )
        with pytest.raises(NotEqual, match="Export it with FORMAT=safetensors"):
            export(run, "gguf", ("bf16",))
        assert_nothing_beside(exporting.place_of(run))


def test_no_number_is_not_close(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = adapted(shop, "smollm2")
    model, tokenizer = merging.load(run, torch.float32), merging.load_tokenizer(run.tokenizer)
    monkeypatch.setattr(merging, "log_probability", lambda _, __, answer: [float("nan")])
    llama = SimpleNamespace(log_probabilities=lambda prompt, answer: [0.0])
    with pytest.raises(NotEqual):
        checks._likely(llama, checks.wanted_of(model, tokenizer), "bf16")  # type: ignore[arg-type]


def test_weights_that_change_on_the_way_are_found(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    save = saving.save

    def spoiled(model: Any, tokenizer: Any, folder: Path) -> None:
        save(model, tokenizer, folder)
        path = folder / "model.safetensors"
        weights = load_file(path)
        weights["model.norm.weight"][0] += 1
        save_file(weights, path, metadata={"format": "pt"})

    monkeypatch.setattr(saving, "save", spoiled)
    with pytest.raises(CookbookError, match="has other weights, answers or another template"):
        export(run, "safetensors")
    assert not (exporting.place_of(run) / "safetensors").exists()
    assert_nothing_beside(exporting.place_of(run))


def test_a_merge_that_answers_otherwise_is_found(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    load = merging.load

    def unlucky(*given: Any, **options: Any) -> Any:
        model: Any = load(*given, **options)
        merge = model.merge_and_unload

        def spoiled() -> Any:
            made = merge()
            made.model.layers[0].self_attn.q_proj.weight.data.mul_(2)
            return made

        model.merge_and_unload = spoiled
        return model

    monkeypatch.setattr(merging, "load", unlucky)
    with pytest.raises(CookbookError, match="answers otherwise than its adapter beside the base"):
        export(run, "safetensors")


# --- What is kept, and what was interrupted ----------------------------------------------------


def test_what_is_there_is_kept_until_the_weights_change(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    (first,) = export(run, "safetensors")
    known = (first.folder / "model.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(merging, "merged", None)
        capsys.readouterr()
        (again,) = export(run, "safetensors")
    assert again.checks == first.checks and "of these weights: kept." in capsys.readouterr().out
    (first.folder / "model.safetensors").write_bytes(known[:100])  # a file that was cut
    export(run, "safetensors")
    assert (first.folder / "model.safetensors").read_bytes() == known
    path = run.weights / "adapter_model.safetensors"
    weights = {name: 2 * weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    export(run, "safetensors")
    assert (first.folder / "model.safetensors").read_bytes() != known
    (first.folder / exporting.RECORD).write_text("{", encoding="utf-8")
    export(run, "safetensors")
    assert_nothing_beside(exporting.place_of(run))


KILLED = """
import os, signal, sys
from pathlib import Path
from cookbook.serving import exporting, runs
{patch}
exporting.export(runs.find(sys.argv[1]), "safetensors")
"""
KILLS = {
    "before it was checked": "exporting._record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "between the renamings": """
rename = Path.rename
def once(self, target):
    made = rename(self, target)
    if str(target).endswith("safetensors.old"):
        os.kill(os.getpid(), signal.SIGKILL)
    return made
Path.rename = once
""",
}


@pytest.mark.parametrize("when", list(KILLS))
def test_an_export_that_was_killed(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    target = exporting.place_of(run) / "safetensors"
    if when == "between the renamings":  # of which there are two where something was there
        export(run, "safetensors")
        record = json.loads((target / exporting.RECORD).read_text("utf-8"))
        write_json(target / exporting.RECORD, record | {"made_of": {"weights": "others"}})
    script = KILLED.format(patch=KILLS[when])
    done = subprocess.run(
        [sys.executable, "-c", script, str(run.folder)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert not target.exists()
    (made,) = export(run, "safetensors")
    assert made.folder == target and models.from_pretrained(str(target))
    assert_nothing_beside(target.parent)


def test_two_exports_at_once(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    with exporting._alone(exporting.place_of(run)):
        with pytest.raises(CookbookError, match="Another export is writing to .* Wait"):
            export(run, "safetensors")
    export(run, "safetensors")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a folder with a disk of its own, of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(size: int) -> Path:
        options = ["-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("only root may mount a small disk")
        return folder

    yield mounted
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


# The sizes are those at which, in turn, the 16-bit weights, the converter's file, its copy and the
# 8-bit file have no place any more.
@pytest.mark.parametrize("size", [150, 300, 500, 700, 900])
def test_a_full_disk(
    shop: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    run = adapted(shop, "smollm2")
    folder = small_disk(size)
    monkeypatch.setenv("COOKBOOK_RUNS", str(folder))
    kept = exporting.place_of(run) / "gguf-q8_0"
    kept.mkdir(parents=True)
    (kept / "there before").write_text("as it was")
    with pytest.raises(CookbookError, match="The disk of .* is full: nothing was"):
        export(run, "gguf", ("bf16", "q8_0"))
    assert (kept / "there before").read_text() == "as it was"
    left = [path.name for path in kept.parent.iterdir() if path.suffix in (".part", ".old")]
    assert not left


def test_a_folder_that_cannot_be_written(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path / "file"))
    with pytest.raises(CookbookError, match="Nothing can be written to .* COOKBOOK_RUNS"):
        export(adapted(shop, "smollm2"), "safetensors")


# --- Which run, on which base -------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", None])
def test_a_base_that_changed_or_is_gone(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    base = tmp_path / "base"
    shutil.copytree(base_of(shop, "smollm2"), base)
    settings = json.loads((run.folder / "run.json").read_text("utf-8"))
    write_json(run.folder / "run.json", settings | {"model": str(base)})
    run = runs.read(run.folder)
    assert runs.base_of(run) == str(base)
    if file == "config.json":
        content = json.loads((base / file).read_text("utf-8"))
        write_json(base / file, content | {"rms_norm_eps": 0.1})
    elif file:
        weights = load_file(base / file)
        weights["model.norm.weight"] += 1
        save_file(weights, base / file, metadata={"format": "pt"})
    else:
        shutil.rmtree(base)
    sentence = "has changed since .* or train anew" if file else "is gone.*Copy it back"
    for form in ("safetensors", "adapter"):
        with pytest.raises(CookbookError, match=sentence):
            export(run, form)
    assert_nothing_beside(exporting.place_of(run))


def test_runs_by_every_name(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "Meine Läufe" / "02-PEFT" / "Tiny-smollm2" / "cpu"
    shutil.copytree(adapted(shop, "smollm2").folder, place)
    monkeypatch.setenv("COOKBOOK_FROM", str(tmp_path))
    monkeypatch.setenv("COOKBOOK_RUNS", "Meine Läufe")
    recipe = "Meine Läufe/02-PEFT/Tiny-smollm2"
    for named in ("", recipe, f"{recipe}/cpu", f"{recipe}/cpu/adapter", str(place), "Meine Läufe"):
        assert runs.find(named).folder == place, named
    (made,) = export(runs.find(f"{recipe}/cpu"), "safetensors")
    wanted = tmp_path / "Meine Läufe" / "exports" / "02-PEFT" / "Tiny-smollm2" / "cpu"
    assert made.folder == wanted / "safetensors"


def test_the_newest_run_that_has_a_model(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    later = run.folder.with_name("cpu-seed1")
    shutil.copytree(run.folder, later, ignore=shutil.ignore_patterns("adapter"))
    os.utime(later / "metrics.json", (2**31, 2**31))
    assert runs.find().folder == run.folder
    with pytest.raises(CookbookError, match="saved no model"):
        runs.find(str(later))


def test_no_such_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COOKBOOK_FROM", str(tmp_path))
    with pytest.raises(CookbookError, match="No run has finished yet. `make quickstart`"):
        runs.find()
    with pytest.raises(CookbookError, match="There is no folder nowhere. No run has finished"):
        runs.find("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CookbookError, match="empty holds no run"):
        runs.find("empty")


@pytest.mark.parametrize("file", ["run.json", "metrics.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '"text"', "\udcff"])
def test_damaged_files_of_a_run(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    (run.folder / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CookbookError, match=f"{file} is damaged .* or train again"):
        runs.read(run.folder)


# --- The command ---------------------------------------------------------------------------------


def test_the_command_says_where_and_what(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path / "my runs", monkeypatch)
    capsys.readouterr()
    assert command.main([str(run.folder), "--format", "gguf", "--quant", "Q8_0, q8_0"]) == 0
    shown = capsys.readouterr()
    assert "tiny-smollm2-q8_0.gguf" in shown.out and "checked: 46 texts" in shown.out
    assert shown.out.count("MiB  tiny-smollm2-q8_0.gguf") == 1
    assert "ollama create tiny-smollm2-q8_0 -f '" in shown.out  # the folder's name has a blank
    assert "Loading" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "onnx"], "FORMAT=onnx is none of safetensors, gguf, adapter."),
        (["--format", "gguf", "--quant", "q3"], "QUANT=q3 is none of"),
        (["--format", "gguf", "--quant", ","], "QUANT= is none of"),
    ],
)
def test_a_form_that_is_none(
    shop: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert command.main([str(adapted(shop, "smollm2").folder), *arguments]) == 1
    assert f"CookbookError: {sentence}" in capsys.readouterr().err


def test_quantized_files_come_from_one_merge(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(adapted(shop, "smollm2"), tmp_path, monkeypatch)
    merges: list[int] = []
    merged = merging.merged

    def counted(one: runs.Run) -> Any:
        merges.append(1)
        return merged(one)

    monkeypatch.setattr(merging, "merged", counted)
    monkeypatch.setattr(exporting, "check_gguf", lambda *_: [])
    made = export(run, "gguf", ("q4_k_m", "bf16", "q8_0"))
    assert len(merges) == 1 and [one.gguf.stem.split("-")[-1] for one in made] == [
        "q4_k_m",
        "bf16",
        "q8_0",
    ]
    assert set(exporting.QUANTS) == {"f32", "bf16", *quantize.FORMATS}
    assert AutoTokenizer.from_pretrained(run.tokenizer).chat_template
    assert said(made)
