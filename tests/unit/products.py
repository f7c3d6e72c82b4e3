"""Reading the built rows, and finding what is in both splits."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from cookbook.deduplicate import SHORTEST
from cookbook.offline import offline_path

Row = dict[str, str]


def rows(product: str, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split of a built product."""
    lines = (offline_path(product) / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def runs(text: str) -> frozenset[str]:
    """Return every five words in a row."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(words[start : start + 5]) for start in range(len(words) - 4))


def in_both(train: Sequence[str], test: Sequence[str]) -> list[str]:
    """Return the test texts that nearly repeat a train text, not through the package's search."""
    sizes = [len(runs(text)) for text in train]
    with_run: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(train):
        for run in runs(text):
            with_run[run].append(number)
    whole = {" ".join(re.findall(r"\w+", text.lower())) for text in train}
    found = []
    for text in test:
        own = runs(text)
        shared = Counter(number for run in own for number in with_run[run])
        enough = SHORTEST - 4  # a text of that many words has so many runs
        alike = any(
            count >= 0.5 * min(len(own), sizes[number])
            for number, count in shared.items()
            if min(len(own), sizes[number]) >= enough
        )
        if alike or " ".join(re.findall(r"\w+", text.lower())) in whole:
            found.append(text)
    return found
