"""The command of a kernel that is born by a nursery: `python kernel.py CONNECTION_FILE`.

The standard library alone, so that it starts in hundredths of a second. It finds the nursery whose
libraries were imported under the same environment, starts one where there is none, hands over its
arguments, environment, folder and outputs, and lives as long as the kernel does.
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

# What libraries read when they are imported: a nursery serves those that have the same values.
READ_AT_IMPORT = (
    *("HF_", "HUGGINGFACE", "TRANSFORMERS_", "DATASETS_", "TQDM_", "BNB_", "BITSANDBYTES"),
    *("OMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "CUDA_", "PYTHON", "THP_", "MPL", "XDG_"),
)
READ_LATER = ("HF_TOKEN",)
STARTS_WITHIN = 240  # seconds; on a busy machine, from nothing


def key(environment: dict[str, str]) -> str:
    """Return a name for what the libraries see of an environment when they are imported."""
    seen = {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name not in READ_LATER
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def connect(folder: Path) -> socket.socket:
    """Return a connection to the nursery for this environment, starting it where there is none."""
    path = folder / f"{key(dict(os.environ))}.socket"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            log = path.with_suffix(".log").open("wb")
            command = [sys.executable, "-m", "tests.start.nursery", str(path)]
            root = Path(__file__).resolve().parents[2]
            # In a session of its own: Jupyter ends a kernel's whole group of processes.
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=root,
                start_new_session=True,
            )
            limit = time.monotonic() + STARTS_WITHIN
            while not path.exists():
                if started.poll() is not None or time.monotonic() > limit:
                    said = path.with_suffix(".log").read_text(errors="replace")
                    raise SystemExit(f"The nursery did not start: {said[-2000:]}")
                time.sleep(0.02)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def main() -> int:
    """Be the kernel's process, as Jupyter sees it."""
    connection = connect(Path(os.environ["COOKBOOK_TEST_NURSERY"]))
    asked = {"connection_file": sys.argv[1], "environment": dict(os.environ), "cwd": os.getcwd()}
    message = json.dumps(asked).encode()
    socket.send_fds(connection, [len(message).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(message)
    child = int.from_bytes(connection.recv(4), "big")
    signal.signal(signal.SIGINT, lambda *_: os.kill(child, signal.SIGINT))
    parent = os.getppid()
    connection.settimeout(1)
    while True:
        try:
            return (connection.recv(1) or b"\1")[0]
        except TimeoutError:
            if os.getppid() != parent:  # a test that was killed: a kernel would notice it too
                return 1


if __name__ == "__main__":
    sys.exit(main())
