"""What a person should look at before a model goes out, gone through by a program."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import httpx2

from cookbook.evaluation import Score
from cookbook.profiles import ROOT
from cookbook.report import FORGOTTEN, verdict
from cookbook.serving.background import Running
from cookbook.serving.exporting import Export
from cookbook.serving.runs import Run

FILES = (".gguf", ".safetensors", ".json", ".md", ".jinja", ".model", ".txt", "")
MOST_LOST = 0.1  # nats a token beside float32, at the upper end of the interval
_TOKEN = re.compile(rb"\b(hf_|hf_oauth_|api_org_)[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY")
_HEAD = 2**26  # bytes of a file in which texts are: what comes after them are weights


@dataclass(frozen=True)
class Line:
    """One question, whether the answer is yes, and what was found."""

    question: str
    good: bool
    found: str
    must: bool = False  # whoever passes the model on would do harm


def checked(
    run: Run,
    exports: Mapping[str, Export],
    losses: Mapping[str, Score],
    stopped: float,
    server: Running,
) -> list[Line]:
    """Return the list for a run and its exports by format.

    `losses` are those beside float32, `stopped` the share of answers that ended by themselves, and
    `server` one that serves an export. Raises nothing: a `Line` says what is not good.
    """
    return [
        *_of_the_run(run, stopped),
        *(
            Line(
                f"does {name} lose less than {MOST_LOST} nats a token?",
                loss.interval[1] < MOST_LOST,
                f"{loss.value:+.3f} [{loss.interval[0]:+.3f}, {loss.interval[1]:+.3f}]",
            )
            for name, loss in losses.items()
        ),
        *_of_the_files({name: one.folder for name, one in exports.items()}),
        *_of_the_server(server),
    ]


def heads(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield each file of a folder, with the bytes in which its texts are."""
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            yield path, file.read(_HEAD)


def holds_token(text: bytes, own: bytes = b"") -> bool:
    """Tell whether a text holds an access token or a private key, or the reader's `own` token."""
    return bool(_TOKEN.search(text)) or bool(own) and own in text


def _of_the_run(run: Run, stopped: float) -> Iterator[Line]:
    for one in run.metrics["metrics"]:
        said = verdict(one)
        values = f"{one['before']:.3f} -> {one['after']:.3f}"
        yield Line(f"is {one['name']} better than before?", said == "better", f"{values}, {said}")
    forgetting = run.metrics["forgetting"]
    rise = forgetting["after"] - forgetting["before"]
    yield Line("was little forgotten?", rise < FORGOTTEN, f"general text {rise:+.2f} nats a token")
    yield Line("do answers end by themselves?", stopped >= 0.5, f"{stopped:.0%}")


def _of_the_files(folders: Mapping[str, Path]) -> Iterator[Line]:
    # With the slash: a vocabulary may hold the name of a folder.
    private = [f"{one}/".encode() for one in (ROOT, Path.home()) if one.name]
    odd, tokens, paths = list[str](), list[str](), list[str]()
    for path, text in chain.from_iterable(map(heads, folders.values())):
        if path.suffix not in FILES:
            odd.append(path.name)
        if holds_token(text):
            tokens.append(path.name)
        if any(one in text for one in private):
            paths.append(path.name)
    yield _none("are there weights and texts alone, and no code?", odd)
    yield _none("is there no token and no key?", tokens)
    yield _none("is there no path of this machine?", paths)
    cards = [folder / "README.md" for folder in folders.values()]
    named = all("license:" in card.read_text(encoding="utf-8") for card in cards)
    yield Line("does the card name a licence?", named, "" if named else "the base names none")


def _none(question: str, found: list[str]) -> Line:
    return Line(question, not found, ", ".join(sorted(set(found))), must=True)


def _of_the_server(server: Running) -> Iterator[Line]:
    known = {"Authorization": f"Bearer {server.key}"}
    strangers: dict[str, dict[str, str]] = {
        "without a key": {},
        "with a wrong key": {"Authorization": "Bearer wrong"},
        "from another page": known | {"Origin": "http://example.org"},
    }
    with httpx2.Client(trust_env=False) as client:
        statuses = {
            name: client.get(f"{server.url}/models", headers=headers).status_code
            for name, headers in strangers.items()
        }
        health = client.get(f"{server.url.removesuffix('/v1')}/health").json()["status"]
    refused = all(status in (401, 403) for status in statuses.values())
    shown = ", ".join(f"{name} {status}" for name, status in statuses.items())
    yield Line("does the server refuse strangers?", refused, shown, True)
    yield Line("is the server well?", health == "ok", health)


def text(lines: list[Line]) -> str:
    """Return the list as a table, and raise AssertionError where a line must be good and is not."""
    width = max(len(line.question) for line in lines)
    shown = [
        f"{line.question:<{width}}  {'yes' if line.good else 'NO '}  {line.found}".rstrip()
        for line in lines
    ]
    harmful = [line.question for line in lines if line.must and not line.good]
    assert not harmful, harmful
    return "\n".join(shown)
