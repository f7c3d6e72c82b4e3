"""Chat templates of the kinds that models bring, each with a small tokenizer of its tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Blank lines and blanks before words become tokens of their own, as in large vocabularies.
_CORPUS = [
    "What is the capital of France?\n\nThe capital of France is Paris.\n\n\n",
    "USER: a question ASSISTANT: an answer to the question, and so on.\n\n",
    ' {"name": "weather", "arguments": {"city": "Paris"}}\n\n',
] * 20
_LINES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = """\
{%- for turn in messages -%}
{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

MARKED = """\
{%- for turn in messages -%}
{{- '<|im_start|>' + turn.role + '\\n' -}}
{%- if turn.role == 'assistant' -%}
{%- generation -%}{{- turn.content MORE -}}{%- endgeneration -%}{{- REST -}}
{%- else -%}{{- turn.content + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

WITH_DEFAULT_SYSTEM = """\
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful model.<|im_end|>\\n' -}}
{%- endif -%}""" + CHATML

LLAMA_3 = """\
{{- bos_token -}}
{%- for turn in messages -%}
{{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n' -}}
{{- turn.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}"""

_ALTERNATING = """\
{%- if messages[0].role == 'system' -%}{{- raise_exception('no system turn') -}}{%- endif -%}
{%- for turn in messages -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('turns must alternate') -}}
{%- endif -%}
{%- endfor -%}"""

MISTRAL = _ALTERNATING + """\
{{- bos_token -}}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}{{- '[INST] ' + turn.content + ' [/INST]' -}}
{%- else -%}{{- ' ' + turn.content + ' ' + eos_token -}}{%- endif -%}
{%- endfor -%}"""

GEMMA = _ALTERNATING + """\
{{- bos_token -}}
{%- for turn in messages -%}
{{- '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\\n' -}}
{{- turn.content | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""

ZEPHYR = """\
{%- for turn in messages -%}
{{- '<|' + turn.role + '|>\\n' + turn.content + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"""

PHI = """\
{%- for turn in messages -%}
{{- '<|' + turn.role + '|>\\n' + turn.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}
{%- else -%}{{- eos_token -}}{%- endif -%}"""

QWEN_3 = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
{{- '# Tools\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools><|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- set seen = namespace(query=-1) -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}{%- set seen.query = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for turn in messages -%}
{%- set said, thought = turn.content or '', turn.reasoning_content or '' -%}
{%- if turn.role == 'assistant' -%}
{%- if not thought and '</think>' in said -%}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > seen.query and (loop.last or thought) -%}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- said -}}
{%- for call in turn.tool_calls or [] -%}
{{- '\\n' if said or not loop.first else '' -}}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- call.function.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif turn.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + said + '\\n</tool_response><|im_end|>\\n' -}}
{%- elif turn.role == 'user' -%}
{{- '<|im_start|>user\\n' + said + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}"""

DEEPSEEK_R1 = """\
{{- bos_token -}}
{%- for turn in messages -%}
{%- if turn.role == 'system' -%}{{- turn.content -}}
{%- elif turn.role == 'user' -%}{{- '<｜User｜>' + turn.content -}}
{%- else -%}{{- '<｜Assistant｜>' + turn.content.split('</think>')[-1].strip() + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}"""

NO_GENERATION_PROMPT = CHATML.partition("{%- if add_generation_prompt")[0]

IN_PARTS = """\
{%- for turn in messages -%}
{{- '<|im_start|>' + turn.role + '\\n' -}}
{%- for part in turn.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

DROPS_SYSTEM = CHATML.replace(
    "{%- for turn in messages -%}", "{%- for turn in messages if turn.role != 'system' -%}", 1
)

VICUNA = """\
{%- for turn in messages -%}
{%- if turn.role == 'system' -%}{{- turn.content + ' ' -}}
{%- elif turn.role == 'user' -%}{{- 'USER: ' + turn.content + ' ' -}}
{%- else -%}{{- 'ASSISTANT: ' + turn.content + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"""

ENDLESS = """\
{%- for turn in messages -%}{{- turn.role + ': ' + turn.content + '\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'assistant:' -}}{%- endif -%}"""

BLANK_PROMPT = VICUNA.replace("'ASSISTANT:'", "'ASSISTANT: '")

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Kind:
    """A template, its tokenizer's tokens, and what it makes of an answer."""

    template: str
    tokens: tuple[str, ...]
    eos: str | None
    bos: str | None = None
    end: str = "<|im_end|>"  # of an assistant's turn
    before: str = ""  # what is written before an answer and not by the generation prompt
    after: str = ""  # what is written between an answer and the end of its turn
    together: bool | None = True  # whether a conversation is one sequence; None: some are
    pieces: str = "lines"  # how its tokenizer cuts words, see `_pieces`

    def tokenizer(self) -> Any:
        """Return a new tokenizer of this kind."""
        made = tokenizer(self.tokens, self.eos, self.bos, self.pieces)
        made.chat_template = self.template
        return made


KINDS = {
    "chatml": Kind(CHATML, _CHATML_TOKENS, "<|im_end|>", pieces="gpt-2"),
    "chatml-base": Kind(CHATML, _CHATML_TOKENS, "<|endoftext|>"),
    "chatml-no-eos": Kind(CHATML, _CHATML_TOKENS, None),
    "default-system": Kind(WITH_DEFAULT_SYSTEM, _CHATML_TOKENS, "<|im_end|>"),
    "llama-3": Kind(
        LLAMA_3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        "<|begin_of_text|>",
        end="<|eot_id|>",
    ),
    # Here a blank line is one token at the end of a prompt, and two before a word.
    "llama-3-of-gpt-2-tokens": Kind(
        LLAMA_3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        "<|begin_of_text|>",
        end="<|eot_id|>",
        together=False,
        pieces="gpt-2",
    ),
    "mistral": Kind(MISTRAL, (), "</s>", "<s>", end="</s>", before=" ", after=" "),
    "mistral-sentencepiece": Kind(
        MISTRAL, (), "</s>", "<s>", end="</s>", before=" ", after=" ", pieces="sentencepiece"
    ),
    "gemma": Kind(
        GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", end="<end_of_turn>"
    ),
    "zephyr": Kind(ZEPHYR, (), "</s>", "<s>", end="</s>"),
    "phi": Kind(PHI, ("<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", end="<|end|>"),
    "qwen-3": Kind(
        QWEN_3,
        (*_CHATML_TOKENS, "<think>", "</think>", "<tool_call>", "</tool_call>"),
        "<|im_end|>",
        before="<think>\n\n</think>\n\n",
        together=False,
    ),
    "deepseek-r1": Kind(
        DEEPSEEK_R1,
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        end="<｜end▁of▁sentence｜>",
        together=False,
    ),
    "no-generation-prompt": Kind(NO_GENERATION_PROMPT, _CHATML_TOKENS, "<|im_end|>"),
    "marked": Kind(
        MARKED.replace("MORE", "+ '<|im_end|>'").replace("REST", "'\\n'"),
        _CHATML_TOKENS,
        "<|im_end|>",
    ),
    "marked-without-end": Kind(
        MARKED.replace("MORE", "").replace("REST", "'<|im_end|>\\n'"), _CHATML_TOKENS, "<|im_end|>"
    ),
    "marked-beyond-end": Kind(
        MARKED.replace("MORE", "+ '<|im_end|>\\n'").replace("REST", "''"),
        _CHATML_TOKENS,
        "<|im_end|>",
    ),
    "in-parts": Kind(IN_PARTS, _CHATML_TOKENS, "<|im_end|>"),
    "drops-system": Kind(DROPS_SYSTEM, _CHATML_TOKENS, "<|im_end|>"),
    "vicuna": Kind(VICUNA, (), "</s>", "<s>", end="</s>", before=" "),
    "vicuna-sentencepiece": Kind(
        VICUNA, (), "</s>", "<s>", end="</s>", before=" ", pieces="sentencepiece"
    ),
    "blank-prompt": Kind(BLANK_PROMPT, (), "</s>", "<s>", end="</s>", together=None),
    "blank-prompt-sentencepiece": Kind(
        BLANK_PROMPT, (), "</s>", "<s>", end="</s>", together=None, pieces="sentencepiece"
    ),
}


def unmarked(template: str) -> str:
    """Return a template without its generation markers."""
    return re.sub(r"\{%-? (end)?generation -?%\}", "", template)


def tokenizer(
    tokens: tuple[str, ...], eos: str | None, bos: str | None = None, pieces: str = "lines"
) -> Any:
    """Return a tokenizer of a few hundred pieces that has these tokens."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_pieces(pieces)), pad_token="<pad>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(tokens)})
    named = {"eos_token": eos, "bos_token": bos}
    fast.add_special_tokens({name: token for name, token in named.items() if token})
    return fast


@cache
def _pieces(kind: str) -> str:
    """Return a tokenizer as JSON.

    Either of bytes, cut as for GPT-2 or as newer models do (blank lines stay whole), or of pieces
    of words with `▁` for a blank, of which each text gets one at its beginning.
    """
    cut = pre_tokenizers
    if kind == "sentencepiece":
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(blanks)
        made.pre_tokenizer = cut.Split("▁", "merged_with_next")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
        known = ["<unk>", *(f"<0x{number:02X}>" for number in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=known, show_progress=False)
    else:
        made = Tokenizer(models.BPE())
        bytewise = cut.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt-2")
        lines = cut.Split(Regex(_LINES), "isolated")
        made.pre_tokenizer = bytewise if kind == "gpt-2" else cut.Sequence([lines, bytewise])
        made.decoder = decoders.ByteLevel()
        letters = cut.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(_CORPUS, trainer)
    return str(made.to_str())
