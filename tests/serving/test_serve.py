"""`make serve`: what is started for which runs, and a server of two adapters on one base."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from transformers import GenerationConfig

from cookbook.commands import serve as command
from cookbook.profiles import ROOT, CookbookError
from cookbook.serving import choice, runs, vllm
from cookbook.serving.sampling import sampling
from tests.serving.finished import adapted, tokenizer_of, write_base, write_run
from tests.serving.tiny_gguf import write_model

pytestmark = pytest.mark.unit

KEY = "of-nobody"
NAMES = ("falcon-7b-lora", "qwen3-reasoning-conversational")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with adapters on one base, one of all weights, and one on another base."""
    folder = tmp_path_factory.mktemp("served")
    base = write_base("smollm2", folder / "base")
    other = write_base("qwen2.5", folder / "other")
    tokenizer = tokenizer_of(base)
    places = {
        "02-PEFT/Falcon-7B-LoRA/cpu": (base, adapted(base, tokenizer, seed=1), "adapter"),
        "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational/cpu": (
            base,
            adapted(base, tokenizer, seed=2),
            "adapter",
        ),
        "03-Instruction-Tuning/Summarization-FLAN-T5/cpu": (
            base,
            adapted(base, tokenizer, seed=3).merge_and_unload(),
            "model",
        ),
        "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO/cpu": (
            other,
            adapted(other, tokenizer_of(other)),
            "adapter",
        ),
    }
    for place, (below, model, kind) in places.items():
        write_run(folder / "runs" / place, below, model, tokenizer_of(below), kind)
    return folder / "runs"


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are meant from the folder of the runs."""
    monkeypatch.setenv("COOKBOOK_RUNS", str(folder))
    monkeypatch.setenv("COOKBOOK_FROM", str(folder))


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[OpenAI]:
    """Run the command in a process of its own, and yield a client of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cookbook.commands.serve", *arguments, "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, command.KEY: KEY, "COOKBOOK_FROM": str(folder)},
    )
    try:
        assert process.stdout
        said = ""
        while " at http" not in said:
            said = process.stdout.readline()
            assert said, process.stderr.read() if process.stderr else ""
        yield OpenAI(base_url=said.split(" at ")[1].split()[0], api_key=KEY, max_retries=0)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        process.communicate()


def answer(client: OpenAI, model: str, question: str) -> str:
    """Return a model's greedy answer."""
    asked: Any = [{"role": "user", "content": question}]
    made = client.chat.completions.create(model=model, messages=asked, temperature=0, max_tokens=12)
    return made.choices[0].message.content or ""


def test_two_adapters_on_one_base_are_chosen_by_name(folder: Path) -> None:
    named = (
        "02-PEFT/Falcon-7B-LoRA/cpu, 04-Reasoning-Tuning/Qwen3-Reasoning-Conversational/cpu/adapter"
    )
    with serving(folder, named) as client:
        assert [one.id for one in client.models.list()] == ["base", *NAMES]
        answers = {name: answer(client, name, "Who?") for name in ("base", *NAMES)}
        assert len({*answers.values()}) == 3
        again = {name: answer(client, name, "Who?") for name in ("base", *NAMES, "base")}
        assert again == answers
    # Each alone, merged, says the same: its adapter was the one that answered.
    with serving(folder, "02-PEFT/Falcon-7B-LoRA/cpu", "--quant", "f32") as client:
        assert answer(client, NAMES[0], "Who?") == answers[NAMES[0]]


def test_an_adapter_of_another_name_is_a_run_s_too(folder: Path, tmp_path: Path) -> None:
    """A run that trained several, or, of a notebook that took its first from elsewhere, one."""
    run = tmp_path / "05-Export-and-Serving" / "Export-and-Serve" / "cpu"
    shutil.copytree(folder / "02-PEFT/Falcon-7B-LoRA/cpu", run)
    (run / "adapter").rename(run / "second")
    found = runs.find(str(run / "second"))
    assert found.adapter == run / "second" and found.name == "falcon-7b-lora-second"
    with pytest.raises(CookbookError, match="has not finished"):
        runs.find(str(run))


def test_a_gguf_file_is_served_as_it_is(tmp_path: Path) -> None:
    write_model(tmp_path / "mine.gguf")
    GenerationConfig(do_sample=True, top_k=7).save_pretrained(tmp_path)
    with serving(tmp_path, ".") as client:
        assert answer(client, "mine", "Hi")
        key = {"Authorization": f"Bearer {KEY}"}
        health = httpx2.get(str(client.base_url).replace("/v1/", "/health"), headers=key)
        assert health.json()["models"] == ["mine"]


def test_what_cannot_be_served_together_is_said(folder: Path) -> None:
    one = runs.find("02-PEFT/Falcon-7B-LoRA/cpu")
    whole = runs.find("03-Instruction-Tuning/Summarization-FLAN-T5/cpu")
    other = runs.find("04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO/cpu")
    with pytest.raises(CookbookError, match="trained all weights.*Serve it alone"):
        choice.check_share_a_base([one, whole])
    with pytest.raises(CookbookError, match="several bases .*serve them apart"):
        choice.check_share_a_base([one, other])
    with pytest.raises(CookbookError, match="both be called falcon-7b-lora"):
        choice.check_share_a_base([one, one])
    template = runs.find("04-Reasoning-Tuning/Qwen3-Reasoning-Conversational/cpu")
    assert template.adapter
    path = template.adapter / "chat_template.jinja"
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept + "{# another #}", encoding="utf-8")
    with pytest.raises(CookbookError, match="several tokenizers or chat templates"):
        choice.check_share_a_base([one, template])
    path.write_text(kept, encoding="utf-8")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nowhere", "There is no folder nowhere"),
        ("half.part", "half-written export: `make export` completes it"),
        ("02-PEFT/Falcon-7B-LoRA/cpu,nowhere", "There is no folder nowhere"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(
    named: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "half.part").mkdir(exist_ok=True)
    assert command.main([named]) == 1
    found = capsys.readouterr().err
    assert said in found and "Traceback" not in found and len(found.splitlines()) == 1


def test_an_unknown_quant_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["02-PEFT/Falcon-7B-LoRA/cpu", "--quant", "q2"]) == 1
    assert "QUANT=q2 is none of f32, bf16, q8_0, q4_k_m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"temperature": 0.0, "repeat_penalty": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0, "repeat_penalty": 1.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1},
            {"temperature": 0.7, "top_p": 0.8, "repeat_penalty": 1.1},
        ),
    ],
)
def test_sampling_is_the_model_s_own(
    settings: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    assert sampling(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert sampling(tmp_path) == wanted


# --- vLLM ------------------------------------------------------------------------------------


def test_vllm_gets_the_adapters_by_name_and_the_largest_rank(folder: Path) -> None:
    pair = [
        runs.find(one) for one in ("02-PEFT", "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational")
    ]
    assert pair[1].adapter
    made = vllm.command("vllm", "me/base", "base", pair, key=KEY, port=8001, context=2048)
    line = " ".join(made.arguments)
    assert line.startswith("vllm serve me/base --served-model-name base --host 127.0.0.1")
    assert "--port 8001 --max-model-len 2048 --enable-lora --max-loras 2 --max-lora-rank 8" in line
    assert f"--lora-modules {NAMES[0]}={pair[0].adapter} {NAMES[1]}={pair[1].adapter}" in line
    assert f"--chat-template {pair[0].adapter}/chat_template.jinja" in line
    assert made.environment == {"VLLM_API_KEY": KEY} and KEY not in line
    settings = pair[1].adapter / "adapter_config.json"
    kept = settings.read_text(encoding="utf-8")
    settings.write_text(json.dumps({**json.loads(kept), "r": 20}), encoding="utf-8")
    wider = " ".join(vllm.command("vllm", "me/base", "base", pair, key=KEY).arguments)
    assert "--max-lora-rank 32 " in wider
    settings.write_text(kept, encoding="utf-8")


def test_a_merged_model_is_served_from_its_export(folder: Path) -> None:
    made = vllm.command("vllm", "/exports/one", "one", key=KEY)
    assert made.arguments[:5] == ["vllm", "serve", "/exports/one", "--served-model-name", "one"]
    assert "--enable-lora" not in made.arguments


def test_where_vllm_and_a_gpu_are_make_serve_becomes_vllm(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A program of that name, and torch told that there is a GPU: what it is started with."""
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "key $VLLM_API_KEY args $*"\n', encoding="utf-8")
    program.chmod(0o755)
    script = (
        "import sys, torch; torch.cuda.is_available = lambda: True\n"
        "from cookbook.commands import serve; sys.exit(serve.main(sys.argv[1:]))"
    )
    pair = "02-PEFT/Falcon-7B-LoRA/cpu,04-Reasoning-Tuning/Qwen3-Reasoning-Conversational/cpu"
    done = subprocess.run(
        [sys.executable, "-c", script, pair, "--port", "8123"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", command.KEY: KEY},
        capture_output=True,
        text=True,
        check=True,
    )
    shown, said = done.stdout.splitlines()
    assert shown.startswith(f"{program} serve ") and KEY not in shown
    assert said == f"key {KEY} args {shown.removeprefix(f'{program} ')}"
    assert "--port 8123" in said and f"{NAMES[1]}=" in said


def test_without_a_gpu_vllm_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/vllm")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert vllm.installed() is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert vllm.installed() == "/usr/bin/vllm"
