"""Run a function of a notebook in several processes, which end when the notebook's kernel does."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from cookbook.profiles import ROOT, CookbookError, join_processes

_PR_SET_PDEATHSIG = 1  # from Linux's sys/prctl.h


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        """Take modules by name, those of a class of torch's own (its settings) too."""
        if isinstance(obj, ModuleType):
            return import_module, (obj.__name__,)
        return super().reducer_override(obj)


def launch(function: Callable[..., None], *arguments: Any, processes: int) -> None:
    """Call `function(*arguments)` in so many processes of this machine, and show what they print.

    torchrun starts them and gives each its RANK and all the same WORLD_SIZE; on a CPU they share
    its cores. The function may be one of a notebook: it takes along the names that it uses. Raises
    `CookbookError` if a process fails.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    # Text is UTF-8, whatever the locale says: what they print goes into the notebook.
    settings = {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1", "PYTHONUTF8": "1"}
    # Where the package is not installed, a notebook finds it beside its folder: so must they.
    paths = filter(None, (os.environ.get("PYTHONPATH"), str(ROOT)))
    settings["PYTHONPATH"] = os.pathsep.join(paths)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what this process has kept of a GPU, they may need
    with tempfile.TemporaryDirectory() as folder:
        call, complaint = Path(folder) / "call", Path(folder) / "complaint"
        with call.open("wb") as file:
            _Pickler(file).dump((function, arguments))
        torchrun = ["--standalone", "--nproc-per-node", str(processes)]
        with subprocess.Popen(
            [sys.executable, "-m", "cookbook.launch", *torchrun, "-m", "cookbook.launch", call],
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as launched:
            try:
                for line in launched.stdout or ():
                    print(line, end="", flush=True)
            except BaseException:  # an interrupt: they save a checkpoint, and end
                launched.terminate()
                raise
        if complaint.is_file():
            raise CookbookError(complaint.read_text(encoding="utf-8"))
    if launched.returncode:
        raise CookbookError(
            f"One of {processes} processes ended early; the reason is above. "
            "Run this cell again: training resumes from the newest whole checkpoint."
        )


def _start() -> int:
    """Be torchrun, and end as by SIGTERM when the notebook's kernel is gone."""
    if sys.platform == "linux":  # else nobody would see what goes on training
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        run.main(sys.argv[1:])
    except ChildFailedError:
        return 1  # the process itself has said why
    return 0


def _work(call: Path) -> int:
    """Be one of torchrun's processes."""
    join_processes()
    function, arguments = pickle.loads(call.read_bytes())
    try:
        function(*arguments)
    except CookbookError as error:
        call.with_name("complaint").write_text(str(error), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_work(Path(sys.argv[1])) if "RANK" in os.environ else _start())
