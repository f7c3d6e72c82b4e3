"""`make push` against a loopback Hub: what arrives there, who may see it, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from cookbook.profiles import ROOT, CookbookError
from cookbook.serving import exporting, runs
from tests.serving import finished
from tests.serving.uploads import TOKEN, Repository, UploadHub

pytestmark = pytest.mark.unit

REPO = "me/tiny-lora"
# The command once for each line of its input, forked from a process that has the libraries: these
# read the Hub's address when they are imported. The client would wait for up to half a minute
# before it gives up; else all is as it is.
COMMANDS = """
import json, os, sys, time
time.sleep = lambda seconds: None
from cookbook.commands.push import main
for line in sys.stdin:
    given = json.loads(line)
    child = os.fork()
    if not child:
        for name, value in given["environment"].items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        for stream, path in ((1, given["out"]), (2, given["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        status = 1
        try:
            status = main(given["arguments"])
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


Push = Callable[..., Said]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run that is exported as an adapter: OPT, which has no GGUF."""
    root = tmp_path_factory.mktemp("push")
    base = finished.write_base("opt", root / "bases" / "my base")
    tokenizer = finished.tokenizer_of(base)
    folder = root / "runs" / "02-PEFT" / "Tiny-LoRA" / "cpu"
    finished.write_run(folder, base, finished.adapted(base, tokenizer), tokenizer)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COOKBOOK_RUNS", str(root / "runs"))
        exporting.export(runs.read(folder), "adapter")
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of those runs, which a test may change. The base stays where it is."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return tmp_path


@pytest.fixture(scope="module")
def running() -> Iterator[UploadHub]:
    with UploadHub().running() as hub:
        yield hub


@pytest.fixture
def hub(running: UploadHub) -> Iterator[UploadHub]:
    """A Hub that knows `TOKEN`, and nothing else yet."""
    running.forget()
    yield running
    assert not running.unknown


def started(hub: UploadHub, **changed: str) -> subprocess.Popen[str]:
    changes = hub.environment("/nowhere") | changed | {"OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in changes}
    wanted = kept | {name: value for name, value in changes.items() if value is not None}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", COMMANDS]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=wanted)


@pytest.fixture(scope="module")
def commands(running: UploadHub) -> Iterator[subprocess.Popen[str]]:
    with started(running) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def push(place: Path, hub: UploadHub, commands: subprocess.Popen[str]) -> Push:
    """Run the command in a process of its own; `process` is another than the usual one."""

    def run(
        *arguments: str, process: subprocess.Popen[str] = commands, **environment: str | None
    ) -> Said:
        out, err = place / "out", place / "err"
        own = {"COOKBOOK_RUNS": str(place / "runs"), "HF_HOME": str(place / "home")}
        given = {
            "arguments": [str(place / "runs" / "02-PEFT" / "Tiny-LoRA" / "cpu"), *arguments],
            "environment": own | environment,
            "out": str(out),
            "err": str(err),
        }
        for path in (out, err):
            path.unlink(missing_ok=True)
        assert process.stdin and process.stdout
        print(json.dumps(given), file=process.stdin, flush=True)
        status = int(process.stdout.readline())
        said = Said(status, out.read_text("utf-8"), err.read_text("utf-8"))
        assert TOKEN not in said.out + said.err
        assert "Traceback" not in said.err, said.err
        return said

    return run


def exported(place: Path) -> Path:
    return place / "runs" / "exports" / "02-PEFT" / "Tiny-LoRA" / "cpu" / "adapter"


def test_what_arrives(push: Push, hub: UploadHub, place: Path) -> None:
    said = push("--repo", REPO)
    assert said.status == 0, said.err
    assert f"{hub.url}/{REPO} (private): adapter of tiny-lora" in said.out
    repository = hub.repositories[REPO]
    assert repository.private
    files = {path.name: path for path in exported(place).iterdir()}
    assert set(repository.files) == set(files) - {"export.json"}
    for name, content in repository.files.items():
        assert content == files[name].read_bytes(), name
        assert TOKEN.encode() not in content and str(place).encode() not in content, name
        assert str(Path.home() / "x")[:-1].encode() not in content or Path.home() == Path("/"), name
    card = ModelCard(repository.files["README.md"].decode())
    head: Any = card.data
    assert head.library_name == "peft"
    assert head.base_model is None  # a folder, whose name may be somebody else's id
    assert "held_out_loss" in card.text and "3.895" in card.text and "3.032" in card.text
    assert "(27779 tokens, 40 steps, seed 0)" in card.text and "licence applies" in card.text
    # Again: nothing changed, and nothing is sent.
    sent = hub.seen.count("put"), len(repository.commits)
    assert push("--repo", REPO).status == 0
    assert (hub.seen.count("put"), len(repository.commits)) == sent


def test_the_card_names_the_hubs_base_and_its_licence(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cookbook.serving import card

    (run,) = [runs.read(made / "runs" / "02-PEFT" / "Tiny-LoRA" / "cpu")]
    run.settings["model"] = run.metrics["model"] = "offline:SmolLM2-135M-Instruct"
    card.write(run, tmp_path, "LoRA adapter")
    data = ModelCard.load(tmp_path / "README.md").data
    # pragma: allowlist nextline secret
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.license == "apache-2.0" and data.tags == ["fine-tuned", "llm-finetuning-cookbook"]


def test_public_where_it_is_said(push: Push, hub: UploadHub) -> None:
    said = push("--repo", REPO, "--public")
    assert said.status == 0 and "(public)" in said.out
    assert not hub.repositories[REPO].private


def test_a_public_repository_is_not_taken_for_a_private_one(push: Push, hub: UploadHub) -> None:
    hub.repositories[REPO] = Repository(private=False)
    said = push("--repo", REPO)
    assert said.status == 1 and "is there already, and public" in said.err
    assert not hub.repositories[REPO].files and "put" not in hub.seen


@pytest.mark.parametrize("name", ["", "tiny", "a/b/c", "me/tiny lora", "me/a--b", "me/a.git", "/x"])
def test_a_name_that_is_none(name: str, made: Path) -> None:
    from cookbook.commands.push import push as pushed

    run = runs.read(made / "runs" / "02-PEFT" / "Tiny-LoRA" / "cpu")
    with pytest.raises(CookbookError, match="is no name on the Hub"):
        pushed(run, name, "adapter", (), public=False)


def test_no_login(push: Push, hub: UploadHub) -> None:
    said = push("--repo", REPO, HF_TOKEN=None)
    assert said.status == 1 and "There is no login" in said.err and "hf auth login" in said.err
    assert not hub.seen


def test_offline(push: Push, hub: UploadHub) -> None:
    with started(hub, HF_HUB_OFFLINE="1") as process:
        said = push("--repo", REPO, process=process)
    assert said.status == 1 and "HF_HUB_OFFLINE is set: unset it" in said.err
    assert not hub.seen


@pytest.mark.parametrize(
    ("step", "status", "sentence"),
    [
        ("create", 401, "does not know the token"),
        ("create", 403, "may not write to me/tiny-lora"),
        ("create", 429, "takes no more requests for now"),
        ("modes", 500, "has a fault of its own (500)"),
        ("commit", 400, "refuses the upload (400): This loopback Hub was told to refuse"),
        ("card", 400, "refuses the model card"),
        ("put", 413, "larger than the Hub takes"),
    ],
)
def test_what_the_hub_refuses(
    push: Push, hub: UploadHub, step: str, status: int, sentence: str
) -> None:
    hub.faults[step] = status
    said = push("--repo", REPO)
    assert said.status == 1 and sentence in said.err, said.err
    assert len(said.err.strip().splitlines()) == 1
    assert REPO not in hub.repositories or not hub.repositories[REPO].files


def test_nobody_there(push: Push, hub: UploadHub) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with started(hub, HF_ENDPOINT=address) as process:
            said = push("--repo", REPO, process=process)
    assert said.status == 1 and "The Hub cannot be reached" in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_an_upload_that_was_cut_is_completed(push: Push, hub: UploadHub) -> None:
    hub.faults["put"] = "cut"
    said = push("--repo", REPO)
    assert said.status == 1 and "run this again" in said.err, said.err
    assert not hub.repositories[REPO].files
    hub.faults.clear()
    assert push("--repo", REPO).status == 0
    assert "adapter_model.safetensors" in hub.repositories[REPO].files


@pytest.mark.parametrize("name", ["chat_template.jinja", "notes.bin"])
@pytest.mark.parametrize("token", [TOKEN, "hf_" + "Ab3" * 12])
def test_a_file_that_holds_a_token(
    push: Push, hub: UploadHub, place: Path, name: str, token: str
) -> None:
    path = exported(place) / name
    path.write_bytes((path.read_bytes() if path.is_file() else b"\0\1") + token.encode() + b"\n")
    record = exported(place) / "export.json"
    text = record.read_text("utf-8")
    record.write_text(finished.with_size(text, name, path.stat().st_size), encoding="utf-8")
    said = push("--repo", REPO)
    refused = "holds an access token or a private key: nothing was uploaded"
    assert said.status == 1 and refused in said.err
    assert token not in said.err and not hub.seen
