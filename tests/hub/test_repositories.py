"""The Hub's tiny models end their turns, as the trained ones do."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

pytestmark = pytest.mark.hub

QWEN = ("Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct", "Qwen3-1.7B", "Qwen3-14B")


@pytest.mark.parametrize("name", QWEN)
def test_a_turn_ends_by_itself(name: str, repositories: Path) -> None:
    folder = repositories / "models" / "Qwen" / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    turns = [{"role": "user", "content": "What is it?"}]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    set_seed(0)
    greedy = model.generate(**prompt, max_new_tokens=32, do_sample=False)
    assert greedy[0, -1] == tokenizer.eos_token_id
    sampled = model.generate(
        **prompt,
        max_new_tokens=64,
        num_return_sequences=16,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
    )
    answers = sampled[:, prompt["input_ids"].shape[1] :]
    lengths = (answers != tokenizer.pad_token_id).sum(dim=1)
    assert torch.median(lengths) <= 24
    assert lengths.max() > 1, "some say something first"
