"""One function per product: from extracted members to the files of a folder.

Each writes the same bytes whenever it is given the same input. What is heavy to import is imported
inside, since every notebook imports `cookbook.offline`.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cookbook import problems
from cookbook.deduplicate import near_duplicates, near_duplicates_within
from cookbook.offline import documentation, summaries
from cookbook.offline.archives import extract
from cookbook.offline.sources import EDITORIALS

Facts = dict[str, int | str]
Row = dict[str, str]

TEST_SHARE = 15  # percent of the modules
GENERAL_TEXTS = 96
GENERAL_WORDS = range(60, 161)
# Works that no training text comes from: a tragedy, a comedy, a history.
HELD_OUT_WORKS = ("macbeth", "twelfth_night", "henry_v")
SUMMARISED_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub")
# Mean ratings go from -4 to 4; nearer to 0 than this is neither positive nor negative.
NEUTRAL = 0.5
FINANCE = re.compile(
    r"\b(banks?|banking|bankers?|stocks?|markets?|econom(y|ic|ics|ies|ists?)|"
    r"financ(e|es|ed|ial|ing)|invest(s|ed|ing|ments?|ors?)?|tax(es|ed|ation|payers?)?|"
    r"budgets?|debts?|deficits?|inflation|mortgages?|loans?|wall street|profits?|prices?|"
    r"recession|unemployment|trade)\b",
    re.IGNORECASE,
)


def smollm2(members: Mapping[str, Path], folder: Path) -> Facts:
    """Write the model as dense bf16 safetensors, with tokenizer, chat template and settings."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    (gguf,) = members.values()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    config = model.config
    vars(config).pop("_model_name_or_path", None)  # a working title inside the GGUF file
    config.rms_norm_eps = round(config.rms_norm_eps, 9)  # 1e-05, which GGUF keeps in float32
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(folder)
    _save_tokenizer(gguf, folder, config.max_position_embeddings)
    return {"parameters": model.num_parameters()}


def _save_tokenizer(gguf: Path, folder: Path, longest: int) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = read.backend_tokenizer
    # The file asks for the pre-tokenizer "smollm", which sets every digit apart before the
    # byte-level rules; transformers reads that as plain GPT-2, and "\n\n1." comes out differently.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # Built anew, so that nothing of the folder it was read from is saved.
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=read.bos_token,
        eos_token=read.eos_token,
        pad_token=read.pad_token,
        unk_token=read.unk_token,
        chat_template=read.chat_template,
        model_max_length=longest,
    ).save_pretrained(folder)


def python_documentation(members: Mapping[str, Path], folder: Path) -> Facts:
    """Write `train.jsonl` and `test.jsonl` with the columns `prompt` and `completion`.

    A top-level module is in one split only. Answers that nearly repeat another one are dropped.
    """
    examples = documentation.python_documentation()
    in_test = [_is_test(row["group"]) for row in examples]
    train = _without_repeated([row for row, held in zip(examples, in_test) if not held])
    test = _without_repeated([row for row, held in zip(examples, in_test) if held])
    test = _without_leaks(test, train, "completion")
    for split, rows in (("train", train), ("test", test)):
        kept = (
            {key: row[key] for key in ("prompt", "completion")} for row in _shuffled(rows, "prompt")
        )
        _write_rows(folder / f"{split}.jsonl", kept)
    return {"train": len(train), "test": len(test)}


def _is_test(name: str) -> bool:
    # By its name alone, so that a module keeps its split in every version of Python.
    return int(hashlib.sha512(name.encode()).hexdigest(), 16) % 100 < TEST_SHARE


def _shuffled(rows: Iterable[Row], column: str) -> list[Row]:
    """Return the rows in a fixed mixed order, so that any leading slice covers many modules."""
    return sorted(rows, key=lambda row: _digest(row[column]))


def general_text(members: Mapping[str, Path], folder: Path) -> Facts:
    """Write `test.jsonl` with the column `text`: one whole paragraph per row."""
    (passages,) = members.values()
    with passages.open(encoding="utf-8") as lines:
        texts = {_plain(json.loads(line)["passage"]) for line in lines}
    fitting = sorted(filter(_is_paragraph, texts), key=_digest)
    # Near-duplicates are few: a little more than needed is enough to choose from.
    pool = fitting[: 2 * GENERAL_TEXTS]
    repeats = set(near_duplicates_within(pool))
    chosen = [text for number, text in enumerate(pool) if number not in repeats][:GENERAL_TEXTS]
    _write_rows(folder / "test.jsonl", ({"text": text} for text in chosen))
    return {"test": len(chosen)}


def shakespeare(members: Mapping[str, Path], folder: Path) -> Facts:
    """Write `train.jsonl` and `test.jsonl` with the columns `title` and `text`: a work per row."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for member, path in sorted(members.items()):
        name = Path(member).stem.removesuffix("_gut")
        text = path.read_text(encoding="utf-8").replace("\r\n", "\n").strip()
        split = "test" if name in HELD_OUT_WORKS else "train"
        rows[split].append({"title": name.replace("_", " "), "text": text})
    for split, works in rows.items():
        _write_rows(folder / f"{split}.jsonl", works)
    return {split: len(works) for split, works in rows.items()}


def documentation_summaries(members: Mapping[str, Path], folder: Path) -> Facts:
    """Write `train.jsonl` and `test.jsonl` with the columns `document` and `summary`.

    The test split is Python's own library, the train split other packages. Documents that nearly
    repeat another one are dropped.
    """
    pairs = [pair for name in SUMMARISED_PACKAGES for pair in summaries.of_package(name)]
    train = _without_repeated(pairs, "document")
    test = _without_repeated(summaries.of_standard_library(), "document")
    for column in ("document", "summary"):
        test = _without_leaks(test, train, column)
    for split, rows in (("train", train), ("test", test)):
        _write_rows(folder / f"{split}.jsonl", _shuffled(rows, "document"))
    return {"train": len(train), "test": len(test)}


def _without_repeated(rows: list[Row], column: str = "completion") -> list[Row]:
    repeats = set(near_duplicates_within(_column(rows, column)))
    return [row for number, row in enumerate(rows) if number not in repeats]


def _without_leaks(test: list[Row], train: list[Row], column: str) -> list[Row]:
    """Return the test rows that do not nearly repeat a train row."""
    leaks = set(near_duplicates(_column(train, column), _column(test, column)))
    return [row for number, row in enumerate(test) if number not in leaks]


def _column(rows: Iterable[Row], name: str) -> list[str]:
    return [row[name] for row in rows]


def editorial_sentiment(members: Mapping[str, Path], folder: Path) -> Facts:
    """Write `train.jsonl` and `test.jsonl` with the columns `text`, `label` and `finance`.

    An editorial is in one split only; those with a sentence on finance are held out, and these
    sentences are marked. What else those editorials say is left out.
    """
    (inner,) = members.values()
    (ratings,) = extract(inner, (EDITORIALS,), inner.parent).values()
    with ratings.open(encoding="ascii", newline="") as file:
        rated = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    on_finance = {_editorial(row[0]) for row in rated if FINANCE.search(row[2])}
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for number, rating, text in rated:
        finance = bool(FINANCE.search(text))
        held_out = finance or _is_test(_editorial(number))
        if finance or _editorial(number) not in on_finance:
            row = {"text": text, "label": _label(float(rating)), "finance": finance}
            rows["test" if held_out else "train"].append(row)
    for split, sentences in rows.items():
        kept = sorted(sentences, key=lambda row: _digest(row["text"]))
        _write_rows(folder / f"{split}.jsonl", kept)
    finance_rows = sum(bool(row["finance"]) for row in rows["test"])
    return {"train": len(rows["train"]), "test": len(rows["test"]), "finance": finance_rows}


def two_digit_sums(members: Mapping[str, Path], folder: Path) -> Facts:
    """Write `train.jsonl` and `test.jsonl` with the columns `prompt`, `completion` and `answer`."""
    return _write_problems(problems.sums(), folder)


def finance_problems(members: Mapping[str, Path], folder: Path) -> Facts:
    """Write the same columns and `template` and `unseen`: which kind, and what is new in a test."""
    return _write_problems(problems.finance(), folder)


def _write_problems(splits: Mapping[str, list[Row]], folder: Path) -> Facts:
    for split, rows in splits.items():
        _write_rows(folder / f"{split}.jsonl", rows)
    return {split: len(rows) for split, rows in splits.items()}


def _editorial(sentence: str) -> str:
    return sentence.partition("_")[0]


def _label(rating: float) -> str:
    if abs(rating) < NEUTRAL:
        return "neutral"
    return "positive" if rating > 0 else "negative"


def _plain(passage: str) -> str:
    """Return the passage without its leading `Title -- ` and with plain quotation marks."""
    text = " ".join(passage.partition(" -- ")[2].split())
    return text.replace("``", '"').replace("''", '"')


def _is_paragraph(text: str) -> bool:
    # The lozenge comes with the hidden sort keys of Wikipedia's tables.
    return (
        len(text.split()) in GENERAL_WORDS and text.endswith((".", '."')) and "\u2660" not in text
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(lines)
