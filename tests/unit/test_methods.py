"""Every method of PEFT is trained, scored and kept by the same means as LoRA."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.helpers import disable_input_dtype_casting
from transformers import GenerationConfig, Qwen3MoeConfig

from cookbook import methods
from cookbook.profiles import CookbookError
from tests.unit import tiny

pytestmark = pytest.mark.unit

EVERYWHERE: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CONFIGS = {
    "lora": LoraConfig(r=2, **EVERYWHERE),
    "dora": LoraConfig(r=2, use_dora=True, **EVERYWHERE),
    "vera": VeraConfig(r=4, **EVERYWHERE),
    "ia3": IA3Config(feedforward_modules=[], **EVERYWHERE),
    "oft": OFTConfig(oft_block_size=8, **EVERYWHERE),
    "prompt_tuning": PromptTuningConfig(
        num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB", task_type="CAUSAL_LM"
    ),
}


def adapted(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model with the adapter of a method."""
    whole: Any = tiny.model()
    return get_peft_model(whole.to(dtype), CONFIGS[name])


ROWS = Dataset.from_list(
    [
        {"input_ids": [10, 11, 12, 13, 1], "labels": [-100, -100, 12, 13, 1]},
        {"input_ids": [20, 21, 22, 23, 24, 25, 1], "labels": [-100] * 5 + [25, 1]},
    ]
)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_trained_is_float32_gets_a_gradient_and_leaves_casts_alone(name: str) -> None:
    model = adapted(name, torch.bfloat16)
    methods.make_ready(model)
    trained = [one for one in model.parameters() if one.requires_grad]
    assert {one.dtype for one in trained} == {torch.float32}
    inputs = {key: torch.tensor([ROWS[0][key]]) for key in ("input_ids", "labels")}
    with disable_input_dtype_casting(model), torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs["input_ids"]).logits
    assert logits.shape[:2] == (1, 5), "the logits are those of the row's own tokens"
    logits.float().sum().backward()
    assert all(one.grad is not None for one in trained)


def test_losses_after_virtual_tokens_are_those_of_peft() -> None:
    """The same sums as from peft's own loss, which masks the virtual tokens."""
    plain = adapted("prompt_tuning")
    with torch.no_grad():
        expected = [
            float(plain(**{key: torch.tensor([row[key]]) for key in row}).loss) for row in ROWS
        ]
    methods.make_ready(plain)
    found = methods.losses(plain, ROWS, batch_size=2)
    assert found["tokens"] == [3, 2]
    means = [loss / count for loss, count in zip(found["losses"], found["tokens"])]
    assert means == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["lora", "prompt_tuning"])
def test_answers_are_those_that_one_prompt_alone_gets(name: str) -> None:
    model, tokenizer = adapted(name), tiny.tokenizer()
    methods.make_ready(model)
    model.train()
    said = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w10"]
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": one}]} for one in said])
    settings = GenerationConfig(do_sample=False, max_new_tokens=4, eos_token_id=1, pad_token_id=0)
    together = methods.answers(model, tokenizer, rows, settings, batch_size=3)
    alone = [methods.answers(model, tokenizer, rows.select([n]), settings, 1)[0] for n in range(4)]
    assert together == alone and model.training
    assert methods.virtual_tokens(model) == (3 if name == "prompt_tuning" else 0)


def test_attention_alone_is_attention_alone() -> None:
    config = tiny.model().config
    names = methods.attention_targets(config)
    assert names == [f"self_attn.{one}_proj" for one in "koqv"]
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=names))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 4 * 2 and all("self_attn" in name for name in adapted)


def test_experts_are_refused_with_the_notebook_that_trains_them() -> None:
    methods.check_dense(tiny.model().config)
    with pytest.raises(CookbookError, match="Falcon-7B-LoRA"):
        methods.check_dense(Qwen3MoeConfig())


def test_a_model_that_was_not_quantized_is_refused() -> None:
    with pytest.raises(CookbookError, match="No linear layer of llama was quantized"):
        methods.quantized_text(tiny.model())


def test_what_is_shipped_is_counted_and_stays_if_it_is_to_be_kept(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    adapter = adapted("ia3")
    methods.make_ready(adapter)
    weights = sum(one.numel() for one in adapter.parameters() if one.requires_grad)
    size = methods.save(adapter, tokenizer, tmp_path / "ia3", [1], keep=True)
    assert size == (tmp_path / "ia3" / "adapter_model.safetensors").stat().st_size >= 4 * weights
    whole = tiny.model()
    count = whole.num_parameters()
    assert (
        2 * count <= methods.save(whole, tokenizer, tmp_path / "full", [1], keep=False) < 3 * count
    )
    assert not (tmp_path / "full").exists()


def test_a_cell_serves_as_a_trainer_for_metrics() -> None:
    cell = {
        "curve": [[1, 3.0, 0.5], [2, 2.0, 1.0]],
        "steps": 2,
        "trained_tokens": 90,
        "seconds": 1.0,
    }
    state = methods.as_trainer(cell).state
    assert (state.global_step, state.num_input_tokens_seen) == (2, 90)
    assert state.log_history[-1]["train_runtime"] == 1.0


def test_a_plan_is_shown_beside_what_a_training_took(capsys: pytest.CaptureFixture[str]) -> None:
    plan = SimpleNamespace(seconds=2.0, memory=SimpleNamespace(total=2.0**30))
    cell = {"method": "m", "seconds": 9.0, "held_bytes": 2**29, "peak_memory_bytes": 2**29}
    cell |= {"steps": 4, "curve": [[step, 1.0, 5.0 + step] for step in range(1, 5)]}
    found = methods.compared(plan, cell)
    assert found["seconds"] == {"planned": 2.0, "measured": 4.0}
    assert found["peak_memory_bytes"] == {"planned": 2.0**30, "measured": 2.0**30}
    assert "m, GiB: 1.00 planned, 1.00 measured" in capsys.readouterr().out
