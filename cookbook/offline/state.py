"""Where the embedded default lies, and whether a product in it is whole."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from cookbook.offline.manifest import PRODUCTS
from cookbook.offline.sources import Product

State = Literal["built", "not built", "outdated", "damaged"]

RECORD = "built.json"


class OfflineNotBuilt(FileNotFoundError):
    """A product of the embedded default is missing, damaged or from an older manifest."""


def offline_folder() -> Path:
    """Return the absolute folder of the embedded default, which need not exist.

    It is `.offline` beside the package `cookbook`, or what `COOKBOOK_OFFLINE` names.
    """
    named = os.environ.get("COOKBOOK_OFFLINE")
    beside = Path(__file__).resolve().parents[2] / ".offline"
    return Path(named).expanduser().absolute() if named else beside


def offline_path(name: str) -> Path:
    """Return the folder of a built product, such as `SmolLM2-135M-Instruct`.

    Raises OfflineNotBuilt where it has to be built first, ValueError for an unknown name.
    """
    products = {product.name: product for product in PRODUCTS}
    if name not in products:
        known = ", ".join(products)
        raise ValueError(f"The embedded default has no {name!r}. It has: {known}.")
    state = state_of(products[name], offline_folder())
    if state != "built":
        raise OfflineNotBuilt(
            f"The embedded default {name!r} is {state} in {offline_folder()}: run `make offline`."
        )
    return offline_folder() / name


def state_of(product: Product, root: Path) -> State:
    """Say whether `root` holds the product as its manifest entry wants it.

    Names and sizes of the files are compared with the record, not their content.
    """
    folder = root / product.name
    if not folder.is_dir():
        return "not built"
    record = read_record(folder)
    files = record.get("files") if record else None
    # A file put beside the product's own does not matter.
    if record is None or not files or not files.items() <= file_sizes(folder).items():
        return "damaged"
    return "built" if record.get("fingerprint") == product.fingerprint else "outdated"


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what the builder recorded, None where that is missing or unreadable."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file in the folder but the record, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
