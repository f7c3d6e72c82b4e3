"""The rewards of the GRPO notebook, as they stand there, against answers that try to cheat."""

from decimal import Decimal, InvalidOperation
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


pieces = st.one_of(
    st.sampled_from([*"85-+$%,.0# \n", "####", "#### ", "\n#### "]),
    st.sampled_from(
        ["</answer>", "<answer>85", "\\boxed{85}", "= 85", "answer: 85", "85.0", "1e2"]
    ),
    st.sampled_from(
        ["\uff18\uff15", "\u0668\u0665", "\u00b2", "\u2460", "\u200b", "\u2212", "\x85"]
    ),
    st.text(max_size=4),
    st.integers(-(10**30), 10**30).map(str),
)
completions = st.lists(pieces, max_size=12).map("".join)


def as_written(text: str) -> Decimal | None:
    """What a person would read as the answer: the last line's, if it is a figure and no more."""
    mark, _, figure = text.rstrip().rpartition("\n")[2].partition("#### ")
    plain = figure.strip()
    if mark or text.count("####") != 1 or set(plain) - set("0123456789+-$,.%"):
        return None
    try:
        return Decimal(plain.translate(str.maketrans("", "", "$,%")))
    except InvalidOperation:
        return None


@settings(max_examples=500, deadline=None)
@given(text=completions, answer=st.sampled_from(["85", "-85", "8.5", "1,200", "0"]))
def test_a_reward_for_being_right_is_never_earned_otherwise(
    defined: dict[str, Any], text: str, answer: str
) -> None:
    form, right = rewards(defined, text, answer)
    assert (form, right) in {(0.0, 0.0), (0.1, 0.0), (0.1, 1.0)}
    if right:
        assert as_written(text) == Decimal(answer.replace(",", "")), text


@settings(max_examples=200, deadline=None)
@given(
    figure=st.integers(-(10**12), 10**12), before=st.text(alphabet="0123456789+= \n", max_size=40)
)
def test_a_right_figure_after_whatever_steps_is_rewarded(
    defined: dict[str, Any], figure: int, before: str
) -> None:
    for written in (f"{figure}", f"{figure:,}", f"{figure}.00"):
        assert rewards(defined, f"{before}\n#### {written}", str(figure)) == (0.1, 1.0)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(completions, min_size=2, max_size=5))
def test_a_completion_earns_the_same_in_any_company(
    defined: dict[str, Any], texts: list[str]
) -> None:
    said = [[{"role": "assistant", "content": text}] for text in texts]
    together = defined["correctness_reward"](said, ["85"] * len(texts))
    assert together == [rewards(defined, text, "85")[1] for text in texts]
