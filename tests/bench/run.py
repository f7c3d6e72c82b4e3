"""One run of one contestant: `python -m tests.bench.run WORK CONTESTANT RESULT`.

With `--same-batches` all contestants of our own environment meet the same tokens in the same
batches, so that their losses can be compared.
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

    from tests.bench import contestants  # here, so that its imports count as start-up

    work = WORKS[options.work]
    if options.same_batches:
        work = replace(work, rows="documents", examples_per_step=4)  # without padding, so fewer
    order = "sequential" if options.same_batches else None
    result = contestants.run(options.contestant, work, started, order)
    result |= {"work": work.name, "contestant": options.contestant}
    result["matmul_flops_per_second"] = meter.matmul_rate()
    meter.write(options.result, result)


if __name__ == "__main__":
    main()
