"""What the Qwen3 notebook counts as thinking, as answering directly, and as right."""

from typing import Any

import pytest

from cookbook.profiles import ROOT
from tests.unit.cells import defined_by

pytestmark = pytest.mark.unit

NOTEBOOK = ROOT / "04-Reasoning-Tuning" / "Qwen3-Reasoning-Conversational.ipynb"
THOUGHT = "<think>\n40+30=70, 7+8=15, 70+15=85\n</think>\n\n"


@pytest.fixture(scope="module")
def defined() -> dict[str, Any]:
    return defined_by(NOTEBOOK, "measures", "")


@pytest.mark.parametrize(
    ("text", "thinking", "direct"),
    [
        (THOUGHT + "85", True, False),
        ("85", False, True),
        ("", False, False),
        ("<think>\n\n</think>\n\n85", False, False),  # an empty thought is none
        (THOUGHT, False, False),  # no answer after it
        ("<think>\n40+30=70, 7+8=15, 70", False, False),  # cut off
        ("40+30=70\n</think>\n\n85", False, False),  # closed, never opened
        ("85\n" + THOUGHT, False, False),  # the answer before the thought
        (THOUGHT + THOUGHT + "85", False, False),
        ("<think>\n<think>\n70\n</think>\n\n85", False, False),
        (THOUGHT + "85\n</think>", False, False),
    ],
)
def test_a_mode_is_followed_or_not(
    defined: dict[str, Any], text: str, thinking: bool, direct: bool
) -> None:
    assert (defined["follows"](text, True), defined["follows"](text, False)) == (thinking, direct)


@pytest.mark.parametrize(
    ("text", "result", "right"),
    [
        ("85", "85", True),
        (THOUGHT + "85", "85", True),
        ("The sum is 85.", "85", True),
        (THOUGHT + "So the sum is $\\boxed{85}$.", "85", True),
        ("0.5", "\\frac{1}{2}", True),
        ("86", "85", False),
        ("", "85", False),
        (THOUGHT, "85", False),  # a result inside the thought is no answer
        ("<think>\n70+15=85", "85", False),  # cut off while thinking
        (THOUGHT + "86", "85", False),
        ("I do not know.", "85", False),
    ],
)
def test_an_answer_is_right_or_not(
    defined: dict[str, Any], text: str, result: str, right: bool
) -> None:
    assert defined["is_right"](text, result) == right
