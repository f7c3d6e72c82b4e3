"""What the page says of kills and files is what was recorded, and enough of it."""

from __future__ import annotations

import pytest

from tests.reliability import tables
from tests.reliability.loading import COLUMNS

pytestmark = pytest.mark.contract


def test_the_tables_are_the_recorded_ones() -> None:
    text = tables.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- generated: {name} -->" in text for name in tables.TABLES)
    assert tables.with_tables(text) == text, "run: .venv/bin/python -m tests.reliability"


def test_a_thousand_files_went_through_each_recipe() -> None:
    record = tables.recorded("loading")
    assert min(sum(one.values()) for one in record["outcomes"].values()) >= 1000
    assert {name.split("/")[1] for name in record["outcomes"]} == set(COLUMNS)
    for name, one in record["outcomes"].items():
        used = sum(count for kind, count in one.items() if kind != "refused")
        assert used and one["refused"], f"{name}: all files had the same fate"


def test_each_method_survived_ten_kills_and_lost_nothing() -> None:
    record = tables.recorded("kills")
    for name, one in record["methods"].items():
        assert sum(one["kills"].values()) >= 10 and min(one["kills"].values()) >= 5, name
        assert one["largest_difference"] == 0.0, name
    assert sum(one["torn"] for one in record["methods"].values()), "no kill met a save"
