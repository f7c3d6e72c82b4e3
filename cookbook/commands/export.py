"""Write a finished run's model in a form that others load, and check it by loading it again.

`python -m cookbook.commands.export [RUN] --format gguf --quant bf16,q8_0` is what `make export`
calls; without RUN it takes the newest run.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from cookbook.offline.errors import OfflineError
from cookbook.paths import as_typed, start_command
from cookbook.profiles import CookbookError
from cookbook.serving import exporting, runs
from cookbook.serving.merging import quiet


def report(export: exporting.Export) -> str:
    """Return where an export lies, its files, and what was checked."""
    files = [path for path in sorted(export.folder.iterdir()) if path.is_file()]
    lines = [f"\n{as_typed(export.folder)}"]
    lines += [f"  {path.stat().st_size / 2**20:9.1f} MiB  {path.name}" for path in files]
    lines += [f"  checked: {check}" for check in export.checks]
    if (export.folder / "Modelfile").is_file():
        place = shlex.quote(f"{as_typed(export.folder)}/Modelfile")
        lines.append(f"  ollama create {shlex.quote(export.gguf.stem)} -f {place}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="", help="the folder of a finished run")
    parser.add_argument("--format", default="safetensors")
    parser.add_argument("--quant", default="bf16", help="of GGUF: " + ",".join(exporting.QUANTS))
    options = parser.parse_args(arguments)
    start_command()
    quiet()
    quants = exporting.quants_of(options.quant)
    try:
        made = exporting.export(runs.find(options.run), options.format.lower(), quants)
    except (CookbookError, OfflineError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(report, made)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
