"""The download, against an index of our own on the loopback, found through pip's settings."""

import hashlib
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cookbook.offline import download
from cookbook.offline.errors import OfflineError
from cookbook.offline.pip_settings import _merged, pip_settings
from cookbook.offline.sources import Source

pytestmark = pytest.mark.unit

CONTENT = bytes(range(256)) * 4096
FILENAME = "sample_data-1.0-py3-none-any.whl"
Handler = BaseHTTPRequestHandler


def source(content: bytes = CONTENT, filename: str = FILENAME) -> Source:
    return Source(
        package="sample-data",
        version="1.0",
        homepage="",
        package_licence="MIT",
        data_licence="MIT",
        attribution="",
        filename=filename,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )


def send(handler: Handler, content: bytes, kind: str, length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(length or len(content)))
    handler.end_headers()
    handler.wfile.write(content)


class Index:
    """A simple index with one file. `answer` decides what a request for that file gets."""

    def __init__(self) -> None:
        self.answer: Callable[[Handler], None] = self.whole
        self.requests: list[str] = []
        index = self

        class Answering(Handler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                if self.path == "/simple/sample-data/":
                    page = f'<a href="/files/{FILENAME}">{FILENAME}</a>'
                    send(self, page.encode(), "text/html")
                elif self.path == f"/files/{FILENAME}":
                    index.answer(self)
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                """Keep the test's output readable."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def whole(self, handler: Handler) -> None:
        send(handler, CONTENT, "application/octet-stream")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("cookbook.offline.download.time.sleep", lambda _: None)
    yield served
    served.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_downloads_from_the_index_that_pip_uses(index: Index, tmp_path: Path) -> None:
    archive = download.fetch(source(), tmp_path)
    assert archive.read_bytes() == CONTENT
    assert files(tmp_path) == [FILENAME]
    assert index.requests == ["/simple/sample-data/", f"/files/{FILENAME}"]


def test_a_kept_archive_needs_no_network(index: Index, tmp_path: Path) -> None:
    download.fetch(source(), tmp_path)
    index.requests.clear()
    download.fetch(source(), tmp_path)
    assert index.requests == []


def test_a_damaged_kept_archive_comes_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FILENAME).write_bytes(b"x" * len(CONTENT))
    assert download.fetch(source(), tmp_path).read_bytes() == CONTENT
    assert "damaged: downloading it again" in capsys.readouterr().out


def test_another_content_is_deleted_unread(tmp_path: Path) -> None:
    pinned = source(CONTENT[::-1])
    with pytest.raises(OfflineError) as caught:
        download.fetch(pinned, tmp_path)
    message = str(caught.value)
    assert pinned.sha256 in message
    assert hashlib.sha256(CONTENT).hexdigest() in message
    assert "make offline" in message
    assert files(tmp_path) == []


def test_a_truncated_download_is_no_archive(index: Index, tmp_path: Path) -> None:
    def cut(handler: Handler) -> None:
        send(handler, CONTENT[:1000], "application/octet-stream", length=len(CONTENT))

    index.answer = cut
    with pytest.raises(OfflineError, match="could not be downloaded"):
        download.fetch(source(), tmp_path)
    assert files(tmp_path) == []
    assert index.requests.count(f"/files/{FILENAME}") == download.ATTEMPTS


def test_a_shorter_file_is_refused(index: Index, tmp_path: Path) -> None:
    index.answer = lambda handler: send(handler, CONTENT[:1000], "application/octet-stream")
    with pytest.raises(OfflineError, match="received 1,000 bytes"):
        download.fetch(source(), tmp_path)
    assert files(tmp_path) == []


def test_an_endless_file_is_cut_off(index: Index, tmp_path: Path) -> None:
    sent: list[int] = []

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while len(sent) < 1000:
                handler.wfile.write(CONTENT)
                sent.append(len(CONTENT))
        except OSError:
            sent.append(0)  # hung up on, as it should be

    index.answer = endless
    with pytest.raises(OfflineError, match="is not the file that the manifest pins"):
        download.fetch(source(), tmp_path)
    assert files(tmp_path) == []
    assert len(sent) < 1000


def test_a_passing_failure_is_tried_again(index: Index, tmp_path: Path) -> None:
    def busy_once(handler: Handler) -> None:
        index.answer = index.whole
        handler.send_error(503)

    index.answer = busy_once
    assert download.fetch(source(), tmp_path).read_bytes() == CONTENT


def test_a_lasting_failure_hides_the_login(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//me:hidden@"))
    index.answer = lambda handler: handler.send_error(503)
    with pytest.raises(OfflineError, match="503") as caught:
        download.fetch(source(), tmp_path)
    assert "hidden" not in str(caught.value)
    assert files(tmp_path) == []


def test_only_the_pinned_file_is_taken(index: Index, tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match="on none of the indexes") as caught:
        download.fetch(source(filename="sample_data-2.0-py3-none-any.whl"), tmp_path)
    assert "sample-data 1.0" in str(caught.value)
    assert index.requests == ["/simple/sample-data/"]


def test_find_links_are_asked_too(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, archives = tmp_path / "links", tmp_path / "archives"
    links.mkdir()
    (links / FILENAME).write_bytes(CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert download.fetch(source(), archives).read_bytes() == CONTENT
    assert index.requests == []
    assert files(links) == [FILENAME]


def test_the_environment_comes_before_pip_s_files(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://files.example/simple\ntimeout = 7\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    settings = pip_settings()
    assert settings.index_url == index.url
    assert settings.timeout == 7


def test_pip_settings_are_merged_by_section() -> None:
    listing = (
        ":env:.cert='/ca.pem'\ndownload.index-url='https://d.example'\n"
        "global.cert='/other.pem'\nglobal.index-url='https://g.example'\nfreeze.timeout='10'\n"
    )
    assert _merged(listing) == {"cert": "/ca.pem", "index-url": "https://d.example"}


def test_no_default_index_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    assert pip_settings().index_url is None


def test_a_certificate_of_pip_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "missing.pem"))
    with pytest.raises(OfflineError, match="missing.pem"):
        download.fetch(source(), tmp_path)
