"""Means and intervals over seeds, what nothing beats, and the rates that a comparison takes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cookbook import comparing

pytestmark = pytest.mark.unit


def cell(method: str = "lora_r8", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What one training came to."""
    curve = [[step, 4.0 / step, float(step)] for step in range(1, 11)]
    return {
        "method": method,
        "learning_rate": 1e-3,
        "seed": seed,
        "losses": [2.0, 6.0],
        "tokens": [2, 4],
        "right": [1.0, 0.0],
        "general_text_loss": 3.0,
        "general_text_interval": [2.5, 3.5],
        "general_texts": 8,
        "weights_trained": 100,
        "bytes": 400,
        "peak_memory_bytes": 2**20,
        "seconds": 10.0,
        "ready_seconds": 1.0,
        "trained_tokens": 500,
        "steps": 10,
        "curve": curve,
    } | changes


def test_a_summary_is_the_mean_over_tokens_rows_and_seeds() -> None:
    one = comparing.summary([cell(), cell(seed=1, losses=[4.0, 12.0], right=[1.0, 1.0])])
    assert one.loss.value == pytest.approx((2 + 6 + 4 + 12) / (2 * 6))
    assert one.score.value == 0.75 and one.seeds == 2 and one.tokens_per_second == 50
    assert one.loss.interval[0] < one.loss.value < one.loss.interval[1]
    untrained = comparing.summary([{k: v for k, v in cell().items() if k in LOOKED_AT}])
    assert untrained.method == "untrained" and untrained.seconds == 0


LOOKED_AT = {"losses", "tokens", "right", "general_text_loss", "general_text_interval"} | {
    "general_texts"
}


def test_an_interval_covers_rows_and_seeds() -> None:
    """Of equal seeds it is that of the rows; where only seeds differ it is not nothing."""
    random = np.random.default_rng(1)
    values = random.normal(size=200)
    same = comparing._over_seeds(np.array([values] * 3), np.ones((3, 200)))
    half = (same.interval[1] - same.interval[0]) / 2
    assert half == pytest.approx(1.96 * values.std() / 200**0.5, rel=0.15)
    of_seeds = np.array([[0.0] * 200, [1.0] * 200, [2.0] * 200])
    low, high = comparing._over_seeds(of_seeds, np.ones((3, 200))).interval
    assert low < 0.5 and high > 1.5


def test_seconds_to_a_loss_are_those_of_every_seed() -> None:
    """The mean of four steps: of 4/n it is below 1.1 at the sixth."""
    assert comparing.seconds_to([cell()], 1.1) == 6.0
    slow = cell(seed=1, curve=[[step, 4.0 / step, 2.0 * step] for step in range(1, 11)])
    assert comparing.seconds_to([cell(), slow], 1.1) == 9.0
    never = cell(seed=2, curve=[[step, 4.0, 1.0 * step] for step in range(1, 11)])
    assert comparing.seconds_to([cell(), never], 1.1) is None
    given = comparing.given_loss({"full": [never], "lora_r8": [cell()]}, share=0.6)
    assert comparing.seconds_to([cell()], given) == 6.0


def test_what_nothing_beats_is_better_or_cheaper_than_each_other() -> None:
    def one(method: str, loss: float, seconds: float) -> comparing.Summary:
        return comparing.summary([cell(method, losses=[loss, 0.0], seconds=seconds)])

    found = [one("a", 1.0, 9.0), one("b", 2.0, 5.0), one("c", 2.0, 6.0), one("d", 9.0, 5.0)]
    assert comparing.unbeaten(found, "seconds") == ["a", "b"]
    assert comparing.unbeaten([*found, one("e", 1.0, 9.0)], "seconds") == ["a", "b", "e"]


def test_a_table_has_a_method_a_row_in_one_order() -> None:
    found = comparing.by_method([cell("oft"), cell("full"), cell("full", 1), {"method": "x"}])
    names, *lines = comparing.rows(found, 1.1)
    assert [line[0] for line in lines] == ["full", "oft"] and names[
        -1
    ] == "seconds to a loss of 1.10"
    assert lines[0][5:] == ["100", "0.00", "1", "50", "10.0", "6.0"]
    assert len(comparing.text([names, *lines]).splitlines()) == 3


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Recorded cells of one method; the settings of a run that looks for them."""
    folder = tmp_path / "cpu-2x-some-bfloat16"
    folder.mkdir()
    monkeypatch.setattr(comparing, "RECORDED", tmp_path)
    told = {"device": "some", "precision": "bfloat16"}
    final, trial = cell(learning_rate=3e-3), {"method": "lora_r8", "validation_loss": 1.0}
    for name, content in (("a-seed0", final), ("a-rate1e-03", trial | {"learning_rate": 1e-3})):
        (folder / f"{name}.json").write_text(json.dumps(content | told))
    (folder / "digests.json").write_text("{}")
    return SimpleNamespace(profile="cpu", own=False)


def test_the_rate_is_the_one_that_was_taken(
    record: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert comparing.recorded_rate(record, "lora_r8") == 3e-3
    assert comparing.recorded_rate(record, "oft") is None
    assert comparing.recorded(SimpleNamespace(profile="gpu80", own=False)) == []
    assert capsys.readouterr().out == ""
    record.own = True
    assert comparing.recorded_rate(record, "lora_r8") == 3e-3
    assert "was found for another model and data" in capsys.readouterr().out


def test_pictures_are_drawn(tmp_path: Path) -> None:
    cells = [cell("full"), cell("oft", seconds=3.0, peak_memory_bytes=2**22)]
    tried = [
        {"method": "oft", "learning_rate": rate, "validation_loss": loss}
        for rate, loss in ((1e-3, 2.0), (1e-2, 0.5), (1e-1, 99.0))
    ]
    found = comparing.by_method(cells)
    summaries = [comparing.summary(own) for own in found.values()]
    comparing.plot_curves(found, tmp_path / "curves.png")
    comparing.plot_rates([*cells, *tried], 4.0, tmp_path / "rates.png")
    comparing.plot_rates(cells, 4.0, tmp_path / "none.png")
    for cost in ("seconds", "peak_memory_bytes"):
        comparing.plot_against(summaries, cost, cost, tmp_path / f"{cost}.png")
    sizes = {path.stem: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert len(sizes) == 5 and min(sizes.values()) > 2000
