"""The Falcon notebook with a reader's own model and data, on the path that a GPU takes.

A tiny random Falcon (the true class) stands in for the 7B one, on the profile `gpu16` with
`COOKBOOK_ALLOW_CPU=1`: quantization, adapter targets, template, arguments, merge and resume are
all exercised; that something is learned is the other test's matter.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbmake.nb_run import NotebookRun

from cookbook.profiles import ROOT
from tests.recipes.test_any_model import tiny

pytestmark = [pytest.mark.own, pytest.mark.held("own")]

NOTEBOOK = ROOT / "02-PEFT" / "Falcon-7B-LoRA.ipynb"
TIMEOUT = 300  # seconds per cell


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Falcon, without chat template and pad token, and a JSONL file."""
    folder = tmp_path_factory.mktemp("own")
    tiny("falcon", {"num_attention_heads": 4, "bos_token_id": None}, folder / "falcon")
    rows = [{"prompt": f"Say {n}", "completion": f"{n} it is."} for n in range(60)]
    rows.append({"prompt": "", "completion": "nothing asked"})
    rows.append({"prompt": "too long", "completion": "word " * 2000})
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def environment(own: Path, monkeypatch: pytest.MonkeyPatch, shared_start: None) -> Iterator[None]:
    values = {
        "PROFILE": "gpu16",
        "ALLOW_CPU": "1",
        "MODEL": str(own / "falcon"),
        "DATASET": str(own / "mine.jsonl"),
        "MAX_STEPS": "4",
        "SEED": "0",
        "RUNS": str(own / "runs"),
    }
    for name, value in values.items():
        monkeypatch.setenv(f"COOKBOOK_{name}", value)
    yield


def _execute() -> str:
    """Run the notebook and return everything it printed."""
    result = NotebookRun(NOTEBOOK, TIMEOUT).execute()
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    return _printed(result.nb)


def _printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_02_peft_own_model_and_data_and_resume(own: Path) -> None:
    run = own / "runs" / "02-PEFT" / "Falcon-7B-LoRA" / "gpu16-own"
    printed = _execute()
    assert "8 linear layers in 4 bits" in printed
    assert "answers are equal in float32" in printed
    assert "Dropped 1 rows" in printed and "over 512 tokens" in printed
    first = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (first["train"]["steps"], first["train"]["resumed_from_step"]) == (4, 0)
    assert (first["model"], first["dataset"]) == ("falcon", "mine.jsonl")

    # As if the machine had stopped while the last checkpoint was being written.
    (run / "metrics.json").unlink()
    (run / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(b"torn")
    printed = _execute()
    assert "checkpoint-4 is not whole" in printed
    second = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert second["train"]["resumed_from_step"] == 3
    after = [content["metrics"][0]["after"] for content in (first, second)]
    assert after[0] == pytest.approx(after[1], abs=1e-4), "resuming changed the result"


def test_02_peft_a_template_without_end_of_turn_is_refused(own: Path) -> None:
    folder = own / "falcon"
    template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    try:
        result = NotebookRun(NOTEBOOK, TIMEOUT).execute()
    finally:
        (folder / "chat_template.jinja").unlink()
    assert result.error is not None
    assert "does not supervise the end-of-turn token" in str(result.error.summary)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("COOKBOOK_DATASET", "columns.jsonl", "needed are `prompt` and `completion`"),
        ("COOKBOOK_DATASET", "long.jsonl", "Raise `max_length`"),
        ("COOKBOOK_MODEL", "pickled", "pickled weights are not loaded"),
    ],
)
def test_02_peft_bad_input_stops_early_and_leaves_earlier_runs_alone(
    own: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    rows = [{"frage": f"a{n}", "antwort": f"b{n}"} for n in range(40)]
    (own / "columns.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    rows = [{"prompt": f"{n}", "completion": f"word{n} " * 1000} for n in range(40)]
    (own / "long.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (own / "pickled").mkdir(exist_ok=True)
    (own / "pickled" / "config.json").write_text("{}", encoding="utf-8")
    (own / "pickled" / "pytorch_model.bin").write_bytes(b"weights")
    earlier = own / "runs" / "02-PEFT" / "Falcon-7B-LoRA" / "gpu16-own"
    (earlier / "checkpoints").mkdir(parents=True, exist_ok=True)
    (earlier / "checkpoints" / "kept").write_text("earlier work", encoding="utf-8")
    before = _files(earlier)

    monkeypatch.setenv(variable, str(own / value))
    result = NotebookRun(NOTEBOOK, TIMEOUT).execute()
    assert result.error is not None
    assert complaint in str(result.error.summary)
    assert _files(earlier) == before
