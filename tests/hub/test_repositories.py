"""The Hub's tiny models end their turns, as the trained ones do."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    set_seed,
)

from tests.hub.repositories import REPOSITORIES

pytestmark = pytest.mark.hub

MODELS = [
    name.removeprefix("models/")
    for name in REPOSITORIES
    if name.startswith("models/") and name != "models/openai-community/gpt2"  # has no weights
]
# For models without one; prompts of the notebooks end with a colon or a new line.
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    "{{ 'assistant:' if add_generation_prompt }}"
)
PLAIN = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


def _prompt(tokenizer: Any) -> Any:
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    turns = [{"role": "user", "content": "Could you repair the old lamp?"}]
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


def _lengths(answers: Any, ends: set[int]) -> list[int]:
    """Return the number of tokens before the end of each answer, which all must have."""
    rows: list[list[int]] = answers.tolist()
    assert all(ends & set(row) for row in rows), "an answer that goes on to the limit"
    return [next(at for at, token in enumerate(row) if token in ends) for row in rows]


@pytest.mark.parametrize("name", MODELS)
def test_a_turn_ends_by_itself(name: str, repositories: Path) -> None:
    folder = repositories / "models" / name
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    prompt = _prompt(tokenizer)
    begins = 1 if config.is_encoder_decoder else prompt["input_ids"].shape[1]
    ids = model.generation_config.eos_token_id
    ends = set(ids if isinstance(ids, list) else [ids])

    greedy = model.generate(**prompt, max_new_tokens=32, do_sample=False)
    (length,) = _lengths(greedy[:, begins:], ends)
    assert length > 0, "it says something first"

    set_seed(0)
    sampled = model.generate(**prompt, max_new_tokens=32, num_return_sequences=32, **PLAIN)
    lengths = _lengths(sampled[:, begins:], ends)
    # A group of GRPO shows something only where its answers differ.
    assert sorted(lengths)[16] < 16 and len(set(lengths)) > 1
