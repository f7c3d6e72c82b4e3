"""What the loopback Hub holds: tiny random models and small data sets under the real names.

Architecture, file layout, special tokens, columns and splits are those of the real repositories,
so that a notebook meets what it would meet there. Only the sizes and the texts are our own. A new
repository is one function and one line in `REPOSITORIES`.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2Tokenizer,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    set_seed,
)

from tests.hub import texts

Row = dict[str, str]

SEED = 0
VOCABULARY = 704  # tokens of a byte-level tokenizer: 256 bytes and merges
# 64 is the block of NF4 quantization: every weight then is a whole number of blocks.
WIDTH, LAYERS, HEADS = 64, 2, 4


@dataclass(frozen=True)
class Repository:
    """How one repository is written, and what is known of it."""

    write: Callable[[Path], None]
    linear_layers: int = 0  # what loading in 4 bits must replace: all but the output layer


# --- Tokenizers -----------------------------------------------------------------------------


@cache
def _corpus() -> tuple[str, ...]:
    """Return the texts that the tokenizers are trained on."""
    conversations = [row["text"] for row in _guanaco(60)]
    talks = [text for row in _dialogsum(60, "train", 1) for text in row.values()]
    news = [text for row in _sentiment(60) for text in row.values()]
    return (*conversations, *talks, *news)


def _byte_level(special_tokens: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer whose first ids are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _unigram() -> list[tuple[str, float]]:
    """Return tokens and their scores in the order of T5: sentinels last, `<extra_id_0>` the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]["vocab"]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    return [*((token, score) for token, score in learned), *sentinels]


# --- Models ---------------------------------------------------------------------------------


def _save(model: PreTrainedModel, folder: Path, published: dict[str, Any], shards: str) -> None:
    """Write a model and its configuration as published.

    `shards` is the size at which the weights are cut into files. `published` has what the real
    `config.json` says and transformers would not write today; None removes an entry.
    """
    model.save_pretrained(folder, max_shard_size=shards)
    dtype = str(model.dtype).removeprefix("torch.")
    _publish(folder, {"dtype": None, "torch_dtype": dtype, **published})


def _publish(folder: Path, published: dict[str, Any]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | published
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def falcon_7b(folder: Path) -> None:
    """Write Falcon as in 7B: one key/value head, parallel attention, no template, no pad token."""
    names = (
        "TITLE ABSTRACT INTRODUCTION SUMMARY COMMENT ANSWER QUESTION DOMAIN PREFIX SUFFIX MIDDLE"
    )
    marks = [f">>{name}<<" for name in names.split()]
    end = "<|endoftext|>"  # id 11, as there
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level([*marks, end]),
        eos_token=end,
        additional_special_tokens=marks,
        model_max_length=2048,
    )
    tokenizer.save_pretrained(folder)
    config = FalconConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        multi_query=True,
        parallel_attn=True,
        bias=False,
        new_decoder_architecture=False,
        alibi=False,
        bos_token_id=11,
        eos_token_id=11,
    )
    set_seed(SEED)
    # The real repository still names its own code, which nobody should run: it is not here.
    own_code = {"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"}
    model = FalconForCausalLM(config).bfloat16()
    absent = ("num_kv_heads", "ffn_hidden_size", "rope_parameters", "max_position_embeddings")
    published = {"auto_map": own_code, **dict.fromkeys(absent)}
    _save(model, folder, published, shards="200KB")


def flan_t5_base(folder: Path) -> None:
    """Write T5 as in FLAN: gated GELU, an output layer of its own, `</s>` after every text."""
    tokenizer = T5Tokenizer(vocab=_unigram())
    tokenizer.save_pretrained(folder)
    special: dict[str, Any] = {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
    }
    config = T5Config(
        vocab_size=len(tokenizer) + 28,  # more rows than tokens: there 32,128 for 32,100
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        **special,
    )
    set_seed(SEED)
    model = T5ForConditionalGeneration(config)
    # transformers ties the two on construction, whatever the configuration says. In FLAN-T5 they
    # differ, and loading must notice it.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, WIDTH))
    published = {"tie_word_embeddings": False, "scale_decoder_outputs": None, "n_positions": 512}
    _save(model, folder, published, shards="5GB")


def opt_1_3b(folder: Path) -> None:
    """Write OPT as in 1.3B: float16, `</s>` as BOS and EOS, a tokenizer of two files."""
    tokenizer = _byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt, and no tokenizer.json
    special = {"unk_token": "</s>", "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {
        **special,
        "add_bos_token": True,  # each text begins with </s>
        "add_prefix_space": False,
        "errors": "replace",
        "tokenizer_class": "GPT2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    config = OPTConfig(
        vocab_size=tokenizer.get_vocab_size() + 8,  # more rows than tokens, as there
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        ffn_dim=4 * WIDTH,
        num_attention_heads=HEADS,
        max_position_embeddings=2048,
        do_layer_norm_before=True,
        word_embed_proj_dim=WIDTH,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
    set_seed(SEED)
    _save(OPTForCausalLM(config).half(), folder, {"prefix": "</s>"}, shards="5GB")


def gpt2(folder: Path) -> None:
    """Write the configuration and tokenizer of GPT-2; no weights, since it is trained from none."""
    _byte_level([]).model.save(str(folder))
    tokenizer = GPT2Tokenizer.from_pretrained(folder, model_max_length=1024)
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id  # the last id, as there
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=1024,
        bos_token_id=end,
        eos_token_id=end,
        architectures=["GPT2LMHeadModel"],
    )
    config.save_pretrained(folder)


# --- Data sets ------------------------------------------------------------------------------


def _guanaco(count: int, seed: str = "train") -> Iterator[Row]:
    random = Random(f"guanaco {seed}")
    for _ in range(count):
        yield {"text": texts.guanaco_text(random)}


def openassistant_guanaco(folder: Path) -> None:
    """Write conversations in one string; file names tell the splits, as there."""
    for split, name, count in (("train", "train", 90), ("test", "eval", 30)):
        lines = [json.dumps(row) for row in _guanaco(count, split)]
        path = folder / f"openassistant_best_replies_{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _dialogsum(count: int, split: str, summaries: int) -> Iterator[Row]:
    random = Random(f"dialogsum {split}")
    for number in range(count):
        talk = texts.dialogue(random, summaries)
        for way, summary in enumerate(talk["ways"], start=1):
            yield {
                "id": f"{split}_{number}" + (f"_{way}" if summaries > 1 else ""),
                "dialogue": str(talk["dialogue"]),
                "summary": summary,
                "topic": str(talk["topic"]),
            }


def dialogsum(folder: Path) -> None:
    """Write dialogues and summaries; the test split has each dialogue three times, as there."""
    for split, count, summaries in (("train", 80, 1), ("validation", 24, 1), ("test", 12, 3)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "dialogue", "summary", "topic"])
            writer.writeheader()
            writer.writerows(_dialogsum(count, split, summaries))


THREE_CLASSES = ("negative", "neutral", "positive")
SEVEN_CLASSES = (
    *("strong negative", "moderately negative", "mildly negative"),
    "neutral",
    *("mildly positive", "moderately positive", "strong positive"),
)


def _sentiment(count: int) -> Iterator[Row]:
    random = Random("sentiment")
    for number in range(count):
        # Of three rows one has seven classes.
        classes = SEVEN_CLASSES if number % 3 == 0 else THREE_CLASSES
        label = random.choice(classes)
        yield {
            "input": texts.news(random, label),
            "output": label,
            "instruction": "What is the sentiment of this news? Please choose an answer from "
            f"{{{'/'.join(classes)}}}.",
        }


def fingpt_sentiment_train(folder: Path) -> None:
    """Write news and their sentiment: one split, and many rows more than once, as there.

    The real set repeats three of its four sources 2, 6 and 21 times. A test split cut from it
    without looking would mostly hold training rows.
    """
    rows = list(_sentiment(330))
    rows += 2 * rows[:40]
    Random(SEED).shuffle(rows)
    _parquet(folder / "data" / "train-00000-of-00001-dabab110260ac909.parquet", rows)
    columns = [{"name": name, "dtype": "string"} for name in rows[0]]
    split = {"name": "train", "num_examples": len(rows)}
    _card(folder, {"dataset_info": {"features": columns, "splits": [split]}})


def openwebtext(folder: Path) -> None:
    """Write documents in two Parquet files, under the only configuration.

    The GPT-2 recipe holds the first 500 back, so that there must be more.
    """
    random = Random("openwebtext")
    rows = [
        {"text": "\n\n".join(texts.paragraph(random, 3) for _ in range(random.randint(1, 4)))}
        for _ in range(800)
    ]
    for number in range(2):
        path = folder / "plain_text" / f"train-{number:05}-of-00002.parquet"
        _parquet(path, rows[400 * number : 400 * (number + 1)])
    files = [{"split": "train", "path": "plain_text/train-*"}]
    configuration = {"config_name": "plain_text", "data_files": files, "default": True}
    _card(folder, {"configs": [configuration]})


def _parquet(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Dataset.from_list(rows).to_parquet(file)


def _card(folder: Path, settings: dict[str, Any]) -> None:
    """Write a data set card. JSON is YAML too."""
    (folder / "README.md").write_text(f"---\n{json.dumps(settings)}\n---\n", encoding="utf-8")


REPOSITORIES = {
    "models/tiiuae/falcon-7b": Repository(falcon_7b, linear_layers=4 * LAYERS),
    "models/google/flan-t5-base": Repository(flan_t5_base),
    "models/facebook/opt-1.3b": Repository(opt_1_3b, linear_layers=6 * LAYERS),
    "models/openai-community/gpt2": Repository(gpt2),
    "datasets/timdettmers/openassistant-guanaco": Repository(openassistant_guanaco),
    "datasets/knkarthick/dialogsum": Repository(dialogsum),
    "datasets/FinGPT/fingpt-sentiment-train": Repository(fingpt_sentiment_train),
    "datasets/Skylion007/openwebtext": Repository(openwebtext),
}


def write_repositories(root: Path) -> Path:
    """Write every repository below `root` and return it."""
    for name, repository in REPOSITORIES.items():
        (root / name).mkdir(parents=True)
        repository.write(root / name)
    return root
