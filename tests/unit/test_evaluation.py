"""Scores are the plain ones, whatever the batching; answers keep their order and their end."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GenerationConfig,
    set_seed,
)

from cookbook import evaluation
from tests.unit import tiny

pytestmark = pytest.mark.unit

IDS = [[3, *range(6, 6 + n), 4, *range(20, 23 + n % 4), 1] for n in (2, 9, 5, 7, 3)]
LABELS = [[-100] * 3 + row[3:] for row in IDS]
# What an encoder-decoder writes has a length of its own: the longest input has not the longest.
WRITTEN = [[20, 21, 22, 23, 24, 25, 1], [30, 1], [7, 8, 9, 1], [-100, 33, 1], [40, 41, 42, 43, 1]]


def _t5(decoder_start: int = 0) -> Any:
    """Return a two-layer T5 with random weights, whose answers differ and end now and then."""
    changes = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    changes |= {"decoder_start_token_id": decoder_start, "initializer_factor": 2.0}
    return tiny.encoder_decoder(3, **changes)


def _mean_loss(model: Any, ids: Sequence[list[int]], labels: Sequence[list[int]]) -> float:
    """Return the loss per supervised token, through the model's own loss of one row at a time."""
    shifted = 0 if model.config.is_encoder_decoder else 1
    total, count = 0.0, 0
    for row, targets in zip(ids, labels, strict=True):
        loss = model.eval()(input_ids=torch.tensor([row]), labels=torch.tensor([targets])).loss
        supervised = sum(label != -100 for label in targets[shifted:])
        total, count = total + loss.item() * supervised, count + supervised
    return total / count


def test_score_weighs_and_brackets_the_mean() -> None:
    one = evaluation.score([1.0, 2.0, 4.0], [1.0, 1.0, 2.0])
    assert one.value == pytest.approx(11 / 4)
    assert one.interval[0] <= one.value <= one.interval[1]
    assert one == evaluation.score([1.0, 2.0, 4.0], [1.0, 1.0, 2.0])


def test_several_values_of_an_example_count_once() -> None:
    grouped = evaluation.score_groups([1, 0, 1, 1, 0, 0], 2)
    assert grouped == evaluation.score([0.5, 1.0, 0.0])
    assert evaluation.score_groups([True, False], 1) == evaluation.score([1.0, 0.0])


def test_the_interval_narrows_with_more_examples() -> None:
    few, many = (evaluation.score([0.0, 1.0] * n) for n in (10, 1000))
    assert few.interval[1] - few.interval[0] > 5 * (many.interval[1] - many.interval[0])
    # The normal approximation of the interval of a mean of 2,000 coin flips: 0.5 +- 0.022.
    assert many.interval == pytest.approx((0.478, 0.522), abs=0.004)


def test_no_values_are_no_score() -> None:
    with pytest.raises(ValueError, match="no values"):
        evaluation.score([])
    with pytest.raises(ValueError, match="no values"):
        evaluation.resample(lambda chosen: float(len(chosen)), 0)


def test_resampling_a_mean_is_its_score() -> None:
    values = [0.1, 2.0, 3.5, 0.7, 9.0]
    one = evaluation.resample(lambda chosen: sum(values[n] for n in chosen) / len(chosen), 5)
    score = evaluation.score(values)
    assert one.value == pytest.approx(score.value)
    assert one.interval == pytest.approx(score.interval)
    assert one.interval[0] < one.value < one.interval[1]
    assert one.examples == 5


def _macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    labels = {label for label, _ in pairs}
    scores = []
    for label in labels:
        hits = sum(true == answer == label for true, answer in pairs)
        asked = sum((true == label) + (answer == label) for true, answer in pairs)
        scores.append(2 * hits / asked)
    return sum(scores) / len(scores)


def test_a_statistic_that_is_no_mean_has_an_interval_too() -> None:
    pairs = [("up", "up"), ("up", "up"), ("up", "down"), ("down", "down")] * 10

    def macro_f1(chosen: Sequence[int]) -> float:
        return _macro_f1([pairs[index] for index in chosen])

    one = evaluation.resample(macro_f1, len(pairs), resamples=200)
    assert one.value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert one == evaluation.resample(macro_f1, len(pairs), resamples=200)
    # Each end is a value between the statistic's and its limits, and about 0.14 from it.
    assert 0.5 < one.interval[0] < one.value - 0.05
    assert one.value + 0.05 < one.interval[1] < 1.0


@pytest.mark.parametrize("resamples", [2000, 1000, 500, 100])
def test_an_interval_leaves_out_as_many_above_as_below(resamples: int) -> None:
    drawn = itertools.count()
    low, high = evaluation.resample(lambda _: next(drawn), 3, resamples).interval
    assert low == resamples // 40
    assert resamples - 1 - high == low


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(
    ("make", "labels"), [(tiny.model, LABELS), (_t5, WRITTEN)], ids=["llama", "t5"]
)
def test_loss_is_the_models_own_per_token_whatever_the_batch(
    make: Callable[[], Any], labels: list[list[int]], batch_size: int
) -> None:
    model = make()
    rows = Dataset.from_dict({"input_ids": IDS, "labels": labels})
    got = evaluation.completion_loss(model, rows, batch_size)
    assert got.value == pytest.approx(_mean_loss(model, IDS, labels), rel=1e-5)
    assert got.examples == len(IDS)


def test_text_of_an_encoder_decoder_is_read_by_half_and_scored_on_the_rest() -> None:
    model, tokenizer = _t5(), tiny.tokenizer()
    texts = ["w1 w2 w3 w4 w5", "w6 w7 w8 w9", "w1 " * 20]
    got = evaluation.text_loss(model, tokenizer, texts, 3, max_length=6)
    read = [[7, 8], [12, 13], [7, 7, 7]]
    rest = [[9, 10, 11], [14, 15], [7, 7, 7]]
    assert got.value == pytest.approx(_mean_loss(model, read, rest), rel=1e-5)
    assert got.examples == 3


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_next_token_logits_are_the_full_models_at_the_last_place(batch_size: int) -> None:
    model: Any = tiny.model().train()
    tokens = [30, 2, 7]
    got = evaluation.next_token_logits(model, IDS, tokens, batch_size)
    assert model.training
    model.eval()
    for prompt, logits in zip(IDS, got, strict=True):
        full = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert torch.allclose(logits, full[tokens], atol=1e-5)
    assert got.shape == (len(IDS), 3)


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


def _falcon() -> Any:
    """Return a model whose heads share one key and one value."""
    set_seed(0)
    return FalconForCausalLM(
        FalconConfig(vocab_size=46, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    )


@pytest.mark.parametrize(
    "make", [tiny.model, tiny.model_with_windows, _falcon], ids=["llama", "windows", "falcon"]
)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_what_prompts_share_is_read_once_and_changes_no_answer(make: Any, batch_size: int) -> None:
    model, tokenizer = make(), tiny.tokenizer()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= 8  # with small weights every prompt has the same answer
    settings = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=1, pad_token_id=0)
    shared = [3, *range(6, 26)]
    rows = [[*shared, *range(45 - more, 45), 4] for more in (3, 9, 1, 5, 2)]
    seen: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    together = evaluation.generate(model, tokenizer, rows, settings, batch_size)
    hook.remove()
    alone = [evaluation.generate(model, tokenizer, [row], settings, 1).texts[0] for row in rows]
    assert together.texts == alone
    assert len(set(alone)) > 1, "a model whose answers are all the same shows nothing"
    if make is tiny.model_with_windows:  # its answers are equal because nothing is shared
        assert {count for count, _ in seen} <= {batch_size, len(rows) % batch_size}
        return
    longest = max(map(len, rows)) - len(shared)
    assert seen[0] == (1, len(shared)) and all(columns <= longest for _, columns in seen[1:])


def test_only_what_all_prompts_share_is_shared_and_never_a_whole_prompt() -> None:
    begin = list(range(20))
    share = partial(evaluation._shared_beginning, tiny.model())
    assert share([[*begin, 30, 31], [*begin, 40]]) == begin
    assert share([begin, begin]) == begin[:-1]
    assert share([begin, [*begin[:5], *begin]]) == [], "five tokens are not worth it"
    assert share([begin]) == []


def test_answers_that_end_by_themselves_are_counted() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    prompts = [[{"role": "user", "content": "w1"}], [{"role": "user", "content": "w2"}]]
    settings = GenerationConfig(do_sample=False, max_new_tokens=4, eos_token_id=1, pad_token_id=0)
    never = evaluation.generate_answers(model, tokenizer, prompts, settings, 2).stopped
    settings.eos_token_id = list(range(46))
    always = evaluation.generate_answers(model, tokenizer, prompts, settings, 2).stopped
    assert (never, always) == (0.0, 1.0)


def _t5_with_lora() -> Any:
    return get_peft_model(_t5(), LoraConfig(task_type="SEQ_2_SEQ_LM"))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("make", [_t5, _t5_with_lora], ids=["full", "lora"])
def test_an_encoder_decoder_writes_one_text_a_row_in_order(make: Any, batch_size: int) -> None:
    model, tokenizer = make().eval(), tiny.tokenizer()
    rows = [[*range(6, 6 + size), 1] for size in (9, 2, 5, 14)]
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=6, eos_token_id=1, pad_token_id=0, decoder_start_token_id=0
    )
    answers = evaluation.generate(model, tokenizer, rows, settings, batch_size)
    alone = []
    for row in rows:
        ids = torch.tensor([row])
        (written,) = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
        alone.append(written.tolist())
    assert answers.texts == [tokenizer.decode(one, skip_special_tokens=True) for one in alone]
    assert len(set(answers.texts)) == len(rows)
    assert all(answers.texts)
    assert answers.stopped == sum(1 in one for one in alone) / len(rows)
    assert 0 < answers.stopped < 1


def test_a_start_token_that_is_also_the_end_is_no_end() -> None:
    # BART's decoder starts with its end-of-sequence token.
    model, tokenizer = _t5(decoder_start=1), tiny.tokenizer()
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=3,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=[1],  # so that none ends by itself
    )
    rows = [[6, 7, 1], [8, 9, 10, 1]]
    assert evaluation.generate(model, tokenizer, rows, settings, 2).stopped == 0.0
