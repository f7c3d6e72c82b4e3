"""Print a pip.conf with the package index that pip uses here: `python3 -m scripts.pip_conf`.

An image is built behind the same index as everything else, and pip inside it knows nothing of this
machine. Certificates are not named: their files are not in the image (see EXTRA_CA in SETUP.md).
"""

import os
import sys

from scripts import poetry


def main() -> int:
    """Exit status 0, or 2 with one message where no pip could be asked."""
    try:
        index = poetry.ask_pip(os.environ, [sys.executable]).index_url
    except poetry.SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"[global]\nindex-url = {index}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
