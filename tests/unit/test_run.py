"""One notebook executed in a real kernel: results kept, failures told, earlier ones untouched."""

from pathlib import Path

import nbformat
import pytest

from cookbook import run

pytestmark = pytest.mark.unit

TABLE = 'PROFILES = {"cpu": {"model": "m", "dataset": "d", "max_steps": 1}}'
METRICS = """
import json, os, pathlib
folder = pathlib.Path(os.environ["COOKBOOK_RUNS"], "99-Test", "Small", "cpu")
folder.mkdir(parents=True, exist_ok=True)
one = {"before": 1.0, "after": 2.0, "ci95": {"before": [1, 1], "after": [2, 2]}}
entry = one | {"name": "score", "higher_is_better": True, "examples": 3}
train = {"steps": 1, "tokens": 2, "seconds": 3, "tokens_per_second": 1, "peak_memory_bytes": 2**30}
content = {"recipe": "99-Test/Small", "profile": "cpu", "model": "m", "train": train}
content |= {"metrics": [entry | {"stages": {}, "baselines": {}}], "forgetting": one | {"name": "f"}}
content |= {"hardware": {"device": "x"}}
(folder / "metrics.json").write_text(json.dumps(content))
"""


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    return tmp_path / "runs" / "99-Test" / "Small" / "cpu"


def _notebook(folder: Path, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(text) for text in (TABLE, *cells)]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    path = folder / "99-Test" / "Small.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def test_the_table_is_printed_and_the_executed_copy_kept(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _notebook(tmp_path, METRICS, "print('seen')")
    assert run.main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert "score" in shown and "2.000 [2.000, 2.000]" in shown and "Executed notebook" in shown
    executed = nbformat.read(runs / "Small.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "seen\n"
    assert not nbformat.read(path, as_version=4).cells[-1].outputs


def test_a_failing_cell_is_told_and_earlier_results_stay(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([str(_notebook(tmp_path, METRICS, "print('first')"))]) == 0
    first = (runs / "Small.ipynb").read_bytes()
    message = "from cookbook.profiles import CookbookError\nraise CookbookError('mend it thus')"
    assert run.main([str(_notebook(tmp_path, message))]) == 1
    assert "CookbookError: mend it thus" in capsys.readouterr().err
    assert (runs / "Small.ipynb").read_bytes() == first
    failed = nbformat.read(runs / "Small.failed.ipynb", as_version=4)
    assert failed.cells[-1].outputs[0].traceback == ["CookbookError: mend it thus"]


def test_a_kernel_that_dies_is_told(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _notebook(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert run.main([str(path)]) == 1
    assert "out of memory" in capsys.readouterr().err


def test_bad_settings_stop_before_a_kernel_starts(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "tpu")
    assert run.main([str(_notebook(tmp_path))]) == 1
    assert "COOKBOOK_PROFILE is 'tpu'" in capsys.readouterr().err
    assert not runs.exists()


def test_no_such_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([str(tmp_path / "none.ipynb")]) == 2
    assert "is no file" in capsys.readouterr().err
