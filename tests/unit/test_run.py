"""One notebook executed in a real kernel: results kept, failures told, earlier ones untouched."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from cookbook.commands import run
from cookbook.profiles import CookbookError

pytestmark = pytest.mark.unit

TABLE = 'SETTINGS = {"model": ("m", "m", "m"), "dataset": ("d", "d", "d"), "max_steps": (1, 1, 1)}'
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
    path.parent.mkdir(parents=True, exist_ok=True)
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


def test_a_notebook_without_metrics_is_told(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([str(_notebook(tmp_path))]) == 0
    assert "It wrote no metrics.json. Executed notebook: " in capsys.readouterr().out
    assert (runs / "Small.ipynb").is_file()


# --- Where it is started, and with which locale and home ------------------------------------

SAYS = """
from cookbook.profiles import choose_profile
from cookbook.report import run_folder
config = choose_profile(SETTINGS)
text = open("text").read()
print(config.model, config.dataset, run_folder("99-Test/Small", config), text, sep="\\n")
"""
# As cron and slim containers have it: no locale, and no home that can be written.
BARE = {"PATH": os.environ["PATH"], "HOME": "/proc/nope", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
BARE |= {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_relative_paths_begin_in_the_shell_whatever_its_locale_home_and_links(
    tmp_path: Path,
) -> None:
    """In one run, for each start takes seconds."""
    shell = tmp_path / "Ordner für «mich» 数据"
    _notebook(shell / "real", SAYS)
    (shell / "real" / "99-Test" / "text").write_text("⟦ü⟧", encoding="utf-8")
    (shell / "link").symlink_to(shell / "real")
    for name in ("my model ü", "data"):
        (shell / name).mkdir()
    (shell / "data" / "ü 1.jsonl").touch()
    settings = {"MODEL": "my model ü", "DATASET": "data/ü 1.jsonl", "RUNS": "link/meine Läufe"}
    done = subprocess.run(
        [sys.executable, "-m", "cookbook.commands.run", "link/99-Test/Small.ipynb"],
        cwd=shell,
        env=BARE | {f"COOKBOOK_{name}": value for name, value in settings.items()},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    folder = shell / "link" / "meine Läufe" / "99-Test" / "Small" / "cpu-own"
    executed = nbformat.read(folder / "Small.ipynb", as_version=4)
    said = [one.text for one in executed.cells[-1].outputs if one.get("name") == "stdout"]
    wanted = [shell / "my model ü", shell / "data" / "ü 1.jsonl", folder, "⟦ü⟧"]
    assert "".join(said).splitlines() == list(map(str, wanted))
    assert "Executed notebook: real/meine Läufe/99-Test/Small/cpu-own/Small.ipynb" in done.stdout


def test_a_cache_that_cannot_be_written_is_told_before_a_kernel_starts(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", "/proc/nope")
    monkeypatch.setenv("COOKBOOK_DATASET", "someone/something")
    assert run.main([str(_notebook(tmp_path))]) == 1
    said = capsys.readouterr().err
    assert "/proc/nope/datasets (" in said and "`export HF_HOME=" in said
    assert not runs.exists()


@pytest.mark.parametrize("place", ["/proc/nope", "file"])
def test_runs_that_cannot_be_written_are_named_before_a_kernel_starts(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path / place))
    assert run.main([str(_notebook(tmp_path))]) == 1
    said = capsys.readouterr().err
    assert f"{place}/99-Test/Small/cpu cannot be written" in said and "Set COOKBOOK_RUNS" in said


# --- Two at once ----------------------------------------------------------------------------


def test_a_second_run_of_the_same_folder_is_refused_and_the_first_goes_on(
    tmp_path: Path, runs: Path
) -> None:
    with run.held(runs):
        with pytest.raises(CookbookError, match=rf"process {os.getpid()}.*set COOKBOOK_RUNS"):
            with run.held(runs):
                pass
        with run.held(runs.with_name("cpu-own")):
            pass
    with run.held(runs):
        pass
    assert not (runs / "run.pid").exists()


def test_a_folder_is_free_again_when_its_run_was_killed(tmp_path: Path, runs: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cookbook.commands.run",
        str(_notebook(tmp_path, "while True: pass")),
    ]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as first:
        end = time.monotonic() + 120
        while not (runs / "run.pid").exists() and time.monotonic() < end:
            time.sleep(0.1)
        try:
            with pytest.raises(CookbookError, match=f"Another run .*process {first.pid}"):
                with run.held(runs):
                    pass
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    with run.held(runs):
        pass
