"""The server before llama.cpp: who may ask for what, and what its clients see when it fails."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from cookbook.profiles import CookbookError
from cookbook.serving import server
from cookbook.serving.engine import Engine, Settings, default_threads
from cookbook.serving.server import Served, app, serve
from tests.serving.faults import CHAT, DEADLINE, ENDINGS, FAULTS, Fault, Running, done, running
from tests.serving.tiny_gguf import LENGTH, Tiny

pytestmark = pytest.mark.unit

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def wide(tiny: Tiny) -> Iterator[Running]:
    """A server with two adapters, four answers at once and greedy answers by default."""
    served = {"defaults": {"temperature": 0}, "max_tokens": 7}
    with running(tiny.model, tiny.adapters, served, context=LENGTH) as one:
        yield one


@pytest.fixture(scope="module")
def narrow(tiny: Tiny) -> Iterator[Running]:
    """A server with two adapters that answers one request at a time."""
    with running(tiny.model, tiny.adapters, context=LENGTH, parallel=1) as one:
        yield one


def asked(one: Running, model: str, text: str, **fields: Any) -> str:
    """Return the greedy answer of a model."""
    messages = [{"role": "user", "content": text}]
    reply = one.post(one.chat(16, model=model, messages=messages, **fields))
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def error(reply: httpx2.Response) -> dict[str, Any]:
    """Return an error, which has OpenAI's shape."""
    (content,) = reply.json().values()
    assert set(content) == {"message", "type", "code"} and all(content.values())
    return dict(content)


def in_process(model: Path, host: str = "127.0.0.1", **served: Any) -> httpx2.AsyncClient:
    """Return a client of the application, whose engine does not run."""
    application = app(Served(**{"base": "base", **served}), Engine(Settings(model)), "key", host)
    headers = {"Authorization": "Bearer key"}
    transport = httpx2.ASGITransport(app=application)
    return httpx2.AsyncClient(
        transport=transport, headers=headers, base_url="http://127.0.0.1:8000"
    )


# What is known as a fault, each with an ordinary request afterwards


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_answered_and_the_next_request_too(wide: Running, fault: Fault) -> None:
    row = done(fault, wide)
    assert row["right"] and row["answered_after"], row


@pytest.mark.parametrize("fault", ENDINGS, ids=lambda fault: fault.name)
def test_an_ending_leaves_nothing_running(tiny: Tiny, fault: Fault) -> None:
    patience = 1 if "long" in fault.name else 10
    with running(tiny.model, context=LENGTH, patience=patience) as one:
        assert done(fault, one)["right"]


# Who may ask


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic key", "key"])
def test_no_key_no_answer(tiny: Tiny, header: str | None) -> None:
    async def ask() -> httpx2.Response:
        async with in_process(tiny.model) as client:
            del client.headers["Authorization"]
            headers = {} if header is None else {"Authorization": header}
            return await client.get("/v1/models", headers=headers)

    reply = asyncio.run(ask())
    assert reply.status_code == 401 and error(reply)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("bound", "host", "origin", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", None, 200),
        ("127.0.0.1", "localhost", None, 200),
        ("127.0.0.1", "LOCALHOST:1", "http://LOCALHOST:1", 200),
        ("127.0.0.1", "localhost:8000", "http://localhost:3000", 403),
        ("127.0.0.1", "localhost:8000", "https://localhost:8000", 403),
        ("127.0.0.1", "localhost:8000", "null", 403),
        ("127.0.0.1", "localhost:8000", "http://evil.test", 403),
        ("127.0.0.1", "evil.test", "http://evil.test", 403),
        ("127.0.0.1", "localhost.evil.test:8000", None, 403),
        ("127.0.0.1", "", None, 403),
        ("0.0.0.0", "127.0.0.1:9000", None, 200),
        ("0.0.0.0", "0.0.0.0:9000", None, 403),
        ("0.0.0.0", "evil.test", None, 403),
        ("192.0.2.1", "192.0.2.1:8000", None, 200),
    ],
)
def test_hosts_and_origins(
    tiny: Tiny, bound: str, host: str, origin: str | None, status: int
) -> None:
    async def ask(path: str) -> httpx2.Response:
        headers = {"Host": host} | ({"Origin": origin} if origin else {})
        async with in_process(tiny.model, bound) as client:
            return await client.get(path, headers=headers)

    for path, right in (("/v1/models", status), ("/health", 503 if status == 200 else status)):
        reply = asyncio.run(ask(path))
        assert reply.status_code == right  # 503: the engine does not run here
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_pages_are_not_told_by_preflight_requests(wide: Running) -> None:
    headers = {"Origin": "http://evil.test", "Access-Control-Request-Method": "POST"}
    with wide.client() as client:
        reply = client.options(CHAT, headers=headers)
    assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers


def test_the_log_has_a_line_for_each_request_and_no_secrets(wide: Running) -> None:
    begins = len(wide.log.read_text().splitlines())
    asked(wide, "a", "MY-SECRET-PROMPT")
    with wide.client() as client:
        client.get("/x%0Aforged", params={"api_key": wide.key})
    deadline = time.monotonic() + 5
    while len(lines := wide.log.read_text().splitlines()[begins:]) < 2:
        assert time.monotonic() < deadline
    first, second = lines
    assert first.startswith(f"POST {CHAT} a 200 16 tokens 0.")
    assert second.startswith("GET /x\\nforged - 404 - tokens 0.")
    assert wide.key not in (log := wide.log.read_text()) and "MY-SECRET-PROMPT" not in log


# Which model answers


def test_models_and_health(wide: Running) -> None:
    with wide.client() as client:
        models = client.get("/v1/models").json()["data"]
    assert [one["id"] for one in models] == ["base", "a", "b"]
    with httpx2.Client(trust_env=False) as client:
        health = client.get(f"{wide.url}/health").json()
    assert health["status"] == "ok" and health["models"] == ["base", "a", "b"]
    assert health["in_flight"] == health["waiting"] == 0 and health["answered"] > 0


@pytest.mark.parametrize("name", ["x", "../../etc/passwd", "/tmp/x.gguf", "a\n", "", "A" * 9999])
def test_an_unknown_model_is_told_the_names(wide: Running, name: str) -> None:
    reply = wide.post(wide.chat(model=name))
    assert reply.status_code == 404 and error(reply)["code"] == "model_not_found"
    assert "Served: base, a, b." in reply.text and len(reply.text) < 300


def test_a_model_need_be_named_only_among_several(wide: Running, tiny: Tiny) -> None:
    body = wide.chat(model=None)
    assert (
        wide.post(body).status_code == 400
        and "one of base, a, b is needed" in error(wide.post(body))["message"]
    )
    with running(tiny.model, key="", context=100_000, parallel=1) as one:
        del body["model"]
        assert one.post(body).json()["model"] == "base"
        assert f"({LENGTH} tokens of context)" in one.said  # what it was trained with
        assert f"Key, for this run alone: {one.key}" in one.said and len(one.key) > 40
        assert one.key not in one.log.read_text()


def test_adapters_are_not_answered_from_each_others_cache(narrow: Running) -> None:
    texts = ["Once upon a time. " * 20, "Something else! " * 22, "THIRD 0123456789 " * 21]
    questions = [(model, text) for model in ("base", "a", "b") for text in texts]
    alone = {one: asked(narrow, *one, cache_prompt=False) for one in questions}
    assert len(set(alone.values())) == len(questions)
    shuffled = random.Random(1)
    for one in shuffled.choices(questions, k=80):
        assert asked(narrow, *one) == alone[one]


def test_the_name_that_was_asked_for_is_in_the_answer(wide: Running) -> None:
    assert wide.post(wide.chat(model="b")).json()["model"] == "b"
    content = wide.post(wide.chat(model="b", stream=True)).text
    chunks = [json.loads(line[6:]) for line in content.split("\n\n") if line.startswith("data: {")]
    assert {chunk["model"] for chunk in chunks} == {"b"} and len(chunks) > 8


def test_names_must_be_as_many_as_models_and_a_key_be_there(tiny: Tiny) -> None:
    engine = Engine(Settings(tiny.model, tiny.adapters))
    for names in ((), ("a",), ("a", "a"), ("a", "base")):
        with pytest.raises(CookbookError, match="a name of its own"):
            app(Served("base", names), engine, "key")
    with pytest.raises(CookbookError, match="without a key"):
        app(Served("base", ("a", "b")), engine, "")


# What is asked


def test_a_prompt_that_is_too_long_is_told_both_lengths(wide: Running) -> None:
    reply = wide.post(wide.chat(messages=[{"role": "user", "content": "x" * 20_000}]))
    assert reply.status_code == 400 and error(reply)["code"] == "context_length_exceeded"
    assert "20019 tokens" in reply.text and f"the context {LENGTH}" in reply.text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": 3}, "'messages': it must be a list"),
        ({"messages": [{"content": "x"}]}, "Missing 'role'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"temperature": "hot"}, "type must be number"),
        ({"max_tokens": -5}, "-1 <= value"),
        ({"max_tokens": 10**400}, "out_of_range"),
        ({"seed": "x"}, "type must be number"),
        ({"stream": "yes"}, "type must be boolean"),
        ({"stop": 3}, "'stop': it must be a string or a list"),
        ({"response_format": 3}, "must be an object"),
        ({"response_format": {"type": "x"}}, "response_format type"),
        ({"tools": 3}, "Failed to parse tools"),
        ({"n": 99}, "1 <= value <= 4"),
        ({"id_slot": 1, "lora": []}, "id_slot, lora: chosen by the server"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "image",
        ),
    ],
)
def test_a_wrong_field_is_told_the_reason(
    wide: Running, fields: dict[str, Any], reason: str
) -> None:
    reply = wide.post(wide.chat(**fields))
    assert reply.status_code == 400 and reason in error(reply)["message"], reply.text


def test_what_a_request_leaves_out_is_filled_in(wide: Running) -> None:
    body = wide.chat(max_tokens=None, temperature=None)  # null: as if it were left out
    first, second = (wide.post(body).json() for _ in range(2))
    assert first["usage"]["completion_tokens"] == 7
    assert first["choices"] == second["choices"]  # a temperature of 0 is this server's default
    hot = wide.chat(temperature=5.0)
    assert len({wide.post({**hot, "seed": n}).text.split('"created"')[0] for n in range(4)}) == 4
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        usage = wide.post({**body, name: 3}).json()["usage"]
        assert usage["completion_tokens"] == 3


def test_an_answer_ends_with_the_context(tiny: Tiny) -> None:
    with running(tiny.model, context=256, parallel=2) as one:
        answer = one.post(one.chat(max_tokens=-1)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 256


def test_templates_and_tokens_are_passed_through(wide: Running) -> None:
    prompt = wide.post(wide.chat(), "/apply-template").json()["prompt"]
    assert prompt.endswith("France?<|im_end|>\n<|im_start|>assistant\n")
    tokens = wide.post({"content": prompt, "parse_special": True}, "/tokenize").json()["tokens"]
    assert len(tokens) == wide.post(wide.chat()).json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize("request_line", ["GET /", "GET /slots", "PUT /health", f"GET {CHAT}"])
def test_other_paths_are_told_what_there_is(wide: Running, request_line: str) -> None:
    with wide.client() as client:
        reply = client.request(*request_line.split())
    assert reply.status_code in (404, 405) and f"POST {CHAT}" in error(reply)["message"]


# As OpenAI's client sees it


@pytest.fixture
def client(wide: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{wide.url}/v1", api_key=wide.key, max_retries=0) as one:
        yield one


def test_openai_streams(client: openai.OpenAI, wide: Running) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    stream = client.chat.completions.create(
        model="a", messages=messages, max_tokens=2000, stream=True, temperature=0
    )
    pieces = []
    for chunk in stream:
        pieces.append(chunk.choices[0].delta.content or "")
        if len(pieces) == 5:
            assert wide.health()["in_flight"] == 1  # it came before the answer had ended
    whole = client.chat.completions.create(
        model="a", messages=messages, max_tokens=2000, temperature=0
    )
    assert "".join(pieces) == whole.choices[0].message.content and len(pieces) > 1000


def test_openai_gets_json_that_obeys_a_schema(client: openai.OpenAI) -> None:
    for model in ("base", "a", "b"):
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Where?"}],
            max_tokens=500,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": SCHEMA},
            },
        )
        content = json.loads(answer.choices[0].message.content or "")
        assert set(content) == {"city", "large"} and content["city"] in ("Rome", "Oslo")


def test_openai_knows_the_errors(client: openai.OpenAI, wide: Running) -> None:
    assert [one.id for one in client.models.list()] == ["base", "a", "b"]
    with pytest.raises(openai.NotFoundError, match="There is no model 'x'"):
        client.completions.create(model="x", prompt="y")
    with pytest.raises(openai.AuthenticationError, match="Send the key"):
        client.with_options(api_key="x").models.list()
    completion = client.completions.create(model="a", prompt="y", max_tokens=3)
    assert len(completion.choices[0].text) == 3


# What fails


def test_a_hang_up_ends_the_work_of_the_engine(narrow: Running) -> None:
    for fields in ({"stream": True}, {"stream": False}):
        with narrow.client(timeout=0.5) as client, pytest.raises(httpx2.TimeoutException):
            with client.stream("POST", CHAT, json=narrow.long(**fields)) as reply:
                for _ in reply.iter_lines():
                    if fields["stream"]:
                        raise httpx2.ReadTimeout("as if")
        began = time.monotonic()
        narrow.wait_for(2, in_flight=0)
        # The engine has one slot: had it gone on, this would wait for some twenty seconds.
        assert narrow.post(narrow.chat()).status_code == 200
        assert time.monotonic() - began < 5


def test_a_stream_tells_that_the_engine_died(wide: Running) -> None:
    body = wide.long(stream=True)
    with wide.client() as client, client.stream("POST", CHAT, json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        engine = wide.engine()
        engine.kill()
        *_, last = [line for line in lines if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "ended"
    assert wide.post(wide.chat()).status_code == 200
    assert wide.engine().pid != engine.pid


def test_a_model_that_cannot_be_started_again_is_said_to_be_down(
    tiny: Tiny, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny.model.read_bytes())
    with running(model) as one:
        model.unlink()
        one.engine().kill()
        one.wait_for(10, status="down")
        reply = one.post(one.chat())
        assert reply.status_code == 503 and reply.headers["retry-after"]
        assert error(reply)["code"] == "down"
        assert f"{model} cannot be read" in one.log.read_text()


def test_a_body_that_does_not_come_and_a_queue_that_is_full(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"prompt": '
        await asyncio.sleep(DEADLINE)

    async def ask(content: AsyncIterator[bytes] | bytes) -> httpx2.Response:
        async with in_process(tiny.model) as client:
            return await client.post("/v1/completions", content=content)

    monkeypatch.setitem(server.PATIENCE, "body", 0.05)
    reply = asyncio.run(ask(slowly()))
    assert reply.status_code == 408 and error(reply)["code"] == "timeout"
    monkeypatch.setitem(server.PATIENCE, "engine", 0.05)
    reply = asyncio.run(ask(b'{"prompt": "x"}'))
    assert reply.status_code == 503 and error(reply)["code"] == "down"
    monkeypatch.setattr(server, "MOST_WAITING", 0)
    reply = asyncio.run(ask(b'{"prompt": "x"}'))
    assert reply.status_code == 503 and error(reply)["code"] == "busy"


def test_a_client_that_does_not_read_loses_its_turn(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(Settings(tiny.model, threads=1))
    body = json.dumps({"prompt": "x", "stream": True}).encode()
    headers = {"host": "localhost", "authorization": "Bearer key"}
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}
    messages = iter([{"type": "http.request", "body": body}])
    never = asyncio.Event

    async def receive() -> Any:
        return next(messages, None) or await never().wait()

    async def send(_: Any) -> None:
        await never().wait()

    monkeypatch.setitem(server.PATIENCE, "reader", 0.05)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    engine.start()
    try:
        work = app(Served("base"), engine, "key")({**scope, "headers": raw}, receive, send)
        asyncio.run(asyncio.wait_for(work, 5))
    finally:
        engine.stop()


def test_a_port_that_is_taken(tiny: Tiny) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CookbookError, match=f"Port {port} of 127.0.0.1 .* PORT="):
            serve(Served("base"), Settings(tiny.model), port=port)
    with pytest.raises(CookbookError, match="Port 99999 "):
        serve(Served("base"), Settings(tiny.model), port=99999)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_files_that_are_no_models(tiny: Tiny, tmp_path: Path) -> None:
    whole = tiny.model.read_bytes()
    path = tmp_path / "x.gguf"

    def refused(settings: Settings) -> str:
        with pytest.raises(CookbookError) as caught:
            Engine(settings).start()
        return str(caught.value)

    assert f"{path} cannot be read (No such file" in refused(Settings(path))
    assert "cannot be read (Is a directory)" in refused(Settings(tmp_path))
    path.write_text("Hello")
    assert f"{path} is no GGUF file" in refused(Settings(path))
    path.write_bytes(whole[: len(whole) // 2])
    assert "not within the file bounds" in refused(Settings(path))
    path.write_bytes(whole[:100])
    assert f"llama.cpp does not load {path} (gguf_init" in refused(Settings(path))
    assert f"llama.cpp does not load {path} (" in refused(Settings(tiny.model, (path,)))
    assert "expect general.type to be 'adapter'" in refused(Settings(tiny.model, (tiny.model,)))
    assert "The log" in refused(Settings(tiny.model, log=tmp_path / "none" / "log"))


def test_an_engine_starts_stops_and_logs(tiny: Tiny, tmp_path: Path) -> None:
    log = tmp_path / "log"
    engine = Engine(Settings(tiny.model, context=100, parallel=1, threads=1, log=log))
    engine.stop()
    assert not engine.alive()
    engine.start()
    assert engine.process is not None
    try:
        process = psutil.Process(engine.process.pid)
        assert engine.alive() and engine.context == 256  # llama.cpp's smallest
        command = " ".join(process.cmdline() + list(process.environ().values()))
        assert engine.headers()["Authorization"].split()[1] not in command
        assert engine.headers()["Authorization"].split()[1] not in log.read_text()
        assert "model loaded" in log.read_text()
        process.terminate()
        process.wait(5)
        assert not engine.alive()
        engine.restart()
        assert engine.alive()
    finally:
        engine.stop()
    assert not engine.alive() and not process.is_running()


def test_threads_are_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert default_threads() == 8
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert default_threads() == 2
    monkeypatch.setattr("psutil.cpu_count", lambda logical: None)
    assert default_threads() == 2
