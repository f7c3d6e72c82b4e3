"""What is recorded of the server: every fault was answered rightly, and the server stayed up."""

from __future__ import annotations

import json

import pytest

from tests.contract.repository import ROOT

pytestmark = pytest.mark.contract

RECORD = ROOT / "results" / "serving" / "faults.json"
# What the server must survive, whatever else is tried.
ASKED = {
    "no key",
    "wrong key",
    "another origin",
    "a path as model",
    "prompt too long",
    "no JSON",
    "hang-up in a stream",
    "many at once",
    "engine killed",
    "SIGTERM",
}


def test_every_fault_was_answered_rightly_and_the_next_request_too() -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8"))["faults"]
    assert {one["fault"] for one in found} >= ASKED
    assert [one for one in found if not one["right"] or not one.get("answered_after", True)] == []
