"""Print what poetry.lock pins, as pip's requirements: `python scripts/locked.py`.

For tools that look packages up, such as pip-audit (`make audit`).
"""

import tomllib
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "poetry.lock"


def pins() -> list[str]:
    """Return `name==version` of every package in the lock."""
    packages = tomllib.loads(LOCK.read_text(encoding="utf-8"))["package"]
    return [f"{one['name']}=={one['version']}" for one in packages]


if __name__ == "__main__":
    print(*pins(), sep="\n")
