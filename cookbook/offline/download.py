"""Getting the pinned archives from the package index, and nothing but those."""

import hashlib
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx2
from tqdm import tqdm
from unearth import Link, PackageFinder
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import Fetcher, PyPIClient

from cookbook.offline.errors import OfflineError
from cookbook.offline.pip_settings import PipSettings, pip_settings
from cookbook.offline.sources import Source

ATTEMPTS = 3
_CHUNK = 1 << 20  # bytes


def fetch(source: Source, archives: Path) -> Path:
    """Return the source's archive in the folder `archives`, downloaded where it is not there yet.

    Its size and SHA-256 are those of the manifest, or it is deleted and OfflineError raised.
    """
    archive = archives / source.filename
    if archive.is_file() and _is_whole(archive, source):
        return archive
    if archive.exists():
        print(f"{source.filename} is kept from before but damaged: downloading it again.")
    archives.mkdir(parents=True, exist_ok=True)
    part = archives / f"{source.filename}.part"
    _download(source, part)
    _verify(part, source)
    part.replace(archive)
    return archive


def _is_whole(path: Path, source: Source) -> bool:
    return path.stat().st_size == source.size and _sha256(path) == source.sha256


def _verify(part: Path, source: Source) -> None:
    if _is_whole(part, source):
        return
    size, digest = part.stat().st_size, _sha256(part)
    part.unlink()
    raise OfflineError(
        f"{source.filename} is not the file that the manifest pins, and was deleted unread.\n"
        f"  expected {source.size:,} bytes, SHA-256 {source.sha256}\n"
        f"  received {size:,} bytes, SHA-256 {digest}\n"
        "Run `make offline` again; where it stays so, the index that pip is configured for "
        "(`pip config list`) serves another file under this name."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(source: Source, part: Path) -> None:
    settings = pip_settings()
    with _session(settings) as session:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _save(session, _find(session, settings, source), source, part)
                return
            except httpx2.HTTPError as error:
                part.unlink(missing_ok=True)
                if attempt == ATTEMPTS:
                    raise OfflineError(
                        f"{source.filename} could not be downloaded: {_without_login(error)}\n"
                        "Check the network and the index that pip uses (`pip config list`), "
                        "then run `make offline` again: what is done stays done."
                    ) from error
                time.sleep(2**attempt)


def _without_login(error: Exception) -> str:
    return re.sub(r"//[^/@\s]*@", "//", str(error) or type(error).__name__)


def _session(settings: PipSettings) -> PyPIClient:
    urls = [url for url in (settings.index_url, *settings.extra_index_urls) if url]
    return PyPIClient(
        trusted_hosts=settings.trusted_hosts,
        verify=_certificates(settings) or True,
        proxy=settings.proxy,
        timeout=settings.timeout,
        follow_redirects=True,
        auth=MultiDomainBasicAuth(prompting=False, index_urls=urls),
    )


def _certificates(settings: PipSettings) -> ssl.SSLContext | None:
    """Return pip's own certificates; None leaves the choice to SSL_CERT_FILE and the system."""
    if not (settings.cert or settings.client_cert):
        return None
    place = Path(settings.cert) if settings.cert else None
    folder = place if place and place.is_dir() else None
    try:
        context = ssl.create_default_context(
            cafile=None if folder else place, capath=str(folder) if folder else None
        )
        if settings.client_cert:
            context.load_cert_chain(settings.client_cert)
    except OSError as error:
        raise OfflineError(
            f"The certificates that pip is configured for ({settings.cert or settings.client_cert})"
            f" cannot be read: {error}. See `pip config list`."
        ) from error
    return context


def _find(session: PyPIClient, settings: PipSettings, source: Source) -> Link:
    for finder in _finders(session, settings):
        for package in finder.find_all_packages(source.package, allow_yanked=True):
            if package.link.filename == source.filename:
                return package.link
    raise OfflineError(
        f"{source.filename} is on none of the indexes that pip is configured for "
        "(`pip config list`). Where PIP_INDEX_URL names a mirror, it must carry "
        f"{source.package} {source.version}."
    )


def _finders(session: PyPIClient, settings: PipSettings) -> Iterator[PackageFinder]:
    """Yield one finder per place, in pip's order, so that a later one is asked only if needed."""
    fetcher = cast(Fetcher, session)  # its signatures are wider, which mypy does not follow
    if not settings.no_index:
        # Without an URL unearth asks the default index, the same as pip's.
        first = [settings.index_url] if settings.index_url else []
        yield PackageFinder(fetcher, index_urls=first, ignore_compatibility=True)
        for url in settings.extra_index_urls:
            yield PackageFinder(fetcher, index_urls=[url], ignore_compatibility=True)
    for place in settings.find_links:
        if "://" in place or Path(place).exists():
            yield PackageFinder(fetcher, find_links=[place], ignore_compatibility=True)


def _save(session: PyPIClient, link: Link, source: Source, part: Path) -> None:
    """Stream the file to `part`, and stop where more comes than the manifest states."""
    with (
        session.get_stream(link.normalized, headers={"Accept-Encoding": "identity"}) as response,
        part.open("wb") as out,
        tqdm(total=source.size, unit="B", unit_scale=True, desc=source.filename) as bar,
    ):
        response.raise_for_status()
        for chunk in response.iter_bytes(_CHUNK):
            out.write(chunk)
            bar.update(len(chunk))
            if out.tell() > source.size:
                break
