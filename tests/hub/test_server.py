"""The loopback Hub under the unmodified clients, and its answers one by one."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from http.client import HTTPConnection, HTTPMessage
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest
from transformers import AutoTokenizer

from cookbook.deduplicate import near_duplicates_within
from cookbook.profiles import ROOT
from tests.hub import data_sets, models
from tests.hub.server import UNSET, LoopbackHub, Request

pytestmark = pytest.mark.hub

QWEN = [None, 706, 704]  # BOS, EOS and pad: <|endoftext|>, <|im_start|> and <|im_end|> come last
FALCON = "/tiiuae/falcon-7b/resolve/main"
WEIGHTS = f"{FALCON}/model-00001-of-00002.safetensors"
FALCON_API = "/api/models/tiiuae/falcon-7b"
WEB_API = "/api/datasets/Skylion007/openwebtext"
TALK_COLUMNS = ["id", "dialogue", "summary", "topic"]
REASONING_COLUMNS = [
    "Open-ended Verifiable Question",
    *("Ground-True Answer", "Complex_CoT", "Response"),
]
MATH_COLUMNS = (
    "expected_answer problem_type problem_source generation_model pass_rate_72b_tir problem "
    "generated_solution inference_mode"
).split()


class Visit:
    """What the clients got in one run, and what they asked for."""

    def __init__(self, hub: LoopbackHub, folder: Path, *arguments: str) -> None:
        hub.forget()
        kept = {name: value for name, value in os.environ.items() if name not in UNSET}
        done = subprocess.run(
            [sys.executable, "-m", "tests.hub.clients", *arguments],
            env=kept | hub.environment(folder),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        self.got: dict[str, Any] = json.loads(done.stdout)
        self.requests: list[Request] = list(hub.requests)
        self.unknown: list[Request] = list(hub.unknown)


@pytest.fixture(scope="module")
def visits(
    session_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Visit, Visit]:
    """Two visits with one cache; importing the clients is slow, so there are no more."""
    folder = tmp_path_factory.mktemp("client")
    return Visit(session_hub, folder, "--stream"), Visit(session_hub, folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiiuae/falcon-7b", ("FalconForCausalLM", "torch.bfloat16", [None, 11, None], False)),
        (
            "google/flan-t5-base",
            # An output layer of its own: loading has noticed that it is not the embedding.
            ("T5ForConditionalGeneration", "torch.float32", [None, 1, 0], True),
        ),
        ("facebook/opt-1.3b", ("OPTForCausalLM", "torch.float16", [2, 2, 1], False)),
        ("openai-community/gpt2", ("GPT2LMHeadModel", "torch.float32", [704, 704, None], False)),
        *(
            (f"Qwen/Qwen2.5-{size}-Instruct", ("Qwen2ForCausalLM", "torch.bfloat16", QWEN, False))
            for size in ("0.5B", "1.5B")
        ),
        ("Qwen/Qwen3-1.7B", ("Qwen3ForCausalLM", "torch.bfloat16", QWEN, False)),
        ("Qwen/Qwen3-14B", ("Qwen3ForCausalLM", "torch.bfloat16", QWEN, True)),
        ("google/gemma-3-1b-it", ("Gemma3ForCausalLM", "torch.bfloat16", [2, 1, 0], False)),
        (
            "google/gemma-3-4b-it",
            ("Gemma3ForConditionalGeneration", "torch.bfloat16", [2, 1, 0], False),
        ),
    ],
)
def test_models_are_of_the_true_architecture(
    visits: tuple[Visit, Visit], name: str, expected: tuple[str, str, list[int | None], bool]
) -> None:
    got = visits[0].got["models"][name]
    assert (got["class"], got["dtype"], got["special"], got["own_output_layer"]) == expected
    talks = name.startswith("Qwen/") or name.endswith("-it")
    assert bool(got["chat_template"]) == talks, "the others are base models"
    assert got["text"].replace(" ", "") == "#Person1#:Couldyourepairtheoldlamp?"
    marks = {"facebook/opt-1.3b": (0, 2), "google/flan-t5-base": (-1, 1)}
    marks["google/gemma-3-4b-it"] = (0, 2)
    if name in marks:  # OPT begins each text with </s>, Gemma with <bos>, T5 ends each with </s>
        place, token = marks[name]
        assert got["ids"][place] == token


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timdettmers/openassistant-guanaco", {"train": [["text"], 90], "test": [["text"], 30]}),
        (
            "knkarthick/dialogsum",
            {
                "train": [TALK_COLUMNS, 80],
                "validation": [TALK_COLUMNS, 24],
                "test": [TALK_COLUMNS, 36],
            },
        ),
        ("FinGPT/fingpt-sentiment-train", {"train": [["input", "output", "instruction"], 410]}),
        ("Skylion007/openwebtext", {"train": [["text"], 800]}),
        (
            "openai/gsm8k",
            {"train": [["question", "answer"], 260], "test": [["question", "answer"], 36]},
        ),
        ("TheFinAI/Fino1_Reasoning_Path_FinQA", {"train": [REASONING_COLUMNS, 260]}),
        ("unsloth/OpenMathReasoning-mini", {"cot": [MATH_COLUMNS, 260]}),
        ("mlabonne/FineTome-100k", {"train": [["conversations", "source", "score"], 260]}),
    ],
)
def test_data_sets_have_the_true_splits_and_columns(
    visits: tuple[Visit, Visit], name: str, expected: dict[str, Any]
) -> None:
    assert visits[0].got["datasets"][name] == expected


def test_a_data_set_is_streamed_and_read_in_parts(visits: tuple[Visit, Visit]) -> None:
    # A Parquet file ends with these four bytes.
    assert visits[0].got["streamed"] == {"rows": 800, "columns": ["text"], "end": "PAR1"}


def test_the_clients_get_the_errors_of_the_hub(visits: tuple[Visit, Visit]) -> None:
    assert visits[0].got["errors"] == [
        "RepositoryNotFoundError",
        "RemoteEntryNotFoundError",
        "RevisionNotFoundError",
        "DatasetNotFoundError",
        "ValueError",
    ]


def test_the_clients_ask_nothing_that_the_hub_does_not_know(visits: tuple[Visit, Visit]) -> None:
    assert not [*visits[0].unknown, *visits[1].unknown]


def test_the_second_visit_downloads_nothing(visits: tuple[Visit, Visit]) -> None:
    first, second = visits
    downloads = [path for method, path in first.requests if method == "GET" and "/resolve/" in path]
    assert any(path.endswith(".safetensors") for path in downloads)
    # ETag and commit are the same, so a HEAD request is enough.
    asked = {method for method, path in second.requests if "/resolve/" in path}
    assert asked == {"HEAD"}
    assert second.got == {name: got for name, got in first.got.items() if name != "streamed"}


def test_no_code_is_asked_for(visits: tuple[Visit, Visit], repositories: Path) -> None:
    # The configuration of Falcon names some, as on the real Hub.
    config = repositories / "models" / "tiiuae" / "falcon-7b" / "config.json"
    assert "modeling_falcon" in config.read_text(encoding="utf-8")
    assert not [path for _, path in visits[0].requests if "modeling_" in path]


class Reply(NamedTuple):
    status: int
    headers: HTTPMessage
    body: bytes


def _ask(
    hub: LoopbackHub, method: str, path: str, headers: dict[str, str] | None = None, body: str = ""
) -> Reply:
    connection = HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def test_a_large_file_is_known_by_its_sha256(hub: LoopbackHub) -> None:
    whole, head = _ask(hub, "GET", WEIGHTS), _ask(hub, "HEAD", WEIGHTS)
    assert (whole.status, head.status, head.body) == (200, 200, b"")
    told = head.headers
    assert told["X-Linked-Size"] == told["Content-Length"] == str(len(whole.body))
    assert told["ETag"] == told["X-Linked-Etag"] == whole.headers["ETag"]
    assert told["ETag"] == f'"{sha256(whole.body).hexdigest()}"'
    assert len(told["X-Repo-Commit"]) == 40
    assert hub.requests == [("GET", WEIGHTS), ("HEAD", WEIGHTS)]


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=2-5", 206, slice(2, 6)),
        ("bytes=7-", 206, slice(7, None)),
        ("bytes=-3", 206, slice(-3, None)),
        ("bytes=0-99999999", 206, slice(None)),
        ("bytes=99999999-", 416, slice(0, 0)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_ranges(hub: LoopbackHub, wanted: str, status: int, part: slice) -> None:
    whole = (hub.root / "models/tiiuae/falcon-7b/config.json").read_bytes()
    reply = _ask(hub, "GET", f"{FALCON}/config.json", {"Range": wanted})
    assert (reply.status, reply.body) == (status, whole[part])


@pytest.mark.parametrize(
    "path",
    [
        f"{FALCON}/../../../../datasets/knkarthick/dialogsum/test.csv",
        f"{FALCON}/%2e%2e/%2e%2e/secret.txt",
        f"{FALCON}/..%2f..%2fsecret.txt",
        f"{FALCON}/..\\..\\secret.txt",
        f"{FALCON}//etc/passwd",
        f"{FALCON_API}/tree/main/..%2F..",
        "/../secret/resolve/main/secret.txt",
        "/tiiuae/../resolve/main/secret.txt",
        "/tiiuae/link/resolve/main/secret.txt",
        f"{FALCON}/link.txt",
    ],
)
def test_paths_that_lead_out_are_refused(own_hub: LoopbackHub, path: str) -> None:
    secret = own_hub.root.parent / "secret" / "secret.txt"
    secret.parent.mkdir()
    for place in (secret, own_hub.root / "secret.txt", own_hub.root / "models" / "secret.txt"):
        place.write_text("secret", encoding="utf-8")
    (own_hub.root / "models" / "tiiuae" / "falcon-7b" / "link.txt").symlink_to(secret)
    (own_hub.root / "models" / "tiiuae" / "link").symlink_to(secret.parent)
    reply = _ask(own_hub, "GET", path)
    assert reply.status in (400, 401, 404)
    assert "error" in json.loads(reply.body)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nobody/nothing/resolve/main/config.json", 401, "RepoNotFound"),
        ("/datasets/tiiuae/falcon-7b/resolve/main/config.json", 401, "RepoNotFound"),
        ("/api/datasets/nobody/nothing", 401, "RepoNotFound"),
        (f"{FALCON}/nothing.json", 404, "EntryNotFound"),
        (f"{FALCON_API}/tree/main/additional_chat_templates", 404, "EntryNotFound"),
        (f"{FALCON_API}/revision/refs%2Fpr%2F1", 404, "RevisionNotFound"),
        ("/tiiuae/falcon-7b/resolve/v9/config.json", 404, "RevisionNotFound"),
    ],
)
def test_errors_carry_the_code_of_the_hub(
    hub: LoopbackHub, path: str, status: int, code: str
) -> None:
    reply = _ask(hub, "GET", path)
    assert (reply.status, reply.headers["X-Error-Code"]) == (status, code)
    assert not hub.unknown


def test_trees_hold_folders(hub: LoopbackHub) -> None:
    def listed(path: str) -> dict[str, str]:
        return {one["path"]: one["type"] for one in json.loads(_ask(hub, "GET", path).body)}

    files = dict.fromkeys((f"plain_text/train-0000{n}-of-00002.parquet" for n in (0, 1)), "file")
    top = {"README.md": "file", "plain_text": "directory"}
    assert listed(f"{WEB_API}/tree/main?recursive=false") == top
    assert listed(f"{WEB_API}/tree/main?recursive=true") == top | files
    assert listed(f"{WEB_API}/tree/main/plain_text") == files
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode({"paths": ["plain_text", "absent", "README.md"]}, doseq=True)
    reply = _ask(hub, "POST", f"{WEB_API}/paths-info/main", form, body)
    assert {one["path"]: one["type"] for one in json.loads(reply.body)} == top


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{FALCON_API}/discussions"),
        ("GET", "/api/whoami-v2"),
        ("GET", f"{FALCON_API}/revision/main/more"),
        ("GET", f"{FALCON_API}/paths-info/main"),
        ("POST", f"{FALCON_API}/commit/main"),
        ("POST", FALCON_API),
        ("PUT", f"{FALCON}/config.json"),
        ("DELETE", FALCON_API),
    ],
)
def test_what_is_unknown_is_recorded(hub: LoopbackHub, method: str, path: str) -> None:
    assert _ask(hub, method, path, body="{}").status == 404
    assert hub.unknown == hub.requests == [(method, path)]


def test_a_refused_form_does_not_spoil_the_connection(hub: LoopbackHub) -> None:
    connection = HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
    try:
        for path in ("/api/models/nobody/nothing/paths-info/main", f"{FALCON_API}/paths-info/main"):
            connection.request("POST", path, "paths=config.json")
            response = connection.getresponse()
            answer = json.loads(response.read())
        assert [one["path"] for one in answer] == ["config.json"]
    finally:
        connection.close()


def test_a_changed_file_is_served_under_another_commit(own_hub: LoopbackHub) -> None:
    before = _ask(own_hub, "GET", f"{FALCON}/config.json")
    (own_hub.root / "models/tiiuae/falcon-7b/config.json").write_text("{}", encoding="utf-8")
    after = _ask(own_hub, "GET", f"{FALCON}/config.json")
    assert after.body == b"{}"
    for name in ("ETag", "X-Repo-Commit"):
        assert before.headers[name] != after.headers[name]


def test_models_are_the_same_every_time(repositories: Path, tmp_path: Path) -> None:
    again = tmp_path / "falcon"
    again.mkdir()
    models.falcon_7b(again)
    for path in again.iterdir():
        assert (
            path.read_bytes() == (repositories / "models/tiiuae/falcon-7b" / path.name).read_bytes()
        )


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2_5"),
        ("Qwen/Qwen3-14B", "qwen3"),
        ("google/gemma-3-4b-it", "gemma3"),
    ],
)
def test_chat_templates_render_what_the_real_ones_render(
    repositories: Path, name: str, real: str
) -> None:
    spec = find_spec("trl")  # which keeps a copy of the real templates
    assert spec and spec.origin
    path = Path(spec.origin).with_name("chat_templates") / f"{real}.jinja"
    template = path.read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(repositories / "models" / name)
    opening: tuple[list[Any], ...] = ([], [{"role": "system", "content": "Be brief."}])
    asked = {"role": "user", "content": " What is 2 + 2?\n"}
    answers = (
        {"content": "<think>\nTwo and two.\n</think>\n\n4"},
        {"content": "4", "reasoning_content": "Two and two.\n"},
        {"content": "\n4"},
    )
    settings: tuple[dict[str, Any], ...] = (
        *({}, {"add_generation_prompt": True}),
        *({"add_generation_prompt": True, "enable_thinking": one} for one in (True, False)),
    )
    for first, answer, turns, how in product(opening, answers, range(1, 5), settings):
        talk = [*first, *([asked, {"role": "assistant", **answer}] * 2)[:turns]]
        ours = tokenizer.apply_chat_template(talk, tokenize=False, **how)
        assert ours == tokenizer.apply_chat_template(
            talk, chat_template=template, tokenize=False, **how
        )


def test_rows_are_no_near_duplicates() -> None:
    # Scores on rows that training has seen would prove nothing. What repeats on the real Hub (the
    # dialogues of the test split, rows of the sentiment set) is left out here.
    talks = [("train", 80), ("validation", 24), ("test", 12)]
    columns = {
        "guanaco": [
            row["text"] for one in ("train", "test") for row in data_sets.guanaco_rows(90, one)
        ],
        "dialogsum": [
            row["dialogue"]
            for split, count in talks
            for row in data_sets.dialogsum_rows(count, split, 1)
        ],
        "sentiment": [row["input"] for row in data_sets.sentiment_rows(330)],
        "gsm8k": [
            row["question"]
            for split, count in (("train", 260), ("test", 36))
            for row in data_sets.gsm8k_rows(count, split)
        ],
        "finqa": [row["Open-ended Verifiable Question"] for row in data_sets.finqa_rows(260)],
        "openmath": [row["problem"] for row in data_sets.openmath_rows(260)],
        "finetome": [
            next(turn["value"] for turn in row["conversations"] if turn["from"] == "human")
            for row in data_sets.finetome_rows(260)
        ],
    }
    for name, texts in columns.items():
        assert not near_duplicates_within(texts), name
