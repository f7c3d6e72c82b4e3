"""Every recipe with a model architecture and data that its notebook does not name.

Two steps on tiny random models: that the reader's own model and data go through is proven, not that
anything is learned.
"""

import csv
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nbmake.nb_run import NotebookRun
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from cookbook.commands import record
from cookbook.profiles import ROOT
from tests.hub.endings import before_answers, end_soon
from tests.hub.notebooks import DISTRIBUTED, as_if_launched
from tests.hub.tokenizing import smollm2_tokenizer

TIMEOUT = 300  # seconds per cell
WORDS = (
    "amber bridge candle desert engine forest garden harbor island jacket kettle lantern".split()
)
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
SMALL |= {"num_hidden_layers": 2, "max_position_embeddings": 256}


def sentence(number: int) -> str:
    """Return a sentence unlike those of other numbers."""
    return f"Number {number}: {' '.join(random.Random(number).choices(WORDS, k=12))}."


def as_text(folder: Path) -> Path:
    """A JSONL file for pre-training, one of its rows without text."""
    rows = [{"text": " ".join(sentence(40 * n + k) for k in range(40))} for n in range(40)]
    return _jsonl(folder / "text.jsonl", [*rows, {"text": " "}])


def as_messages(folder: Path) -> Path:
    """A folder of JSONL files, `train` and `test`, with conversations of several turns."""
    (folder / "chat").mkdir()
    for split, first in (("train", 0), ("test", 100)):
        rows = []
        for n in range(first, first + 40):
            turns = [("user", f"Item {n}?"), ("assistant", sentence(n))]
            turns += [("user", "And the next?"), ("assistant", sentence(n + 1))]
            rows.append({"messages": [{"role": who, "content": said} for who, said in turns]})
        _jsonl(folder / "chat" / f"{split}.jsonl", rows)
    return folder / "chat"


def as_documents(folder: Path) -> Path:
    """A Parquet file of documents and summaries."""
    from datasets import Dataset

    rows = [
        {"document": f"{sentence(n)} {sentence(n + 50)}", "summary": f"It is {n}."}
        for n in range(60)
    ]
    Dataset.from_list(rows).to_parquet(str(folder / "documents.parquet"))
    return folder / "documents.parquet"


def as_labels(folder: Path) -> Path:
    """A CSV file of texts with two classes, one of them rare."""
    path = folder / "labels.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([sentence(n), "urgent" if n % 4 == 0 else "calm"] for n in range(80))
    return path


def as_problems(folder: Path) -> Path:
    """A JSONL file of problems with a figure on the last line, one of them without a completion."""
    rows = [
        {"prompt": sentence(n), "completion": f"{n}+1={n + 1}\n#### {n + 1}"} for n in range(60)
    ]
    return _jsonl(folder / "problems.jsonl", [*rows, {"prompt": "What?", "completion": " "}])


def as_thoughts(folder: Path) -> Path:
    """A JSONL file of thoughts and answers; one row has no thought, and one no answer."""
    rows = [
        {
            "prompt": sentence(n),
            "completion": f"<think>\n{n}+1={n + 1}\n</think>\n\nIt is {n + 1}.",
            "answer": str(n + 1),
        }
        for n in range(60)
    ]
    rows.append({"prompt": "One?", "completion": "It is 1.", "answer": "1"})
    rows.append({"prompt": "What?", "completion": "<think>\nHm.\n</think>", "answer": "2"})
    return _jsonl(folder / "thoughts.jsonl", rows)


def as_checked(folder: Path) -> Path:
    """A JSONL file of problems and numbers as answers, one of them missing; no worked solutions."""
    rows = [{"prompt": sentence(n), "answer": n} for n in range(60)]
    return _jsonl(folder / "checked.jsonl", [*rows, {"prompt": "What?", "answer": None}])


def as_ratings(folder: Path) -> Path:
    """A JSONL file of answers with stars, four to a question; of one all are rated the same."""
    rows = [
        {"question": sentence(n), "response": sentence(100 + 4 * n + k), "stars": (n + k) % 4 + 1}
        for n in range(40)
        for k in range(4)
    ]
    same = [{"question": "What?", "response": sentence(k), "stars": 3} for k in (400, 401)]
    return _jsonl(folder / "ratings.jsonl", [*rows, *same])


def as_thumbs(folder: Path) -> Path:
    """A JSONL file of answers with thumbs, a third of them up; of one nobody said anything."""
    rows = [
        {"query": sentence(n), "output": sentence(100 + n), "feedback": "down" if n % 3 else "up"}
        for n in range(90)
    ]
    return _jsonl(folder / "thumbs.jsonl", [*rows, {"query": "What?", "output": "So."}])


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


EXPERTS = {"num_key_value_heads": 1, "head_dim": 32, "num_experts_per_tok": 2}
EXPERTS |= {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 32}
# Recipe -> an architecture and a file format that its notebook does not name.
OWN: dict[str, tuple[str, dict[str, Any], Callable[[Path], Path]]] = {
    "01-Full-Fine-Tuning/GPT-2-From-Scratch": ("gpt_neox", {}, as_text),
    DISTRIBUTED: ("qwen3_moe", EXPERTS, as_messages),
    "02-PEFT/Falcon-7B-LoRA": ("mixtral", EXPERTS, as_messages),
    "02-PEFT/PEFT-Methods-Compared": ("gpt_neox", {}, as_problems),
    "03-Instruction-Tuning/Financial-Sentiment-OPT": ("phi", {}, as_labels),
    "03-Instruction-Tuning/Summarization-FLAN-T5": ("olmoe", EXPERTS, as_documents),
    "04-Reasoning-Tuning/Financial-Reasoning-Gemma-3": (
        "qwen2",
        {"num_key_value_heads": 1},
        as_problems,
    ),
    "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO": ("qwen3_moe", EXPERTS, as_checked),
    "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational": (
        "mistral",
        {"num_key_value_heads": 1},
        as_thoughts,
    ),
    "05-Export-and-Serving/Export-and-Serve": ("llama", {"num_key_value_heads": 1}, as_messages),
    "06-Preference-Tuning/DPO-Preference-Tuning": ("gpt_neox", {}, as_ratings),
    "06-Preference-Tuning/KTO-Thumbs-Up-Down": ("phi", {}, as_thumbs),
    "06-Preference-Tuning/Reward-Model-and-Best-of-N": ("olmo2", {}, as_ratings),
}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two steps on the cpu profile, results below a temporary folder."""
    values = {"PROFILE": "cpu", "MAX_STEPS": "2", "SEED": "0", "RUNS": str(tmp_path / "runs")}
    for name, value in values.items():
        monkeypatch.setenv(f"COOKBOOK_{name}", value)
    yield tmp_path


def tiny(model_type: str, own: dict[str, Any], folder: Path) -> Path:
    """Write a tiny random model of a type, a base model without chat template and pad token.

    It ends its turns. Most of the arithmetic of so small a model is its output layer: with few
    tokens it takes seconds also where a processor emulates bfloat16.
    """
    tokenizer = smollm2_tokenizer()
    end = tokenizer.eos_token_id
    shape = {**SMALL, "vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end}
    config = AutoConfig.for_model(model_type, **shape | own)
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    end_soon(model, end, before_answers(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _changed_experts(run: Path, before: Path) -> bool:
    """Tell whether training changed most experts: a saved model's, or those an adapter is on.

    A few tokens need not reach all.
    """
    names = ("adapter/adapter_model", "lora/adapter_model", "model/model", "full/model")
    saved = [path for name in names if (path := run / f"{name}.safetensors").is_file()]
    assert saved
    for path in saved:
        experts = {name: one for name, one in load_file(path).items() if "expert" in name}
        if path.stem == "adapter_model":  # B is 0 before the first step
            experts = {name: one for name, one in experts.items() if "lora_B" in name}
            moved = [bool(one.any()) for one in experts.values()]
        else:
            old = load_file(before / "model.safetensors")
            moved = [not one.equal(old[name]) for name, one in experts.items()]
        if 2 * sum(moved) <= len(moved):
            return False
    return True


@pytest.mark.own
def test_every_recipe_is_covered() -> None:
    recipes = {str(path.relative_to(ROOT).with_suffix("")) for path in record.notebooks()}
    assert set(OWN) == recipes


# Both precisions, whatever this processor picks: each is the default on many machines.
@pytest.mark.own
@pytest.mark.held("own")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", OWN)
def test_own_model_and_data(
    recipe: str,
    precision: str,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared_start: None,
) -> None:
    monkeypatch.setenv("COOKBOOK_PRECISION", precision)
    if recipe == DISTRIBUTED and precision == "bfloat16":
        as_if_launched(monkeypatch)  # once is enough for the processes that it starts
    model_type, own, write = OWN[recipe]
    data = write(environment)
    monkeypatch.setenv("COOKBOOK_MODEL", str(tiny(model_type, own, environment / model_type)))
    monkeypatch.setenv("COOKBOOK_DATASET", str(data))
    result = NotebookRun(ROOT / f"{recipe}.ipynb", TIMEOUT).execute()
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    run = environment / "runs" / recipe / "cpu-own"
    content = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert content["train"]["steps"] == 2
    assert content["hardware"]["precision"] == precision
    assert (content["model"], content["dataset"]) == (model_type, data.name)
    saved = [path for path in run.rglob("config.json") if path.parent.name != "checkpoints"]
    adapters = list(run.rglob("adapter_config.json"))
    assert saved or adapters, "nothing was saved"
    if own is EXPERTS:
        assert _changed_experts(run, environment / model_type), "no expert was trained"
    pickled = {path.name for path in run.rglob("*.bin")} - {"training_args.bin"}
    assert not pickled, "weights are saved as safetensors only"
