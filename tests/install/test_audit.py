"""`make audit` asks about every pinned package, and fails when one is known to be vulnerable.

The database is a stand-in on 127.0.0.1 that speaks OSV's protocol.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts import locked
from tests.contract.repository import ROOT

pytestmark = pytest.mark.unit

FINDING = {"id": "TEST-2026-1", "summary": "made up", "affected": [], "aliases": []}


@contextmanager
def database(vulnerable: str | None) -> Iterator[tuple[str, set[str]]]:
    """A database that knows of one vulnerable package; yields its URL and who was asked about."""
    asked: set[str] = set()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = query["package"]["name"]
            asked.add(f"{name}=={query['version']}")
            package = {"package": {"name": name, "ecosystem": "PyPI"}, "versions": []}
            found = {"vulns": [FINDING | {"affected": [package]}]} if name == vulnerable else {}
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/query", asked
        finally:
            server.shutdown()


@pytest.mark.parametrize("vulnerable", [None, "jinja2"])
def test_every_pin_is_looked_up(vulnerable: str | None) -> None:
    with database(vulnerable) as (url, asked):
        options = (
            f"AUDIT_OPTIONS=--vulnerability-service osv --osv-url {url} --progress-spinner off"
        )
        done = subprocess.run(
            ["make", "audit", options], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert asked == set(locked.pins())
    assert ("TEST-2026-1" in done.stdout) is (vulnerable is not None), done.stderr
    assert (done.returncode != 0) is (vulnerable is not None), done.stderr
