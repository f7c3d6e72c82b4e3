"""What the loopback Hub holds: tiny random models and small data sets under the real names.

Architecture, file layout, special tokens, columns and splits are those of the real repositories,
so that a notebook meets what it would meet there. Only the sizes and the texts are our own. A new
repository is one function and one line in `REPOSITORIES`.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    set_seed,
)

from tests.hub import texts

Row = dict[str, Any]

SEED = 0
VOCABULARY = 704  # tokens of a byte-level tokenizer: 256 bytes and merges
# 64 is the block of NF4 quantization: every weight then is a whole number of blocks.
WIDTH, LAYERS, HEADS = 64, 2, 4


@dataclass(frozen=True)
class Repository:
    """How one repository is written, and what is known of it."""

    write: Callable[[Path], None]
    linear_layers: int = 0  # what loading in 4 bits must replace: all but the output layer
    configuration: str | None = None  # of a data set that does not load without naming one


# --- Chat templates -------------------------------------------------------------------------

# They render what the real ones render, in words of our own; tools are left out.
_TURN = r"""{%- macro turn(role, text) %}
{{- '<|im_start|>' + role + '\n' + text + '<|im_end|>\n' }}{% endmacro %}"""
_ASK = r"{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"
_QWEN2_5 = r"""
{%- set usual = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' %}
{%- if messages[0].role != 'system' %}{{- turn('system', usual) }}{% endif %}
{%- for message in messages %}{{- turn(message.role, message.content) }}{% endfor %}"""
# Turns before the last question lose their reasoning; the last turn shows some, be it empty.
_QWEN3 = r"""{%- set question = namespace(at=messages|length - 1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set question.at = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- set text, thought = message.content, '' %}
{%- if message.role == 'assistant' and message.reasoning_content is string %}
{%- set thought = message.reasoning_content %}
{%- elif message.role == 'assistant' and '</think>' in text %}
{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set text = text.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if message.role == 'assistant' and loop.index0 > question.at and (loop.last or thought) %}
{%- set thought = '<think>\n' + thought.strip('\n') + '\n</think>\n\n' %}
{%- set text = thought + text.lstrip('\n') %}
{%- endif %}
{{- turn(message.role, text) }}
{%- endfor %}"""
_NO_THOUGHT = r"""{%- if add_generation_prompt and enable_thinking is defined %}
{{- '' if enable_thinking else '<think>\n\n</think>\n\n' }}{% endif %}"""
_SMOLLM2 = _QWEN2_5.replace(
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)
SMOLLM2_TEMPLATE = _TURN + _SMOLLM2 + _ASK
QWEN2_5_TEMPLATE = _TURN + _QWEN2_5 + _ASK
QWEN3_TEMPLATE = _TURN + _QWEN3 + _ASK + _NO_THOUGHT
# There is no system turn: its text opens the first question.
GEMMA_TEMPLATE = r"""{{- bos_token }}
{%- set opening, turns = '', messages %}
{%- if messages[0].role == 'system' %}
{%- set opening, turns = messages[0].content, messages[1:] %}
{%- set opening = (opening if opening is string else opening[0].text) + '\n\n' %}
{%- endif %}
{%- for turn in turns %}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Turns of user and assistant must alternate') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\n' }}
{{- opening if loop.first }}
{%- for part in ([{'text': turn.content}] if turn.content is string else turn.content) %}
{{- '<start_of_image>' if part.type == 'image' else part.text|trim }}
{%- endfor %}
{{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""


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


def _learned(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what transformers builds a trained BPE tokenizer from again."""
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _add(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str], special: bool = True) -> None:
    tokenizer.add_tokens([AddedToken(one, special=special, normalized=False) for one in tokens])


def _qwen_tokenizer(folder: Path, template: str, plain: Sequence[str]) -> Qwen2Tokenizer:
    """Write a tokenizer as of Qwen and return it: its own tokens are the last ids, no BOS.

    The `plain` ones are not special: decoding without special tokens keeps them.
    """
    tokenizer = Qwen2Tokenizer(**_learned(_byte_level([])), model_max_length=131072)
    _add(tokenizer, ("<|im_start|>", "<|im_end|>"))
    _add(tokenizer, plain, special=False)
    tokenizer.eos_token = "<|im_end|>"  # while <|endoftext|> stays the pad token
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder, save_jinja_files=False)  # the template lies in the settings
    tokenizer.backend_tokenizer.model.save(str(folder))
    return tokenizer


def _gemma_tokenizer(folder: Path, **settings: str) -> GemmaTokenizer:
    """Write a tokenizer as of Gemma 3 and return it: BPE that falls back on bytes.

    It begins each text with `<bos>`, and so does the template: called on a rendered conversation,
    it gives two. A turn ends with `<end_of_turn>`, which is not the EOS token.
    """
    marks = "pad eos bos unk mask start_of_turn end_of_turn start_of_image end_of_image".split()
    special = [f"<{mark}>" for mark in marks]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    trained.train_from_iterator(_corpus(), trainer)
    images = {"boi_token": special[-2], "eoi_token": special[-1]}
    images["image_token"] = "<image_soft_token>"  # the last id, as there
    learned = _learned(trained) | {"extra_special_tokens": images, **settings}
    tokenizer = GemmaTokenizer(**learned, add_bos_token=True)
    _add(tokenizer, special)
    tokenizer.chat_template = GEMMA_TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=False)
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


def _save(
    model: PreTrainedModel,
    folder: Path,
    published: dict[str, Any],
    shards: str,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model and its configuration as published.

    `shards` is the size at which the weights are cut into files. `published` has what the real
    `config.json` says and transformers would not write today; None removes an entry. `weights` are
    the model's own, where the real files name them as transformers would not today.
    """
    today = weights is None
    model.save_pretrained(
        folder, max_shard_size=shards, state_dict=weights, save_original_format=today
    )
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


def smollm2_instruct(folder: Path, key_value_heads: int) -> None:
    """Write SmolLM2 as in 360M (grouped keys and values) or 1.7B: a tied Llama with ChatML."""
    special = {"unk_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    learned = _byte_level(list(special.values()))  # ids 0, 1 and 2, as there
    tokenizer = GPT2Tokenizer(
        **_learned(learned), **special, pad_token="<|im_end|>", model_max_length=8192
    )
    tokenizer.chat_template = SMOLLM2_TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    tokenizer.backend_tokenizer.model.save(str(folder))
    set_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    published = {"rope_theta": 1e5, "rope_parameters": None}
    _save(LlamaForCausalLM(config).bfloat16(), folder, published, shards="5GB")


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


def _end_turns(model: PreTrainedModel, end: int) -> None:
    """Let a random model end its turn: as its first choice, and with 10 % after each sampled token.

    It would else write noise up to a thousand tokens. All embeddings get a part in common, which
    every hidden state then has too, and which the output layer's row of `end` answers to.
    """
    with torch.no_grad():
        common = torch.randn(WIDTH).sign() * 0.1
        model.get_input_embeddings().weight += common
        head = model.get_output_embeddings().weight
        hidden = model.base_model(input_ids=torch.arange(64)[None]).last_hidden_state
        wanted = math.log(len(head) / 9)  # its share beside the others, whose scores are near zero
        head[end] += common * wanted / (hidden @ common).mean()


def _qwen(
    folder: Path,
    tokenizer: Qwen2Tokenizer,
    classes: tuple[Callable[..., Any], Callable[..., PreTrainedModel]],
    sampling: dict[str, float],
    shards: str,
) -> None:
    """Write a model as of Qwen; `sampling` is how it generates unless told otherwise."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    set_seed(SEED)
    config = classes[0](
        vocab_size=len(tokenizer) + 8,  # more rows than tokens, as there
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        bos_token_id=pad,
        eos_token_id=end,
    )
    model = classes[1](config)
    _end_turns(model, end)
    model = model.bfloat16()
    ends = {"bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [end, pad]}
    model.generation_config = GenerationConfig(do_sample=True, top_k=20, **sampling, **ends)
    _save(model, folder, {"rope_theta": 1e6, "rope_parameters": None, "layer_types": None}, shards)


def qwen2_5_instruct(folder: Path) -> None:
    """Write Qwen2.5 as in 0.5B and 1.5B: tied, grouped keys and values, biases on q, k and v."""
    tokenizer = _qwen_tokenizer(folder, QWEN2_5_TEMPLATE, plain=())
    sampling = {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1}
    config = partial(Qwen2Config, tie_word_embeddings=True)
    _qwen(folder, tokenizer, (config, Qwen2ForCausalLM), sampling, shards="5GB")


def qwen3(folder: Path, tied: bool) -> None:
    """Write Qwen3 as in 1.7B (tied) or 14B (not): q and k are normed, the head size is explicit."""
    tokenizer = _qwen_tokenizer(folder, QWEN3_TEMPLATE, plain=("<think>", "</think>"))
    sampling = {"temperature": 0.6, "top_p": 0.95}
    config = partial(Qwen3Config, tie_word_embeddings=tied, head_dim=WIDTH // HEADS)
    _qwen(folder, tokenizer, (config, Qwen3ForCausalLM), sampling, shards="200KB")


def _gemma_text(rows: int, key_value_heads: int) -> dict[str, Any]:
    """Return the dimensions of a text model as of Gemma 3, under the published names."""
    return {
        "model_type": "gemma3_text",
        "vocab_size": rows,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": key_value_heads,
        "head_dim": 2 * WIDTH // HEADS,  # heads times this is not the hidden size, as there
        "query_pre_attn_scalar": 2 * WIDTH // HEADS,
        "sliding_window": 64,
        "sliding_window_pattern": LAYERS,  # the last layer sees the whole text; there each sixth
    }


def _save_gemma(
    model: PreTrainedModel, folder: Path, published: dict[str, Any], **layout: Any
) -> None:
    ends = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": published["eos_token_id"]}
    settings = {"top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"}
    model.generation_config = GenerationConfig(do_sample=True, **settings, **ends)
    _save(model, folder, published, **layout)


def gemma_3_1b_it(folder: Path) -> None:
    """Write Gemma 3 as in 1B: text only, one key/value head, and one row fewer than tokens.

    The token without a row stands for images. There, a person has to accept the licence first.
    """
    tokenizer = _gemma_tokenizer(folder)
    published: dict[str, Any] = {
        **_gemma_text(rows=len(tokenizer) - 1, key_value_heads=1),
        "eos_token_id": [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
    }
    set_seed(SEED)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**published)).bfloat16()
    absent = {"rope_parameters": None, "layer_types": None}
    _save_gemma(model, folder, {**published, "rope_theta": 1e6, **absent}, shards="5GB")


def gemma_3_4b_it(folder: Path) -> None:
    """Write Gemma 3 as in 4B: a SigLIP tower and a projector before the text model."""
    tokenizer = _gemma_tokenizer(folder, processor_class="Gemma3Processor")
    side, image_tokens = 56, 4  # pixels, and what becomes of sixteen patches
    text = _gemma_text(rows=len(tokenizer) + 63, key_value_heads=HEADS // 2)
    published: dict[str, Any] = {
        "eos_token_id": [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        "boi_token_index": tokenizer.convert_tokens_to_ids("<start_of_image>"),
        "eoi_token_index": tokenizer.convert_tokens_to_ids("<end_of_image>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        "mm_tokens_per_image": image_tokens,
        "text_config": {**text, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": side,
            "patch_size": side // 4,
            "vision_use_head": False,
        },
    }
    set_seed(SEED)
    model = Gemma3ForConditionalGeneration(Gemma3Config(**published)).bfloat16()
    # Named as there. The output layer is the embedding, and not written twice.
    weights = {
        name.removeprefix("model.")
        .replace("language_model.", "language_model.model.")
        .replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }
    _save_gemma(model, folder, published, shards="200KB", weights=weights)
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": image_tokens}
    images = {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    for name, content in (
        ("processor_config", processor),
        ("preprocessor_config", {**processor, **images}),
        ("chat_template", {"chat_template": GEMMA_TEMPLATE}),  # once more, for the processor
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


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


def _gsm8k(count: int, split: str, socratic: bool = False) -> Iterator[Row]:
    random = Random(f"gsm8k {split}")
    for _ in range(count):
        question, steps = texts.word_problem(random)
        lines = [
            (f"{ask} ** " if socratic else "")
            + f"That is {work} = <<{work.replace(' ', '')}={value}>>{value}."
            for ask, work, value in steps
        ]
        result = int(steps[-1][-1])
        final = random.choice([f"{result:,}", f"{result}"])  # 1,200 or 1200, as there
        yield {"question": question, "answer": "\n".join([*lines, f"#### {final}"])}


def gsm8k(folder: Path) -> None:
    """Write word problems with worked answers, in two configurations; neither is the default."""
    configurations = []
    for name in ("main", "socratic"):
        for split, count in (("train", 260), ("test", 36)):
            rows = list(_gsm8k(count, split, socratic=name == "socratic"))
            _parquet(folder / name / f"{split}-00000-of-00001.parquet", rows)
        files = [{"split": split, "path": f"{name}/{split}-*"} for split in ("train", "test")]
        configurations.append({"config_name": name, "data_files": files})
    _card(folder, {"configs": configurations})


def _finqa(count: int) -> Iterator[Row]:
    random = Random("finqa")
    columns = ("Open-ended Verifiable Question", "Ground-True Answer", "Complex_CoT", "Response")
    for _ in range(count):
        yield dict(zip(columns, texts.finance_problem(random), strict=True))


def fino1_reasoning_path_finqa(folder: Path) -> None:
    """Write questions about a table inside a text, with reasoning and an answer in prose."""
    _parquet(folder / "data" / "train.parquet", list(_finqa(260)))


def _openmath(count: int) -> Iterator[Row]:
    random = Random("openmath")
    for number in range(count):
        problem, steps = texts.word_problem(random, whole=number % 3 > 0)
        top, bottom = steps[-1][-1].as_integer_ratio()
        answer = str(top) if bottom == 1 else f"\\frac{{{top}}}{{{bottom}}}"
        work = " ".join(f"{ask} That is ${work}={value}$." for ask, work, value in steps)
        thought = f"Okay. {texts.sentence(random)} {work}\n\nWait, once more. {work} Yes."
        yield {
            "expected_answer": answer,
            "problem_type": "has_answer_extracted",
            "problem_source": "aops_c4_high_school_math",
            "generation_model": "DeepSeek-R1",
            "pass_rate_72b_tir": random.choice(["0.96875", "0.53125", "n/a"]),
            "problem": problem,
            "generated_solution": f"<think>\n{thought}\n</think>{work} So $\\boxed{{{answer}}}$.",
            "inference_mode": "cot",
        }


def openmathreasoning_mini(folder: Path) -> None:
    """Write problems and solutions with the reasoning before them; the only split is `cot`."""
    _single(folder, "cot", list(_openmath(260)))


def _finetome(count: int) -> Iterator[Row]:
    random = Random("finetome")
    for _ in range(count):
        turns = []
        if random.random() < 0.2:
            turns.append({"from": "system", "value": texts.sentence(random)})
        for _ in range(random.randint(1, 3)):
            asked = f"{texts.sentence(random)} {texts.question(random)}"
            turns.append({"from": "human", "value": asked})
            turns.append({"from": "gpt", "value": texts.answer(random)})
        source = random.choice(["infini-instruct-top-500k", "WebInstructSub_axolotl"])
        score = round(random.uniform(2.5, 5.3), 6)
        yield {"conversations": turns, "source": source, "score": score}


def finetome_100k(folder: Path) -> None:
    """Write conversations of `human` and `gpt`, some after a `system` turn."""
    _single(folder, "train", list(_finetome(260)))


def _single(folder: Path, split: str, rows: list[Row]) -> None:
    """Write the only split of a data set; the card tells its name."""
    _parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    files = [{"split": split, "path": f"data/{split}-*"}]
    _card(folder, {"configs": [{"config_name": "default", "data_files": files}]})


def _parquet(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Dataset.from_list(rows).to_parquet(file)


def _card(folder: Path, settings: dict[str, Any]) -> None:
    """Write a data set card. JSON is YAML too."""
    (folder / "README.md").write_text(f"---\n{json.dumps(settings)}\n---\n", encoding="utf-8")


REPOSITORIES = {
    "models/tiiuae/falcon-7b": Repository(falcon_7b, linear_layers=4 * LAYERS),
    "models/HuggingFaceTB/SmolLM2-360M-Instruct": Repository(
        partial(smollm2_instruct, key_value_heads=HEADS // 2), linear_layers=7 * LAYERS
    ),
    "models/HuggingFaceTB/SmolLM2-1.7B-Instruct": Repository(
        partial(smollm2_instruct, key_value_heads=HEADS), linear_layers=7 * LAYERS
    ),
    "models/google/flan-t5-base": Repository(flan_t5_base),
    "models/facebook/opt-1.3b": Repository(opt_1_3b, linear_layers=6 * LAYERS),
    "models/openai-community/gpt2": Repository(gpt2),
    "models/Qwen/Qwen2.5-0.5B-Instruct": Repository(qwen2_5_instruct, linear_layers=7 * LAYERS),
    "models/Qwen/Qwen2.5-1.5B-Instruct": Repository(qwen2_5_instruct, linear_layers=7 * LAYERS),
    "models/Qwen/Qwen3-1.7B": Repository(partial(qwen3, tied=True), linear_layers=7 * LAYERS),
    "models/Qwen/Qwen3-14B": Repository(partial(qwen3, tied=False), linear_layers=7 * LAYERS),
    "models/google/gemma-3-1b-it": Repository(gemma_3_1b_it, linear_layers=7 * LAYERS),
    # Seven in each text layer and six in each vision layer; the projector has none.
    "models/google/gemma-3-4b-it": Repository(gemma_3_4b_it, linear_layers=13 * LAYERS),
    "datasets/timdettmers/openassistant-guanaco": Repository(openassistant_guanaco),
    "datasets/knkarthick/dialogsum": Repository(dialogsum),
    "datasets/FinGPT/fingpt-sentiment-train": Repository(fingpt_sentiment_train),
    "datasets/Skylion007/openwebtext": Repository(openwebtext),
    "datasets/openai/gsm8k": Repository(gsm8k, configuration="main"),
    "datasets/TheFinAI/Fino1_Reasoning_Path_FinQA": Repository(fino1_reasoning_path_finqa),
    "datasets/unsloth/OpenMathReasoning-mini": Repository(openmathreasoning_mini),
    "datasets/mlabonne/FineTome-100k": Repository(finetome_100k),
}


def write_repositories(root: Path) -> Path:
    """Write every repository below `root` and return it."""
    for name, repository in REPOSITORIES.items():
        (root / name).mkdir(parents=True)
        repository.write(root / name)
    return root
