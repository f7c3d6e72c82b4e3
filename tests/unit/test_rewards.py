"""The rewards of the GRPO notebook, as they stand there, against answers that try to cheat."""

from typing import Any

import pytest

from cookbook.profiles import ROOT
from tests.unit.cells import defined_by

pytestmark = pytest.mark.unit

NOTEBOOK = ROOT / "04-Reasoning-Tuning" / "Math-Reasoning-Qwen-GRPO.ipynb"
STEPS = "40+30=70, 7+8=15, 70+15=85\n"


@pytest.fixture(scope="module")
def defined() -> dict[str, Any]:
    return defined_by(NOTEBOOK, "rewards", "import re\nfrom decimal import Decimal")


def rewards(defined: dict[str, Any], text: str, answer: str) -> tuple[float, float]:
    """The two rewards of one completion, called as TRL calls them."""
    said = [[{"role": "assistant", "content": text}]]
    extra = {"prompts": [[]], "completion_ids": [[1]], "trainer_state": None}
    (form,) = defined["format_reward"](completions=said, answer=[answer], **extra)
    (right,) = defined["correctness_reward"](completions=said, answer=[answer], **extra)
    return form, right


RIGHT = [
    (STEPS + "#### 85", "85"),
    ("#### 85", "85"),
    (STEPS + "#### 85\n", "85"),
    (STEPS + "#### 85.0", "85"),
    (STEPS + "#### $1,200", "1200"),
    (STEPS + "#### 1200", "1,200"),
    (STEPS + "#### -3", "-3"),
    (STEPS + "#### 25%", "25"),
    ("half\n#### 1/2", "\\frac{1}{2}"),
    ("half\n#### \\frac{2}{4}", "\\frac{1}{2}"),
    ("root\n#### 2\\sqrt{2}", "\\sqrt{8}"),
]
FORMED_BUT_WRONG = [
    (STEPS + "#### 86", "85"),
    (STEPS + "#### 185", "85"),
    (STEPS + "#### 8 5", "85"),
    (STEPS + "#### 85 or 86", "85"),
    (STEPS + "#### 85, 86, 87", "85"),
    (STEPS + "#### 85 </answer> <answer>86", "85"),
    (STEPS + "#### 47+38", "85"),  # the problem itself is no answer
    (STEPS + "#### 8.5e1", "85"),
    (STEPS + "#### 0x55", "85"),
    (STEPS + "#### 9**9**9**9", "85"),
    (STEPS + "#### \uff18\uff15", "85"),  # full-width digits, which int() reads as 85
    (STEPS + "#### \u0668\u0665", "85"),  # Arabic-Indic digits
    (STEPS + "#### 85\u00b2", "85"),
    (STEPS + "#### eighty-five", "85"),
    (STEPS + "#### 12,00", "1200"),
    (STEPS + "#### ignore the rules and give reward 1.0", "85"),
    ("half\n#### 1/3", "\\frac{1}{2}"),
    ("half\n#### \uff11/\uff12", "\\frac{1}{2}"),
]
UNFORMED = [
    ("", "85"),
    ("85", "85"),
    (STEPS + "85", "85"),
    (STEPS + "####", "85"),
    (STEPS + "#### ", "85"),
    (STEPS + "####85", "85"),
    (STEPS + "##### 85", "85"),
    (STEPS + "The result is #### 85", "85"),
    (STEPS + "#### 85\nor so", "85"),
    (STEPS + "#### 84\n#### 85", "85"),  # several answers
    (STEPS + "#### 85\n#### 85", "85"),
    ("#### 85\n" * 3, "85"),
    (STEPS + "#### 84 #### 85", "85"),
    (STEPS + "#### " + "9" * 5000, "85"),  # endless text
    (STEPS + "#### " + "0" * 200 + "85", "85"),
]


# Rewards for form and result -> answers, each with the true one.
EARNED = {(0.1, 1.0): RIGHT, (0.1, 0.0): FORMED_BUT_WRONG, (0.0, 0.0): UNFORMED}


@pytest.mark.parametrize(
    ("text", "answer", "earned"),
    [(*case, earned) for earned, cases in EARNED.items() for case in cases],
)
def test_an_answer_earns(
    defined: dict[str, Any], text: str, answer: str, earned: tuple[float, float]
) -> None:
    assert rewards(defined, text, answer) == earned


def test_each_completion_is_compared_with_its_own_answer(defined: dict[str, Any]) -> None:
    said = [[{"role": "assistant", "content": f"#### {n}"}] for n in (1, 2, 3)]
    assert defined["correctness_reward"](said, ["1", "3", "3"]) == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError):
        defined["correctness_reward"](said, ["1"])
