"""A Hugging Face Hub on 127.0.0.1: the part of its API that the clients ask, served from a folder.

The clients (huggingface_hub, transformers, datasets) stay as they are; `HF_ENDPOINT` leads them
here. Files are read from disk on every request, so a test can change one while the server runs.
"""

import json
import re
import sys
import threading
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Request = tuple[str, str]  # method, path (decoded, without its query)

# What the Hub keeps in large file storage; such files are known by SHA-256 instead of a git id.
LARGE = (".safetensors", ".parquet")
# Variables that would keep a client from asking this server, or make it send a person's token.
UNSET = (
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"),
    *("HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE"),
)

_NAME = r"[\w-][\w.-]*"
_API = re.compile(
    rf"/api/(?P<kind>models|datasets)/(?P<id>{_NAME}/{_NAME})"
    r"(?:/(?P<ask>revision|tree|paths-info)/(?P<revision>[^/]+)(?P<path>/.*)?)?"
)
_RESOLVE = re.compile(
    rf"/(?P<kind>datasets/)?(?P<id>{_NAME}/{_NAME})/resolve/(?P<revision>[^/]+)/(?P<path>.*)"
)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class LoopbackHub:
    """A running Hub with what lies in `root/models/<owner>/<name>` and `root/datasets/...`.

    `requests` holds every request; `unknown` those for something this server does not speak, so
    that a test can assert that nothing unexpected was asked.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.requests: list[Request] = []
        self.unknown: list[Request] = []
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forget(self) -> None:
        """Forget what was asked so far."""
        self.requests.clear()
        self.unknown.clear()

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the variables that lead clients here, with their caches below `folder`.

        Those in `UNSET` must be removed besides.
        """
        home = folder / "huggingface"
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            # A proxy cannot reach this machine's own address.
            "NO_PROXY": "*",
            "no_proxy": "*",
        }


@dataclass(frozen=True)
class _Answer:
    """A response: its status, headers and whole body."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _Refused(Exception):
    """The Hub's own error, told in the headers that its clients look at."""

    def __init__(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        super().__init__(message)
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        if commit:  # clients remember under this commit that a file does not exist
            headers["X-Repo-Commit"] = commit
        self.answer = _json({"error": message}, status, headers)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> _Answer:
    body = json.dumps(content).encode()
    return _Answer(status, body, {"Content-Type": "application/json", **(headers or {})})


@dataclass(frozen=True)
class _File:
    """One file of a repository, as the Hub describes it."""

    path: str
    content: bytes

    @cached_property
    def git_id(self) -> str:
        return sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @cached_property
    def large_id(self) -> str | None:
        return sha256(self.content).hexdigest() if self.path.endswith(LARGE) else None

    def entry(self) -> dict[str, Any]:
        """Return the file's entry in a listing."""
        size = len(self.content)
        entry = {"type": "file", "path": self.path, "size": size, "oid": self.git_id}
        large = {"oid": self.large_id, "size": size, "pointerSize": 134}
        return entry | ({"lfs": large} if self.large_id else {})

    def headers(self, commit: str) -> dict[str, str]:
        """Return what a client needs to cache the file: its commit, identity and size."""
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": commit,
            "ETag": f'"{self.large_id or self.git_id}"',
            "Accept-Ranges": "bytes",
        }
        if self.large_id:
            headers |= {
                "X-Linked-Etag": f'"{self.large_id}"',
                "X-Linked-Size": str(len(self.content)),
            }
        return headers


class _Repository:
    """One repository at its only revision, `main`; the commit is derived from the content."""

    def __init__(self, root: Path, kind: str, name: str) -> None:
        self._folder = root / kind / name
        self.id, self.kind = name, kind
        if not self._folder.is_dir():
            # The Hub tells nobody apart who may not know from who asks for what does not exist.
            raise _Refused(401, "RepoNotFound", "Repository not found")
        paths = [one for one in sorted(self._folder.rglob("*")) if one.is_file()]
        inside = [one for one in paths if one.resolve().is_relative_to(self._folder)]
        read = [_File(one.relative_to(self._folder).as_posix(), one.read_bytes()) for one in inside]
        self.files = {file.path: file for file in read}
        listing = "\n".join(f"{file.git_id} {path}" for path, file in self.files.items())
        self.commit = sha1(f"{kind} {name}\n{listing}".encode()).hexdigest()

    def check_revision(self, revision: str) -> None:
        """Refuse every revision but `main` and its commit."""
        if revision not in ("main", self.commit):
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def missing(self, path: str) -> _Refused:
        """Return the error for a file or folder that does not exist."""
        return _Refused(404, "EntryNotFound", f"{path} does not exist on main", self.commit)

    def info(self) -> dict[str, Any]:
        """Return the repository's description."""
        return {
            "id": self.id,
            "author": self.id.split("/")[0],
            "sha": self.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in self.files],
        }

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return files and folders by path. Clients need the folders too, to look into them."""
        folders: dict[str, list[str]] = {}
        for path, file in self.files.items():
            for parent in list(Path(path).parents)[:-1]:
                folders.setdefault(parent.as_posix(), []).append(file.git_id)
        found: dict[str, dict[str, Any]] = {
            path: {
                "type": "directory",
                "path": path,
                "size": 0,
                "oid": sha1("".join(ids).encode()).hexdigest(),
            }
            for path, ids in folders.items()
        }
        return dict(
            sorted((found | {one.path: one.entry() for one in self.files.values()}).items())
        )

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Return what lies in a folder, or below it too."""
        entries = self.entries()
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise self.missing(folder)
        start = f"{folder}/" if folder else ""
        below = [path for path in entries if path.startswith(start)]
        return [entries[path] for path in below if recursive or "/" not in path[len(start) :]]


def _inside(path: str) -> str:
    """Return a path inside a repository, or refuse one that could lead out of it."""
    parts = path.strip("/").split("/") if path.strip("/") else []
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise _Refused(400, "BadRequest", "The path leads out of the repository")
    return "/".join(parts)


def _file(file: _File, commit: str, wanted: str | None) -> _Answer:
    """Return a whole file, or the range of bytes that a `Range` header asks for."""
    headers, size = file.headers(commit), len(file.content)
    match = _RANGE.fullmatch(wanted.replace(" ", "")) if wanted else None
    if not match or match.groups() == ("", ""):  # as the standard says: ignore what is no range
        return _Answer(200, file.content, headers)
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start > end:
        return _Answer(416, b"", headers | {"Content-Range": f"bytes */{size}"})
    part = {"Content-Range": f"bytes {start}-{end}/{size}"}
    return _Answer(206, file.content[start : end + 1], headers | part)


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client may stop in the middle of a file: streaming does.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"  # connections are kept, as the Hub does
    disable_nagle_algorithm = True  # else each kept connection waits 40 ms per answer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = (self.command, unquote(url.path))
        self.server.hub.requests.append(asked)
        # Read in any case: what is left unread would begin the connection's next request.
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fields = parse_qs(body.decode(errors="replace") if body else url.query)
        try:
            answer = self._answer(url.path, fields)
        except _Refused as refused:
            answer = refused.answer
        if answer is None:
            self.server.hub.unknown.append(asked)
            answer = _json({"error": "This loopback Hub does not speak that"}, 404)
        self._send(answer)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def _answer(self, path: str, fields: dict[str, list[str]]) -> _Answer | None:
        """Return the answer, or None to what this server does not speak."""
        reading = self.command in ("GET", "HEAD")
        if match := _API.fullmatch(path):
            posts = match["ask"] == "paths-info"
            if (self.command == "POST") if posts else (reading and not self._is_odd(match)):
                return self._api(match, fields)
        elif reading and (match := _RESOLVE.fullmatch(path)):
            return self._resolve(match)
        elif self.command == "HEAD" and path.startswith("/api/telemetry/"):
            return _Answer(200)  # TRL reports which trainer was built
        elif self.command == "GET" and path == "/api/agent-harnesses":
            # Asked once per cache, to name the program in the User-Agent: none is known here.
            return _json({"standardEnvVars": [], "harnesses": {}})
        return None

    @staticmethod
    def _is_odd(match: re.Match[str]) -> bool:
        """Whether a path follows where the Hub's API has none."""
        return match["ask"] == "revision" and bool(match["path"])

    def _api(self, match: re.Match[str], fields: dict[str, list[str]]) -> _Answer:
        repository = _Repository(self.server.hub.root, match["kind"], match["id"])
        repository.check_revision(unquote(match["revision"] or "main"))
        if match["ask"] == "tree":
            recursive = fields.get("recursive", ["false"])[0].lower() == "true"
            return _json(repository.tree(_inside(unquote(match["path"] or "")), recursive))
        if match["ask"] == "paths-info":
            entries = repository.entries()
            wanted = [_inside(one) for one in fields.get("paths", [])]
            return _json([entries[path] for path in wanted if path in entries])
        return _json(repository.info())

    def _resolve(self, match: re.Match[str]) -> _Answer:
        kind = "datasets" if match["kind"] else "models"
        repository = _Repository(self.server.hub.root, kind, match["id"])
        repository.check_revision(unquote(match["revision"]))
        path = _inside(unquote(match["path"]))
        if path not in repository.files:
            raise repository.missing(path)
        wanted = self.headers.get("Range") if self.command == "GET" else None
        return _file(repository.files[path], repository.commit, wanted)

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Stay silent: `requests` holds what was asked."""
