"""Every notebook's lesson copies out: pasted without this repository, it trains.

The lines that a folder's README names are replaced, and no more; models and tokenizers come from
the loopback Hub, data from files of the reader's own.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cookbook.profiles import ROOT
from tests.containers.engine import free_port
from tests.hub.lessons import MOST, Line, lines_to_replace, pasted
from tests.hub.notebooks import DISTRIBUTED, NOTEBOOKS, name_of
from tests.hub.server import LoopbackHub
from tests.proofs import against_the_hub

Row = dict[str, Any]

# What the test adds: a machine without a GPU, and no time.
SMALL = """
dtype = torch.float32
for name, value in {small}.items():
    setattr(config, name, value)
"""
SETTINGS = {
    "max_steps": 2,
    "warm_up_steps": 1,
    "gradient_accumulation_steps": 1,
    "global_batch_size": 2,
    "per_device_train_batch_size": 2,
    "num_generations": 2,
    "max_new_tokens": 4,
    "max_completion_length": 8,
    "vocab_size": 300,
    "block_size": 32,
}


def _turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def conversation(n: int) -> Row:
    asked = _turn("user", f"What is {n} and {n}?")
    return {"prompt": [asked], "completion": [_turn("assistant", f"That is {2 * n}.")]}


ROWS: dict[str, Callable[[int], Row]] = {
    "GPT-2-From-Scratch": lambda n: {"text": f"{n} and {n} are {2 * n}. " * 20},
    "Distributed-Full-Fine-Tuning": conversation,
    "Falcon-7B-LoRA": conversation,
    "PEFT-Methods-Compared": lambda n: {"prompt": f"What is {n} and {n}?", "answer": str(2 * n)},
    "Financial-Sentiment-OPT": lambda n: {
        "text": f"Profit rose by {n}.",
        "label": ("negative", "neutral", "positive")[n % 3],
    },
    "Summarization-FLAN-T5": lambda n: {
        "document": f"There were {n} of them. Nobody knew.",
        "summary": f"There were {n}.",
    },
    "Financial-Reasoning-Gemma-3": lambda n: {
        "prompt": f"What is {n} and {n}?",
        "completion": f"{n} + {n} = {2 * n}\n#### {2 * n}",
    },
    "Math-Reasoning-Qwen-GRPO": lambda n: {
        "prompt": f"What is {n} and {n}?",
        "completion": f"{n} + {n} = {2 * n}\n#### {2 * n}",
        "answer": str(2 * n),
    },
    "Qwen3-Reasoning-Conversational": lambda n: {
        "prompt": f"What is {n} and {n}?",
        "completion": f"<think>\n{n} + {n} = {2 * n}\n</think>\n\n{2 * n}",
    },
    "Export-and-Serve": conversation,
    "DPO-Preference-Tuning": lambda n: {
        "prompt": [_turn("user", f"What is {n} and {n}?")],
        "chosen": [_turn("assistant", f"That is {2 * n}.")],
        "rejected": [_turn("assistant", f"That is {2 * n + 1}, I think.")],
    },
    "Reward-Model-and-Best-of-N": lambda n: {
        "prompt": [_turn("user", f"What is {n} and {n}?")],
        "chosen": [_turn("assistant", f"That is {2 * n}.")],
        "rejected": [_turn("assistant", f"I think it is {2 * n + 1}.")],
    },
    "KTO-Thumbs-Up-Down": lambda n: {
        "prompt": [_turn("user", f"What is {n} and {n}?")],
        "completion": [_turn("assistant", f"That is {2 * n + n % 3}.")],
        "label": n % 3 == 0,
    },
}


class _WithoutErrors(ast.NodeTransformer):
    """Leaves out what is raised: `data.DataError`, in place of which one has an own error."""

    def visit_Raise(self, node: ast.Raise) -> ast.Pass:
        return ast.Pass()


@pytest.mark.contract
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_few_lines_have_to_be_replaced(path: Path) -> None:
    lines = lines_to_replace(path)
    assert 0 < len(lines) <= MOST
    code = pasted(path, lines)
    tree = _WithoutErrors().visit(ast.parse(code))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {one.id for one in names if isinstance(one.ctx, ast.Store)}
    modules = {one.stem for one in (ROOT / "cookbook").glob("*.py")}
    assert {one.id for one in names} & modules <= own


@pytest.mark.contract
def test_a_line_that_is_not_there_is_found_out() -> None:
    with pytest.raises(LookupError, match="no cell tagged lesson has the line 'x = 1'"):
        pasted(NOTEBOOKS[0], [Line("x = 1", "x = 2")])


@pytest.mark.hub
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(one, id=name_of(one), marks=pytest.mark.held(against_the_hub(name_of(one))))
        for one in NOTEBOOKS
    ],
)
def test_the_lesson_trains_without_this_repository(
    path: Path, hub: LoopbackHub, caches: Path, tmp_path: Path
) -> None:
    for name, count in (("train", 24), ("test", 6)):
        rows = [json.dumps(ROWS[path.stem](n)) for n in range(1, count + 1)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    talks = [json.dumps(conversation(n)) for n in range(8)]
    (tmp_path / "chat.jsonl").write_text("\n".join(talks), encoding="utf-8")
    small = SMALL.format(small=SETTINGS)
    code = pasted(path, lines_to_replace(path), small)
    code += "\ntrained = [trainer] if 'trainer' in globals() else [*trainers.values()]"
    code += "\nprint('steps', *(one.state.global_step for one in trained))\n"
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    launched["MASTER_PORT"] = str(free_port())
    (tmp_path / "lesson.py").write_text(code, encoding="utf-8")
    # As if it were not installed: an import of it fails.
    alone = "import sys, runpy; sys.modules['cookbook'] = None; runpy.run_path('lesson.py')"
    done = subprocess.run(
        [sys.executable, "-c", alone],
        cwd=tmp_path,
        env={
            **os.environ,
            **hub.environment(caches),
            **(launched if name_of(path) == DISTRIBUTED else {}),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert done.stdout.splitlines()[-1].startswith("steps 2"), done.stdout[-2000:]
