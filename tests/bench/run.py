"""One run of one contestant: `python -m tests.bench.run WORK CONTESTANT RESULT [--order ...]`."""

import argparse
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
    parser.add_argument("--order", choices=["sequential"])
    options = parser.parse_args()

    from tests.bench import contestants  # here, so that its imports count as start-up

    work = WORKS[options.work]
    result = contestants.run(options.contestant, work, started, options.order)
    result |= {"work": work.name, "contestant": options.contestant}
    result["matmul_flops_per_second"] = meter.matmul_rate()
    meter.write(options.result, result)


if __name__ == "__main__":
    main()
