"""One run of one contestant: `python -m tests.bench.run WORK CONTESTANT RESULT`.

With `--same-batches` all contestants of our own environment meet the same tokens in the same
batches, in the precision that this processor computes fastest, DPO in float32: their losses can be
compared. Speed is measured in bfloat16 alone, with the rate of a matrix product beside it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tests.bench import meter
from tests.bench.works import WORKS


def main() -> None:
    """Run the command line."""
    started = meter.process_start()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("contestant")
    parser.add_argument("result", type=Path)
    parser.add_argument("--same-batches", action="store_true")
    options = parser.parse_args()

    # Here, so that their imports count as start-up.
    from cookbook.profiles import compute_dtype
    from tests.bench import contestants

    work = WORKS[options.work]
    if options.same_batches:
        precision = str(compute_dtype()).removeprefix("torch.")
        if work.kind == "dpo":  # bfloat16 rounds a pair's gap by as much as a step changes it
            precision = "float32"
        # Without padding, so fewer.
        work = replace(work, rows="documents", examples_per_step=4, precision=precision)
    order = "sequential" if options.same_batches else None
    result = contestants.run(options.contestant, work, started, order)
    result |= {"work": work.name, "contestant": options.contestant}
    if not options.same_batches:
        result["matmul_flops_per_second"] = meter.matmul_rate()
    meter.write(options.result, result)


if __name__ == "__main__":
    main()
