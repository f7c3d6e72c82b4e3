"""A process that has the libraries imported and forks a kernel for whoever asks.

python -m tests.start.nursery SOCKET

It computes nothing itself, so that nothing but imported modules is inherited: random state, working
folder, environment, warnings and outputs are each kernel's own. It ends with the process that
`COOKBOOK_TEST_OWNER` names.
"""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Without deeplake: its import starts two dozen threads, which a fork does not take along.
LIBRARIES = (
    *("torch", "transformers", "datasets", "accelerate", "peft", "trl", "bitsandbytes"),
    *("transformers.trainer", "transformers.models.auto.modeling_auto", "torch.distributed.fsdp"),
    *("trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "peft.helpers"),
    *("matplotlib.pyplot", "sklearn.metrics", "rouge_score.rouge_scorer", "math_verify"),
    *("tensorboard", "ipywidgets", "IPython", "matplotlib_inline.backend_inline"),
    *("ipykernel.kernelapp", "tqdm.auto", "pyarrow.parquet", "numpy"),
)


def prepare() -> None:
    """Import the libraries as a kernel does: some look whether they are in one, for a bar."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # As `cookbook` does; it is not imported here, for it reads the environment of each kernel.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import IPython

    there = IPython.get_ipython
    IPython.get_ipython = lambda: SimpleNamespace(config={"IPKernelApp": {}})
    for name in LIBRARIES:
        importlib.import_module(name)
    IPython.get_ipython = there


def serve(path: Path) -> None:
    """Fork a kernel for each connection, until the owner is gone."""
    owner = int(os.environ["COOKBOOK_TEST_OWNER"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path) + ".new")
    listener.listen()
    os.rename(str(path) + ".new", path)
    while _alive(owner):
        if not select.select([listener], [], [], 1)[0]:
            continue
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _watch(connection)
        connection.close()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _watch(connection: socket.socket) -> None:
    """Be the parent of one kernel: tell its end to who asked, and end it when they are gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, outputs, _, _ = socket.recv_fds(connection, 4, 3)
    left = int.from_bytes(size, "big")
    message = b""
    while len(message) < left:
        message += connection.recv(left - len(message))
    child = os.fork()
    if child == 0:
        connection.close()
        _be_born(json.loads(message), outputs)
    connection.sendall(child.to_bytes(4, "big"))
    while True:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            code = os.waitstatus_to_exitcode(status)
            connection.sendall(bytes([code if code >= 0 else 128 - code]))
            os._exit(0)
        if select.select([connection], [], [], 0.05)[0] and not connection.recv(1):
            os.killpg(child, signal.SIGKILL)
            os._exit(0)


def _be_born(asked: dict[str, Any], outputs: list[int]) -> None:
    """Become the kernel that was asked for."""
    code = 1
    try:
        os.setsid()
        for standard, given in enumerate(outputs):
            os.dup2(given, standard)
            os.close(given)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["ipykernel_launcher"]
        sys.path[0] = ""  # `python -m` put the repository's root there, a kernel has its folder
        _run(asked["connection_file"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def _run(connection_file: str) -> None:
    import numpy as np
    from ipykernel.kernelapp import IPKernelApp

    np.random.seed()  # Python's own is drawn anew at a fork
    before = (sys.stdout, sys.stderr)
    app: Any = IPKernelApp.instance()
    app.initialize(["-f", connection_file, "--IPKernelApp.log_level=40"])
    _lead_logs_into_the_notebook(before)
    app.start()


def _lead_logs_into_the_notebook(before: tuple[object, object]) -> None:
    """Handlers made at an import write to the outputs of then."""
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and handler.stream in before:
                handler.setStream(sys.stderr)


if __name__ == "__main__":
    begun = time.monotonic()
    prepare()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    print(f"imported in {time.monotonic() - begun:.1f} s; {threads} threads", flush=True)
    serve(Path(sys.argv[1]))
