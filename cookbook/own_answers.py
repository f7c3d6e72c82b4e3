"""What recipes that learn from a model's own answers begin with.

Problems become prompts, a few rows show how to answer, and the model answers: see
`06-Preference-Tuning`. A problem is a `prompt` with its true `answer`.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cookbook import chat, cpu, data, evaluation, forms, groups, training
from cookbook.evaluation import Score
from cookbook.files import DataError
from cookbook.forms import Row

INSTRUCTION = "Last line: #### and the result."
FEWEST_PROBLEMS = 8
# For a base model, which has no template of its own.
PLAIN_TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}"
    "{{ eos_token if turn.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def problem_splits(splits: DatasetDict, own: bool) -> DatasetDict:
    """Return the splits' problems: `prompt`, as messages after the instruction, and `answer`.

    The reader's `own` may have the result after the last `####` of a worked answer. Raises
    `DataError` if too few are left to show some, hold some out and answer the others.
    """
    problems = DatasetDict()
    for name, rows in splits.items():
        if own:
            rows = forms.as_pairs(rows, ("prompt", "completion"), f"{name} split")
            rows = rows.map(forms.with_result)
        rows = data.drop_rows_without(rows, ["prompt", "answer"], f"{name} split")
        problems[name] = rows.select_columns(["prompt", "answer"]).map(as_messages)
    if len(problems["train"]) < FEWEST_PROBLEMS:
        raise DataError(
            f"Fewer than {FEWEST_PROBLEMS} problems to train on, of which some are shown, some "
            "held out, and the others answered: add more."
        )
    return problems


def as_messages(problem: Row) -> Row:
    """Return a problem's prompt as messages, after the instruction how to end the answer."""
    turns = [("system", INSTRUCTION), ("user", problem["prompt"])]
    return {"prompt": [{"role": role, "content": said} for role, said in turns]}


def as_shown(row: Row) -> Row:
    """Return what the first training shows: a problem's last line alone, or the better answer."""
    said = row.get("chosen") or row.get("completion")
    return {
        "completion": said or [{"role": "assistant", "content": f"#### {row['answer']}"}],
    }


def load_tokenizer(
    folder: str, conversations: Dataset
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return a model's tokenizer, ready for these conversations, and what ends an answer.

    It pads on the left, and has a chat template (a base model gets a plain one) and a token to pad
    with. The ends are those of the assistant's turn, and of a text: see `chat.end_tokens`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    chat.fit_template(tokenizer, conversations.select_columns("prompt").take(1))
    ends = chat.end_tokens(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[-1])
    return tokenizer, ends


def training_arguments(config: SimpleNamespace, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of a trainer that are the same for every training of a recipe."""
    return {
        "activation_checkpointing": config.activation_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "lr_scheduler_type": "cosine",
        # A share of the steps, from a rate of 0.
        "warmup_steps": 0.1 if config.max_steps > 1 else 0,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    config: SimpleNamespace,
    arguments: dict[str, Any],
) -> None:
    """Train a model on answers shown to it: on `labels` beside `input_ids`.

    `arguments` are those of TRL's `SFTConfig`, beside batch size and rate, which `config` has as
    `sft_batch_size` and `sft_learning_rate`.
    """
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments,
            max_length=None,  # overlong rows are dropped, not cut
            per_device_train_batch_size=config.sft_batch_size,
            learning_rate=config.sft_learning_rate,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    cpu.speed_up(trainer)
    with training.guarded(trainer) as checkpoint:
        trainer.train(resume_from_checkpoint=checkpoint)


def is_right(text: str, answer: str) -> bool:
    """Tell whether a text ends in `####` and the true result."""
    _, mark, result = text.rstrip().rpartition("#### ")
    return bool(mark) and result.strip() == answer.strip()


def without_repetition(text: str) -> float:
    """Return the share of a text's runs of four words that occur in it for the first time."""
    words = text.split()
    runs = list(zip(words, words[1:], words[2:], words[3:]))
    return len({*runs}) / len(runs) if runs else 1.0


@dataclass(frozen=True)
class Stage:
    """What a model answers at one moment: its likeliest answers to the test, and scores."""

    texts: list[str]
    greedy: Score
    sampled: Score
    prompted: Score | None = None  # greedy, after solved examples

    def __str__(self) -> str:
        shown = {"greedy": self.greedy, "sampled": self.sampled, "prompted": self.prompted}
        return "\n".join(f"{name:<8} {one}" for name, one in shown.items() if one)


@dataclass(frozen=True)
class Asker:
    """Asks a model, and scores its answers to the prompts of a test split.

    On `problems` the score is whether the answer is right. Elsewhere no program knows, and it is
    the share of four-word runs that are no repetition: a model pushed too far repeats itself.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    test: Dataset
    ends: list[int]  # tokens at which an answer ends
    config: SimpleNamespace
    problems: bool

    @property
    def score(self) -> str:
        """The name of the score."""
        return "exact_match" if self.problems else "without_repetition"

    def stage(self, shots: Dataset | None = None) -> Stage:
        """Measure the model as it is now: greedy, sampled, and greedy after the rows `shots`."""
        texts, greedy = self._measure(sampled=False)
        _, sampled = self._measure(sampled=True)
        prompted = self._measure(sampled=False, shots=shots)[1] if shots else None
        return Stage(texts, greedy, sampled, prompted)

    def several(self, rows: Dataset, count: int) -> list[list[str]]:
        """Return so many sampled answers to each row's prompt, which a processor reads once."""
        tries = rows.select([number for number in range(len(rows)) for _ in range(count)])
        size = 2 * self.config.per_device_eval_batch_size
        texts = self._answers(tries, sampled=True, batch_size=size)
        return [texts[at : at + count] for at in range(0, len(texts), count)]

    def values(self, texts: Sequence[str], rows: Iterable[Row]) -> list[float]:
        """Return the score of each text as the answer to its row."""
        if not self.problems:
            return [without_repetition(text) for text in texts]
        both = zip(texts, rows, strict=True)
        return [float(is_right(text, row["answer"])) for text, row in both]

    def _measure(self, sampled: bool, shots: Dataset | None = None) -> tuple[list[str], Score]:
        times = self.config.eval_samples if sampled else 1
        rows = self.test.select([n for n in range(len(self.test)) for _ in range(times)])
        texts = self._answers(rows, sampled, self.config.per_device_eval_batch_size, shots)
        return texts, evaluation.score_groups(self.values(texts, rows), times)

    def _answers(
        self, rows: Dataset, sampled: bool, batch_size: int, shots: Dataset | None = None
    ) -> list[str]:
        # top_k is off: the whole vocabulary, as in training.
        drawn = {"temperature": self.config.temperature, "top_k": 0} if sampled else {}
        settings = GenerationConfig(
            do_sample=sampled,
            max_new_tokens=self.config.max_completion_length,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            **drawn,
        )
        once: Any = nullcontext()
        if cpu.can_share_prompts(self.model.config, recomputed=False):
            once = groups.generating_from_shared_prompts(self.model)
        asked = self.model, self.tokenizer, rows, settings, batch_size, shots
        with once:
            return evaluation.answer_rows(*asked).texts
