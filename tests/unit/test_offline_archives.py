"""Archives are not trusted: only the named plain files come out, at their stated size."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from cookbook.offline.archives import extract
from cookbook.offline.errors import OfflineError
from cookbook.offline.sources import Member

pytestmark = pytest.mark.unit

WANTED = Member("package/data.txt", 5)


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in entries.items():
            zipped.writestr(name, content)
    return path


def write_tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(WANTED.path)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "inner" / "members"
    made.mkdir(parents=True)
    return made


def test_reads_the_named_members_of_a_wheel(tmp_path: Path, folder: Path) -> None:
    archive = write_zip(tmp_path / "a.whl", {WANTED.path: b"hello", "other/data.txt": b"again"})
    found = extract(archive, [WANTED, Member("other/data.txt", 5)], folder)
    assert {name: path.read_bytes() for name, path in found.items()} == {
        WANTED.path: b"hello",
        "other/data.txt": b"again",
    }


def test_reads_the_named_member_of_an_sdist(tmp_path: Path, folder: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo(WANTED.path), b"hello")])
    assert extract(archive, [WANTED], folder)[WANTED.path].read_bytes() == b"hello"


def test_other_entries_are_never_written(tmp_path: Path, folder: Path) -> None:
    entries = {"../evil.txt": b"evil", "/evil.txt": b"evil", WANTED.path: b"hello"}
    extract(write_zip(tmp_path / "a.whl", entries), [WANTED], folder)
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["0-data.txt"]


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt"])
def test_a_member_outside_the_archive_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    with pytest.raises(OfflineError, match="no path inside an archive"):
        extract(write_zip(tmp_path / "a.whl", {name: b"evil"}), [Member(name, 4)], folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_tar_is_refused(tmp_path: Path, folder: Path, kind: bytes) -> None:
    target = tarfile.TarInfo("package/target.txt")
    entries = [(target, b"other"), (link(kind, "package/target.txt"), b"")]
    with pytest.raises(OfflineError, match="is a link or a folder"):
        extract(write_tar(tmp_path / "a.tar.gz", entries), [WANTED], folder)


def test_a_link_in_a_zip_is_refused(tmp_path: Path, folder: Path) -> None:
    entry = zipfile.ZipInfo(WANTED.path)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as zipped:
        zipped.writestr(entry, "/etc/passwd")
    with pytest.raises(OfflineError, match="is a link or a folder"):
        extract(tmp_path / "a.whl", [WANTED], folder)


def test_a_zip_bomb_stops_at_the_stated_size(tmp_path: Path, folder: Path) -> None:
    archive = write_zip(tmp_path / "a.whl", {WANTED.path: bytes(200 << 20)})
    assert archive.stat().st_size < 1 << 20
    with pytest.raises(OfflineError, match="has more than the 5 bytes"):
        extract(archive, [WANTED], folder)
    assert list(folder.iterdir()) == []


def test_a_short_member_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = write_zip(tmp_path / "a.whl", {WANTED.path: b"hell"})
    with pytest.raises(OfflineError, match="has fewer than the 5 bytes"):
        extract(archive, [WANTED], folder)


@pytest.mark.parametrize("suffix", ["whl", "tar.gz"])
def test_a_missing_member_is_named(tmp_path: Path, folder: Path, suffix: str) -> None:
    archive = tmp_path / f"a.{suffix}"
    if suffix == "whl":
        write_zip(archive, {"x": b""})
    else:
        write_tar(archive, [(tarfile.TarInfo("x"), b"")])
    with pytest.raises(OfflineError, match="has no 'package/data.txt'"):
        extract(archive, [WANTED], folder)
