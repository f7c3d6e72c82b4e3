"""What a notebook measures of a server, the server beside it, and the list of what goes out."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cookbook.evaluation import Score
from cookbook.profiles import ROOT, CookbookError
from cookbook.serving import background, goingout, measuring, runs
from cookbook.serving.exporting import Export
from tests.serving.tiny_gguf import Tiny

pytestmark = pytest.mark.unit

METRIC = {
    "name": "loss",
    "higher_is_better": False,
    "before": 3.0,
    "after": 2.0,
    "ci95": {"before": [2.9, 3.1], "after": [1.9, 2.1]},
}
FORGETTING = {"name": "general", "before": 3.0, "after": 3.05}


def test_a_difference_is_of_the_same_examples() -> None:
    """Examples that differ widely do not widen the interval of what a format costs."""
    hard = [1.0, 9.0, 3.0, 7.0, 5.0, 2.0]
    rounded = [one + 0.1 for one in hard]
    found = measuring.paired(rounded, hard, [1.0] * len(hard))
    assert found.value == pytest.approx(0.1)
    assert found.interval[1] - found.interval[0] < 0.01


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_wait_at_any_time(at_once: int) -> None:
    lock, waiting, most = threading.Lock(), 0, 0

    def ask(prompt: str) -> int:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.02)
        with lock:
            waiting -= 1
        return len(prompt)

    found = measuring.throughput(ask, ["four"] * 9, at_once)
    assert most == at_once
    assert found["seconds"] >= 0.02
    # Nine answers of four tokens, a fiftieth of a second for each `at_once` of them.
    assert 0.3 < found["tokens_per_second"] / (9 * 4 / (0.02 * 9 / at_once)) <= 1


def test_what_serving_measured_is_kept_beside_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"metrics": [1]}', encoding="utf-8")
    score = Score(0.5, (0.25, 0.75), 3)
    measuring.keep(
        tmp_path, {"bf16": {"loss": score, "bytes": 7}}, {2: {"seconds": 1.0}}, under_load=(3, 4)
    )
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert content == {
        "metrics": [1],
        "serving": {
            "formats": {"bf16": {"loss": [0.5, 0.25, 0.75], "bytes": 7}},
            "at_once": {"2": {"seconds": 1.0}},
            "under_load": [3, 4],
        },
    }


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[background.Running]:
    """A server beside this process, that ends with the module."""
    with background.running(tiny.model) as running:
        yield running


def test_a_server_ends_with_its_block(tiny: Tiny) -> None:
    with background.running(tiny.model) as running:
        processes = psutil.Process(running.process).children(recursive=True)
        assert running.peak_memory_bytes() > 2**20
    assert not psutil.pid_exists(running.process)
    assert not [one for one in processes if one.is_running()]


def test_what_a_server_complains_of_comes_through(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"no model")
    with pytest.raises(CookbookError, match="did not start: .*is no GGUF file"):
        with background.running(wrong):
            raise AssertionError("it started")


def _named(lines: list[goingout.Line]) -> dict[str, goingout.Line]:
    return {line.question: line for line in lines}


def _checked(folder: Path, server: background.Running, **metrics: Any) -> dict[str, goingout.Line]:
    content = {"metrics": [METRIC], "forgetting": FORGETTING} | metrics
    run: Any = SimpleNamespace(metrics=content)
    losses = {"q8_0": Score(0.01, (0.0, 0.02), 8)}
    return _named(goingout.checked(run, {"q8_0": Export(folder)}, losses, 0.9, server))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder as an export writes it."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "Modelfile").write_text("FROM ./model.gguf\n", encoding="utf-8")
    # As a model of code may have it.
    vocabulary = json.dumps({"model": {"vocab": {str(Path.home()): 7}}})
    (tmp_path / "tokenizer.json").write_text(vocabulary, encoding="utf-8")
    return tmp_path


def test_a_good_export_may_go_out(exported: Path, server: background.Running) -> None:
    lines = _checked(exported, server)
    assert all(line.good for line in lines.values()), goingout.text(list(lines.values()))
    said = lines["does the server refuse strangers?"].found
    assert said == "without a key 401, with a wrong key 401, from another page 403"


def _add(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


# pragma: allowlist nextline secret
TOKEN = "hf_" + "A1b2" * 8  # of nobody


@pytest.mark.parametrize(
    ("spoil", "question", "found"),
    [
        (_add("modeling.py", "import os"), "are there weights and texts alone", "modeling.py"),
        (_add("weights.bin", "pickled"), "are there weights and texts alone", "weights.bin"),
        (_add("notes.txt", f"token {TOKEN}"), "is there no token", "notes.txt"),
        (_add("model.gguf", f"GGUF {TOKEN}"), "is there no token", "model.gguf"),
        (_add("config.json", f'{{"base": "{ROOT}/runs"}}'), "is there no path", "config.json"),
        (_add("model.gguf", f"GGUF {ROOT}/runs"), "is there no path", "model.gguf"),
    ],
)
def test_what_would_do_harm_stops(
    exported: Path,
    server: background.Running,
    spoil: Callable[[Path], object],
    question: str,
    found: str,
) -> None:
    spoil(exported)
    lines = list(_checked(exported, server).values())
    (line,) = [one for one in lines if one.question.startswith(question)]
    assert not line.good and line.found == found
    with pytest.raises(AssertionError, match=question):
        goingout.text(lines)


def test_what_is_poor_is_said_and_does_not_stop(exported: Path, server: background.Running) -> None:
    (exported / "README.md").write_text("no licence", encoding="utf-8")
    worse = METRIC | {"after": 4.0, "ci95": {"before": [2.9, 3.1], "after": [3.9, 4.1]}}
    forgotten = FORGETTING | {"after": 9.0}
    lines = _checked(exported, server, metrics=[worse], forgetting=forgotten)
    poor = {line.question for line in lines.values() if not line.good}
    assert poor == {
        "is loss better than before?",
        "was little forgotten?",
        "does the card name a licence?",
    }
    assert "is loss better than before?" in goingout.text(list(lines.values()))


def test_a_run_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COOKBOOK_RUN", raising=False)
    assert runs.from_environment() is None
    whole = SimpleNamespace(adapter=None)
    monkeypatch.setenv("COOKBOOK_RUN", "runs/some")
    monkeypatch.setattr(runs, "find", lambda named: whole)
    with pytest.raises(CookbookError, match="COOKBOOK_RUN=runs/some trained all weights"):
        runs.from_environment()
