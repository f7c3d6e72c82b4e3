"""Building what is missing, whole or not at all.

A product is made in a working folder beside its place and moved there by a rename, so that
whatever stands under its name is complete. A lock file keeps two builders apart.
"""

import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cookbook.offline.archives import extract
from cookbook.offline.download import fetch
from cookbook.offline.errors import OfflineError
from cookbook.offline.sources import Product
from cookbook.offline.state import RECORD, file_sizes, state_of
from cookbook.offline.table import megabytes, product_readme

WORKING = ".building-"


def build_missing(products: Sequence[Product], root: Path) -> list[Product]:
    """Build every product that `root` does not hold whole, and return those built.

    Raises OfflineError where an archive cannot be had or is not the pinned one, or where the disk
    is too full. Products that were whole before stay untouched.
    """
    if not _missing(products, root):
        return []
    _make(root)
    with _locked(root):
        _remove_leftovers(root)
        missing = _missing(products, root)  # another builder may have made them meanwhile
        _check_space(missing, root)
        for product in missing:
            print(f"Building {product.name}: {product.becomes}", flush=True)
            _build(product, root)
        return missing


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OfflineError(
            f"The folder for the embedded default cannot be made: {error}. "
            "Name one that you may write to in COOKBOOK_OFFLINE."
        ) from error


def _missing(products: Sequence[Product], root: Path) -> list[Product]:
    return [product for product in products if state_of(product, root) != "built"]


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the lock. The system frees it when its holder ends, however it ends."""
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another build is at work in {root}: waiting for it.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(root: Path) -> None:
    for folder in root.glob(f"{WORKING}*"):
        shutil.rmtree(folder)
    for part in (root / "archives").glob("*.part"):
        part.unlink()


def _check_space(products: Sequence[Product], root: Path) -> None:
    # Room for the archive, its unpacked members and the product at once.
    sources = [source for product in products for source in product.sources]
    unpacked = max((sum(m.size for m in source.members) for source in sources), default=0)
    needed = sum(p.size for p in products) + sum(s.size for s in sources) + unpacked
    free = shutil.disk_usage(root).free
    if free < needed:
        raise OfflineError(
            f"The embedded default needs about {megabytes(needed)} in {root}, and "
            f"{megabytes(free)} are free. Make room, or name another folder in COOKBOOK_OFFLINE."
        )


def _build(product: Product, root: Path) -> None:
    working = root / f"{WORKING}{product.name}"
    new, members = working / "product", working / "members"
    new.mkdir(parents=True)
    members.mkdir()
    found: dict[str, Path] = {}
    for number, source in enumerate(product.sources):
        if source.filename:
            archive = fetch(source, root / "archives")
            place = members / str(number)
            place.mkdir()
            found |= extract(archive, source.members, place)
    facts = product.build(found, new)
    (new / "README.md").write_text(product_readme(product), encoding="utf-8")
    _record(product, new, facts)
    _move(new, root / product.name, working / "old")
    shutil.rmtree(working)


def _record(product: Product, folder: Path, facts: dict[str, int | str]) -> None:
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # some writers keep files to their owner
    record = {
        "product": product.name,
        "fingerprint": product.fingerprint,
        "python": platform.python_version(),
        "sources": {source.filename: source.sha256 for source in product.sources if source.sha256},
        "facts": facts,
        "files": file_sizes(folder),
    }
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")


def _move(new: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.replace(old)
    new.replace(target)
