"""One function per product: from extracted members to the files of a folder.

Each writes the same bytes whenever it is given the same input. What is heavy to import is imported
inside, since every notebook imports `cookbook.offline`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from cookbook.deduplicate import near_duplicates, near_duplicates_within
from cookbook.offline import documentation

Facts = dict[str, int | str]

TEST_SHARE = 15  # percent of the modules
GENERAL_TEXTS = 96
GENERAL_WORDS = range(60, 161)


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
    train = _without_repeats([row for row in examples if not _is_test_module(row["group"])])
    test = _without_repeats([row for row in examples if _is_test_module(row["group"])])
    leaks = set(near_duplicates(_answers(train), _answers(test)))
    test = [row for number, row in enumerate(test) if number not in leaks]
    for split, rows in (("train", train), ("test", test)):
        kept = ({key: row[key] for key in ("prompt", "completion")} for row in _shuffled(rows))
        _write_rows(folder / f"{split}.jsonl", kept)
    return {"train": len(train), "test": len(test)}


def _is_test_module(module: str) -> bool:
    # By its name alone, so that a module keeps its split in every version of Python.
    return int(hashlib.sha512(module.encode()).hexdigest(), 16) % 100 < TEST_SHARE


def _without_repeats(rows: list[documentation.Example]) -> list[documentation.Example]:
    repeats = set(near_duplicates_within(_answers(rows)))
    return [row for number, row in enumerate(rows) if number not in repeats]


def _answers(rows: Iterable[documentation.Example]) -> list[str]:
    return [row["completion"] for row in rows]


def _shuffled(rows: Iterable[documentation.Example]) -> list[documentation.Example]:
    """Return the rows in a fixed mixed order, so that any leading slice covers many modules."""
    return sorted(rows, key=lambda row: _digest(row["prompt"]))


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


def _write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(lines)
