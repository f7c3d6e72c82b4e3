"""Print what a technique needs beside a machine's own torch, as pip's requirements.

`python scripts/beside_torch.py peft > needed.txt` is for rented GPUs, Colab and Kaggle, whose torch
fits their driver: `pip install -r needed.txt` leaves it alone. JupyterLab is there already, or runs
elsewhere. Ranges are those of pyproject.toml; the lock is for machines of one's own.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
THEIRS = re.compile(r"^(torch|nvidia-[\w-]+|jupyterlab)\b")


def beside_torch(group: str) -> list[str]:
    """Return the requirements of the core and of a group, without torch and what comes with it.

    Raises `KeyError` for a group that there is not.
    """
    content = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    wanted = [*content["project"]["dependencies"], *content["dependency-groups"][group]]
    return [one for one in wanted if not THEIRS.match(one)]


def main(arguments: list[str]) -> int:
    """Print the requirements; return 2 where no group is named that there is."""
    groups = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["dependency-groups"]
    if len(arguments) != 1 or arguments[0] not in groups:
        print(f"Name a group: {', '.join(groups)}", file=sys.stderr)
        return 2
    print(*beside_torch(arguments[0]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
