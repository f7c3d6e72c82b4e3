"""The problems with worked steps: every step is true, and no test problem was trained on."""

import re
from collections.abc import Callable
from fractions import Fraction
from operator import add, mul, sub, truediv

import pytest

from cookbook import problems

pytestmark = pytest.mark.unit

Rows = list[dict[str, str]]
STEP = re.compile(r"([0-9]+%?)([-+*/])([0-9]+%?)=([0-9]+%?)")


def number(text: str) -> Fraction:
    """A figure as a number; 25% is 1/4."""
    plain = text.strip("$%")
    return Fraction(int(plain), 100 if text.endswith("%") else 1)


def calculated(one: str, operator: str, other: str) -> Fraction:
    """Calculate anew, not through the templates."""
    apply = {"+": add, "-": sub, "*": mul, "/": truediv}[operator]
    return Fraction(apply(number(one), number(other)))


def steps_of(row: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """The steps of a solution; nothing but steps may stand before its last line."""
    worked, last = row["completion"].split("\n")
    assert last == f"#### {row['answer']}"
    found = [STEP.fullmatch(step) for step in worked.split(", ")]
    assert all(found), worked
    return [match.groups() for match in found if match]  # type: ignore[misc]


@pytest.fixture(scope="module")
def sums() -> dict[str, Rows]:
    return problems.sums()


@pytest.fixture(scope="module")
def finance() -> dict[str, Rows]:
    return problems.finance()


def test_every_step_is_true(sums: dict[str, Rows], finance: dict[str, Rows]) -> None:
    for row in [row for splits in (sums, finance) for rows in splits.values() for row in rows]:
        for one, operator, other, result in steps_of(row):
            assert calculated(one, operator, other) == number(result), row


def test_the_figure_is_that_of_the_last_step(
    sums: dict[str, Rows], finance: dict[str, Rows]
) -> None:
    for row in [row for splits in (sums, finance) for rows in splits.values() for row in rows]:
        assert number(row["answer"]) == number(steps_of(row)[-1][3]), row


def test_a_sum_is_the_sum_of_its_numbers(sums: dict[str, Rows]) -> None:
    for row in sums["train"] + sums["test"]:
        one, other = map(int, re.findall(r"[0-9]+", row["prompt"]))
        assert row["answer"] == str(one + other)


def test_numbers_of_test_sums_are_never_trained_on(sums: dict[str, Rows]) -> None:
    numbers = {
        split: {text for row in rows for text in re.findall(r"[0-9]+", row["prompt"])}
        for split, rows in sums.items()
    }
    assert len(numbers["test"]) == problems.HELD_OUT_NUMBERS
    assert numbers["test"].isdisjoint(numbers["train"])


def test_a_question_holds_every_number_that_is_not_calculated(finance: dict[str, Rows]) -> None:
    for row in finance["train"] + finance["test"]:
        known = set(re.findall(r"[0-9]+%?", row["prompt"]))
        for one, _, other, result in steps_of(row):
            assert {one, other} <= known | {text.rstrip("%") for text in known}, row
            known |= {result}


def test_no_worked_steps_are_in_both_splits(finance: dict[str, Rows]) -> None:
    worked = {split: {row["completion"] for row in rows} for split, rows in finance.items()}
    assert worked["train"].isdisjoint(worked["test"])
    assert len(worked["train"]) == len(finance["train"]), "a solution is there twice"


def test_held_out_templates_are_in_the_test_split_alone(finance: dict[str, Rows]) -> None:
    held_out = {one["name"] for one in problems.FINANCE["templates"] if "held_out" in one}
    trained = {row["template"] for row in finance["train"]}
    assert len(held_out) == 4 and held_out.isdisjoint(trained)
    for row in finance["test"]:
        assert row["unseen"] == ("template" if row["template"] in held_out else "numbers")
    assert {row["template"] for row in finance["test"]} == held_out | trained


@pytest.mark.parametrize("draw", [problems.sums, problems.finance])
def test_the_same_problems_come_every_time(draw: Callable[[], dict[str, Rows]]) -> None:
    assert draw() == draw()
