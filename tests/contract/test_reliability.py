"""What ARCHITECTURE.md says of kills and files is what was recorded, and enough of it."""

from __future__ import annotations

import json

import pytest

from tests.reliability import __main__ as recorded
from tests.reliability.loading import COLUMNS

pytestmark = pytest.mark.contract


def test_the_tables_are_the_recorded_ones() -> None:
    text = recorded.ARCHITECTURE.read_text(encoding="utf-8")
    assert (
        recorded.GENERATED.search(text) and recorded.with_tables(text) == text
    ), "run: .venv/bin/python -m tests.reliability"


def test_a_thousand_files_went_through_all_recipes() -> None:
    record = json.loads((recorded.RESULTS / "loading.json").read_text(encoding="utf-8"))
    assert record["files"] >= 1000
    assert {name.split("/")[1] for name in record["outcomes"]} == set(COLUMNS)
    for name, one in record["outcomes"].items():
        used = sum(count for kind, count in one.items() if kind != "refused")
        assert used and one["refused"], f"{name}: all files had the same fate"


def test_each_method_survived_ten_kills_and_lost_nothing() -> None:
    record = json.loads((recorded.RESULTS / "kills.json").read_text(encoding="utf-8"))
    for name, one in record["methods"].items():
        assert sum(one["kills"].values()) >= 10 and min(one["kills"].values()) >= 5, name
        assert one["largest_difference"] == 0.0, name
    assert sum(one["torn"] for one in record["methods"].values()), "no kill met a save"
