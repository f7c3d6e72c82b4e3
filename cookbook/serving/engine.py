"""llama.cpp in a process of its own: a native abort there does not take the server down.

`python -m cookbook.serving.engine` reads one line of JSON from its standard input (`Settings`, and
a key), loads the model, prints one line of JSON with its `address`, and ends when its input is
closed: it never outlives its parent, however that ends. Only `Engine` starts it.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import httpx2
import psutil

MOST_CONTEXT = 4096  # tokens of a slot where nobody asks for more: memory is taken from the start
ALIAS = "engine"  # the model's name in what llama.cpp answers; by default the file's path
# Threads that wait for each other sleep: where something else computes, too, spinning ones take its
# core and get a tenth of their own work done. And an abort of ggml would start a debugger for its
# traceback.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"}
END_WAIT = 5  # seconds that the process may take to end


def complaint(sentence: str) -> RuntimeError:
    """Return a `CookbookError`; torch is imported with it, which no process here needs."""
    from cookbook.profiles import CookbookError

    return CookbookError(sentence)


def default_threads() -> int:
    """Return the physical cores that this process may use: a second thread on one adds nothing."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(allowed or 1, psutil.cpu_count(logical=False) or allowed or 1))


@dataclass(frozen=True)
class Settings:
    """What llama.cpp is started with: a model's GGUF, and those of LoRA adapters, by their ids.

    `context` is in tokens of each of the `parallel` slots; llama.cpp takes the length that the
    model was trained with where that is less. llama.cpp's own log is appended to `log`.
    """

    model: Path
    adapters: tuple[Path, ...] = ()
    context: int = MOST_CONTEXT
    parallel: int = 4
    threads: int = 0  # 0: as many as `default_threads`
    log: Path | None = None


class Engine:
    """A llama.cpp server on a free loopback port, behind a key that nobody else knows."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = ""
        self.context = 0  # tokens of a slot, as llama.cpp has them
        self.process: subprocess.Popen[str] | None = None
        self._key = secrets.token_urlsafe()

    def start(self) -> None:
        """Start llama.cpp and wait until the model is loaded.

        Raises `CookbookError` where a file is missing, is no whole GGUF, or does not load.
        """
        for path in (self.settings.model, *self.settings.adapters):
            check_gguf(path)
        with _opened(self.settings.log) as log:
            begins = log.seek(0, os.SEEK_END)
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # a terminal's Ctrl-C: the server lets answers end first
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # an abort would start a debugger
                cwd=Path(__file__).parents[2],  # where `cookbook` is found
            )
            ready = _handed_over(self.process, {**asdict(self.settings), "key": self._key})
            if ready is None:
                self.stop()
                log.seek(begins)
                raise self._does_not_load(log.read().decode(errors="replace"))
        self.address = ready["address"]
        slots = httpx2.get(f"{self.address}/slots", headers=self.headers(), trust_env=False)
        self.context = slots.json()[0]["n_ctx"]

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers that open the engine."""
        return {"Authorization": f"Bearer {self._key}"}

    def alive(self) -> bool:
        """Return whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End the process; what it is answering is lost."""
        process, self.process = self.process, None
        if process is None:
            return
        end(process, END_WAIT)
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()

    def restart(self) -> None:
        """Start llama.cpp anew, on another port; raises as `start` does."""
        self.stop()
        self.start()

    def _does_not_load(self, log: str) -> RuntimeError:
        errors = [line.split(" E ", 1)[1].strip() for line in log.splitlines() if " E " in line]
        # The first error is the reason, those after it follow from it and name the file.
        reason = errors[0] if errors else (log.strip().splitlines() or ["it said nothing"])[-1]
        named = [path for path in self.settings.adapters if str(path.absolute()) in log]
        path = named[-1] if named and "adapter" in " ".join(errors) else self.settings.model
        return complaint(
            f"llama.cpp does not load {path} ({reason.rstrip('.')}). Export it again; if there is "
            "too little memory, ask for a shorter context or fewer answers in parallel."
        )


def end(process: "subprocess.Popen[str]", seconds: float) -> None:
    """Tell a process to end, and end it by force where it takes longer."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def check_gguf(path: Path) -> None:
    """Raise `CookbookError` unless there is a file that begins as a GGUF does."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise complaint(
            f"{path} cannot be read ({error.strerror}). Name a GGUF file that is there."
        ) from error
    if head != b"GGUF":
        raise complaint(f"{path} is no GGUF file, and llama.cpp reads nothing else. Export again.")


def _opened(log: Path | None) -> IO[bytes]:
    try:
        return log.open("ab+") if log else tempfile.TemporaryFile()
    except OSError as error:
        raise complaint(
            f"The log {log} cannot be written ({error.strerror}). Name another file."
        ) from error


def _handed_over(process: "subprocess.Popen[str]", given: dict[str, Any]) -> dict[str, Any] | None:
    """Hand over the settings and return what the process says once it has loaded the model."""
    assert process.stdin and process.stdout
    try:
        print(json.dumps(given, default=lambda path: str(path.absolute())), file=process.stdin)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    return dict(json.loads(line)) if line else None


def _server(given: dict[str, Any]) -> Any:
    """Load the model and return the server, which answers on a free port from then on."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = given["model"], {ALIAS}
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(one, 0.0) for one in given["adapters"]]
    params.n_ctx, params.n_parallel = given["context"] * given["parallel"], given["parallel"]
    params.fit_params = False  # would lessen what was asked for
    params.cpuparams.n_threads = given["threads"] or default_threads()
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [given["key"]]
    params.ui, params.cors_origins = False, ""
    # An answer holds a thread to its end, and one that was hung up on a second longer.
    params.n_threads_http = 2 * given["parallel"] + 8
    # Prompts kept beside the slots are found by their tokens alone: one adapter would go on from
    # the keys and values of another.
    params.cache_ram_mib = 0
    return xllamacpp.Server(params)


def main() -> None:
    """Be the engine's process: see the module."""
    said = os.dup(1)
    os.dup2(2, 1)  # what libraries print is log
    given = json.loads(sys.stdin.readline())
    server = _server(given)
    os.write(said, json.dumps({"address": server.listening_address}).encode() + b"\n")
    if not given["log"]:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    sys.stdin.read()  # to its end: the parent is gone
    os._exit(0)  # anything gentler waits for answers that nobody gets


if __name__ == "__main__":
    main()
