"""`python -m cookbook.offline`: build the embedded default, or say what it is made of."""

import argparse
import sys
import time

from cookbook.offline.build import build_missing
from cookbook.offline.errors import OfflineError
from cookbook.offline.manifest import PRODUCTS
from cookbook.offline.state import file_sizes, offline_folder, read_record
from cookbook.offline.table import README, listing, megabytes, with_tables


def main() -> int:
    """Do what the command line asks, and return the exit status."""
    asked = _arguments()
    if asked.list:
        print(listing(offline_folder()))
    elif asked.readme:
        README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"Wrote the tables of {README.name}.")
    else:
        return _build()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cookbook.offline", description=__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--list", action="store_true", help="show products, sources and states")
    choice.add_argument("--readme", action="store_true", help="rewrite the tables of the README")
    return parser.parse_args()


def _build() -> int:
    root, start = offline_folder(), time.monotonic()
    try:
        built = build_missing(PRODUCTS, root)
    except OfflineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not built:
        print(f"The embedded default is complete, nothing to do: {root}")
        return 0
    for product in built:
        folder = root / product.name
        facts = (read_record(folder) or {}).get("facts", {})
        told = ", ".join(f"{name} {value:,}" for name, value in facts.items())
        print(f"  {product.name}  {megabytes(sum(file_sizes(folder).values()))}  {told}")
    print(f"The embedded default is complete, made in {time.monotonic() - start:.0f} s: {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
