"""Data sets in Deep Lake are written once and whole; blocks that teach nothing are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cookbook import lake
from cookbook.files import DataError

pytestmark = pytest.mark.unit

END = 0


def writer(number: int, written: list[int], whole: bool = True) -> Callable[[str], None]:
    """Return a function that writes a data set of one number, and notes that it did."""
    import deeplake

    def write(path: str) -> None:
        rows = deeplake.create(path)
        rows.add_column("number", deeplake.types.Int32())
        rows.append({"number": [number]})
        rows.commit("a number")
        written.append(number)
        if whole:
            rows.tag("complete")

    return write


def test_a_data_set_is_written_once(tmp_path: Path) -> None:
    written: list[int] = []
    for number in (1, 2):
        found = lake.opened(tmp_path / "rows", writer(number, written))
        assert found["number"][:].tolist() == [1]
    assert written == [1]


def test_what_an_interruption_left_is_written_anew(tmp_path: Path) -> None:
    written: list[int] = []
    lake.opened(tmp_path / "rows", writer(1, written, whole=False))
    found = lake.opened(tmp_path / "rows", writer(2, written))
    assert found["number"][:].tolist() == [2]
    assert written == [1, 2]


class View:
    """A view of blocks, as far as the check asks it."""

    def __init__(self, blocks: list[list[int]]) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def batches(self, size: int) -> Any:
        """Yield blocks, `size` at once."""
        for start in range(0, len(self), size):
            yield {"input_ids": np.array(self._blocks[start : start + size])}


def test_blocks_that_cannot_be_trained_on_or_scored_are_refused() -> None:
    good, endless, none = View([[5, 6], [END, 7]]), View([[5, 6]]), View([])
    lake.check_blocks(good, good, 2, END)
    lake.check_blocks(good, endless, 2, END)
    for train, test in ((good, none), (none, good)):
        with pytest.raises(DataError, match="blocks of 2 tokens and . held-out ones"):
            lake.check_blocks(train, test, 2, END)
    with pytest.raises(DataError, match="never learn to end"):
        lake.check_blocks(endless, good, 2, END)


@pytest.mark.parametrize(
    ("lengths", "around"),
    [
        ([9, 5, 2, 8], [5, 5, 2, 8]),  # the shortest begins in the fourth of six blocks
        ([3, 5, 9, 7], [3, 5, 9, 7]),  # from the start on
        ([24], [24]),
    ],
)
def test_documents_around_the_shortest_one(lengths: list[int], around: list[int]) -> None:
    ids = [token for length in lengths for token in [*[5] * (length - 1), END]]
    assert lake.lengths_around_shortest(np.array(ids).reshape(-1, 4), END) == around


def test_a_document_that_goes_on_is_not_the_shortest() -> None:
    blocks = np.array([5] * 9 + [END] + [5] * 3 + [END] + [5, 5]).reshape(-1, 4)
    assert lake.lengths_around_shortest(blocks, END, before=0) == [2, 4, 2]
    assert lake.lengths_around_shortest(np.full((3, 4), 5), END) == [12]
