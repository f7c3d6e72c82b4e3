"""What fails on the Hub is told in a few sentences: what happened, and what mends it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from cookbook.hub import HubError, Kind, configuration_for, explained, load_data_set
from cookbook.profiles import ROOT, CookbookError
from tests.hub.faults import Fault, FaultyHub
from tests.hub.server import UNSET, LoopbackHub

pytestmark = pytest.mark.hub

TOKEN = "hf_" + "Secret" * 5
ROW = json.dumps({"prompt": "one", "completion": "two"}) + "\n"
SETTINGS = json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 4, "n_head": 1})
FAULTS = {
    "away/404": Fault(404, "RepoNotFound", "Repository not found"),
    "away/plain-404": Fault(404),  # as a mirror says it
    "away/gated": Fault(401, "GatedRepo", "Access is restricted"),
    "away/not-granted": Fault(403, "GatedRepo", "Access is restricted"),
    "away/disabled": Fault(403, "", "Access to this resource is disabled."),
    "away/token": Fault(401, "", "Invalid credentials in Authorization header"),
    "away/403": Fault(403, "", "Not for you"),
    "away/407": Fault(407),
    "away/429": Fault(429),
    "away/500": Fault(500),
    "away/503": Fault(503),
    "away/odd": Fault(418, "", f"Your token {TOKEN} is a teapot"),
    "away/closed": Fault(0),
    "away/page": Fault(200),  # a login page in between: an answer, but none of the Hub's
    "late/503": Fault(503, path="train-00001"),
}
# Case by case: words that the sentence must have.
DATA_SETS = {
    "data:many/parts": ["several configurations: c0, c1,", "c9 and 2 more", "COOKBOOK_CONFIG=c0"],
    "data:many/parts:c99": ["no configuration 'c99', only c0, c1,", "COOKBOOK_CONFIG=c0"],
    "data:one/part:c99": ["no configuration 'c99', only default", "COOKBOOK_CONFIG=default"],
    "stream:many/parts": ["several configurations: c0, c1,", "COOKBOOK_CONFIG=c0"],
    "data:with/script": ["'with/script' needs a script", "no Parquet copy", "COOKBOOK_DATASET"],
    "stream:with/script": ["'with/script' needs a script", "not run. Write", "COOKBOOK_DATASET"],
    "data:with/converted": ["several configurations: first, second", "COOKBOOK_CONFIG=first"],
    "data:with/converted:c9": ["no configuration 'c9', only first, second"],
    "data:of/nothing": ["no data file", "COOKBOOK_DATASET"],
    "data:of/text-and-no-json": ["cannot be read as one table: JSON parse error", "hf download"],
    "data:of/other-columns": [
        "cannot be read as one table: their columns",
        "COOKBOOK_DATASET=mine",
    ],
    "data:json": ["'json' is a file format", "COOKBOOK_DATASET"],
    "data:no name/here": [
        "no file or folder here and no id on the Hub (owner/name)",
        "COOKBOOK_DATASET",
    ],
    "data:a/folder/nowhere": ["no file or folder here and no id on the Hub (owner/name)"],
    "stream:late/503": ["fails at the moment (503)", "Try again"],
}
MODELS = {
    "settings:of/gguf": ["only GGUF files", "COOKBOOK_MODEL"],
    "tokenizer:of/gguf": ["only GGUF files", "COOKBOOK_MODEL"],
    "settings:of/adapter": ["adapter for 'of/base'", "COOKBOOK_MODEL", "merge_and_unload"],
    "settings:of/no-config": ["no config.json", "COOKBOOK_MODEL"],
    "settings:of/half-config": ["not a valid JSON file", "COOKBOOK_MODEL"],
    "tokenizer:of/no-tokenizer": ["no tokenizer that can be read", "tokenizer.json"],
    "tokenizer:of/no-tokenizer-of-falcon": ["no tokenizer that can be read", "tokenizer.json"],
    "weights:of/pickled": ["pickled weights", "weights_only", "*.safetensors"],
    "safe weights:of/pickled": ["pickled weights", "*.safetensors"],
    "safe weights:of/no-weights": ["no *.safetensors weights", "COOKBOOK_MODEL"],
    "safe weights:of/pointer": ["damaged", "Git LFS", "hf cache rm model/of/pointer"],
    "settings:no name/here": [
        "no file or folder here and no id on the Hub (owner/name)",
        "COOKBOOK_MODEL",
    ],
}
# What no library complains of.
OURS = ("data:json", "tokenizer:of/no-tokenizer")
LOG_IN = ["hf auth login", "HF_TOKEN"]
REFUSALS = {
    "away/nothing": ["has no", "or it cannot be reached", "private", "owner/name", *LOG_IN],
    "away/404": ["has no", "or it cannot be reached", "private", *LOG_IN],
    "away/plain-404": ["has no", "or it cannot be reached", "private", *LOG_IN],
    "away/gated": ["is gated", "accept its terms", *LOG_IN],
    "away/not-granted": ["is gated", "accept its terms", *LOG_IN],
    "away/disabled": ["has disabled the"],
    "away/token": ["refuses the access token", "expired", "unset HF_TOKEN", "hf auth login"],
    "away/403": ["does not let you read", "permission"],
    "away/407": ["The proxy lets nothing through", "HTTPS_PROXY"],
    "away/429": ["no more requests", "Wait some minutes"],
    "away/500": ["fails at the moment (500)", "Try again"],
    "away/503": ["fails at the moment (503)", "Try again"],
    "away/odd": ["fails at the moment (418)"],
    "away/closed": ["cannot be reached (no connection)", "HTTPS_PROXY"],
    "away/page": ["is not the Hub", "HF_ENDPOINT"],
}
AWAY = ("data:away/x", "stream:away/x", "settings:away/x", "tokenizer:away/x", "weights:away/x")
ONLINE = {
    **DATA_SETS,
    **MODELS,
    **{f"data:{name}": words for name, words in REFUSALS.items()},
    **{f"settings:{name}": words for name, words in REFUSALS.items()},
}


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def write_data_sets(root: Path) -> None:
    parts = [f"- config_name: c{n}\n  data_files: c{n}.jsonl\n" for n in range(12)]
    write(root / "many/parts/README.md", "---\nconfigs:\n" + "".join(parts) + "---\n")
    for n in range(12):
        write(root / f"many/parts/c{n}.jsonl", ROW)
    write(root / "one/part/train.jsonl", ROW)
    for name in ("script", "converted", "one-converted"):
        write(root / f"with/{name}/{name}.py", "raise SystemExit('this ran')\n")
    write(root / "of/nothing/README.md", "Soon.\n")
    write(root / "of/text-and-no-json/train.jsonl", ROW + "{no json\n")
    write(root / "of/other-columns/train-0.jsonl", ROW)
    write(root / "of/other-columns/train-1.jsonl", '{"question": "three"}\n')
    for folder in ("converted.copy/first", "converted.copy/second", "one-converted.copy/default"):
        for split in ("train", "partial-test"):
            path = root / "with" / folder / split / "0000.parquet"
            rows = Dataset.from_dict({"text": [f"{path.parts[-3]} {split}"]})
            rows.to_parquet(path)
    for n in range(2):
        write(root / f"late/503/train-0000{n}.jsonl", ROW)


def write_models(root: Path) -> None:
    write(root / "of/gguf/model-Q4_K_M.gguf", "GGUF")
    write(root / "of/adapter/adapter_config.json", '{"base_model_name_or_path": "of/base"}')
    write(root / "of/adapter/adapter_model.safetensors", "no matter")
    write(root / "of/no-config/model.safetensors", "no matter")
    write(root / "of/half-config/config.json", SETTINGS[:-9])
    for name in ("no-tokenizer", "pickled", "no-weights", "pointer"):
        write(root / f"of/{name}/config.json", SETTINGS)
    falcon = json.dumps({"model_type": "falcon"})
    write(root / "of/no-tokenizer-of-falcon/config.json", falcon)
    write(root / "of/no-tokenizer/model.safetensors", "no matter")
    write(root / "of/pickled/pytorch_model.bin", "cos\nmkdir\n(Vnot this\ntR.")
    write(root / "of/pointer/model.safetensors", "version https://git-lfs.github.com/spec/v1\n")


def run(hub: LoopbackHub, folder: Path, cases: list[str], **variables: str) -> dict[str, Any]:
    """Run the cases in a process of their own, and return their outcomes."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    kept = {name: value for name, value in kept.items() if not name.startswith("COOKBOOK_")}
    # Without the last one transformers asks a service to convert what is pickled.
    own = {"HF_TOKEN": TOKEN, "DISABLE_SAFETENSORS_CONVERSION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hub.error_cases", *cases],
        env=kept | hub.environment(folder) | own | variables | {"PYTHONPATH": str(ROOT)},
        cwd=folder,  # what lies in the working directory is loaded before what is on the Hub
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, Any] = json.loads(done.stdout)
    return outcomes


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    root = tmp_path_factory.mktemp("faulty")
    write_data_sets(root / "datasets")
    write_models(root / "models")
    hub = FaultyHub(root, FAULTS)
    with hub:
        yield hub
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which clients keep what they loaded."""
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def online(faulty: FaultyHub, client: Path) -> dict[str, Any]:
    """All cases with a Hub that answers, in one process: importing the libraries is slow."""
    cases = [*ONLINE, "data:with/one-converted", "data:with/converted:second", "data:many/parts:c3"]
    return run(faulty, client, cases)


@pytest.fixture(scope="module")
def away(faulty: FaultyHub, client: Path) -> dict[str, Any]:
    nobody = {"HF_ENDPOINT": "http://secret@127.0.0.1:9"}  # where nothing listens
    return run(faulty, client, list(AWAY), **nobody)


@pytest.fixture(scope="module")
def offline(faulty: FaultyHub, client: Path, online: dict[str, Any]) -> dict[str, Any]:
    return run(faulty, client, [*AWAY, "data:many/parts:c3"], HF_HUB_OFFLINE="1")


def check(outcome: dict[str, Any], words: list[str], case: str) -> None:
    """Assert that a sentence stands where a traceback stood, with the words and without secrets."""
    assert outcome["type"] == "HubError", outcome
    text = outcome["text"]
    assert [word for word in words if word not in text] == [], text
    assert len(text) < 400 and "\n" not in text and "Traceback" not in text, text
    assert outcome["shown"] == [f"HubError: {text}"], "a notebook shows the sentence alone"
    assert case.split(":")[1] in text, "it says of what"
    assert TOKEN not in text and "secret" not in text and "huggingface.co" not in text
    if case not in OURS:
        assert outcome["cause"] != "NoneType", "the library's own error stays the cause"


@pytest.mark.parametrize("case", ONLINE)
def test_a_failure_is_told_with_its_mend(case: str, online: dict[str, Any]) -> None:
    kind = "data set" if case.startswith(("data", "stream")) else "model"
    plain = case.startswith("data:json")
    check(online[case], ONLINE[case] if plain else [kind, *ONLINE[case]], case)


@pytest.mark.parametrize("case", AWAY)
def test_a_hub_that_nobody_reaches_is_told_without_its_password(
    case: str, away: dict[str, Any]
) -> None:
    reached = "The Hub at http://127.0.0.1:9 cannot be reached (no connection)"
    check(away[case], [reached, "not in the cache", "COOKBOOK_PROFILE=cpu"], case)


@pytest.mark.parametrize("case", AWAY)
def test_a_variable_that_forbids_the_network_is_named(case: str, offline: dict[str, Any]) -> None:
    check(offline[case], ["HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"], case)


def test_a_named_configuration_is_loaded_and_then_needs_no_network(
    online: dict[str, Any], offline: dict[str, Any]
) -> None:
    row = {"prompt": ["one"], "completion": ["two"]}
    assert online["data:many/parts:c3"]["came"] == {"train": row}
    assert offline["data:many/parts:c3"]["came"] == {"train": row}


def test_the_parquet_copy_of_one_configuration_is_loaded_and_said(online: dict[str, Any]) -> None:
    for case, name in {
        "data:with/one-converted": "default",
        "data:with/converted:second": "second",
    }.items():
        came = online[case]["came"]
        assert came["train"] == {"text": [f"{name} train"]}, "the others are not mixed in"
        assert "is not run: loaded the Hub's Parquet copy" in online[case]["printed"]
        assert "only a first part" in online[case]["printed"]


@pytest.mark.parametrize(
    ("given", "variables", "chosen"),
    [
        (None, {}, None),
        (None, {"COOKBOOK_CONFIG": ""}, None),
        (None, {"COOKBOOK_CONFIG": "mine"}, "mine"),
        ("main", {"COOKBOOK_CONFIG": "mine"}, "main"),
        (None, {"COOKBOOK_CONFIG": "mine", "COOKBOOK_DATASET": "own/data"}, "mine"),
        (None, {"COOKBOOK_CONFIG": "mine", "COOKBOOK_DATASET": "other/data"}, None),
    ],
)
def test_the_configuration_of_the_readers_own_data_set_is_used(
    given: str | None,
    variables: dict[str, str],
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("COOKBOOK_CONFIG", "COOKBOOK_DATASET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert configuration_for("own/data", given) == chosen


def told(error: Exception, kind: Kind = "data set") -> str:
    """Return the sentence for an error that is raised while `own/thing` is loaded."""
    with pytest.raises(HubError) as raised, explained("own/thing", kind):
        raise error
    assert raised.value.__cause__ is error
    return str(raised.value)


def test_a_full_disk_a_slow_hub_and_an_unknown_certificate_are_told() -> None:
    full = DatasetGenerationError("An error occurred while generating the dataset")
    full.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "no space left for the data set 'own/thing'" in told(full)
    lost = OSError("We couldn't connect")
    lost.__cause__ = LocalEntryNotFoundError("An error happened")
    lost.__cause__.__cause__ = httpx.ReadTimeout("timed out")
    assert "no answer in time" in told(lost, "model")
    lost.__cause__.__cause__ = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] failed")
    assert "SSL_CERT_FILE" in told(lost, "model")
    assert "HTTPS_PROXY" in told(httpx.ProxyError("407 Proxy Authentication Required"))


def test_no_address_and_no_token_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    said = told(OSError(f"Odd answer of https://internal.example/x?token=1 for {TOKEN}\nmore"))
    assert "Odd answer of the Hub for ***" in said
    assert "The Hub has no model 'own/thing'" in told(
        _refused(404, "http://internal.example"), "model"
    )


def _refused(status: int, address: str) -> Exception:
    return HfHubHTTPError(
        "no", response=httpx.Response(status, request=httpx.Request("GET", address))
    )


@pytest.mark.parametrize("error", [KeyError("a"), ValueError("b"), RuntimeError("out of memory")])
def test_what_is_no_failure_of_the_hub_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained("own/thing", "model"):
        raise error
    assert raised.value is error


def test_an_error_that_is_told_already_is_not_told_anew() -> None:
    error = CookbookError("Do this.")
    with pytest.raises(CookbookError) as raised, explained("own/thing", "model"):
        raise error
    assert raised.value is error


def test_a_data_set_never_fails_with_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a column")

    monkeypatch.setattr("cookbook.hub.load_dataset", fail)
    with pytest.raises(HubError, match="'own/thing' cannot be loaded: 'a column'"):
        load_data_set("own/thing")
