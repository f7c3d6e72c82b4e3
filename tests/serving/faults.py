"""What becomes of a server's clients when something goes wrong: a table of faults, real HTTP.

`python -m tests.serving.faults model.gguf --out results/serving/faults.json` starts the server as a
process, does each fault to it, and asks an ordinary question afterwards. It stays on the loopback
interface and takes about a minute on an idle machine with a model of 135 million parameters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

from cookbook.serving.server import LARGEST_BODY

CHAT = "/v1/chat/completions"
DEADLINE = 180.0  # seconds that anything here may take
AT_ONCE = 64
START = """
import json, os, signal, sys, threading
from pathlib import Path
from cookbook.serving.engine import Settings
from cookbook.serving.server import Served, serve
given = json.loads(sys.stdin.readline())
engine = given["engine"]
engine["model"], engine["adapters"] = Path(engine["model"]), tuple(map(Path, engine["adapters"]))
given["served"]["adapters"] = tuple(given["served"]["adapters"])
def end_with_parent():  # a test that is killed leaves no server behind
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.exit(serve(Served(**given["served"]), Settings(**engine), **given["options"]))
"""


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    key: str
    log: Path
    said: str
    model: str

    def client(self, **options: Any) -> httpx2.Client:
        """Return a client with the key."""
        return httpx2.Client(**self._options(options))

    def async_client(self, **options: Any) -> httpx2.AsyncClient:
        """Return a client with the key, for many requests at once."""
        return httpx2.AsyncClient(**self._options(options))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.key}"}
        common = {"base_url": self.url, "headers": headers, "timeout": DEADLINE, "trust_env": False}
        return {**common, **options}

    def chat(self, length: int = 8, **fields: Any) -> dict[str, Any]:
        """Return the body of an ordinary request."""
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        common = {"model": self.model, "messages": messages, "max_tokens": length}
        return {**common, "temperature": 0, **fields}

    def long(self, **fields: Any) -> dict[str, Any]:
        """Return the body of a request whose answer takes long, whatever the model says."""
        return self.chat(12_000, ignore_eos=True, **fields)

    def post(self, body: Any, path: str = CHAT) -> httpx2.Response:
        """Send a JSON body, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.client() as client:
            return client.post(path, content=content)

    def health(self) -> dict[str, Any]:
        """Return what the server says of itself."""
        with self.client(timeout=2) as client:
            return dict(client.get("/health").json())

    def wait_for(self, seconds: float = DEADLINE, **wanted: Any) -> float:
        """Wait until the health has these values and return the seconds that it took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            health = self.health()
            if all(health[name] == value for name, value in wanted.items()):
                return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"After {seconds} s: {self.health()} instead of {wanted}.")

    def engine(self) -> psutil.Process:
        """Return the engine's process."""
        (engine,) = psutil.Process(self.process.pid).children()
        return engine


@contextmanager
def running(
    model: Path, adapters: Sequence[Path] = (), served: dict[str, Any] | None = None, **options: Any
) -> Iterator[Running]:
    """Start a server and end it; options are the engine's settings or the server's."""
    settings = {"context": 2048, "threads": 1, "parallel": 4, "log": None}
    engine = {name: options.pop(name, value) for name, value in settings.items()}
    engine |= {"model": str(model), "adapters": [str(path) for path in adapters]}
    names = {"base": "base", "adapters": [path.stem for path in adapters], **(served or {})}
    server = {"key": secrets.token_urlsafe(), "port": 0, **options}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=Path(__file__).parents[2],
                start_new_session=True,  # a group of its own, as a terminal's command has
            )
        assert process.stdin and process.stdout
        print(
            json.dumps({"engine": engine, "served": names, "options": server}), file=process.stdin
        )
        process.stdin.flush()
        try:
            said = process.stdout.readline()
            if not server["key"]:
                said += process.stdout.readline()
                server["key"] = said.split()[-1]
            assert said, log.read_text(encoding="utf-8")
            url = said.partition(" at ")[2].split("/v1")[0]
            yield Running(process, url, server["key"], log, said, names["base"])
        finally:
            process.terminate()
            process.wait(DEADLINE)
            process.stdin.close()
            process.stdout.close()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong: what is sent, which statuses are right, and how it is done."""

    name: str
    sent: str
    right: tuple[int, ...]
    do: Callable[[Running], int]


def status(body: Callable[[Running], Any] | Any, path: str = CHAT) -> Callable[[Running], int]:
    """Return what sends a body, or the one made for a server, and returns the status."""
    return lambda one: one.post(body(one) if callable(body) else body, path).status_code


def with_headers(**headers: str) -> Callable[[Running], int]:
    """Return what asks an ordinary question with other headers."""

    def ask(one: Running) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with one.client() as client:
            return client.post(CHAT, json=one.chat(), headers=named).status_code

    return ask


def raw(one: Running, text: str, seconds: float = 5) -> int:
    """Send text as it stands and return the status of what comes back."""
    host, _, port = one.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), seconds) as connection:
        connection.sendall(text.encode())
        return int(connection.recv(4096).split()[1])


def without_key(one: Running) -> int:
    """Announce a body, send none of it, and no key."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    return raw(one, head)


def hang_up(one: Running, stream: bool) -> int:
    """Leave a long answer, once it is being made; the engine must be free within two seconds."""
    with one.client() as client:
        if stream:
            with client.stream("POST", CHAT, json=one.long(stream=True)) as reply:
                lines = reply.iter_lines()  # kept: without it the client would hang up here
                next(lines)
                one.wait_for(5, in_flight=1)
        else:
            try:
                client.post(CHAT, json=one.long(), timeout=0.5)
            except httpx2.ReadTimeout:
                pass
    one.wait_for(2, in_flight=0, waiting=0)
    return 499


def hang_up_waiting(one: Running) -> int:
    """Leave while all turns are taken: it must not wait on."""

    async def ask() -> None:
        async with one.async_client() as client:
            long = [client.post(CHAT, json=one.long()) for _ in range(6)]
            tasks = [asyncio.create_task(each) for each in long]
            await asyncio.to_thread(one.wait_for, 5, in_flight=4, waiting=2)
            for task in tasks[4:]:
                task.cancel()
            await asyncio.to_thread(one.wait_for, 2, in_flight=4, waiting=0)
            for task in tasks:
                task.cancel()

    asyncio.run(ask())
    one.wait_for(2, in_flight=0, waiting=0)
    return 499


def many(one: Running) -> int:
    """Ask from many clients at once; all are answered, and the health within a second."""

    async def ask() -> int:
        async with one.async_client(limits=httpx2.Limits(max_connections=None)) as client:
            asked = [client.post(CHAT, json=one.chat()) for _ in range(AT_ONCE)]
            tasks = [asyncio.create_task(each) for each in asked]
            while not all(task.done() for task in tasks):
                began = time.monotonic()
                await client.get("/health")
                assert time.monotonic() - began < 1
                await asyncio.sleep(0.05)
            return max(task.result().status_code for task in tasks)

    return asyncio.run(ask())


def engine_killed(one: Running) -> int:
    """Kill llama.cpp while it answers; the server starts it anew."""

    async def ask() -> int:
        async with one.async_client() as client:
            answer = asyncio.create_task(client.post(CHAT, json=one.long()))
            await asyncio.to_thread(one.wait_for, 5, in_flight=1)
            one.engine().kill()
            return (await answer).status_code

    return asyncio.run(ask())


def stopped(one: Running, number: signal.Signals) -> int:
    """Stop the server while it answers: the answer ends, and nothing is left running."""
    engine = one.engine()
    with one.client() as client:
        with client.stream("POST", CHAT, json=one.chat(100, stream=True)) as reply:
            lines = reply.iter_lines()
            next(lines)
            if number == signal.SIGINT:  # a terminal sends it to all processes of the command
                os.killpg(one.process.pid, number)
            else:
                one.process.send_signal(number)
            assert [line for line in lines if line][-1] == "data: [DONE]"
    code = one.process.wait(DEADLINE)
    assert not engine.is_running()
    return code


def out_of_patience(one: Running) -> int:
    """Stop the server while it makes an answer longer than its patience."""
    with one.client() as client:
        with client.stream("POST", CHAT, json=one.long(stream=True)) as reply:
            lines = reply.iter_lines()
            next(lines)
            one.process.terminate()
            *_, last = [line for line in lines if line]
            assert "The server is stopping." in last
    return one.process.wait(DEADLINE)


def front_killed(one: Running) -> int:
    """Kill the server itself: llama.cpp must not outlive it."""
    engine = one.engine()
    one.process.kill()
    engine.wait(DEADLINE)
    return one.process.wait(DEADLINE)


def _long_prompt(one: Running) -> dict[str, Any]:
    return one.chat(messages=[{"role": "user", "content": "0 1 2 3 4 5 6 7 8 9 " * 2000}])


FAULTS = (
    Fault("no key", "an announced body, no key", (401,), without_key),
    Fault("wrong key", "another key", (401,), with_headers(Authorization="Bearer x")),
    Fault("another origin", "Origin of a web page", (403,), with_headers(Origin="http://a.test")),
    Fault("DNS rebinding", "Host: a.test", (403,), with_headers(Host="a.test")),
    Fault("unknown model", "model: x", (404,), status(lambda one: one.chat(model="x"))),
    Fault(
        "a path as model",
        "model: ../../etc/passwd",
        (404,),
        status(lambda one: one.chat(model="../../etc/passwd")),
    ),
    Fault("unknown path", "POST /v1/embeddings", (404,), status({}, "/v1/embeddings")),
    Fault("adapters by a client", "lora: []", (400,), status(lambda one: one.chat(lora=[]))),
    Fault("slot by a client", "id_slot: 0", (400,), status(lambda one: one.chat(id_slot=0))),
    Fault("no JSON", '{"messages": ', (400,), status(b'{"messages": ')),
    Fault("no text", "bytes 0xff", (400,), status(b"\xff\xff")),
    Fault("no object", "[]", (400,), status([])),
    Fault("nested deep", "100,000 brackets", (400,), status(b"[" * 100_000)),
    Fault("too large", "9 MB", (413,), status(b" " * (LARGEST_BODY + 10**6))),
    Fault("messages a number", "messages: 3", (400,), status(lambda one: one.chat(messages=3))),
    Fault("no messages", "messages: []", (400,), status(lambda one: one.chat(messages=[]))),
    Fault(
        "role a number",
        "messages: [{role: 3}]",
        (400,),
        status(lambda one: one.chat(messages=[{"role": 3, "content": "x"}])),
    ),
    Fault(
        "text as number", "temperature: hot", (400,), status(lambda o: o.chat(temperature="hot"))
    ),
    Fault("length below zero", "max_tokens: -5", (400,), status(lambda one: one.chat(-5))),
    Fault("infinite", "top_p: Infinity", (400,), status(lambda o: o.chat(top_p=float("inf")))),
    Fault(
        "all probabilities",
        "top_logprobs: 100,000,000",
        (400,),
        status(lambda one: one.chat(logprobs=True, top_logprobs=10**8)),
    ),
    Fault(
        "gigabytes of memory",
        "repeat_last_n: 2^31 - 1",
        (400,),
        status(lambda one: one.chat(repeat_last_n=2**31 - 1)),
    ),
    Fault(
        "bad grammar", "grammar: root ::= x", (400,), status(lambda o: o.chat(grammar="root ::= x"))
    ),
    Fault(
        "invalid tokens",
        "prompt: [999999999]",
        (400,),
        status(lambda one: {"model": one.model, "prompt": [999999999]}, "/v1/completions"),
    ),
    Fault("prompt too long", "40,000 characters", (400,), status(_long_prompt)),
    Fault("hang-up in a stream", "12,000 tokens", (499,), lambda one: hang_up(one, True)),
    Fault("hang-up before the answer", "12,000 tokens", (499,), lambda one: hang_up(one, False)),
    Fault("hang-up while waiting", "6 at 4 slots", (499,), hang_up_waiting),
    Fault("many at once", f"{AT_ONCE} requests", (200,), many),
    Fault("engine killed", "SIGKILL to llama.cpp", (502,), engine_killed),
)
# Each of a server of its own; the status is the process's.
ENDINGS = (
    Fault("SIGTERM", "in a stream", (0,), lambda one: stopped(one, signal.SIGTERM)),
    Fault("Ctrl-C", "in a stream", (0,), lambda one: stopped(one, signal.SIGINT)),
    Fault("SIGTERM, long answer", "patience of 1 s", (0,), out_of_patience),
    Fault("server killed", "SIGKILL to the server", (-signal.SIGKILL,), front_killed),
)


def done(fault: Fault, one: Running) -> dict[str, Any]:
    """Do a fault and return its row; without an answer to a question afterwards it is wrong."""
    began = time.monotonic()
    found = fault.do(one)
    row = {"fault": fault.name, "sent": fault.sent, "status": found, "right": found in fault.right}
    row["seconds"] = round(time.monotonic() - began, 2)
    if fault in ENDINGS:
        return row
    row["answered_after"] = one.post(one.chat()).status_code == 200
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=2048, help="tokens; 16384 for tiny models")
    parser.add_argument("--threads", type=int, default=0, help="of llama.cpp; 0: its default here")
    parser.add_argument("--out", type=Path, help="write the rows as JSON here")
    options = parser.parse_args(arguments)
    rows = []
    common = {"threads": options.threads, "context": options.context}
    with running(options.model, **common) as one:
        for fault in FAULTS:
            rows.append(done(fault, one))
            print(json.dumps(rows[-1]), flush=True)
    for fault in ENDINGS:
        with running(options.model, patience=1 if "long" in fault.name else 10, **common) as one:
            rows.append(done(fault, one))
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        content = {"model": options.model.name, "faults": rows}
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(not all(row["right"] and row.get("answered_after", True) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
