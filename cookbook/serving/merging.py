"""A run's model in memory, its adapter merged into a 16-bit base."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from cookbook import models
from cookbook.profiles import CookbookError
from cookbook.serving.runs import Run, base_of

QUESTIONS = (
    "What does `zoo.feed(animals, food='hay', times=3)` do in Python?",
    "In one sentence: why is the sky blue?",
    "How much is 17 + 25?",
)
ROUNDING = 1e-2  # nats of a token: two orders of summing lie far below, a wrong sum far above
ANSWER_TOKENS = 24  # of each answer that is compared
MARGIN = 1.2  # of the weights' own bytes: what loading and merging take beside them


def quiet() -> None:
    """Have transformers say nothing of loading: `models` looks after that, and in a sentence."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="peft")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that was saved with a run's weights."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def load(run: Run, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Return a run's model as it answers: an adapter beside its base, or the whole model.

    `options` are those of transformers' `from_pretrained`. Raises `CookbookError` where its base
    is missing or has changed (`runs.base_of`).
    """
    tokenizer = load_tokenizer(run.tokenizer)
    if run.adapter is None:
        model: Any = models.from_pretrained(str(run.weights), dtype=dtype, **options)
    else:
        model = load_base(run, tokenizer, dtype, **options)
        model = _with_adapter(model, run.adapter)
    settings = run.weights / "generation_config.json"
    if settings.is_file():
        own = GenerationConfig.from_pretrained(settings.parent)
        # PEFT hands it to the model inside when that generates, and merging gives that one back.
        model.generation_config = own
        if run.adapter:
            model.get_base_model().generation_config = own
    trained: PreTrainedModel = model.eval()
    return trained


def load_base(
    run: Run, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, **options: Any
) -> PreTrainedModel:
    """Return the untrained model that a run's adapter belongs to, with rows for all tokens."""
    model = models.from_pretrained(base_of(run), dtype=dtype, **options)
    models.fit_vocabulary(model, tokenizer)
    return model


def _with_adapter(model: PreTrainedModel, folder: Path) -> Any:
    from peft import PeftModel  # of a group: core alone can import this module

    return PeftModel.from_pretrained(model, folder)


def merged(run: Run) -> tuple[Any, PreTrainedTokenizerBase, str]:
    """Return a run's model with its adapter merged, its tokenizer, and what was proven of it.

    The sum of a weight and its adapter is formed in float32 where that fits into memory, and
    rounded once; there the merged model has to answer as the adapter beside its base does. Raises
    `CookbookError` where it does not.
    """
    tokenizer = load_tokenizer(run.tokenizer)
    path = base_of(run) if run.adapter else str(run.weights)
    # Here, and not on a GPU, where `memory.free_bytes` looks.
    exact = psutil.virtual_memory().available > MARGIN * 4 * weights_of(path)
    model: Any = load(run, torch.float32 if exact else torch.bfloat16)
    if run.adapter is None:
        return model, tokenizer, "whole weights: nothing to merge"
    if not exact:
        return model.merge_and_unload(), tokenizer, "merged in bfloat16: float32 does not fit here"
    rows = prompts(tokenizer)
    before = [(row, greedy(model, tokenizer, row)) for row in rows]
    likely = [log_probability(model, *one) for one in before]
    model = model.merge_and_unload()
    equal = sum(greedy(model, tokenizer, row) == answer for row, answer in before)
    apart = max(
        abs(new - old)
        for one, known in zip(before, likely, strict=True)
        for new, old in zip(log_probability(model, *one), known, strict=True)
    )
    if apart > ROUNDING:
        raise CookbookError(
            f"Merged, {run.name} answers otherwise than its adapter beside the base does, by "
            f"{apart:.3f} nats in float32. Not exported; use the adapter itself (FORMAT=adapter)."
        )
    proof = f"merged in float32: {equal} of {len(rows)} answers word for word as unmerged"
    return model, tokenizer, f"{proof}, tokens at most {apart:.0e} nats apart"


def in_precision(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Give a model's weights another precision, in place, and them alone.

    `model.to` would round the frequencies of rotary positions as well, which stand in no file:
    what loads the weights again would answer otherwise.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def weights_of(path: str) -> int:
    """Return how many weights a model has, from its configuration."""
    with torch.device("meta"):  # shapes without memory
        return int(AutoModel.from_config(models.config_of(path)).num_parameters())


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of what a model is asked to check what was written of it."""
    if tokenizer.chat_template is None:
        return [list(tokenizer(question)["input_ids"]) for question in QUESTIONS]
    rendered: Any = tokenizer.apply_chat_template(
        [[{"role": "user", "content": question}] for question in QUESTIONS],
        add_generation_prompt=True,
        return_dict=False,
    )
    return [list(ids) for ids in rendered]


def bos_left_out(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer begins texts with a token that its chat template does not write.

    Training tokenized what the template writes, without it. llama.cpp would put it there.
    """
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer.chat_template is None:
        return False
    return bool(tokenizer("a")["input_ids"][0] == bos != prompts(tokenizer)[0][0])


@torch.inference_mode()
def greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]
) -> list[int]:
    """Return the token ids of a model's greedy answer, at most `ANSWER_TOKENS`."""
    ids = torch.tensor([list(prompt)], device=model.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    output: Any = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
    )
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    return [int(token) for token in output[0, start:]]


@torch.inference_mode()
def log_probability(
    model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]
) -> list[float]:
    """Return the log-probability in nats of each token of an answer after a prompt."""
    chosen = torch.tensor([list(answer)], device=model.device)
    if model.config.is_encoder_decoder:
        logits = model(input_ids=torch.tensor([list(prompt)]).to(chosen), labels=chosen).logits[0]
    else:
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    scores = torch.log_softmax(logits.float(), dim=-1).gather(1, chosen[0, :, None])
    return [float(score) for score in scores[:, 0]]
