"""Paths mean what they mean in the shell that typed them; folders are tried before they fail."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cookbook import paths, profiles, report
from cookbook.profiles import CookbookError, choose_profile

pytestmark = pytest.mark.unit

TABLE = {
    "model": ("offline:m", "m", "m"),
    "dataset": ("offline:d", "d", "d"),
    "max_steps": (1, 1, 1),
}
MOVING = ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "MPLCONFIGDIR")
JUPYTER = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
XDG = ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")


@pytest.fixture(autouse=True)
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a shell, which is not the current one; a home of its own."""
    for name in ("MODEL", "DATASET", "RUNS", "OFFLINE", "SEED", "MAX_STEPS"):
        monkeypatch.delenv(f"COOKBOOK_{name}", raising=False)
    for name in (*MOVING, *JUPYTER, *XDG):
        monkeypatch.delenv(name, raising=False)
    there = tmp_path / "a shell's Ordner für mich"
    there.mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COOKBOOK_FROM", str(there))
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    yield there


def test_a_relative_path_begins_in_the_shells_folder(shell: Path) -> None:
    assert paths.typed_path("my data.jsonl") == shell / "my data.jsonl"
    assert paths.typed_path("../x") == shell / ".." / "x"
    assert profiles.typed_path("x") == shell / "x"


def test_home_and_absolute_paths_are_themselves(tmp_path: Path) -> None:
    assert paths.typed_path("~/x") == tmp_path / "home" / "x"
    assert paths.typed_path("/a/b") == Path("/a/b")
    assert paths.typed_path("~nobody-of-this-name/x").name == "x"


def test_without_a_shells_folder_the_current_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COOKBOOK_FROM")
    assert paths.typed_path("x") == Path.cwd() / "x"


def test_own_model_and_data_come_back_absolute(
    shell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shell / "meins ü.jsonl").touch()
    (shell / "my model").mkdir()
    monkeypatch.setenv("COOKBOOK_DATASET", "meins ü.jsonl")
    monkeypatch.setenv("COOKBOOK_MODEL", "./my model")
    config = choose_profile(TABLE)
    assert (config.dataset, config.model) == (
        str(shell / "meins ü.jsonl"),
        str(shell / "my model"),
    )
    assert config.own


def test_a_hub_id_and_a_missing_file_stay_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_DATASET", "openai/gsm8k")
    monkeypatch.setenv("COOKBOOK_MODEL", "none.d")
    config = choose_profile(TABLE)
    assert (config.dataset, config.model) == ("openai/gsm8k", "none.d")


def test_the_tables_own_names_are_no_paths(shell: Path) -> None:
    (shell / "offline:m").mkdir()
    assert choose_profile(TABLE).model == "offline:m"


def test_runs_are_where_the_shell_means(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_RUNS", "runs/sweep-1")
    config = choose_profile(TABLE)
    assert report.run_folder("02-PEFT/X", config) == shell / "runs/sweep-1/02-PEFT/X/cpu"


def test_what_is_shown_can_be_typed_in_the_shell(shell: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shell)
    assert paths.as_typed(shell / "runs" / "x") == Path("runs/x")
    assert paths.as_typed(tmp_path / "link" / "runs") == Path("runs")
    assert paths.as_typed(tmp_path / "else") == tmp_path / "else"


def test_a_command_tells_its_folder_to_what_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COOKBOOK_FROM")
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("COOKBOOK_OFFLINE", "mine")
    monkeypatch.chdir(tmp_path)
    paths.start_command()
    assert os.environ["COOKBOOK_FROM"] == str(tmp_path)
    assert os.environ["COOKBOOK_OFFLINE"] == str(tmp_path / "mine")
    assert os.environ["PYTHONUTF8"] == "1"
    monkeypatch.chdir("/")
    paths.start_command()
    assert os.environ["COOKBOOK_FROM"] == str(tmp_path), "make, or an outer command, knows better"


@pytest.mark.parametrize(("encoding", "printed"), [("ascii", "utf-8"), ("latin-1", "latin-1")])
def test_text_is_printed_where_a_locale_is_missing(
    encoding: str, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("PYTHONUTF8", "1")
    paths.start_command()
    print("é", file=stream, flush=True)
    assert stream.buffer.getvalue() == "é\n".encode(printed)


# --- Folders that cannot be written ---------------------------------------------------------


def test_a_home_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    assert paths.unwritable_caches() == []
    assert list((tmp_path / "home").iterdir()) == [], "trying leaves nothing behind"


@pytest.mark.parametrize("home", ["/proc/nope", "a file"])
def test_each_folder_of_an_unwritable_home_is_named_by_what_moves_it(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    assert paths.unwritable_caches() == [
        *("HF_DATASETS_CACHE", "HF_HUB_CACHE", "MPLCONFIGDIR", "JUPYTER_RUNTIME_DIR"),
        "IPYTHONDIR",
    ]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "made when needed" / "hf"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    assert paths.unwritable_caches() == ["MPLCONFIGDIR", "IPYTHONDIR"]


def _moved_by(message: str) -> dict[str, str]:
    command = message.split("`export ")[1].split("`")[0]
    return dict(setting.split("=", 1) for setting in command.split())


@pytest.mark.parametrize("name", ["my.parquet", "folder", "openai/gsm8k"])
def test_data_that_goes_through_a_cache_stops_early_with_the_command_that_helps(
    name: str, shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shell / "my.parquet").touch()
    (shell / "folder" / "data").mkdir(parents=True)
    (shell / "folder" / "data" / "train.parquet").touch()
    monkeypatch.setenv("HOME", "/proc/nope")
    monkeypatch.setenv("COOKBOOK_DATASET", name)
    with pytest.raises(CookbookError) as stopped:
        choose_profile(TABLE)
    message = str(stopped.value)
    assert "/proc/nope/.cache/huggingface/datasets (No such file or directory)" in message
    moved = _moved_by(message)
    assert list(moved) == ["HF_HOME", "MPLCONFIGDIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    for variable in moved:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    assert choose_profile(TABLE).own, "the command helps"


def test_a_cache_named_for_itself_is_moved_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", "/proc/nope")
    monkeypatch.setenv("COOKBOOK_DATASET", "openai/gsm8k")
    with pytest.raises(CookbookError, match=r"/proc/nope \(") as stopped:
        choose_profile(TABLE)
    assert list(_moved_by(str(stopped.value))) == ["HF_DATASETS_CACHE"]


@pytest.mark.parametrize("name", [None, "my.jsonl", "folder"])
def test_text_and_the_embedded_default_need_no_cache(
    name: str | None, shell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shell / "my.jsonl").touch()
    (shell / "folder").mkdir()
    (shell / "folder" / "train.jsonl").touch()
    (shell / "folder" / "README.md").touch()
    monkeypatch.setenv("HOME", "/proc/nope")
    if name:
        monkeypatch.setenv("COOKBOOK_DATASET", name)
    assert choose_profile(TABLE).profile == "cpu"


@pytest.mark.parametrize(("home", "status"), [("/proc/nope", 2), (None, 0)])
def test_jupyterlab_is_not_started_where_it_could_not_write(home: str | None, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cookbook.paths"],
        env=os.environ | ({"HOME": home} if home else {}),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert ("JUPYTER_RUNTIME_DIR=" in done.stderr) == (status == 2)
    assert "Traceback" not in done.stderr
