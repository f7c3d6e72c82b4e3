"""Pairs whose prompt is read once give DPO and KTO the same numbers as TRL reads out of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, set_seed
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.utils import add_fused_lm_head

from cookbook import answers, cpu, pairs, training
from cookbook.chat import IGNORED
from tests.unit import tiny, trainers

pytestmark = pytest.mark.unit

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
ROWS = 5


def gpt2() -> GPT2LMHeadModel:
    """A model that counts positions from its table: a prompt that moved would be found out."""
    set_seed(0)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=46, **sizes, bos_token_id=1, eos_token_id=1))


def batch() -> dict[str, torch.Tensor]:
    """Answers of 4, 1, 6, 2 and 3 tokens to three prompts of different lengths, one of them read
    by three rows.
    """
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(6, 46, (n,), generator=generator).tolist() for n in (7, 3, 5)]
    ids, labels = [], []
    for prompt, length in ((0, 4), (1, 1), (0, 6), (2, 2), (0, 3)):
        answer = torch.randint(6, 46, (length,), generator=generator).tolist()
        gap = 13 - len(prompts[prompt]) - length
        ids.append([*prompts[prompt], *answer, *[0] * gap])
        labels.append([IGNORED] * len(prompts[prompt]) + answer + [IGNORED] * gap)
    found = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
    return found | {"attention_mask": (found["input_ids"] != 0).long()}


@pytest.mark.parametrize("make", [tiny.model, tiny.model_with_windows, gpt2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_same_as_trl_s_head_and_the_same_gradients(make: Any, attention: str) -> None:
    model = make().eval()
    model.set_attn_implementation(attention)
    add_fused_lm_head(model, outputs=OUTPUTS)
    inputs = batch()
    weight = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(1))
    seen = []
    for read in (
        lambda: model(**inputs, fused_lm_head=True, use_cache=False),
        lambda: answers.score_answers(model, inputs["input_ids"], inputs["labels"]),
    ):
        model.zero_grad()
        output: Any = read()
        (output.log_probs * weight).sum().backward()
        gradients = [one.grad.clone() for one in model.parameters() if one.grad is not None]
        values = [output[name].detach() for name in OUTPUTS]
        seen.append([output.loss.detach(), *values, *gradients])
    assert len(seen[0]) == len(seen[1]) > 10
    assert seen[0][1].count_nonzero() == 16
    for expected, found in zip(*seen):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_answers_of_one_token_need_no_second_pass() -> None:
    model = tiny.model().eval()
    add_fused_lm_head(model, outputs=OUTPUTS)
    ids = torch.tensor([[7, 8, 9], [7, 8, 10], [9, 11, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, 9], [IGNORED, IGNORED, 10], [IGNORED, 11, IGNORED]])
    expected = model(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        labels=labels,
        fused_lm_head=True,
        use_cache=False,
    )
    found = answers.score_answers(model, ids, labels)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "mask"),
    [
        pytest.param([[-100, 5, 6, -100]], [[1, 1, 1, 1]], id="more after the answer"),
        pytest.param([[-100, 5, -100, 6]], [[1, 1, 1, 1]], id="two answers"),
        pytest.param([[4, 5, 6, 7]], [[1, 1, 1, 1]], id="no prompt"),
        pytest.param([[-100, -100, -100, -100]], [[1, 1, 1, 1]], id="no answer"),
        pytest.param([[-100, -100, 6, 7]], [[0, 1, 1, 1]], id="padded on the left"),
        pytest.param([[-100, 5, 6, 7]], None, id="no mask"),
    ],
)
def test_what_cannot_be_taken_apart_is_left_to_trl(labels: Any, mask: Any) -> None:
    told = None if mask is None else torch.tensor(mask)
    assert not answers._follow_prompts(torch.tensor(labels), told)
    assert answers._follow_prompts(batch()["labels"], batch()["attention_mask"])


def pair_rows(count: int = 8) -> Dataset:
    def said(role: str, *numbers: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(f"w{n % 40}" for n in numbers)}]

    return Dataset.from_list(
        [
            {
                "prompt": said("user", n, n + 1, *range(n)),
                "chosen": said("assistant", n + 2, n + 3),
                "rejected": said("assistant", n + 4, *range(n % 3)),
            }
            for n in range(count)
        ]
    )


def curve(folder: Path, shared: bool, kind: str = "dpo", **settings: Any) -> list[Any]:
    """Train a tiny model for three steps; return what was logged and the weights at the end."""
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny.model(), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)  # as after fine-tuning
    rows = pair_rows()
    config: Any = DPOConfig
    make: Any = DPOTrainer
    if kind == "kto":
        rows = rows.rename_column("chosen", "completion").remove_columns("rejected")
        rows = rows.add_column("label", [True, False] * 4)
        config, make = KTOConfig, KTOTrainer
    common = trainers.short(folder, per_device_train_batch_size=4)
    trainer: Any = make(
        model=model,
        args=config(**common | settings),
        train_dataset=rows,
        processing_class=tiny.tokenizer(),
    )
    if shared:
        answers.read_prompts_once(trainer)
    with training.guarded(trainer):
        trainer.train()
    names = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "entropy", "grad_norm")
    logged = [entry[name] for entry in trainer.state.log_history for name in names if name in entry]
    weights = [one.detach() for one in trainer.model.parameters() if one.requires_grad]
    return [torch.tensor(logged, dtype=torch.float64), *weights]


@pytest.mark.parametrize("kind", ["dpo", "kto"])
@pytest.mark.parametrize("loss", ["first", "other"])
def test_a_trainer_learns_the_same(tmp_path: Path, kind: str, loss: str) -> None:
    others = {"dpo": ["sigmoid", "sft"], "kto": "apo_zero_unpaired"}
    settings = {"loss_type": others[kind]} if loss == "other" else {}
    plain = curve(tmp_path / "plain", False, kind, **settings)
    shared = curve(tmp_path / "shared", True, kind, **settings)
    assert len(plain[0]) >= 12 and len(plain) > 10
    for expected, found in zip(plain, shared, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


def test_recomputed_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="activation_checkpointing=False"):
        curve(tmp_path, True, activation_checkpointing=True)


def test_generation_is_as_before(tmp_path: Path) -> None:
    model = tiny.model().eval()
    ids = torch.tensor([[7, 8, 9]])
    before = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)

    class Trainer:
        class args:
            activation_checkpointing = gradient_checkpointing = False

    trainer: Any = Trainer()
    trainer.model = model
    answers.read_prompts_once(trainer)
    assert model.generate(input_ids=ids, max_new_tokens=4, do_sample=False).equal(before)


@pytest.mark.parametrize("make", [tiny.model, gpt2])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_pairs_are_scored_as_whole_rows_are(
    make: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"prompt_ids": [3, *range(6, 6 + n % 3), 4], "chosen_ids": [20 + n, 1]}
        | {"rejected_ids": [20 + n, *range(30, 31 + n), 1]}
        for n in range(5)
    ]
    scored = Dataset.from_list(rows)
    model: Any = get_peft_model(make(), LoraConfig(r=4, target_modules="all-linear"))
    seen = []
    for once in (False, True):
        monkeypatch.setattr(cpu, "can_share_prompts", lambda *_, once=once, **__: once)
        seen.append(pairs.log_probabilities(model, scored, batch_size))
    assert seen[0].shape == (5, 2) and (seen[0] < 0).all()
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)
    single = scored.rename_column("chosen_ids", "completion_ids").remove_columns("rejected_ids")
    alone = pairs.log_probabilities(model, single, batch_size)
    torch.testing.assert_close(alone, seen[0][:, :1], rtol=1e-4, atol=1e-4)
