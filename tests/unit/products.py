"""Reading what was built."""

import json
from typing import Any

from cookbook.offline import offline_path


def rows(product: str, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split of a built product."""
    lines = (offline_path(product) / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
