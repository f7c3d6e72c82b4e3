"""Problems with worked steps and a figure that can be checked, drawn from templates of our own.

Every solution ends in a line `#### <figure>`, the convention of GSM8K (Cobbe et al., 2021).
"""

import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

Problem = dict[str, str]

# Two-digit numbers that occur in no training problem; test problems use these alone.
HELD_OUT_NUMBERS = 18
SUMS = {"train": 2000, "test": 160}
OF_EACH_TEMPLATE = {"train": 60, "numbers": 10, "template": 30}
FINANCE: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("finance_problems.toml").read_text(encoding="utf-8")
)


def _solved(prompt: str, steps: str, answer: str) -> Problem:
    return {"prompt": prompt, "completion": f"{steps}\n#### {answer}", "answer": answer}


def sums() -> dict[str, list[Problem]]:
    """Return sums of two two-digit numbers; no number of the test split occurs in training."""
    random = Random("sums")
    numbers = list(range(10, 100))
    random.shuffle(numbers)
    parts = {"test": numbers[:HELD_OUT_NUMBERS], "train": numbers[HELD_OUT_NUMBERS:]}
    return {
        split: [_sum(*pair) for pair in random.sample(list(product(parts[split], repeat=2)), count)]
        for split, count in SUMS.items()
    }


def _sum(one: int, other: int) -> Problem:
    tens, ones = one // 10 * 10 + other // 10 * 10, one % 10 + other % 10
    total = one + other
    steps = f"{one // 10 * 10}+{other // 10 * 10}={tens}, {one % 10}+{other % 10}={ones}"
    return _solved(f"What is {one} + {other}?", f"{steps}, {tens}+{ones}={total}", str(total))


def finance() -> dict[str, list[Problem]]:
    """Return finance problems; the test split has unseen numbers, and templates never trained on.

    The column `unseen` says which: "numbers" (a template of the training split) or "template". No
    test problem has the worked steps of a training problem, of whatever template.
    """
    splits: dict[str, list[Problem]] = {"train": [], "test": []}
    used: set[str] = set()
    for template in FINANCE["templates"]:
        drawn = _distinct(template, used)
        unseen = "template" if "held_out" in template else "numbers"
        for split, kind in [("test", unseen)] + [("train", "train")] * (unseen == "numbers"):
            mark = {"unseen": unseen if split == "test" else ""}
            splits[split] += [next(drawn) | mark for _ in range(OF_EACH_TEMPLATE[kind])]
    for split, rows in splits.items():
        Random(split).shuffle(rows)
    return splits


def _distinct(template: dict[str, Any], used: set[str]) -> Iterator[Problem]:
    """Yield problems of a template whose worked steps are not in `used`, and add them there."""
    random = Random(template["name"])
    while True:
        values = _values(template, random)
        texts = [template[key].format(**values) for key in ("prompt", "steps", "answer")]
        if texts[1] not in used:
            used.add(texts[1])
            yield _solved(*texts) | {"template": template["name"]}


def _values(template: dict[str, Any], random: Random) -> dict[str, int | str]:
    """Draw a template's numbers and return them with what follows from them."""
    name = random.choice(FINANCE["companies"])
    unit, lowest, highest = template["base"]
    base, rate = unit * random.randint(lowest, highest), random.choice(template["rates"])
    years = random.randint(2, 5) if "years" in template else 1
    part, whole = base * rate // 100, base * rate
    values = {"name": name, "base": base, "rate": rate, "years": years, "part": part}
    values |= {"more": base + part, "less": base - part, "part_in_years": part * years}
    return values | {"product": whole, "product_in_years": whole * years}
