"""Scores are the plain ones, whatever the batching; answers keep their order and their end."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from cookbook import evaluation
from tests.unit import tiny

pytestmark = pytest.mark.unit

IDS = [[3, *range(6, 6 + n), 4, *range(20, 23 + n % 4), 1] for n in (2, 9, 5, 7, 3)]
LABELS = [[-100] * 3 + row[3:] for row in IDS]


def test_score_weighs_and_brackets_the_mean() -> None:
    one = evaluation.score([1.0, 2.0, 4.0], [1.0, 1.0, 2.0])
    assert one.value == pytest.approx(11 / 4)
    assert one.interval[0] <= one.value <= one.interval[1]
    assert one == evaluation.score([1.0, 2.0, 4.0], [1.0, 1.0, 2.0])


def test_the_interval_narrows_with_more_examples() -> None:
    few, many = (evaluation.score([0.0, 1.0] * n) for n in (10, 1000))
    assert few.interval[1] - few.interval[0] > 5 * (many.interval[1] - many.interval[0])
    # The normal approximation of the interval of a mean of 2,000 coin flips: 0.5 +- 0.022.
    assert many.interval == pytest.approx((0.478, 0.522), abs=0.004)


def test_no_values_are_no_score() -> None:
    with pytest.raises(ValueError, match="no values"):
        evaluation.score([])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_loss_is_the_models_own_per_token_whatever_the_batch(batch_size: int) -> None:
    model = tiny.model()
    rows = Dataset.from_dict({"input_ids": IDS, "labels": LABELS})
    got = evaluation.completion_loss(model, rows, batch_size)
    total, count = 0.0, 0
    for ids, labels in zip(IDS, LABELS, strict=True):
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        supervised = sum(label != -100 for label in labels[1:])
        total, count = total + loss.item() * supervised, count + supervised
    assert got.value == pytest.approx(total / count, rel=1e-5)
    assert got.examples == len(IDS)


def test_scoring_leaves_the_models_mode_alone() -> None:
    model = tiny.model().train()
    evaluation.text_loss(model, tiny.tokenizer(), ["w1 w2 w3", "w4 w5"], 2)
    assert model.training


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_keep_their_order_whatever_the_batch(batch_size: int) -> None:
    model: Any = tiny.model()
    tokenizer: Any = tiny.tokenizer()
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=5, eos_token_id=1, pad_token_id=tokenizer.pad_token_id
    )
    prompts = [
        [{"role": "user", "content": " ".join(f"w{n}" for n in range(size))}] for size in (9, 1, 4)
    ]
    answers = evaluation.generate_answers(model, tokenizer, prompts, settings, batch_size)
    for prompt, text in zip(prompts, answers.texts, strict=True):
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )[0, ids.shape[1] :]
        assert text == tokenizer.decode(alone, skip_special_tokens=True)


def test_answers_that_end_by_themselves_are_counted() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    prompts = [[{"role": "user", "content": "w1"}], [{"role": "user", "content": "w2"}]]
    settings = GenerationConfig(do_sample=False, max_new_tokens=4, eos_token_id=1, pad_token_id=0)
    never = evaluation.generate_answers(model, tokenizer, prompts, settings, 2).stopped
    settings.eos_token_id = list(range(46))
    always = evaluation.generate_answers(model, tokenizer, prompts, settings, 2).stopped
    assert (never, always) == (0.0, 1.0)
