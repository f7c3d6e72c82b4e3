"""Reading single files out of an archive without trusting what it says about itself.

Nothing is unpacked but the members named in the manifest, each under a name of our own choosing.
"""

import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from cookbook.offline.errors import OfflineError
from cookbook.offline.sources import Member

_CHUNK = 1 << 20  # bytes


def extract(archive: Path, members: Iterable[Member], folder: Path) -> dict[str, Path]:
    """Write the members as files into `folder` and return them by their path in the archive.

    Raises OfflineError for a path that leads out of the archive, a member that is missing or not
    a plain file, and one whose size is not the stated one.
    """
    found = {}
    for number, member in enumerate(members):
        path = PurePosixPath(member.path)
        if path.is_absolute() or ".." in path.parts or "\\" in member.path:
            raise OfflineError(f"{member.path!r} is no path inside an archive.")
        found[member.path] = folder / f"{number}-{path.name}"
        with _opened(archive, member.path) as stream:
            _copy(stream, found[member.path], member, archive)
    return found


@contextmanager
def _opened(archive: Path, name: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped, zipped.open(_zip_entry(zipped, name)) as stream:
            yield stream
    else:
        with tarfile.open(archive) as tar:
            stream_or_none = tar.extractfile(_tar_entry(tar, name))
            if stream_or_none is None:
                raise _not_a_file(name)
            with stream_or_none as stream:
                yield stream


def _zip_entry(zipped: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    if name not in zipped.namelist():
        raise _missing(name)
    entry = zipped.getinfo(name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.is_dir() or kind not in (0, stat.S_IFREG):
        raise _not_a_file(name)
    return entry


def _tar_entry(tar: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    if name not in tar.getnames():
        raise _missing(name)
    entry = tar.getmember(name)
    if not entry.isreg():  # `extractfile` would follow a link
        raise _not_a_file(name)
    return entry


def _copy(stream: IO[bytes], target: Path, member: Member, archive: Path) -> None:
    size = 0
    with target.open("xb") as out:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            if size > member.size:
                break
            out.write(chunk)
    if size != member.size:
        target.unlink()
        relation = "more" if size > member.size else "fewer"
        raise OfflineError(
            f"{member.path!r} in {archive.name} has {relation} than the {member.size:,} bytes "
            "that the manifest states."
        )


def _missing(name: str) -> OfflineError:
    return OfflineError(f"The archive has no {name!r}.")


def _not_a_file(name: str) -> OfflineError:
    return OfflineError(f"{name!r} in the archive is a link or a folder, not a file.")
