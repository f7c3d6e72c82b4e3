"""Documents show what a GPU measured, and say where none did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.documents import SPEED
from tests.bench.gpu_records import NOT_MEASURED
from tests.gpu import check, documents, records
from tests.gpu.records import GIB, Outcome
from tests.gpu.samples import FALCON, GPT2

pytestmark = pytest.mark.contract


def a_record(step: float = 0.6, date: str = "2027-01-01", device: str = "Some Card") -> Outcome:
    """Return an outcome as the check writes it."""
    content: dict[str, Any] = {
        "scale": "full",
        "date": date,
        "machine": {"device": device},
        "memory": {"peak_reserved_bytes": 12 * GIB},
        "speed": {"steady_tokens_per_second": 1234.5, "steady_seconds_per_step": step},
        "seconds": {"data": 2.0, "notebook": 40.0, "expected": 50.0},
        "metrics_json": {"planned": {"peak_memory_bytes": {"planned": 11.0, "measured": 10.0}}},
    }
    return Outcome(FALCON, "gpu16", "passed", "", content)


def test_the_documents_show_the_records() -> None:
    found = documents.records()
    text = SPEED.read_text(encoding="utf-8")
    assert documents.NAME in text
    assert documents.with_table(text, found) == text, "run: python -m tests.gpu.documents"
    for path in check.notebooks().values():
        assert documents.rewritten(path, found) == path.read_text(encoding="utf-8"), path.name


def test_what_no_gpu_measured_is_said(tmp_path: Path) -> None:
    lines = documents.table(documents.records(tmp_path)).splitlines()
    assert len(lines) == 2 + 22
    assert all(NOT_MEASURED in line for line in lines[2:])


def test_a_record_is_drawn(tmp_path: Path) -> None:
    records.write(a_record(9.9, "2026-12-31"), "Old Card", tmp_path)
    records.write(a_record(), "Some Card", tmp_path)
    failed = Outcome(GPT2, "gpu16", "failed", "no", a_record().record)
    records.write(failed, "Some Card", tmp_path)
    rehearsed = Outcome(GPT2, "gpu80", "passed", "", a_record().record | {"scale": "tiny"})
    records.write(rehearsed, "Some Card", tmp_path)
    short = Outcome(GPT2, "gpu80", "passed", "", a_record(0.0).record)  # too few steps to time one
    records.write(short, "Some Card", tmp_path)
    found = documents.records(tmp_path)
    measured = [line for line in documents.table(found).splitlines() if "Some Card" in line]
    assert measured == [
        "| Falcon-7B-LoRA | `gpu16` | Some Card | 12.0 GiB | +10% | 1,234 | 0.60 | 42 s | 50 s |"
    ]
    path = check.notebooks()[FALCON]
    before = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    after = documents.first_table(before, FALCON, found)
    steps = check.settings_of(FALCON, "gpu16")["max_steps"]
    row = next(line for line in after.splitlines() if line.startswith("| `gpu16`"))
    minutes = steps * 0.6 / 60
    time = f"at most {minutes:.0f} minutes of training on Some Card"
    assert row.endswith(f" | 12.0 GiB on Some Card | {time} |")
    assert documents.first_table(after, FALCON, found) == after, "and again, the same"
    changed = {line for line in after.splitlines() if line not in before.splitlines()}
    assert changed == {row}
