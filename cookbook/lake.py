"""Deep Lake data sets that are written once, and what of blocks has to be so before a training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cookbook.files import DataError
from cookbook.training import first_process_first

COMPLETE = "complete"  # the tag that a data set gets at its end


def opened(folder: Path, write: Callable[[str], None]) -> Any:
    """Return the data set in a folder, read-only; where it is not there whole it is written first.

    `write` gets the path, and its last act is the tag `complete`. A data set without it is what an
    interruption left, and is written anew. Of several processes the first one writes.
    """
    import deeplake

    path = str(folder)
    with first_process_first():
        if not (deeplake.exists(path) and COMPLETE in deeplake.open_read_only(path).tags.names()):
            shutil.rmtree(folder, ignore_errors=True)
            write(path)
    return deeplake.open_read_only(path)


def check_blocks(train: Any, test: Any, block_size: int, end_of_text: int) -> None:
    """Raise `DataError` where blocks of tokens (`input_ids`) cannot be trained on or scored."""
    if not len(train) or not len(test):
        raise DataError(
            f"The texts fill {len(train)} training blocks of {block_size} tokens and {len(test)} "
            "held-out ones; each needs one. Add text, or lower `block_size`."
        )
    if not any(end_of_text in batch["input_ids"] for batch in train.batches(1000)):
        raise DataError(
            "No text ends within a training block, so the model would never learn to end. Add "
            "texts."
        )


def lengths_around_shortest(blocks: NDArray[Any], end_of_text: int, before: int = 2) -> list[int]:
    """Return the lengths of documents in tokens, from `before` blocks before the shortest one on.

    `blocks` (blocks, block_size) are cut from documents in a row, each of which ends with
    `end_of_text`. The first length is what its document has left where those blocks begin.
    """
    ids = blocks.ravel()
    ends = np.union1d(np.flatnonzero(ids == end_of_text) + 1, [len(ids)])
    lengths = np.diff(ends, prepend=0)
    whole = lengths[:-1] if len(lengths) > 1 else lengths  # the last one may go on elsewhere
    shortest = int(np.argmin(whole))
    start = int(ends[shortest] - lengths[shortest])
    first = max(0, start // blocks.shape[1] - before) * blocks.shape[1]
    return [int(one) for one in np.diff(ends[ends > first], prepend=first)]
