"""Forms of rows x recipes x chat templates: what is learned, by the loading cells alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from cookbook.chat import IGNORED
from tests.reliability import files, loading
from tests.reliability.files import Row
from tests.reliability.loading import NOTEBOOKS, Outcome, Recipe
from tests.unit import templates

pytestmark = [pytest.mark.unit, pytest.mark.held("loading")]

# Templates that differ in what they take: anything; no system turn and only turns that alternate;
# the same with another name for the assistant; thoughts; no generation prompt.
KINDS = ("chatml", "mistral", "gemma", "qwen-3", "no-generation-prompt")
FORMS: dict[str, Callable[[list[Row], str, str], list[Row]]] = {
    "text": lambda rows, asked, answered: rows,
    "messages": files.in_messages,
    "sharegpt": files.in_sharegpt,
    "alpaca": files.in_alpaca,
    "trl": files.in_trl,
    "parts": files.in_parts,
    "questions": files.in_questions,
    "tools": files.with_tools,
}
CHAT = {"Falcon-7B-LoRA", "Distributed-Full-Fine-Tuning", "Export-and-Serve"}
ASIDE = "said beside it"  # every answer of the data that one recipe has beside a person's own
WORDS = "amber bridge candle desert engine forest garden harbor island jacket kettle".split()
ROOM = {"max_length": 4096, "max_prompt_length": 2048, "max_completion_length": 2048}


# GPT-2 reads texts, which have no form. Preferences have forms of their own, which a unit test has.
RECIPES = [
    one for one in NOTEBOOKS if "GPT-2" not in one.stem and "Preference" not in one.parent.name
]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the tiny models, each made once."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, models: Path) -> Path:
    """The folder of a tiny model with a chat template of a kind.

    Of the test's own scope: a wider one would put the kinds before the recipes, whose setups take
    seconds each.
    """
    folder: Path = models / request.param
    if not folder.is_dir():
        tokenizer = templates.KINDS[request.param].tokenizer()
        shape: Any = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
        config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **shape)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _rows(name: str) -> list[Row]:
    """Questions unlike each other, and answers as a recipe wants them."""
    rows = []
    for n in range(40):
        own = " ".join(WORDS[(n * k + k) % len(WORDS)] for k in range(1, 9))
        answer = f"{own} {n}"
        if name == "Financial-Sentiment-OPT":
            answer = ("calm", "urgent")[n % 2]
        elif name.startswith(("Financial-Reasoning", "Math", "PEFT", "Qwen3")):
            answer = f"{own}\n#### {n}"
        rows.append({"prompt": f"Number {n}: {own}?", "completion": answer})
    return rows


def _learned(outcome: Outcome) -> list[str]:
    """The runs of supervised tokens of every example, decoded."""
    tokenizer, runs = outcome.defined["tokenizer"], []
    for rows in outcome.supervised():
        for labels in rows["labels"]:
            run: list[int] = []
            for label in [*labels, IGNORED]:
                if label != IGNORED:
                    run.append(label)
                elif run:
                    runs.append(tokenizer.decode(run))
                    run = []
    return runs


def _wanted(name: str, form: str, rows: list[Row]) -> set[str]:
    """What may be learned of the rows, without the end of turn."""
    answers = {str(row["completion"]) for row in rows}
    if name.startswith(("Math", "PEFT")):
        return {f"#### {answer.rpartition('#### ')[2]}" for answer in answers}
    if name.startswith("Qwen3"):
        parts = [answer.partition("\n#### ") for answer in answers]
        thoughts = {f"<think>\n{steps}\n</think>\n\n{figure}" for steps, _, figure in parts}
        return thoughts | {figure for _, _, figure in parts}
    if form == "tools":
        return answers | {"call"}
    return answers


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem, indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_learned_is_what_was_answered(
    recipe: Recipe, model: Path, form: str, tmp_path: Path
) -> None:
    name = Path(recipe.name).name
    rows = _rows(name)
    kept = FORMS[form](rows, "prompt", "completion")
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, kept)), encoding="utf-8")
    aside = [{"prompt": f"Number {n}?", "completion": ASIDE} for n in range(20)]
    beside = tmp_path / "beside.jsonl"
    beside.write_text("\n".join(map(json.dumps, aside)), encoding="utf-8")
    with loading.scratch():
        outcome = recipe.load(path, model=str(model), second_dataset=str(beside), **ROOM)
    single = name not in CHAT
    if form in ("messages", "tools") and single:
        # Every second conversation has two questions, and a tool is no single question.
        assert "more than one question" in (outcome.refused or outcome.printed)
        assert (form == "tools") == bool(outcome.refused)
        return
    assert outcome.refused is None, outcome.refused
    known, end = templates.KINDS[model.name], outcome.defined["ends"][0]
    end = outcome.defined["tokenizer"].convert_ids_to_tokens(end)
    if not name.startswith("Qwen3"):  # which may bring a template of its own
        assert end == known.end
    learned = [run for run in _learned(outcome) if ASIDE not in run]
    _check(name, form, rows, learned, known.before, end)


def _plain(text: str) -> str:
    """A text with one blank for all between words: after a thought some templates write one line
    end, and some two.
    """
    return " ".join(text.split())


def _check(
    name: str, form: str, rows: list[Row], learned: list[str], before: str, end: str
) -> None:
    wanted = {_plain(one) for one in _wanted(name, form, rows)}
    seen = set()
    for run in learned:
        assert run.endswith(end), run
        said = _plain(run.removesuffix(end))
        if name.startswith("Qwen3") and said not in wanted:
            assert "####" not in said  # the embedded chat, which is mixed in
            continue
        said = said.removeprefix(_plain(before)).strip()
        if form == "tools" and '"name"' in said:
            assert '"look"' in said and "arguments" in said
            said = "call"
        assert said in wanted, run
        seen.add(said)
    least = 1 if name.startswith(("Financial-Sent", "Math")) else len(wanted) // 3
    assert len(seen) >= least, f"{len(seen)} of {len(wanted)} answers are learned"
    if form == "tools":
        assert "call" in seen
    if form == "messages" and name in CHAT:  # every second row has two answers
        assert len(learned) > 1.4 * len(rows)
