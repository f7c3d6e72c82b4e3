"""A Hugging Face Hub on 127.0.0.1 that takes uploads: as much as `HfApi` asks for them.

`tests.hub.server` only reads. The client stays as it is; `HF_ENDPOINT` leads it here. Repositories
and large files are kept in memory, and faults are told by the step that they happen in.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub.server import LARGE, UNSET, Request

TOKEN = "hf_" + "x" * 34  # looks like one, and opens this server
_LARGE = (*LARGE, ".gguf")
_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
_STEPS = {
    "create": ("POST", r"/api/repos/create"),
    "card": ("POST", r"/api/validate-yaml"),
    "modes": ("POST", rf"/api/models/(?P<id>{_NAME})/preupload/main"),
    "batch": ("POST", rf"/(?P<id>{_NAME})\.git/info/lfs/objects/batch"),
    "put": ("PUT", r"/large/(?P<oid>[0-9a-f]{64})"),
    "verify": ("POST", r"/verify"),
    "commit": ("POST", rf"/api/models/(?P<id>{_NAME})/commit/main"),
    "info": ("GET", rf"/api/models/(?P<id>{_NAME})(/revision/main)?"),
    "tree": ("GET", rf"/api/models/(?P<id>{_NAME})/tree/main"),
    "clients": ("GET", r"/api/agent-harnesses"),
}


@dataclass
class Repository:
    """What was uploaded to one name."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """A name of what it holds."""
        listing = [f"{path} {sha1(content).hexdigest()}" for path, content in self.files.items()]
        return sha1("\n".join(sorted(listing)).encode()).hexdigest()


class UploadHub:
    """A running Hub; `faults` maps a step to the status that it answers with, or "cut".

    A step that is cut reads half of its request and hangs up. `seen` has each step in order, and
    `unknown` what this server does not speak.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: dict[str, int | str] = {}
        self.seen: list[str] = []
        self.unknown: list[Request] = []
        self.cards: list[str] = []
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[UploadHub]:
        """Answer until the block ends."""
        with self._server, ThreadPoolExecutor(1) as pool:
            pool.submit(self._server.serve_forever, 0.05)
            try:
                yield self
            finally:
                self._server.shutdown()

    def forget(self) -> None:
        """Begin anew, with nothing uploaded."""
        for kept in (self.repositories, self.large, self.faults):
            kept.clear()
        for told in (self.seen, self.unknown, self.cards):
            told.clear()

    def environment(self, home: str) -> dict[str, str | None]:
        """Return the variables that lead a client here with its token; None is one to unset."""
        return {
            **dict.fromkeys(UNSET),
            "HF_ENDPOINT": self.url,
            "HF_HOME": home,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",  # the Hub's newer store for large files, of its own protocol
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            "no_proxy": "*",
        }


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.content = status, code, {"error": message, **more}


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: UploadHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        step, match = self._step(path)
        size = int(self.headers.get("Content-Length") or 0)
        fault = hub.faults.get(step)
        if fault == "cut":
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        body = self.rfile.read(size)
        hub.seen.append(step)
        try:
            if isinstance(fault, int):
                raise _Refused(fault, "This loopback Hub was told to refuse")
            if not step:
                hub.unknown.append((self.command, path))
                raise _Refused(404, "This loopback Hub does not speak that", "EntryNotFound")
            stored = step in ("put", "verify", "clients")  # asked without a token
            if not stored and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _Refused(401, "Invalid username or password.")
            answer = getattr(self, f"_{step}")(match, body)
            self._send(200, answer)
        except _Refused as refused:
            self._send(refused.status, refused.content, str(refused), refused.code)

    do_POST = do_PUT = do_HEAD = do_GET

    def _step(self, path: str) -> tuple[str, dict[str, str]]:
        for name, (method, pattern) in _STEPS.items():
            if self.command == method and (match := re.fullmatch(pattern, path)):
                return name, match.groupdict()
        return "", {}

    def _repository(self, match: dict[str, str]) -> Repository:
        found = self.server.hub.repositories.get(match["id"])
        if found is None:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return found

    def _create(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.hub.url}/{name}"
        if name in self.server.hub.repositories:
            raise _Refused(409, "You already created this model repo", url=url)
        # Public unless it is asked to be private: what the Hub does for most accounts.
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.hub.repositories[name] = Repository(private)
        return {"url": url}

    def _card(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        content = json.loads(body)["content"]
        self.server.hub.cards.append(content)
        return {"errors": [], "warnings": []}

    def _modes(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        there = self._repository(match).files
        return {
            "files": [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _id(one["path"], there[one["path"]]) if one["path"] in there else None,
                }
                for one in json.loads(body)["files"]
            ]
        }

    def _batch(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        self._repository(match)
        hub = self.server.hub
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"href": f"{hub.url}/large/{one['oid']}", "header": {}}
            actions = {"upload": upload, "verify": {"href": f"{hub.url}/verify", "header": {}}}
            there = one["oid"] in hub.large  # uploaded before, and not sent again
            objects.append({**one, **({} if there else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def _put(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        if sha256(body).hexdigest() != match["oid"]:
            raise _Refused(400, "The content has another digest")
        self.server.hub.large[match["oid"]] = body
        return {}

    def _verify(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        return {}

    def _commit(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        repository, files = self._repository(match), dict[str, bytes]()
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.hub.large:
                    raise _Refused(400, "A large file was not uploaded")
                files[value["path"]] = self.server.hub.large[value["oid"]]
            else:
                raise _Refused(400, f"No such operation here: {line['key']}")
        repository.files |= files
        url = f"{self.server.hub.url}/{match['id']}/commit/{repository.commit}"
        return {"success": True, "commitOid": repository.commit, "commitUrl": url}

    def _info(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        repository = self._repository(match)
        return {
            "id": match["id"],
            "sha": repository.commit,
            "private": repository.private,
            "tags": [],
            "siblings": [{"rfilename": path} for path in repository.files],
        }

    def _tree(self, match: dict[str, str], body: bytes) -> list[dict[str, Any]]:
        files = self._repository(match).files
        return [
            {"type": "file", "path": path, "size": len(content), "oid": _git_id(content)}
            for path, content in files.items()
        ]

    def _clients(self, match: dict[str, str], body: bytes) -> dict[str, Any]:
        return {"standardEnvVars": [], "harnesses": {}}

    def _send(self, status: int, content: Any, message: str = "", code: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in (("X-Error-Message", message), ("X-Error-Code", code)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent: `seen` holds what was asked."""


def _id(path: str, content: bytes) -> str:
    """Return what the Hub knows a file by: a large one by another digest."""
    return sha256(content).hexdigest() if path.endswith(_LARGE) else _git_id(content)


def _git_id(content: bytes) -> str:
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()
