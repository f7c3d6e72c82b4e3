"""Prompts that are read once for a group give the same numbers as prompts read for each answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from cookbook import groups
from tests.unit import tiny, trainers

pytestmark = pytest.mark.unit

LENGTH = 6
PAD = 0


def _answers() -> tuple[torch.Tensor, torch.Tensor]:
    """Three answers to each of two prompts, in mixed order, and one answer that is empty."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(6, 46, (2, 8), generator=generator)
    prompts[1, :3] = PAD
    ids = torch.cat(
        [prompts[[0, 1, 0, 0, 1, 1, 0]], torch.randint(6, 46, (7, LENGTH), generator=generator)], 1
    )
    mask = (ids != PAD).long()
    for row, length in enumerate((6, 3, 1, 5, 6, 2, 0)):
        mask[row, 8 + length :] = 0
        ids[row, 8 + length :] = PAD
    return ids, mask


def _read_for_each(model: Any, ids: torch.Tensor, mask: torch.Tensor, temperature: float) -> Any:
    """Return log-probabilities and entropies without sharing anything."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    rows = torch.log_softmax(logits[:, -LENGTH - 1 : -1].float() / temperature, -1)
    kept = mask[:, -LENGTH:]
    chosen = rows.gather(-1, ids[:, -LENGTH:, None])[..., 0]
    return chosen * kept, -(rows.exp() * rows).sum(-1) * kept


@pytest.mark.parametrize("make", [tiny.model, tiny.model_with_windows], ids=["llama", "windows"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_same_log_probabilities_entropies_and_gradients(make: Any, attention: str) -> None:
    model = make().train()
    model.set_attn_implementation(attention)
    ids, mask = _answers()
    weight = torch.randn(mask.shape[0], LENGTH, generator=torch.Generator().manual_seed(1))
    seen = []
    for read in (
        lambda: _read_for_each(model, ids, mask, 0.7),
        lambda: groups.answer_log_probabilities(model, ids, mask, LENGTH, 0.7),
    ):
        model.zero_grad()
        log_probs, entropies = read()
        (log_probs * weight).sum().backward()
        gradients = [one.grad.clone() for one in model.parameters() if one.grad is not None]
        seen.append([log_probs.detach(), entropies.detach(), *gradients])
    assert len(seen[0]) == len(seen[1]) > 10
    for expected, found in zip(*seen):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_prompts_that_differ_in_padding_stay_apart() -> None:
    """Like tokens under another mask are another prompt."""
    ids = torch.tensor([[7, 7, 9], [7, 7, 9], [7, 7, 9]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]])
    place, first = groups._groups(ids, mask)
    assert place[0] == place[2] != place[1]
    assert sorted(first.tolist()) == [0, 1]
    assert [ids[first[at]].tolist() for at in place] == ids.tolist()


def _trainer(folder: Path, **settings: Any) -> GRPOTrainer:
    words = tiny.tokenizer()
    model = get_peft_model(
        tiny.model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    problems = [" ".join(tiny.WORDS[start:end]) for start, end in ((0, 14), (3, 12), (20, 34))]
    common: dict[str, Any] = {
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": LENGTH,
        "beta": 0.1,
    }
    return GRPOTrainer(
        model=model,
        args=GRPOConfig(**trainers.short(folder, **common) | settings),
        reward_funcs=lambda completion_ids, **_: [sum(one) % 7 / 7 for one in completion_ids],
        train_dataset=Dataset.from_dict({"prompt": problems * 8}),
        processing_class=words,
    )


def _history(trainer: GRPOTrainer) -> list[dict[str, float]]:
    trainer.train()
    kept = ("loss", "grad_norm", "reward", "kl", "entropy", "completions/mean_length")
    return [
        {key: float(entry[key]) for key in kept}
        for entry in trainer.state.log_history
        if "reward" in entry
    ]


def test_a_trainer_takes_the_same_steps(tmp_path: Path) -> None:
    apart = _history(_trainer(tmp_path / "apart"))
    trainer = _trainer(tmp_path / "once")
    groups.read_prompts_once(trainer)
    once = _history(trainer)
    assert len(once) == len(apart) == 3
    assert len({step["reward"] for step in apart}) > 1, "the rewards say nothing"
    for expected, found in zip(apart, once):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert "generate" not in vars(trainer.model), "the model is left as it was"


def test_fewer_tokens_pass_through_the_model(tmp_path: Path) -> None:
    """A step reads each prompt once for sampling, once for the reference, once for training."""
    seen = []
    for share in (False, True):
        trainer = _trainer(tmp_path / str(share), max_steps=1)
        if share:
            groups.read_prompts_once(trainer)
        count: list[int] = []
        model: Any = trainer.model
        hook = model.get_input_embeddings().register_forward_hook(
            lambda _, inputs, __, count=count: count.append(inputs[0].numel())
        )
        trainer.train()
        hook.remove()
        seen.append(sum(count))
    assert seen[1] < 0.5 * seen[0], seen


def test_recomputed_activations_are_refused(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, activation_checkpointing=True)
    with pytest.raises(ValueError, match="activation_checkpointing=False"):
        groups.read_prompts_once(trainer)


def test_images_are_refused(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    groups.read_prompts_once(trainer)
    ids, mask = _answers()
    with pytest.raises(NotImplementedError, match="text"):
        trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, LENGTH, pixel_values=torch.zeros(1)
        )
