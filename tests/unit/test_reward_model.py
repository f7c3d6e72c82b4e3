"""Scores of a reward model are the classifier's own; what is counted of them is the plain count."""

import itertools
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
)
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from cookbook import cpu, evaluation, rewards
from cookbook.profiles import CookbookError
from tests.unit import tiny, trainers

pytestmark = pytest.mark.unit

PROMPTS = [[3, 6, 7, 8, 4], [3, 9, 4], [3, 6, 7, 8, 4], [3, 9, 4], [3, 10, 11, 12, 13, 14, 4]]
ANSWERS = [[20, 21, 1], [22, 1], [23, 24, 25, 26, 1], [1], [20, 21, 1]]


def judge(adapted: bool, pad: int = 0) -> Any:
    """A reward model of a tiny model whose adapter does something."""
    model: Any = tiny.model()
    settings: dict[str, Any] = {"r": 4, "target_modules": "all-linear"}
    model = get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))
    for name, one in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one, std=0.2)
    made: Any = rewards.begin_from(model, pad)
    if adapted:
        of_head: dict[str, Any] = {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}
        made = get_peft_model(made, LoraConfig(**settings, **of_head))
    return made


def plain(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
    """The classifier's own number for one row at a time."""
    model.eval()
    rows = [prompt + said for prompt, said in zip(prompts, answers)]
    with torch.no_grad():
        return torch.tensor([float(model(input_ids=torch.tensor([row])).logits) for row in rows])


# The token to pad with may be the one that ends answers, as that of SmolLM2 is.
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_scores_are_those_of_single_rows(
    pad: int, adapted: bool, once: bool, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "can_share_prompts", lambda *_, **__: once)
    model = judge(adapted, pad)
    model.train()
    found = rewards.score(model, PROMPTS, ANSWERS, batch_size)
    assert model.training
    torch.testing.assert_close(found, plain(model, PROMPTS, ANSWERS), rtol=1e-4, atol=1e-5)
    assert len({round(one, 4) for one in found.tolist()}) == len(PROMPTS)


def test_like_answers_are_scored_once_and_prompts_read_once() -> None:
    model, read = judge(adapted=False), []
    table = model.get_input_embeddings()
    table.register_forward_hook(lambda _, ids, __: read.append(ids[0].numel()))
    first = rewards.score(model, PROMPTS[:2], ANSWERS[:2], 8)
    again = rewards.score(model, PROMPTS[:2] * 3, ANSWERS[:2] * 3, 8)
    assert again.tolist() == first.tolist() * 3
    assert sum(read[:2]) == sum(read[2:])
    del read[:]
    rewards.score(model, [PROMPTS[4]] * 4, [[n, 1] for n in (20, 21, 22, 23)], 8)
    assert sum(read) == len(PROMPTS[4]) - 1 + 4 * 3  # the prompt's last token comes with answers


def test_texts_end_where_the_turn_ends() -> None:
    model, words = judge(adapted=False), cast(Any, tiny.tokenizer())
    talk = [{"role": "user", "content": "w1 w2"}]
    ids = words.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    said = words("w5 w6", add_special_tokens=False)["input_ids"]
    found = rewards.score_texts(model, words, [talk], ["w5 w6"], 1, 4)
    torch.testing.assert_close(found, plain(model, [ids], [[*said, 1]]), rtol=1e-4, atol=1e-5)


def test_a_reward_model_begins_as_the_policy(tmp_path: Path) -> None:
    """Its hidden states are the merged policy's, which is left alone; and it can be saved."""
    policy: Any = tiny.model()
    policy = get_peft_model(policy, LoraConfig(r=4, target_modules="all-linear"))
    for name, one in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one, std=0.2)
    before = {name: one.clone() for name, one in policy.state_dict().items()}
    made: Any = rewards.begin_from(policy, 0)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected = policy.eval()(ids, output_hidden_states=True).hidden_states[-1]
        found = made.eval().base_model(ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(one.requires_grad for one in made.parameters())
    assert all(one.equal(before[name]) for name, one in policy.state_dict().items())
    made.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(made) and loaded.config.num_labels == 1
    assert plain(loaded, PROMPTS, ANSWERS).tolist() == plain(made, PROMPTS, ANSWERS).tolist()


def test_the_seed_draws_the_new_layer() -> None:
    heads = []
    for seed in (0, 0, 1):
        policy = tiny.model()
        torch.manual_seed(seed)
        made: Any = rewards.begin_from(policy, 0)
        heads.append(made.score.weight)
    assert heads[0].equal(heads[1]) and not heads[0].equal(heads[2])
    assert 0 < float(heads[0].std()) < 0.1


@pytest.mark.parametrize(
    ("config", "kind"),
    [(MambaConfig, MambaForCausalLM), (ModernBertDecoderConfig, ModernBertDecoderForCausalLM)],
)
def test_an_architecture_without_such_a_classifier_is_named(config: Any, kind: Any) -> None:
    """The first has none; that of the second has layers of its own before its last one."""
    settings: dict[str, Any] = {"vocab_size": 46, "hidden_size": 16, "num_hidden_layers": 1}
    if config is ModernBertDecoderConfig:
        settings |= {"num_attention_heads": 2, "intermediate_size": 16, "pad_token_id": 0}
    made = config(**settings)
    with pytest.raises(CookbookError, match=f"{made.model_type}.*COOKBOOK_MODEL"):
        rewards.begin_from(kind(made), 0)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("scores", [[0.1, 0.9, -0.3, 0.4, 0.2], [0.5, 0.5, 0.1, 0.5, 0.7]])
def test_the_best_of_n_is_the_mean_over_all_draws(count: int, scores: list[float]) -> None:
    values = [1.0, 0.0, 1.0, 0.0, 0.0]
    draws = []
    for drawn in itertools.combinations(range(len(scores)), count):
        top = max(scores[n] for n in drawn)
        likes = [values[n] for n in drawn if scores[n] == top]
        draws.append(sum(likes) / len(likes))
    found = rewards.best_of(scores, values, count)
    assert found == pytest.approx(sum(draws) / len(draws), abs=0.1)
    if len({*scores}) == len(scores):
        assert found == pytest.approx(sum(draws) / len(draws))


def test_the_best_of_one_is_the_mean_and_of_all_the_best() -> None:
    scores, values = [3.0, 1.0, 2.0], [0.0, 1.0, 0.5]
    assert rewards.best_of(scores, values, 1) == pytest.approx(0.5)
    assert rewards.best_of(scores, values, 3) == 0.0
    assert rewards.best_of([1.0, 1.0], [0.0, 1.0], 2) == 0.5


def test_a_vote_adds_the_weights_of_like_answers() -> None:
    answers = ["a", "b", "b", "c"]
    assert rewards.voted(answers, [1.0] * 4) == "b"
    assert rewards.voted(answers, [0.9, 0.3, 0.3, 0.1]) == "a"
    assert rewards.voted(["x", "y"], [1.0, 1.0]) == "x"


def test_calibration_compares_promise_and_truth() -> None:
    margins = torch.tensor([0.1, -0.1, 0.2, 3.0, 4.0, -3.0])
    found = rewards.calibration(margins, (0.5, 0.6, 0.9, 1.0))
    assert [count for *_, count in found] == [3, 3]  # none promised 0.6 to 0.9
    assert found[0][1] == pytest.approx(2 / 3) and found[1][1] == pytest.approx(2 / 3)
    assert 0.5 < found[0][0] < 0.6 and 0.9 < found[1][0] < 1
    assert evaluation.score([held for _, held, _ in found]).value == pytest.approx(2 / 3)


PAIRS = [
    {"chosen_ids": [3, 6, 7, 8, 4, 20, 21, 1], "rejected_ids": [3, 6, 7, 8, 4, 20, 22, 23, 1]},
    {"chosen_ids": [3, 6, 7, 8, 4, 20, 21, 1], "rejected_ids": [3, 6, 7, 8, 4, 30, 1]},
    {"chosen_ids": [3, 9, 4, 25, 1], "rejected_ids": [3, 9, 4, 1]},
    {"chosen_ids": [3, 9, 4, 25, 1], "rejected_ids": [3, 9, 4, 25, 26, 1]},  # one begins the other
]


def trainer(folder: Path, once: bool, **settings: Any) -> RewardTrainer:
    """A short training on pairs, some of one prompt."""
    chosen = {"per_device_train_batch_size": 4, "center_rewards_coefficient": 0.01}
    made = RewardTrainer(
        model=judge(adapted=True),
        args=RewardConfig(**trainers.short(folder, **chosen) | settings),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny.tokenizer(),
    )
    if once:
        rewards.read_prompts_once(made)
    return made


def test_a_trainer_takes_the_same_steps(tmp_path: Path) -> None:
    seen = []
    for once in (False, True):
        one = trainer(tmp_path, once)
        read: list[int] = []
        model: Any = one.model
        table = model.get_input_embeddings()
        table.register_forward_hook(lambda _, ids, __, read=read: read.append(ids[0].numel()))
        one.train()
        kept = ("loss", "grad_norm", "mean_reward", "margin")
        history = [entry for entry in one.state.log_history if "loss" in entry]
        seen.append(([{key: float(e[key]) for key in kept} for e in history], sum(read)))
    (apart, tokens), (shared, fewer) = seen
    assert len(apart) == len(shared) == 3 and apart[0]["grad_norm"] > 0
    for expected, found in zip(apart, shared):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert fewer < 0.7 * tokens


def test_rows_are_taken_apart_where_answers_begin_to_differ() -> None:
    rows = [tuple(one[f"{which}_ids"]) for which in ("chosen", "rejected") for one in PAIRS]
    found = rewards._apart(rows)
    assert [start + rest for start, rest in found] == rows and all(rest for _, rest in found)
    assert [start for start, _ in found[:4]] == [start for start, _ in found[4:]]
    assert len({start for start, _ in found}) == 2  # one for each prompt


def test_recomputed_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="activation_checkpointing=False"):
        trainer(tmp_path, True, activation_checkpointing=True)


def test_pairs_of_a_prompt_stand_together_in_a_random_order() -> None:
    rows = Dataset.from_list([{"prompt_ids": [n % 7], "number": n} for n in range(28)])
    made = rewards.by_prompt(rows, 0)
    prompts = [one[0] for one in made["prompt_ids"]]
    assert sorted(made["number"]) == [*range(28)]
    assert [one for one, _ in itertools.groupby(prompts)] == [*dict.fromkeys(prompts)]
    assert prompts != sorted(prompts)
    assert rewards.by_prompt(rows, 1)["number"] != made["number"]
