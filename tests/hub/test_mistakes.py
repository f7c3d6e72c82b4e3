"""Mistakes that people make on the headline path: each stops with words that name it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cookbook.profiles import ROOT
from tests.hub.notebooks import (
    complaint,
    execute,
    name_of,
    settings_of,
    with_changes,
)
from tests.hub.server import LoopbackHub

pytestmark = pytest.mark.hub

Lead = Callable[[LoopbackHub, str], Path]

FALCON = ROOT / "02-PEFT" / "Falcon-7B-LoRA.ipynb"
OPT = ROOT / "03-Instruction-Tuning" / "Financial-Sentiment-OPT.ipynb"
GEMMA = ROOT / "04-Reasoning-Tuning" / "Financial-Reasoning-Gemma-3.ipynb"
QWEN3 = ROOT / "04-Reasoning-Tuning" / "Qwen3-Reasoning-Conversational.ipynb"
# What comes before training need not be measured on many rows.
QUICK = {
    "(96,     256,": "(96,     4,",  # eval_examples
    "(32,     64,     128),    # for": "(32,     2,      128),    # for",
    "(48,     128,": "(48,     2,",  # max_new_tokens
}


def _complaint(path: Path, runs: Path) -> str:
    """Run a notebook that must fail before it writes a result, and return what it said."""
    said = complaint(execute(path).nb)
    assert said, "the mistake went unnoticed"
    assert not list(runs.rglob("metrics.json")), "a failed run left a result"
    return said


def test_a_lora_target_of_another_model_is_named(
    hub: LoopbackHub, lead_to: Lead, tmp_path: Path
) -> None:
    # Names of Llama's layers, as in most examples on the web. Falcon has none of them.
    wrong = {"**experts.lora_targets(model_config)": 'target_modules=["q_proj"]'}
    said = _complaint(with_changes(FALCON, tmp_path, wrong | QUICK), lead_to(hub, "gpu16"))
    assert "Target modules" in said and "q_proj" in said and "not found" in said


def test_a_silently_unquantized_model_is_noticed(
    hub: LoopbackHub, lead_to: Lead, tmp_path: Path
) -> None:
    removed = {"modeling_falcon.FalconLinear = torch.nn.Linear": ""}
    said = _complaint(with_changes(FALCON, tmp_path, removed), lead_to(hub, "gpu16"))
    assert "only 0 of 8 linear layers are in 4 bits" in said


@pytest.mark.parametrize("path", [FALCON, OPT], ids=name_of)
def test_a_chat_template_without_end_of_turn_is_refused(
    path: Path, own_hub: LoopbackHub, lead_to: Lead
) -> None:
    template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    model = own_hub.root / "models" / settings_of(path, "gpu16")["model"]
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    said = _complaint(path, lead_to(own_hub, "gpu16"))
    # Without the token in the labels the model would be trained never to stop.
    assert "does not supervise the end-of-turn token" in said


class _Runs:
    """What a pickle can hold: the name of a function, and what to call it with."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._mark),)


def test_code_inside_pickled_weights_does_not_run(
    own_hub: LoopbackHub, lead_to: Lead, tmp_path: Path
) -> None:
    mark = tmp_path / "it ran"
    model = own_hub.root / "models" / settings_of(OPT, "gpu16")["model"]
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    torch.save({"lm_head.weight": _Runs(mark)}, model / "pytorch_model.bin")
    said = _complaint(OPT, lead_to(own_hub, "gpu16"))
    assert "weights_only" in said or "Weights only load failed" in said, said
    assert not mark.exists()


def test_code_of_a_repository_does_not_run(
    own_hub: LoopbackHub, lead_to: Lead, tmp_path: Path
) -> None:
    mark = tmp_path / "it ran"
    model = own_hub.root / "models" / settings_of(OPT, "gpu16")["model"]
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    changed = config | {"model_type": "own", "auto_map": own}
    (model / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    (model / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n", encoding="utf-8")
    said = _complaint(OPT, lead_to(own_hub, "gpu16"))
    assert "no architecture 'own'" in said and "of its own is not run" in said
    assert not mark.exists()


def test_a_vision_model_whose_text_weights_are_not_found_is_refused(
    hub: LoopbackHub, lead_to: Lead, tmp_path: Path
) -> None:
    # Without the mapping of names transformers starts the text half from random weights.
    without = {"model_path, dtype=dtype)": "model_path, dtype=dtype, key_mapping=None)"}
    said = _complaint(with_changes(GEMMA, tmp_path, without), lead_to(hub, "gpu80"))
    assert "would be random weights" in said


def test_a_trained_empty_thought_is_refused(
    hub: LoopbackHub, lead_to: Lead, tmp_path: Path
) -> None:
    # Without the switch a direct row is rendered as if the model had to write the empty thought.
    removed = {'{"enable_thinking": thinking},': '{"enable_thinking": True},'}
    said = _complaint(with_changes(QWEN3, tmp_path, removed), lead_to(hub, "gpu16"))
    assert "A direct row trains the empty thought" in said
