"""An OpenAI-compatible server for a fine-tuned model and its adapters, in front of llama.cpp.

The front decides who may ask, for which model, how many at once, and what an error looks like;
`engine` answers. Nothing that a client sends names a file, a slot or an adapter to llama.cpp.
"""

import asyncio
import hmac
import json
import re
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cookbook.serving.engine import ALIAS, Engine, Settings, complaint

LARGEST_BODY = 8 * 2**20  # bytes
MOST_WAITING = 1024  # requests; more are told to come again
PATIENCE = {"body": 30.0, "engine": 60.0, "reader": 60.0}  # seconds for a client's or llama.cpp's
RESTARTS = 5  # in a minute: a model that dies on its first token is not started forever
LOCAL = ("127.0.0.1", "localhost")
ANSWERING = ("/v1/chat/completions", "/v1/completions")
PASSED = ("/tokenize", "/apply-template")  # answered at once, without a slot
REFUSED = frozenset({"lora", "id_slot", "slot_id"})
LENGTHS = ("max_tokens", "max_completion_tokens", "n_predict")
# llama.cpp passes over these where they are something else, and answers as if they were not there.
TYPES: dict[str, tuple[Any, str]] = {
    "model": (str, "a string"),
    "messages": (list, "a list"),
    "stop": (str | list, "a string or a list"),
    "response_format": (dict, "an object"),
    "logit_bias": (dict | list, "an object or a list"),
}
# Of probabilities as many as OpenAI has: llama.cpp would send its whole vocabulary with each token.
LARGEST = {"logprobs": 20, "top_logprobs": 20, "n_probs": 20}
# The tokens looked back at: llama.cpp takes memory for as many, ten gigabytes if asked.
LARGEST |= {"repeat_last_n": 65536, "dry_penalty_last_n": 65536}
_TOKENS = re.compile(rb'"predicted_n":(\d+)')
_OF_THE_ENGINE = re.compile(r"comput|decod|memory|alloc", re.IGNORECASE)
_NAMED = f'"model":"{ALIAS}"'.encode()  # in text that a model writes, quotes are escaped


@dataclass(frozen=True)
class Served:
    """The names under which models are asked for, and what a request leaves out.

    `base` is the model without an adapter, `adapters` are those of the engine's settings, in their
    order. `defaults` are sampling settings as llama.cpp names them, `max_tokens` an answer's.
    """

    base: str
    adapters: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 1024

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names, the base's first."""
        return (self.base, *self.adapters)

    def lora(self, name: str) -> list[dict[str, Any]]:
        """Return the scale of every adapter: without any, llama.cpp keeps another one's cache."""
        return [{"id": n, "scale": float(one == name)} for n, one in enumerate(self.adapters)]


class Refused(HTTPException):
    """An error that a client is told, in one sentence and with OpenAI's `code`."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(status, message)
        self.code = code


def _error(status: int, message: str, code: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "code": code}}


async def _told(request: Request, error: Exception) -> Response:
    """Answer with an error: ours, Starlette's of routes, or one of a fault in this module."""
    if isinstance(error, Refused):
        status, message, code = error.status_code, error.detail, error.code
    elif isinstance(error, HTTPException):  # Starlette's: 404, 405
        paths = ", ".join(f"POST {path}" for path in (*ANSWERING, *PASSED))
        message = f"There are GET /health, GET /v1/models, {paths}: ask one of these."
        status, code = error.status_code, "not_found"
    else:
        status, message, code = 500, "The server has a fault; its log tells more.", "server_error"
    headers = {"Retry-After": "1"} if status in (502, 503) else None
    return JSONResponse(_error(status, message, code), status, headers)


class _Gate:
    """Lets in whom the server is for, before a body is read, and writes a line for each request."""

    def __init__(self, app: ASGIApp, key: str, hosts: frozenset[str]) -> None:
        self.app, self.key, self.hosts = app, key.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), 499  # as nginx has it: hung up before there was an answer
        note = scope.setdefault("state", {})["note"] = {"model": "-", "tokens": "-"}

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            refusal = self.refusal(Headers(scope=scope), scope["path"])
            app = await _told(Request(scope), refusal) if refusal else self.app
            await app(scope, receive, noting)
        finally:
            path = scope["path"].encode("unicode_escape").decode()[:80]  # one line, whatever it is
            took = f"{time.monotonic() - began:.2f} s"
            line = (scope["method"], path, note["model"], status, note["tokens"], "tokens", took)
            print(*line, file=sys.stderr, flush=True)

    def refusal(self, headers: Headers, path: str) -> Refused | None:
        """Return why a request is refused, by its headers."""
        host = headers.get("host", "")
        if re.sub(r":\d+$", "", host).lower() not in self.hosts:  # a page's, by DNS rebinding
            return Refused(403, "The Host is not this server's: use http://127.0.0.1.", "bad_host")
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return Refused(403, "Web pages of other origins may not use this server.", "bad_origin")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.key) and scheme.lower() == "bearer"
        if right or path == "/health":
            return None
        return Refused(401, "Send the key: `Authorization: Bearer <key>`.", "invalid_api_key")


class _Front:
    """What the requests share: turns at the engine, its health, and the counters."""

    def __init__(self, served: Served, engine: Engine) -> None:
        self.served, self.engine = served, engine
        self.began = time.time()
        self.running = self.waiting = self.answered = 0
        self.status = "ok" if engine.alive() else "starting"
        # A second semaphore for what needs no slot: it never waits for answers.
        self.turns = {path: asyncio.Semaphore(4) for path in PASSED}
        self.turns |= dict.fromkeys(ANSWERING, asyncio.Semaphore(engine.settings.parallel))
        # Limits and time-outs are the front's own; a proxy of the environment is for others.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx2.AsyncClient(timeout=None, limits=limits, trust_env=False)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Watch over the engine while the server runs."""
        watch = asyncio.create_task(self.watch())
        yield
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await self.client.aclose()

    async def watch(self) -> None:
        """Start the engine anew whenever it is gone, `RESTARTS` times in a minute at most."""
        starts: deque[float] = deque(maxlen=RESTARTS)
        while True:
            if self.engine.alive():
                self.status = "ok"
            elif len(starts) == RESTARTS and time.monotonic() - starts[0] < 60:
                self.status = "down"
            else:
                self.status = "starting"
                starts.append(time.monotonic())
                print("llama.cpp is not running: starting it.", file=sys.stderr, flush=True)
                try:
                    await asyncio.to_thread(self.engine.restart)
                except (RuntimeError, OSError, httpx2.HTTPError) as error:
                    print(error, file=sys.stderr, flush=True)
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def turn(self, path: str) -> AsyncIterator[None]:
        """Wait for a turn, in the order of asking, and hold it for the block."""
        if self.waiting >= MOST_WAITING:
            raise Refused(503, f"{MOST_WAITING} requests wait already: ask again later.", "busy")
        self.waiting += 1
        try:
            await self.turns[path].acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.turns[path].release()

    async def ready(self) -> None:
        """Wait while the engine starts; raises `Refused` where it does not."""
        last = time.monotonic() + PATIENCE["engine"]
        while not self.engine.alive() or self.status != "ok":
            if self.status == "down" or time.monotonic() > last:
                raise Refused(503, "llama.cpp does not run; the server's log tells why.", "down")
            await asyncio.sleep(0.05)

    async def health(self, _: Request) -> Response:
        """Say how the server is."""
        content = {
            "status": self.status,
            "models": self.served.names,
            "uptime_seconds": round(time.time() - self.began, 1),
            "in_flight": self.running,
            "waiting": self.waiting,
            "answered": self.answered,
        }
        return JSONResponse(content, 200 if self.status == "ok" else 503)

    async def models(self, _: Request) -> Response:
        """List what `model` may be."""
        common = {"object": "model", "created": int(self.began), "owned_by": "cookbook"}
        data = [{"id": name, **common} for name in self.served.names]
        return JSONResponse({"object": "list", "data": data})

    def prepared(self, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the model's name, and what the engine is sent for a client's request.

        What is null is left out, as OpenAI means it. Raises `Refused`.
        """
        body = {name: value for name, value in body.items() if value is not None}
        _check_fields(body)
        if path in PASSED:
            body.pop("model", None)
            return "-", body
        name = self.name(body.get("model"))
        body = {**self.served.defaults, **body, "model": ALIAS, "lora": self.served.lora(name)}
        if not any(length in body for length in LENGTHS):
            body["max_tokens"] = self.served.max_tokens
        return name, body

    def name(self, asked: str | None) -> str:
        """Return the served name that a request asks for."""
        names = ", ".join(self.served.names)
        if asked is None and self.served.adapters:
            raise Refused(400, f"Field 'model': one of {names} is needed.", "model_missing")
        if asked is not None and asked not in self.served.names:
            shown = ascii(asked[:80])
            raise Refused(404, f"There is no model {shown}. Served: {names}.", "model_not_found")
        return asked or self.served.base

    async def answer(self, path: str, body: bytes, note: dict[str, str], out: Send) -> bytes | None:
        """Return the engine's answer, or pass it on as it comes where it is a stream."""
        await self.ready()
        url, headers = self.engine.address + path, self.engine.headers()
        async with self.client.stream("POST", url, content=body, headers=headers) as reply:
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                await _pass_on(reply, note, out)
                return None
            content = await reply.aread()
        if reply.status_code != 200:
            raise _refusal(reply.status_code, content)
        return _noted(content, note)


class _Post:
    """An endpoint that the engine answers, for as long as the client is there."""

    def __init__(self, front: _Front, path: str) -> None:
        self.front, self.path = front, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def out(message: Message) -> None:
            nonlocal started
            started = True
            # A client that does not read must not keep its turn from others.
            async with asyncio.timeout(PATIENCE["reader"]):
                await send(message)

        async def work(body: bytes, note: dict[str, str]) -> None:
            async with self.front.turn(self.path):
                try:
                    content = await self.front.answer(self.path, body, note, out)
                except httpx2.ConnectError:  # it died since, and nothing was asked of it yet
                    await asyncio.sleep(0.2)
                    content = await self.front.answer(self.path, body, note, out)
            self.front.answered += 1
            if content is not None:
                await Response(content, media_type="application/json")(scope, receive, out)

        note = scope["state"]["note"]
        try:
            given = await _read_object(Request(scope, receive))
            note["model"], sent = self.front.prepared(self.path, given)
            return await _while_connected(receive, work(_dumped(sent), note))
        except (ClientDisconnect, TimeoutError):
            return
        except asyncio.CancelledError:  # uvicorn's, whose patience has ended
            reason = Refused(503, "The server is stopping.", "stopping")
        except httpx2.TransportError:
            reason = Refused(502, "llama.cpp ended before the answer did: ask again.", "ended")
        if not started:
            raise reason
        error = json.dumps(_error(reason.status_code, reason.detail, reason.code)).encode()
        await out({"type": "http.response.body", "body": b"data: " + error + b"\n\n"})


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work to its end, or until the client hangs up: then it is cancelled."""

    async def hung_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(hung_up())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not tasks[0].cancelled():
        tasks[0].result()


async def _read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request carries; raises `Refused`."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(PATIENCE["body"]):
            async for part in request.stream():
                size += len(part)
                if size <= LARGEST_BODY:
                    body += part
                elif size > 8 * LARGEST_BODY:
                    break  # up to here the rest is read, since many clients send before they listen
    except TimeoutError:
        raise Refused(408, "The request's body did not arrive in time.", "timeout") from None
    if size > LARGEST_BODY:
        raise Refused(413, f"A request may have {LARGEST_BODY} bytes at most.", "too_large")
    try:
        given = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON ({error}).", "invalid_json") from None
    if not isinstance(given, dict):
        raise Refused(400, "The body must be a JSON object, in braces.", "invalid_json")
    return given


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON ({error}).", "invalid_json") from None


def _check_fields(body: dict[str, Any]) -> None:
    """Refuse what is not the client's to choose, and what llama.cpp would take in silence."""
    if own := sorted(REFUSED & body.keys()):
        raise Refused(400, f"{', '.join(own)}: chosen by the server, by `model`.", "unsupported")
    for name, (kind, shown) in TYPES.items():
        if name in body and not isinstance(body[name], kind):
            raise Refused(400, f"Field '{name}': it must be {shown}.", "invalid_value")
    if body.get("messages") == []:
        raise Refused(400, "Field 'messages': there must be one at least.", "invalid_value")
    for name, most in LARGEST.items():
        if isinstance(body.get(name), int | float) and body[name] > most:
            raise Refused(400, f"Field '{name}': {most} at most.", "invalid_value")


def _refusal(status: int, content: bytes) -> Refused:
    """Return llama.cpp's error as OpenAI's; it calls some of a client's mistakes its own (500)."""
    try:
        error = dict(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        error = {}
    if error.get("type") == "exceed_context_size_error":
        prompt, context = error.get("n_prompt_tokens"), error.get("n_ctx")
        message = f"The prompt has {prompt} tokens, and the context {context}: shorten the prompt."
        return Refused(400, message, "context_length_exceeded")
    message = str(error.get("message") or "llama.cpp gave no reason.")
    if status == 400 or status == 500 and not _OF_THE_ENGINE.search(message):
        return Refused(400, message, "invalid_value")
    return Refused(503 if status == 503 else 502, message, "engine_error")


def _noted(content: bytes, note: dict[str, str]) -> bytes:
    """Write the served name into an answer, or whole lines of one, and note its tokens."""
    if tokens := _TOKENS.search(content):
        note["tokens"] = tokens[1].decode()
    return content.replace(_NAMED, b'"model":' + json.dumps(note["model"]).encode())


async def _pass_on(reply: httpx2.Response, note: dict[str, str], out: Send) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await out({"type": "http.response.start", "status": 200, "headers": headers})
    rest = b""
    async for part in reply.aiter_raw():
        lines, end, rest = (rest + part).rpartition(b"\n")
        if end:
            body = _noted(lines + end, note)
            await out({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(0)  # hundreds of parts may lie ready: others come in between
    await out({"type": "http.response.body", "body": _noted(rest, note)})


def app(served: Served, engine: Engine, key: str, host: str = "127.0.0.1") -> Starlette:
    """Return the server as an ASGI application, which starts the engine where it does not run.

    `host` is the address that it will be bound to; requests must name it, or this machine. Raises
    `CookbookError` without a key, and where names are not one for each model of the engine.
    """
    names = served.names
    if len(served.adapters) != len(engine.settings.adapters) or len(set(names)) != len(names):
        raise complaint(f"Each model needs a name of its own: {', '.join(names)}. Name them anew.")
    if not key:
        raise complaint("A server without a key is open to every program here. Give it a key.")
    front = _Front(served, engine)
    routes = [
        Route("/health", front.health),
        Route("/v1/models", front.models),
        *(Route(path, _Post(front, path), methods=["POST"]) for path in (*ANSWERING, *PASSED)),
    ]
    hosts = frozenset({*LOCAL, host.lower()} - {"0.0.0.0"})
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Gate, key=key, hosts=hosts)],
        exception_handlers={HTTPException: _told, Exception: _told},
        lifespan=front.lifespan,
    )


def _bound(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises `CookbookError` where the port cannot be had."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        own.bind((host, port))
        own.listen(2048)  # now: two sockets may be bound to one port, but not listen there
    except (OSError, OverflowError) as error:
        own.close()
        reason = getattr(error, "strerror", None) or error
        raise complaint(
            f"Port {port} of {host} cannot be used ({reason}). Choose another one: PORT=8001."
        ) from error
    return own


def serve(
    served: Served,
    settings: Settings,
    *,
    key: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    patience: int = 10,
) -> int:
    """Serve until SIGTERM or Ctrl-C and return the exit status; to be called in the main thread.

    Without a `key` one is made, and printed once. `port` 0 is any free one. Answers that are
    running when the server is told to stop have `patience` seconds to end. Raises `CookbookError`
    where the port is taken or the model does not load.
    """
    engine = Engine(settings)
    made = key or secrets.token_urlsafe()
    application = app(served, engine, made, host)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    # uvicorn raises a signal again once it has ended.
    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        with _bound(host, port) as own:
            engine.start()
            _greet(served, engine, "" if key else made, own.getsockname()[1])
            config = uvicorn.Config(
                application,
                http="h11",
                ws="none",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=patience,
            )
            uvicorn.Server(config).run([own])
    except KeyboardInterrupt:
        pass
    finally:
        engine.stop()
        signal.signal(signal.SIGTERM, before)
    return 0


def _greet(served: Served, engine: Engine, made: str, port: int) -> None:
    """Print where the server is, its key if it was made here, and a first request."""
    url = f"http://127.0.0.1:{port}/v1"
    body = {"model": served.base, "messages": [{"role": "user", "content": "Hello!"}]}
    print(f"Serving {', '.join(served.names)} at {url} ({engine.context} tokens of context).")
    if made:
        print(f"Key, for this run alone: {made}")
    shown = json.dumps(body).replace("'", "'\\''")
    print(f"curl {url}/chat/completions -H 'Authorization: Bearer {made or '<key>'}' -d '{shown}'")
    sys.stdout.flush()
