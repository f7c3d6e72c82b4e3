"""One run of one contestant: `python -m tests.bench.gpu_run WORK CONTESTANT SCALE RESULT`."""

import argparse
import importlib
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.bench import meter
from tests.bench.gpu_works import SCALES, divided


def main() -> None:
    """Run the command line."""
    started = meter.process_start()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=SCALES["full"])
    parser.add_argument("contestant")
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    work = divided(SCALES[options.scale][options.work], options.contestant)

    if options.contestant == "unsloth":
        importlib.import_module("unsloth")  # changes transformers and TRL: before both
    # Here, so that their imports count as start-up.
    import time

    import torch

    from cookbook.planner import matmul_rate
    from cookbook.profiles import device_name
    from tests.bench import gpu_contestants, gpu_operations

    wall, clock = time.time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        seen, model = gpu_contestants.run(work, options.contestant, Path(folder))
    result = seen.result()
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    has = gpu_operations.weights(work, trained if work.adapted else 0)
    done = gpu_operations.passes(work, options.contestant == "ours-vllm")
    result |= {
        "device": device_name(),
        "startup_seconds": wall - started + seen.begin - clock,
        "operations": gpu_operations.of_weights(has, seen.timed(), done),
        "attention_operations": gpu_operations.of_attention(has, seen.timed(), done),
        "passes": asdict(done),
        "parameters": gpu_contestants.parameters(work),
        "trainable_parameters": trained,
        "versions": meter.installed((*meter.NAMED, "liger-kernel", "unsloth", "vllm")),
        "matmul_flops_per_second": matmul_rate(torch.bfloat16),
    }
    meter.write(options.result, result)


if __name__ == "__main__":
    main()
