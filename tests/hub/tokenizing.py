"""Chat templates and small trained tokenizers for the models of the loopback Hub."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from tests.hub.data_sets import dialogsum_rows, guanaco_rows, sentiment_rows

VOCABULARY = 704  # tokens of a byte-level tokenizer: 256 bytes and merges

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


@cache
def _corpus() -> tuple[str, ...]:
    """Return the texts that the tokenizers are trained on."""
    conversations = [row["text"] for row in guanaco_rows(60)]
    talks = [text for row in dialogsum_rows(60, "train", 1) for text in row.values()]
    news = [text for row in sentiment_rows(60) for text in row.values()]
    return (*conversations, *talks, *news)


def byte_level(special_tokens: list[str]) -> Tokenizer:
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


def learned_from(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what transformers builds a trained BPE tokenizer from again."""
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _add(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str], special: bool = True) -> None:
    tokenizer.add_tokens([AddedToken(one, special=special, normalized=False) for one in tokens])


def qwen_tokenizer(folder: Path, template: str, plain: Sequence[str]) -> Qwen2Tokenizer:
    """Write a tokenizer as of Qwen and return it: its own tokens are the last ids, no BOS.

    The `plain` ones are not special: decoding without special tokens keeps them.
    """
    tokenizer = Qwen2Tokenizer(**learned_from(byte_level([])), model_max_length=131072)
    _add(tokenizer, ("<|im_start|>", "<|im_end|>"))
    _add(tokenizer, plain, special=False)
    tokenizer.eos_token = "<|im_end|>"  # while <|endoftext|> stays the pad token
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder, save_jinja_files=False)  # the template lies in the settings
    tokenizer.backend_tokenizer.model.save(str(folder))
    return tokenizer


def smollm2_tokenizer(**settings: str) -> GPT2Tokenizer:
    """Return a tokenizer as of SmolLM2, whose first ids are the special ones of there."""
    special = {"unk_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    learned = learned_from(byte_level(list(special.values())))
    return GPT2Tokenizer(**learned, **special, **settings, model_max_length=8192)


def gemma_tokenizer(folder: Path, **settings: str) -> GemmaTokenizer:
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
    learned = learned_from(trained) | {"extra_special_tokens": images, **settings}
    tokenizer = GemmaTokenizer(**learned, add_bos_token=True)
    _add(tokenizer, special)
    tokenizer.chat_template = GEMMA_TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    return tokenizer


def unigram() -> list[tuple[str, float]]:
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
