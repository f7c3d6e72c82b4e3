"""Pictures show what was asked for, also of tokens that Matplotlib would read as something."""

import pytest
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
