"""Training with attention without a mask computes the same, where it is allowed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import import_utils
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cookbook import evaluation, gpu
from cookbook.profiles import CookbookError
from tests.unit import tiny

pytestmark = pytest.mark.unit

SIZES: dict[str, Any] = {
    "vocab_size": 46,
    "hidden_size": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 46}
OPT = {"word_embed_proj_dim": 32, "dropout": 0.0}
# Five layers with windows of 4 tokens, which are shorter than rows, then one without.
GEMMA = {"sliding_window": 4, "query_pre_attn_scalar": 8, "num_hidden_layers": 6}
ROWS = [{"input_ids": [3 + (n * k) % 40 for k in range(1, n + 1)]} for n in (5, 17, 9, 12)]


def a_model(kind: str, **changes: Any) -> Any:
    """Return a tiny random model of an architecture, without dropout."""
    set_seed(0)
    own = {"gpt2": GPT2, "opt": SIZES | OPT, "gemma3_text": SIZES | GEMMA}.get(kind, SIZES)
    settings = own | ({"sliding_window": None} if kind == "mistral" else {}) | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    assert model.config._attn_implementation == "sdpa"
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def a_trainer(model: Any, folder: Path, side: str = "right") -> Trainer:
    """Return a trainer whose batches have padding."""
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = side
    rows = Dataset.from_list([row | {"labels": row["input_ids"]} for row in ROWS])
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), use_cpu=True, report_to="none", max_steps=1),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def gradients(trainer: Trainer) -> tuple[float, list[torch.Tensor]]:
    """Return the loss of a padded batch and the gradients of all weights."""
    model: Any = trainer.model
    rows: Any = trainer.train_dataset
    batch: Any = trainer.data_collator(list(rows))
    assert (batch["attention_mask"] == 0).any()
    loss = model.train()(**batch).loss
    loss.backward()
    found = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    model.zero_grad()
    return float(loss.detach()), found


def seen_by_the_kernel(patched: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that fills with the mask and the flag of each call of the kernel."""
    asked: list[Any] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def seen(*args: Any, **named: Any) -> torch.Tensor:
        asked.append((named.get("attn_mask"), named.get("is_causal")))
        return kernel(*args, **named)

    patched.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    return asked


@pytest.mark.parametrize("kind", sorted(gpu.PROVEN))
def test_loss_and_gradients_stay_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = a_trainer(a_model(kind), tmp_path)
    model: Any = trainer.model
    asked = seen_by_the_kernel(monkeypatch)
    loss, usual = gradients(trainer)
    assert all(mask is not None for mask, _ in asked), "padding gets a mask"
    asked.clear()
    assert gpu.use_flash_attention(model)
    loss_without, without = gradients(trainer)
    windows = (getattr(model.config, "layer_types", None) or []).count("sliding_attention")
    assert [one == (None, True) for one in asked].count(False) == windows, "those keep theirs"
    assert loss_without == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(without, usual, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_sliding_windows_keep_their_mask(kind: str, tmp_path: Path) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    trainer = a_trainer(a_model(kind, **windows), tmp_path)
    loss, usual = gradients(trainer)
    model: Any = trainer.model
    assert not gpu.use_flash_attention(model, blocks=True), "no mask ever would be wrong"
    assert gpu.use_flash_attention(model)
    loss_without, without = gradients(trainer)
    assert loss_without == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(without, usual, atol=1e-6, rtol=1e-4)


def test_scoring_and_sampling_keep_their_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """They pad on the left: without a mask the answers would be others."""
    model, tokenizer = a_model("llama").eval(), tiny.tokenizer()
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=8, eos_token_id=1, pad_token_id=tokenizer.pad_token_id
    )
    prompts = [row["input_ids"] for row in ROWS]

    def answers() -> list[str]:
        return evaluation.generate(model, tokenizer, prompts, settings, batch_size=4).texts

    usual = answers()
    assert gpu.use_flash_attention(model)
    asked = seen_by_the_kernel(monkeypatch)
    assert answers() == usual
    assert asked[0][0] is not None


def test_packed_rows_keep_their_mask() -> None:
    model = a_model("llama")
    documents = [[5, 6, 7, 8], [9, 10, 11]]
    assert gpu.use_flash_attention(model)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    ids = torch.tensor([sum(documents, [])])
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    apart = [model(input_ids=torch.tensor([one])).logits for one in documents]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), atol=1e-5, rtol=1e-4)


def test_blocks_have_no_mask_even_where_one_would_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model("gpt2").eval()
    block = torch.arange(12)[None]
    usual = model(input_ids=block).logits
    assert gpu.use_flash_attention(model, blocks=True)
    asked = seen_by_the_kernel(monkeypatch)
    again = model(input_ids=block, attention_mask=torch.ones_like(block)).logits
    torch.testing.assert_close(again, usual)
    assert set(asked) == {(None, True)}
    asked.clear()
    with torch.no_grad():  # prompts of a batch may be padded
        model(input_ids=block, attention_mask=(block > 3).long())
    assert all(mask is not None for mask, _ in asked)


def test_shared_keys_are_repeated_where_no_kernel_shares_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a T4: with `enable_gqa` PyTorch would keep all scores there, 8 GiB of Qwen3's."""
    model = a_model("qwen3")
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    assert gpu.use_flash_attention(model)
    heads: list[tuple[int, int, Any]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def seen(query: Any, key: Any, value: Any, **named: Any) -> torch.Tensor:
        heads.append((query.shape[1], key.shape[1], named.get("enable_gqa", False)))
        return kernel(query, key, value, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    ids = torch.tensor([[5, 6, 7, 8]])
    repeated = model(input_ids=ids).logits
    monkeypatch.setattr(gpu, "_flash_can", lambda _: True)
    shared = model(input_ids=ids).logits
    torch.testing.assert_close(repeated, shared, atol=1e-5, rtol=1e-4)
    assert heads == [(4, 4, False)] * 2 + [(4, 2, True)] * 2


def test_a_hole_in_a_row_is_refused_too() -> None:
    model = a_model("llama")
    assert gpu.use_flash_attention(model)
    mask = torch.tensor([[1, 1, 0, 1]])
    with pytest.raises(CookbookError, match="padding_side"):
        model(input_ids=torch.tensor([[5, 6, 7, 8]]), attention_mask=mask)


@pytest.mark.parametrize("kind", ["falcon", "bloom"])
def test_attention_of_a_class_s_own_stays_as_it_is(kind: str) -> None:
    """Without a mask these would look ahead."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "n_layer": 2, "n_head": 4}
    config = AutoConfig.for_model(kind, vocab_size=46, hidden_size=32, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    before = model.config._attn_implementation
    assert not gpu.use_flash_attention(model)
    assert model.config._attn_implementation == before


def test_an_encoder_decoder_stays_as_it_is() -> None:
    model = AutoModelForSeq2SeqLM.from_config(tiny.encoder_decoder().config)
    assert not gpu.use_flash_attention(model)


def test_padding_on_the_left_is_refused(tmp_path: Path) -> None:
    trainer = a_trainer(a_model("llama"), tmp_path, side="left")
    assert gpu.use_flash_attention(trainer.model)  # type: ignore[arg-type]
    with pytest.raises(CookbookError, match="padded on the left.*padding_side"):
        gradients(trainer)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_through_adapters_and_trl_s_collator(
    checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL pads on the right whatever side the tokenizer has, and adapters wrap the model."""
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    model = a_model("qwen3")
    assert gpu.use_flash_attention(model)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_steps=1,
            max_length=None,
            activation_checkpointing=checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False},
        ),
        train_dataset=Dataset.from_list([row | {"labels": row["input_ids"]} for row in ROWS]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    asked = seen_by_the_kernel(monkeypatch)
    trainer.train()
    assert set(asked) == {(None, True)}


@pytest.mark.parametrize(
    ("vllm", "flash", "dtype", "said"),
    [
        (True, True, torch.bfloat16, "use_vllm"),
        (False, True, torch.bfloat16, "use_transformers_continuous_batching"),
        (False, True, torch.float16, "generate"),  # flash-attn's kernel, but not for this card
        (False, False, torch.bfloat16, "generate"),
    ],
)
def test_answers_are_sampled_by_the_best_engine_there_is(
    vllm: bool,
    flash: bool,
    dtype: torch.dtype,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(import_utils, "is_vllm_available", lambda: vllm)
    monkeypatch.setattr(gpu, "is_flash_attn_2_available", lambda: flash)
    settings = SimpleNamespace(
        max_prompt_length=256,
        max_completion_length=257,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
    )
    found = gpu.sampling_engine(settings, dtype)
    assert capsys.readouterr().out == f"sampling by {said}\n"
    usual: dict[str, Any] = {"use_cpu": True, "bf16": False, "per_device_train_batch_size": 8}
    arguments: Any = GRPOConfig(output_dir=str(tmp_path), **usual | found)  # takes them all
    assert found == {} or getattr(arguments, said)
    if said.endswith("batching"):
        pages = found["transformers_continuous_batching_config"]["num_blocks"]
        assert pages == 8 * 2 * 3, "three pages of 256 tokens for each answer"


def test_the_optimizer_is_fused_by_default(tmp_path: Path) -> None:
    """The recipes name none: Trainer's own is the fast one."""
    assert TrainingArguments(str(tmp_path), use_cpu=True).optim == "adamw_torch_fused"
