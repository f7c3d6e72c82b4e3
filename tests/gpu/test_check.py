"""The GPU check as far as a CPU allows: tables, data, cap, records, and one rehearsal.

What needs a CUDA GPU is in test_cuda.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
import pytest
import torch
from safetensors import safe_open
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerBase

from cookbook.profiles import ROOT
from tests.gpu import check, examples, kernel, machine, models, records, trial
from tests.gpu.architectures import ARCHITECTURES
from tests.gpu.records import GIB, Outcome
from tests.gpu.trial import Failed, NotRun, Trial
from tests.hub.notebooks import settings_of
from tests.hub.repositories import REPOSITORIES

FALCON = "02-PEFT/Falcon-7B-LoRA"
DISTRIBUTED = "01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning"
GPT2 = "01-Full-Fine-Tuning/GPT-2-From-Scratch"
REHEARSED = "03-Instruction-Tuning/Financial-Sentiment-OPT"
NO_GPU = {"cuda": False, "device": "Some Processor"}
H100 = {"cuda": True, "device": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * GIB}
T4 = {"cuda": True, "device": "Tesla T4", "memory_bytes": 14 * GIB}

unit = pytest.mark.unit


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be room on the disk, whatever this machine has."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GIB))


def a_trial(recipe: str = FALCON, profile: str = "gpu16", **other: Any) -> Trial:
    settings: dict[str, Any] = {"group": "peft", "steps": 4, "cap": 15 * GIB, "timeout": 60}
    return Trial(ROOT / f"{recipe}.ipynb", profile, **(settings | other))


# --- Tables ---------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_has_the_published_number_of_weights(name: str) -> None:
    architecture = ARCHITECTURES[name]
    built = models.parameters(architecture.model_class, architecture.config)
    assert built == architecture.parameters


@unit
@pytest.mark.parametrize("profile", check.PROFILES)
@pytest.mark.parametrize("recipe", check.notebooks())
def test_every_recipe_can_be_checked(recipe: str, profile: str) -> None:
    settings = settings_of(ROOT / f"{recipe}.ipynb", profile)
    assert recipe in examples.EXAMPLES
    assert settings["model"] in ARCHITECTURES
    assert f"models/{settings['model']}" in REPOSITORIES
    assert examples.length_of(settings) > 2 * examples.EXAMPLES[recipe].spare


# --- Models ---------------------------------------------------------------------------------


@unit
def test_special_tokens_are_those_of_the_small_tokenizer() -> None:
    small = {"eos_token_id": 7, "vocab_size": 9, "text_config": {"bos_token_id": 3, "hidden": 1}}
    full = {"vocab_size": 900, "text_config": {"hidden": 100}, "vision_config": {"hidden": 50}}
    assert models.with_token_ids(full, small) == {
        "vocab_size": 900,
        "eos_token_id": 7,
        "text_config": {"hidden": 100, "bos_token_id": 3},
        "vision_config": {"hidden": 50},
    }


@unit
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


@unit
@pytest.mark.parametrize("name", [one for one in ARCHITECTURES if ARCHITECTURES[one].weights])
def test_files_name_the_weights_as_the_hub_does(name: str, tmp_path: Path) -> None:
    models.write_model(name, tmp_path / "built", tiny=True)
    (tmp_path / "hub").mkdir()
    REPOSITORIES[f"models/{name}"].write(tmp_path / "hub")
    assert tensors(tmp_path / "built") == tensors(tmp_path / "hub") != set()
    kept = "generation_config.json"
    if (tmp_path / "hub" / kept).is_file():
        assert (tmp_path / "built" / kept).read_bytes() == (tmp_path / "hub" / kept).read_bytes()


@unit
def test_a_full_size_folder_has_the_full_size(tmp_path: Path) -> None:
    """GPT-2 is trained from no weights, so that its folder is small at full size too."""
    assert models.write_model("openai-community/gpt2", tmp_path) == 124_439_808
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["n_embd"], config["n_layer"], config["vocab_size"]) == (768, 12, 50_257)
    assert not list(tmp_path.glob("*.safetensors"))


@unit
def test_no_room_to_build_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MemoryError, match=r"needs [0-9.]{9} GiB of memory, .* are free"):
        models.choose_device(2**50)
    assert models.choose_device(1000) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * GIB, 16 * GIB))
    assert models.choose_device(8 * GIB) == "cuda"


# --- Examples -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("falcon")
    REPOSITORIES["models/tiiuae/falcon-7b"].write(folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


COLUMNS = {
    GPT2: {"text"},
    DISTRIBUTED: {"prompt", "completion"},
    FALCON: {"prompt", "completion"},
    REHEARSED: {"text", "label"},
    "03-Instruction-Tuning/Summarization-FLAN-T5": {"document", "summary"},
    "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO": {"prompt", "completion", "answer"},
    "04-Reasoning-Tuning/Financial-Reasoning-Gemma-3": {"prompt", "completion"},
    "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational": {"prompt", "completion"},
}
# What counts against the length; the rest is counted elsewhere or not at all.
COUNTED = {"text", "prompt", "completion", "document"}


@unit
@pytest.mark.parametrize("recipe", examples.EXAMPLES)
def test_rows_fill_the_allowed_length(
    recipe: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = {"max_length": 256, "per_device_train_batch_size": 4, "max_completion_length": 80}
    counts = examples.write_examples(tmp_path / "data", recipe, settings, tokenizer, 2, 6)
    assert counts == {"train": examples.SHOTS + examples.LEAST_ROWS, "test": 6}
    train, test = (rows_of(tmp_path / "data" / f"{name}.jsonl") for name in ("train", "test"))
    assert [len(train), len(test)] == list(counts.values())
    assert len({json.dumps(row) for row in [*train, *test]}) == len(train) + len(test)
    assert set(train[0]) == COLUMNS[recipe]

    wanted = 256 - examples.EXAMPLES[recipe].spare
    counted = COUNTED - ({"completion"} if "answer" in train[0] else set())
    for row in [*train[examples.SHOTS :], *test]:
        texts = [text for name, text in row.items() if name in counted]
        have = sum(len(tokenizer(text)["input_ids"]) for text in texts)
        if recipe == GPT2:  # its tokenizer is yet to be trained: a word is one token or more
            assert len(row["text"].split()) == wanted
        else:
            assert wanted - 8 <= have <= wanted
        if "answer" in row:
            assert row["completion"].endswith(f"\n#### {row['answer']}")
            assert 70 <= len(tokenizer(row["completion"])["input_ids"]) <= 80
    assert len(" ".join(train[0].values())) < 0.6 * len(" ".join(train[-1].values()))


@unit
def test_chat_lies_beside_the_problems(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    recipe = "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational"
    settings = {"max_length": 128, "per_device_train_batch_size": 1, "chat_dataset": "an/id"}
    examples.write_examples(tmp_path, recipe, settings, tokenizer, 2, 6)
    chat, problems = (rows_of(folder / "test.jsonl") for folder in (tmp_path / "chat", tmp_path))
    assert len(chat) == len(problems) == 6 and chat != problems


@unit
def test_there_are_rows_for_every_step(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    settings = {"block_size": 32, "per_device_train_batch_size": 8}
    settings["gradient_accumulation_steps"] = 4
    counts = examples.write_examples(tmp_path / "data", GPT2, settings, None, 5)
    assert counts == {"train": examples.SHOTS + 5 * 8 * 4, "test": 4 * 8}
    settings["per_device_train_batch_size"] = 1
    assert examples.test_rows_of(settings) == examples.LEAST_TEST_ROWS


@unit
def test_how_far_rows_were_filled() -> None:
    settings = {"max_length": 100, "per_device_train_batch_size": 4}
    train = {"steps": 2, "tokens": 760}
    assert examples.fill_of(FALCON, settings, train) == pytest.approx(0.95)
    assert examples.fill_of("04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO", settings, train) is None
    with pytest.raises(LookupError, match="max_length, block_size"):
        examples.length_of({"max_steps": 3})


# --- The cap, in a kernel that is none ------------------------------------------------------


class Card:
    """`torch.cuda` of a card on which `context` bytes are taken before anything is allocated."""

    def __init__(self, total: int, context: int) -> None:
        self.total, self.context = total, context
        self.reserved = self.peak = 0
        self.fraction: float | None = None
        self.memory = SimpleNamespace()

    def is_available(self) -> bool:
        return True

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return self.total - self.context - self.reserved, self.total

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        assert 0 <= fraction <= 1, "torch refuses others"
        self.fraction = fraction

    def memory_reserved(self) -> int:
        return self.reserved

    def max_memory_allocated(self) -> int:
        return self.peak // 2

    def max_memory_reserved(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.reserved

    def take(self, size: int) -> None:
        self.reserved = self.peak = size


class Backends:
    """`torch.backends.cuda`, with every attention kernel on."""

    def __init__(self) -> None:
        self.on = {"flash", "cudnn", "mem_efficient"}

    def enable_flash_sdp(self, enabled: bool) -> None:
        assert not enabled
        self.on.discard("flash")

    def enable_cudnn_sdp(self, enabled: bool) -> None:
        assert not enabled
        self.on.discard("cudnn")


class Shell:
    """IPython's shell, as far as the startup file asks it."""

    def __init__(self) -> None:
        self.hooks: list[Callable[..., None]] = []
        self.events = self

    def register(self, event: str, hook: Callable[..., None]) -> None:
        assert event == "post_run_cell"
        self.hooks.append(hook)

    def run_cell(self) -> None:
        for hook in self.hooks:
            hook(None)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Shell]]:
    """A function that executes the startup file, as a kernel would, on a card that is none."""

    def begin(card: Card, cap: int | None) -> tuple[Any, Shell]:
        fake = SimpleNamespace(cuda=card, backends=SimpleNamespace(cuda=Backends()))
        environment = kernel.write_startup(tmp_path / "ipython", tmp_path / "memory.json", cap)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (startup,) = Path(environment["IPYTHONDIR"]).glob("profile_default/startup/*.py")
        shell = Shell()
        names: dict[str, Any] = {"get_ipython": lambda: shell}
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "torch", fake)
            exec(compile(startup.read_text(encoding="utf-8"), startup, "exec"), names)
        assert set(names) <= {"get_ipython", "__builtins__"}, "the notebook would see our names"
        return fake, shell

    return begin


def found(tmp_path: Path) -> dict[str, int | None]:
    content: dict[str, int | None] = json.loads((tmp_path / "memory.json").read_text())
    return content


@unit
def test_a_launched_process_counts_too(tmp_path: Path) -> None:
    """torchrun's processes are watched as the kernel is; the peak is that of the largest."""
    report = tmp_path / "memory.json"
    environment = kernel.write_startup(tmp_path / "ipython", report, 15 * GIB)
    path = os.pathsep.join([environment["IPYTHONDIR"], str(ROOT)])
    for number in range(2):
        environment["RANK"] = str(number)
        there = os.environ | environment | {"PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", "pass"], env=there, check=True)
    assert len(list(tmp_path.glob("memory-*.json"))) == 2
    assert kernel.with_launched(tmp_path / "none.json") == {}
    kernels = {"memory_cap_bytes": 15 * GIB, "peak_reserved_bytes": 1, "peak_allocated_bytes": 5}
    report.write_text(json.dumps(kernels), encoding="utf-8")
    launched = next(tmp_path.glob("memory-*.json"))
    launched.write_text(json.dumps(kernels | {"peak_reserved_bytes": 9, "memory_cap_bytes": 0}))
    assert kernel.with_launched(report) == kernels | {"peak_reserved_bytes": 9}


@unit
def test_the_cap_is_that_of_the_whole_process(start: Any, tmp_path: Path) -> None:
    fake, _ = start(Card(80 * GIB, context=GIB), 15 * GIB)
    assert fake.cuda.fraction == pytest.approx(14 / 80)
    assert found(tmp_path)["memory_cap_bytes"] == 15 * GIB
    assert found(tmp_path)["context_bytes"] == GIB
    assert fake.backends.cuda.on == {"mem_efficient"}, "a T4 has no other"
    # Who asks gets the answer of a card of 15 GiB.
    assert fake.cuda.mem_get_info() == (14 * GIB, 15 * GIB)
    fake.cuda.take(6 * GIB)
    assert fake.cuda.mem_get_info(0) == fake.cuda.memory.mem_get_info() == (8 * GIB, 15 * GIB)


@unit
def test_a_smaller_card_is_its_own_cap(start: Any, tmp_path: Path) -> None:
    fake, _ = start(Card(14 * GIB, context=GIB), 15 * GIB)
    assert fake.cuda.fraction == pytest.approx(13 / 14)
    assert found(tmp_path)["memory_cap_bytes"] == 14 * GIB


@unit
def test_without_a_cap_nothing_is_limited(start: Any, tmp_path: Path) -> None:
    fake, shell = start(Card(80 * GIB, context=GIB), None)
    fake.cuda.take(60 * GIB)
    shell.run_cell()
    assert fake.cuda.fraction is None
    assert "flash" in fake.backends.cuda.on
    assert fake.cuda.mem_get_info() == (19 * GIB, 80 * GIB)
    assert found(tmp_path)["memory_cap_bytes"] is None
    assert found(tmp_path)["peak_reserved_bytes"] == 60 * GIB


@unit
def test_the_peak_outlives_a_new_count(start: Any, tmp_path: Path) -> None:
    """A notebook that compares two trainings starts the count anew before each."""
    fake, shell = start(Card(80 * GIB, context=GIB), 15 * GIB)
    fake.cuda.take(12 * GIB)
    fake.cuda.reserved = GIB
    fake.cuda.reset_peak_memory_stats()
    assert fake.cuda.max_memory_reserved() == GIB
    shell.run_cell()
    assert found(tmp_path)["peak_reserved_bytes"] == 12 * GIB
    assert found(tmp_path)["peak_allocated_bytes"] == 6 * GIB


# --- The machine ----------------------------------------------------------------------------


@unit
def test_versions_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "poetry.lock"
    lock.write_text(
        '[[package]]\nname = "torch"\nversion = "2.15.0"\n'
        '[[package]]\nname = "Rouge_Score"\nversion = "0.1.2"\n'
    )
    here = {"torch": "2.11.0+cu130", "rouge-score": "0.1.2", "unlocked": "1"}
    wrong = {"torch": {"here": "2.11.0+cu130", "locked": "2.15.0"}}
    assert machine.differing(here, lock) == wrong
    assert machine.differing({"torch": "2.15.0+cu132"}, lock) == {}


@unit
def test_this_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.describe()
    assert here["cuda"] == torch.cuda.is_available() and here["device"]
    assert machine.missing("peft") == []
    monkeypatch.setenv("PATH", "")
    assert machine.driver_version() == "unknown"


# --- Records --------------------------------------------------------------------------------


def passed(profile: str = "gpu16", **record: Any) -> Outcome:
    return Outcome(FALCON, profile, "passed", "", record)


def failed(why: str = "OutOfMemoryError: no") -> Outcome:
    return Outcome(FALCON, "gpu16", "failed", why, {"steps": 1})


@unit
def test_a_failure_never_replaces_what_passed(tmp_path: Path) -> None:
    good = records.write(passed(number=1), "NVIDIA H100 80GB HBM3", tmp_path)
    assert good == tmp_path / FALCON / "gpu16-nvidia-h100-80gb-hbm3.json"
    before = good.read_bytes()
    bad = records.write(failed(), "NVIDIA H100 80GB HBM3", tmp_path)
    assert good.read_bytes() == before and bad != good
    content = json.loads(bad.read_text(encoding="utf-8"))
    assert (content["status"], content["error"]) == ("failed", "OutOfMemoryError: no")
    assert content["steps"] == 1, "what was known before it failed"

    records.write(passed(number=2), "NVIDIA H100 80GB HBM3", tmp_path)
    assert json.loads(good.read_text(encoding="utf-8"))["number"] == 2
    assert list(good.parent.iterdir()) == [good], "no failure and no half-written file is left"


@unit
def test_the_table_has_a_line_for_each() -> None:
    memory = {"peak_reserved_bytes": 12 * GIB, "memory_cap_bytes": 15 * GIB}
    speed = {"tokens_per_second": 10.0, "steady_tokens_per_second": 1234.5}
    absent = Outcome(GPT2, "gpu80", "not run", "missing packages: deeplake")
    text = records.table([passed(memory=memory, speed=speed), failed(), absent])
    head, first, second, third = text.splitlines()
    assert first.split() == [FALCON, "gpu16", "passed", "12.0", "15.0", "1234"]
    assert "failed" in second and second.endswith("OutOfMemoryError: no")
    assert "not run" in third and third.endswith("missing packages: deeplake")


@unit
def test_exit_statuses() -> None:
    absent = Outcome(GPT2, "gpu80", "not run", "too small")
    assert records.exit_status([passed(), absent]) == 0
    assert records.exit_status([passed(), failed(), absent]) == 1
    assert records.exit_status([absent]) == records.exit_status([]) == 3


@unit
def test_the_speed_leaves_the_first_step_and_the_saving_out(tmp_path: Path) -> None:
    # An earlier training of the same run is another one's.
    for folder, times in (("warm-up", (0, 50, 100)), ("checkpoints", (100, 120, 122, 124, 133))):
        with SummaryWriter(str(tmp_path / folder / "runs")) as writer:
            for step, seconds in enumerate(times, start=1):
                writer.add_scalar(records.LOSS, 1.0, step, walltime=1000 + seconds)
        time.sleep(0.05)
    assert records.steady_seconds(tmp_path) == pytest.approx(5.5)  # of 20, 2, 2 and 9
    assert records.steady_seconds(tmp_path / "nothing") is None


# --- What can be tried ----------------------------------------------------------------------


@unit
@pytest.mark.usefixtures("room")
def test_what_is_missing_is_said_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.check_possible(a_trial(), H100, tmp_path)
    with pytest.raises(NotRun, match="gpu80 needs a card of 40 GiB; this has 14"):
        trial.check_possible(a_trial(profile="gpu80"), T4, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * GIB))
        with pytest.raises(NotRun, match="needs 19 GiB of disk in .*, 10 are free: set TMPDIR"):
            trial.check_possible(a_trial(), H100, tmp_path)
    with monkeypatch.context() as patched:
        patched.setenv("COOKBOOK_OFFLINE", str(tmp_path))
        with pytest.raises(NotRun, match="general-text.*run `make offline`"):
            trial.check_possible(a_trial(), H100, tmp_path)
    with monkeypatch.context() as patched:
        patched.delitem(ARCHITECTURES, "tiiuae/falcon-7b")
        with pytest.raises(NotRun, match="no configuration of tiiuae/falcon-7b"):
            trial.check_possible(a_trial(), H100, tmp_path)


@unit
def test_what_leads_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COOKBOOK_SEED", "COOKBOOK_MODEL", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.setenv(name, "of another")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    places = (tmp_path, tmp_path / "model", tmp_path / "data")
    found = trial.notebook_environment(a_trial(), H100, *places)
    assert found["COOKBOOK_PRECISION"] == "float16"
    assert found["COOKBOOK_MODEL"] == str(tmp_path / "model")
    assert (found["COOKBOOK_MAX_STEPS"], found["COOKBOOK_SEED"]) == ("4", "0")
    assert found["COOKBOOK_ANY_VERSION"] == found["HF_HUB_OFFLINE"] == "1"
    assert found["CUDA_VISIBLE_DEVICES"] == "2", "one GPU"
    assert found[kernel.CAP] == str(15 * GIB)
    assert not {"HF_ENDPOINT", "HF_TOKEN", "COOKBOOK_ALLOW_CPU"} & set(found)

    big = a_trial(profile="gpu80", cap=None)
    found = trial.notebook_environment(big, H100, tmp_path / "2", *places[1:])
    assert "COOKBOOK_PRECISION" not in found and not found[kernel.CAP]
    found = trial.notebook_environment(a_trial(), NO_GPU, tmp_path / "3", *places[1:])
    assert found["COOKBOOK_ALLOW_CPU"] == "1" and "COOKBOOK_PRECISION" not in found


# --- When it fails --------------------------------------------------------------------------


@unit
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (Failed(f"no; see {ROOT}/runs/a.log"), "failed", "no; see runs/a.log"),
        (KeyError("train"), "failed", "KeyError: 'train'"),
        (NotRun("too little memory"), "not run", "too little memory"),
    ],
)
def test_a_failure_is_an_outcome(
    error: Exception, status: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    def run(_: Trial, __: Any, scratch: Path, record: dict[str, Any]) -> None:
        (scratch / "model").mkdir()
        folders.append(scratch)
        record["known"] = 1
        raise error

    monkeypatch.setattr(trial, "_run", run)
    outcome = trial.attempt(a_trial(), H100)
    assert (outcome.status, outcome.why) == (status, why)
    assert not folders[0].exists(), "the model is deleted"
    if status == "failed":
        assert outcome.record["known"] == 1 and outcome.record["versions"]["torch"]


GOOD: dict[str, Any] = {
    "memory": {"memory_cap_bytes": 15 * GIB, "peak_reserved_bytes": 9 * GIB},
    "data": {"filled": 0.97},
    "speed": {"steps": 4},
}


@unit
@pytest.mark.parametrize(
    ("part", "wrong", "complaint"),
    [
        ("memory", {}, "did not run the startup file"),
        ("memory", {"memory_cap_bytes": None, "peak_reserved_bytes": 1}, "the cap was None"),
        ("memory", GOOD["memory"] | {"peak_reserved_bytes": 0}, "nothing was allocated"),
        ("data", {"filled": 0.6}, "rows filled 60%.*correct `spare`"),
        ("speed", {"steps": 3}, "3 steps instead of 4"),
    ],
)
def test_a_run_that_shows_nothing_is_a_failure(
    part: str, wrong: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    trial._check(a_trial(), H100, tmp_path, GOOD)
    with pytest.raises(Failed, match=complaint):
        trial._check(a_trial(), H100, tmp_path, GOOD | {part: wrong})


@unit
def test_a_vocabulary_that_was_not_learned_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for rows, right in ((50_257, True), (31_000, False)):
        (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": rows}))
        if right:
            trial._check(a_trial(GPT2), H100, tmp_path, GOOD)
        else:
            with pytest.raises(Failed, match="has 31000 tokens"):
                trial._check(a_trial(GPT2), H100, tmp_path, GOOD)


@unit
def test_a_command_is_shown_kept_and_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, environment = tmp_path / "log", dict(os.environ)
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert trial.run_logged([sys.executable, "-c", code], environment, log, 60) == (3, "two")
    assert log.read_text() == "one\ntwo\n" == capsys.readouterr().out

    # Like a kernel, the child is in a session of its own.
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(60)'], start_new_session=True); print(child.pid, flush=True); "
        "time.sleep(60)"
    )
    status, child = trial.run_logged([sys.executable, "-c", code], environment, log, 4)
    assert status is None
    try:
        assert psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        pass  # a dead process may wait for its new parent to notice


@unit
def test_the_error_of_a_notebook_is_one_line(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("1 / 0")
    path = tmp_path / "a.failed.ipynb"
    for outputs, text in (
        ([], ""),
        (
            [nbformat.v4.new_output("error", ename="OSError", evalue="long\nNo space left\n")],
            "OSError: No space left",
        ),
    ):
        cell.outputs = outputs
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        assert trial.error_of(path) == text


# --- The command ----------------------------------------------------------------------------


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """A function that makes this machine look like another."""
    return lambda here: monkeypatch.setattr(machine, "describe", lambda: here)


@unit
def test_without_a_gpu_it_says_so(
    on: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    on(NO_GPU)
    assert check.main(["--results", str(tmp_path)]) == 2
    assert "torch sees no CUDA GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@unit
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--recipe", "02-PEFT/None"], f"there is no recipe 02-PEFT/None; there are {DISTRIBUTED}"),
        (["--scale", "tiny"], "needs --results FOLDER"),
        (["--scale", "tiny", "--results", str(records.RESULTS / "x")], "needs --results FOLDER"),
        (["--steps", "0"], "--steps must be 1 or more"),
    ],
)
def test_nonsense_is_refused(
    arguments: list[str], complaint: str, on: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    on(H100)
    with pytest.raises(SystemExit) as stopped:
        check.main(arguments)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


@unit
def test_one_failure_does_not_stop_the_others(
    on: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on(H100)

    def attempt(tried: Trial, _: Any) -> Outcome:
        assert tried.cap == (15 * GIB if tried.profile == "gpu16" else None)
        assert tried.steps == check.STEPS["full"]
        status: Any = "failed" if tried.profile == "gpu16" else "passed"
        return Outcome(tried.recipe, tried.profile, status, "")

    monkeypatch.setattr(trial, "attempt", attempt)
    arguments = ["--results", str(tmp_path), "--recipe", f"{FALCON}.ipynb"]
    assert check.main(arguments) == 1
    names = {path.name for path in (tmp_path / FALCON).iterdir()}
    device = "nvidia-h100-80gb-hbm3"
    assert names == {f"gpu16-{device}.failed.json", f"gpu80-{device}.json"}
    assert check.main([*arguments, "--profile", "gpu80"]) == 0
    assert "gpu80    passed" in capsys.readouterr().out


@unit
def test_missing_packages_are_named_and_nothing_is_recorded(
    on: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on(H100)
    monkeypatch.setattr(machine, "missing", lambda group: ["bitsandbytes", "trl"])
    assert check.main(["--results", str(tmp_path), "--recipe", FALCON]) == 3
    said = capsys.readouterr().out
    assert "missing packages: bitsandbytes, trl (make install-peft)" in said
    assert list(tmp_path.iterdir()) == []


# --- The rehearsal --------------------------------------------------------------------------


@pytest.mark.recipes
def test_a_rehearsal_from_end_to_end(
    on: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The unmodified notebook in a real kernel, with a tiny model; nothing but the record stays."""
    on(NO_GPU)
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    notebook = ROOT / f"{REHEARSED}.ipynb"
    before = notebook.read_bytes()
    results = tmp_path / "results"
    arguments = ["--scale", "tiny", "--results", str(results), "--recipe", REHEARSED]
    assert check.main([*arguments, "--profile", "gpu16"]) == 0
    assert notebook.read_bytes() == before
    assert not list(tmp_path.glob(f"{trial.PREFIX}*")), "the model is deleted"

    record = json.loads((results / REHEARSED / "gpu16-some-processor.json").read_text())
    assert record["status"] == "passed" and record["scale"] == "tiny"
    assert record["data"]["filled"] > examples.FULL
    assert record["memory"]["memory_cap_bytes"] is None, "noted by the kernel; there is no GPU"
    assert record["speed"]["steps"] == 2 and record["speed"]["tokens_per_second"] > 0
    assert record["metrics_json"]["model"] == "opt-1.3b"
