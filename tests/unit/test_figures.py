"""Pictures show what was asked for, also of tokens that Matplotlib would read as something."""

from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cookbook import figures
from tests.unit import tiny

pytestmark = pytest.mark.unit


def test_an_encoder_sees_all_and_a_decoder_what_was_written_before() -> None:
    row = {"input_ids": [6, 7, 8, 9, 10], "labels": [11, 12, 1]}
    figure = figures.encoder_decoder(tiny.tokenizer(), row, count=4)
    (axis,) = figure.axes
    cells = [one for one in axis.patches if isinstance(one, Rectangle)]
    assert len(cells) == 4 * 4 + (4 + 1) + (4 + 2) + (4 + 3)
    named = [one.get_text() for one in axis.get_xticklabels()]
    assert named == ["w1", "w2", "w3", "w4", "(begin)", "w5", "w6"]
    assert [one.get_text() for one in axis.texts] == ["w5", "w6", "<end>"]


def lines_of(figure: Figure) -> list[Any]:
    """The lines of a figure's axes, one after the other."""
    return [line for axis in figure.axes for line in axis.get_lines()]


def test_promises_are_drawn_against_what_held() -> None:
    figure = figures.calibration([(0.55, 0.5, 12), (0.95, 0.8, 40)])
    diagonal, held = lines_of(figure)
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0.5, 1]
    assert list(held.get_xdata()) == [0.55, 0.95] and list(held.get_ydata()) == [0.5, 0.8]
    assert [one.get_text() for one in figure.axes[0].texts] == ["12", "40"]


def test_reward_and_truth_have_an_axis_each() -> None:
    figure = figures.over_optimisation([1, 4], [0.3, 0.4], [-1.0, 2.0])
    truth, reward = lines_of(figure)
    assert list(truth.get_ydata()) == [0.3, 0.4] and list(reward.get_ydata()) == [-1.0, 2.0]
    assert list(truth.get_xdata()) == pytest.approx([0.0, 1.386294 - 0.75])
    labels = [one.get_text() for one in figure.axes[0].get_xticklabels()]
    assert labels == ["0.00\nn = 1", "0.64\nn = 4"]


def test_a_trainers_two_rewards_are_drawn_over_its_steps() -> None:
    history = [
        {"step": n, "rewards/learned/mean": n / 2, "rewards/truth/mean": 1 - n / 8}
        for n in (1, 2, 3)
    ]
    truth, reward = lines_of(figures.against_truth(history))
    assert list(truth.get_xdata()) == list(reward.get_xdata()) == [1, 2, 3]
    assert truth.get_ydata()[0] > truth.get_ydata()[-1]
    assert reward.get_ydata()[0] < reward.get_ydata()[-1]
