"""The contestants that share this project's environment; `run` trains one work with one of them.

`ours` has the settings of the recipes' notebooks on the `cpu` profile, which a contract test
compares. `defaults` leaves all to TRL's and transformers' defaults but for what the work itself
fixes. `bare` is a plain PyTorch loop over the same model with all that helps, near what is
possible without another kernel.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    GPT2Config,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cookbook import answers, chat, groups, memory, models, pairs, training
from tests.bench import rows
from tests.bench.meter import Meter
from tests.bench.works import WITHOUT, Work

SEED = 0
SHORT = 256  # tokens; up to here the plain attention's backward pass is the faster one on a CPU
BETA = 1.0  # of DPO: what the recipe weighs going far away with
# Where autocast casts alone: not in GRPO, whose answers are sampled outside of it.
CASTS_ONCE = ("lora", "qlora", "dpo")
HALVES = 2  # micro-batches of a step where a whole one would need more memory than the default
WARM = "BENCH_WARMED_UP"  # the folder of the model that GRPO goes on from
GPT2: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 128, "n_positions": 128}
T5: dict[str, Any] = {"d_model": 512, "d_ff": 1024, "d_kv": 64, "num_heads": 6, "num_layers": 8}


class _Timed(TrainerCallback):
    """Tells the meter what a trainer does."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.meter.begin_step()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.end_step()

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        for key, found in (("loss", self.meter.losses), ("reward", self.meter.rewards)):
            if logs and key in logs:
                found.append(float(logs[key]))
        if logs and "reward" in logs:  # GRPO counts prompts and answers itself, from the beginning
            seen = int(logs["num_tokens"])
            self.meter.micro_batches.append(seen - sum(self.meter.micro_batches))


def lora(work: Work) -> LoraConfig:
    """Return the adapters of every contestant: all linear layers."""
    return LoraConfig(
        r=work.lora_r,
        lora_alpha=work.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def attention(work: Work, without: str = "") -> str:
    """Return the attention kernel that the recipes take on a CPU for rows of this length."""
    if work.kind in ("pretrain", "seq2seq"):  # for GPT-2 and T5 there was nothing to gain
        return "sdpa"
    return "eager" if work.max_length <= SHORT and without != "plain-attention" else "sdpa"


def load(work: Work, attn_implementation: str | None = None, without: str = "") -> Any:
    """Return the model that is trained, in the precision of its weights."""
    set_seed(SEED)
    kind: dict[str, Any] = (
        {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    )
    if work.kind == "pretrain":
        config = GPT2Config(vocab_size=rows.GPT2_VOCABULARY, **GPT2)
        if attn_implementation is not None:  # the recipe's choices; None is GPT-2 as published
            if without != "no-dropout":
                config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        return AutoModelForCausalLM.from_config(config, **kind)
    if work.kind == "seq2seq":
        words = rows.tokenizer()
        end = words.eos_token_id
        shape = T5 | {"vocab_size": len(words), "pad_token_id": end, "eos_token_id": end}
        encoder_decoder = T5Config(**shape, feed_forward_proj="gated-gelu")
        encoder_decoder.decoder_start_token_id = end
        return AutoModelForSeq2SeqLM.from_config(encoder_decoder, **kind)
    path = models.resolve_model(rows.MODEL)
    if work.kind == "grpo":
        path = os.environ[WARM]
    computed: torch.dtype = getattr(torch, work.precision)
    dtype = torch.float32 if work.kind == "full" else computed
    if work.kind == "qlora":
        kind["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=computed,
        )
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **kind)


def _common(work: Work, folder: str, order: str | None) -> dict[str, Any]:
    """Return what is no contestant's choice: the work, and what is switched off to time it."""
    order = order or work.order
    chosen = {"train_sampling_strategy": order} if order else {}
    return {
        "output_dir": folder,
        "max_steps": work.steps,
        "learning_rate": work.learning_rate,
        "bf16": work.precision == "bfloat16",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
        **chosen,
    }


def _batches(work: Work, parts: int) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": work.examples_per_step // parts,
        "gradient_accumulation_steps": parts,
    }


def defaults(work: Work, folder: str, order: str | None) -> tuple[Any, int]:
    """Return the trainer as TRL or transformers builds it, and micro-batches a step."""
    common = _common(work, folder, order)
    whole = _batches(work, 1)
    if work.kind == "grpo":
        # TRL's default batch of 8 answers; accumulated to the work's step.
        parts = work.examples_per_step // 8
        return (
            _grpo(work, load(work), GRPOConfig(**common | _answers() | _batches(work, parts))),
            parts,
        )
    if work.kind == "pretrain":
        arguments = TrainingArguments(**common, **whole)
        return Trainer(load(work), arguments, train_dataset=rows.blocks(work)), 1
    if work.kind == "seq2seq":
        arguments = Seq2SeqTrainingArguments(**common, **whole)
        return _seq2seq(work, load(work), arguments), 1
    if work.kind == "dpo":
        given = rows.preferences(work)
        compared = _dpo(work, load(work).float(), DPOConfig(**common, **whole, beta=BETA), given)
        if work.rows == "documents":  # TRL's own tokens have the line feed after a turn, too
            compared.train_dataset = given.select_columns(rows.PAIR_IDS)
        return compared, 1
    given = rows.supervised(work) if work.rows == "documents" else rows.fitting_conversations(work)
    trainer = SFTTrainer(
        # A float32 base under autocast, which is how transformers trains all weights, for both.
        model=load(work) if work.kind == "qlora" else load(work).float(),
        args=SFTConfig(**common, **whole, max_length=work.max_length),
        train_dataset=given,
        processing_class=rows.tokenizer(),
        peft_config=None if work.kind == "full" else lora(work),
    )
    return trainer, 1


def ours(work: Work, folder: str, order: str | None, without: str = "") -> tuple[Any, int]:
    """Return the trainer as the recipes build it, and micro-batches a step.

    `without` leaves one of its choices to the default, to show what it is worth.
    """
    if without != "kept-memory":
        memory.keep_freed_memory()
    model = load(work, attention(work, without), without)
    if without == "half-base" and work.kind == "lora":
        model = model.float()
    common = _common(work, folder, order)
    common |= {"dataloader_pin_memory": False}
    parts = HALVES if work.examples_per_step % HALVES == 0 else 1
    if work.kind == "grpo":
        model = _adapted(work, model)
        common |= _answers() | {"activation_checkpointing": False}
        sampling = _grpo(work, model, GRPOConfig(**common | _batches(work, 1)))
        if without != "shared-prompts":
            groups.read_prompts_once(sampling)
        return sampling, 1
    if work.kind == "dpo":
        model = _adapted(work, model)
        common |= {"activation_checkpointing": False, "max_length": None, "beta": BETA}
        given = rows.preferences(work)
        compared = _dpo(work, model, DPOConfig(**common, **_batches(work, 1)), given)
        compared.train_dataset = given.select_columns(rows.PAIR_IDS)
        if without != "shared-prompts":
            answers.read_prompts_once(compared)
        return compared, 1
    if work.kind == "pretrain":
        arguments = TrainingArguments(**common, **_batches(work, 1))
        return Trainer(model, arguments, train_dataset=rows.blocks(work)), 1
    if without != "like-lengths":
        common.setdefault("train_sampling_strategy", "group_by_length")
    if work.kind == "seq2seq":
        arguments = Seq2SeqTrainingArguments(**common, **_batches(work, parts))
        summarizing = _seq2seq(work, model, arguments)
        # The loss of the step, not a sum of its parts' means.
        training.use_supervised_positions_loss(summarizing)
        return summarizing, parts
    if work.kind == "qlora":
        training.keep_4bit_layers_trainable(model)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **common,
            **_batches(work, parts),
            max_length=None,
            activation_checkpointing=without == "kept-activations",
        ),
        train_dataset=rows.supervised(work),
        processing_class=rows.tokenizer(),
        peft_config=None if work.kind == "full" else lora(work),
    )
    if without != "supervised-loss":
        training.use_supervised_positions_loss(trainer)
    training.train_in_float32(model if trainer.model is None else trainer.model)
    return trainer, parts


def _seq2seq(work: Work, model: Any, arguments: Seq2SeqTrainingArguments) -> Seq2SeqTrainer:
    words = rows.tokenizer()
    return Seq2SeqTrainer(
        model,
        arguments,
        train_dataset=rows.summaries(work),
        data_collator=DataCollatorForSeq2Seq(words, model=model),
        processing_class=words,
    )


def _answers() -> dict[str, Any]:
    """Return what GRPO's work fixes: groups of 8 short answers, sampled at temperature 1."""
    return {"num_generations": 8, "max_completion_length": 12, "temperature": 1.0, "beta": 0.02}


def right_sum(completions: Any, answer: Any, **_: Any) -> list[float | None]:
    """Reward an answer whose last line is the sum."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    pairs = zip(texts, answer, strict=True)
    return [float(re.fullmatch(rf"#### {true}\s*", text) is not None) for text, true in pairs]


def _grpo(work: Work, model: Any, arguments: GRPOConfig) -> GRPOTrainer:
    problems = rows.sums()
    chat = [[{"role": "user", "content": question}] for question in problems["prompt"]]
    return GRPOTrainer(
        model=model,
        args=arguments,
        reward_funcs=right_sum,
        train_dataset=Dataset.from_dict({"prompt": chat, "answer": problems["answer"]}),
        processing_class=rows.tokenizer(),
        peft_config=None if hasattr(model, "peft_config") else lora(work),
    )


def _adapted(work: Work, model: Any) -> Any:
    """Return a model with the adapters that all contestants start from, in float32."""
    set_seed(SEED)
    model = get_peft_model(model, lora(work))
    training.train_in_float32(model)
    return model


def _dpo(work: Work, model: Any, arguments: DPOConfig, given: Dataset) -> DPOTrainer:
    return DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=given.select_columns(rows.MESSAGES),
        processing_class=rows.tokenizer(),
        peft_config=None if hasattr(model, "peft_config") else lora(work),
    )


def read_reference_first(trainer: Any, meter: Meter) -> None:
    """Compute the reference's log-probabilities of all pairs before the training.

    With `precompute_ref_log_probs` TRL does so in its constructor, of token ids of its own and
    before prompts can be shared; so it is done here, with the same batches. Rows come in order, so
    that a batch is a step's: its seconds are counted to that step, those of the warm-up's to it.
    """
    found: Dataset = trainer.train_dataset
    size = trainer.args.per_device_train_batch_size
    seen: list[list[float]] = [[], []]
    for start in range(0, len(found), size):
        begun = time.time()
        batch = trainer.data_collator(found.select(range(start, start + size)).to_list())
        both = trainer.compute_ref_log_probs(trainer.model, batch)
        for values, more in zip(seen, both):
            values += more.tolist()
        meter.earlier.append(time.time() - begun)
    for name, values in zip(pairs.ANSWERS, seen):
        found = found.add_column(f"ref_{name}_logps", values)
    trainer.train_dataset = found
    trainer.precompute_ref_logps = True


def train(contestant: str, work: Work, meter: Meter, order: str | None) -> tuple[Any, int]:
    """Train with a contestant's trainer; return (model, micro-batches a step)."""
    without = contestant.removeprefix(WITHOUT) if contestant.startswith(WITHOUT) else ""
    with tempfile.TemporaryDirectory() as folder:
        if contestant == "defaults":
            trainer, parts = defaults(work, folder, order)
        else:
            trainer, parts = ours(work, folder, order, without)
        trainer.add_callback(_Timed(meter))
        lean = contestant != "defaults" and work.kind in CASTS_ONCE
        lean = lean and without != "lean-casts"
        with disable_input_dtype_casting(trainer.model) if lean else nullcontext():
            if without == "reference-in-step":
                read_reference_first(trainer, meter)
            if work.kind == "grpo":
                parts = 1  # the trainer's own count is one number a step
            else:
                trainer.data_collator = meter.counted(trainer.data_collator)
            trainer.train()
        return trainer.model, parts


def bare(work: Work, meter: Meter, order: str | None) -> Any:
    """Train in a plain loop; return (model, micro-batches a step)."""
    memory.keep_freed_memory()
    model = load(work, attention(work))
    if work.kind in CASTS_ONCE:
        training.keep_4bit_layers_trainable(model)
        model = _adapted(work, model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=work.learning_rate, weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, work.steps)
    parts = 1 if work.kind in ("pretrain", "dpo") else HALVES
    lean = disable_input_dtype_casting if work.kind in CASTS_ONCE else nullcontext
    model.train()
    for step in _steps(work, model, meter, parts, order):
        meter.begin_step()
        count = sum(_summed(work, batch) for batch in step)
        total = 0.0
        for batch in step:
            with lean(model):
                loss = _loss(work, model, batch) / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        meter.losses.append(total)
        meter.end_step()
    return model, parts


def _summed(work: Work, batch: dict[str, Any]) -> int:
    """Return what the sum of a batch's losses is divided by: its pairs, or supervised tokens."""
    if work.kind == "dpo":
        return len(batch["input_ids"]) // len(pairs.ANSWERS)
    return int((batch["labels"] != chat.IGNORED).sum())


def _loss(work: Work, model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=work.precision == "bfloat16"):
        if work.kind == "dpo":
            with torch.no_grad(), model.disable_adapter():  # it began at zero
                reference = _gaps(model, batch)
            return -functional.logsigmoid(BETA * (_gaps(model, batch) - reference)).sum()
        logits, targets = training.supervised_logits(model, batch)
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def _gaps(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return by how many nats the better answer of each pair is likelier than the other."""
    ids, mask, length = (batch[name] for name in ("input_ids", "attention_mask", "length"))
    logits, targets = groups.answer_logits(model, ids, mask, length, batch["position_ids"])
    log_probs = -functional.cross_entropy(logits.float(), targets, reduction="none")
    chosen, rejected = groups.in_place(log_probs, mask[:, -length:].bool()).sum(1).chunk(2)
    return chosen - rejected


def collate_pairs(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return better and then worse answers, each after its prompt; answers begin at one place."""
    prompts = [row["prompt_ids"] for row in examples] * len(pairs.ANSWERS)
    said = [row[f"{one}_ids"] for one in pairs.ANSWERS for row in examples]
    ids, mask, positions = answers.beside(prompts, said)
    found = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return found | {"length": max(map(len, said))}


def _steps(
    work: Work, model: Any, meter: Meter, parts: int, order: str | None
) -> Iterator[list[dict[str, Any]]]:
    """Yield the micro-batches of each step, in the order of transformers' `group_by_length`.

    With as few rows as here it sorts the rows of a step and no more.
    """
    order = order or work.order
    collate: Any
    if work.kind == "pretrain":
        found, collate = rows.blocks(work), default_data_collator
    elif work.kind == "dpo":
        found, collate = rows.preferences(work), collate_pairs
    else:
        found = rows.summaries(work) if work.kind == "seq2seq" else rows.supervised(work)
        collate = DataCollatorForSeq2Seq(rows.tokenizer(), model=model)
    places = torch.randperm(len(found), generator=torch.Generator().manual_seed(SEED)).tolist()
    if order == "sequential":
        places = list(range(len(found)))
    whole, size = work.examples_per_step, work.examples_per_step // parts
    collate = meter.counted(collate)
    for start in range(0, work.steps * whole, whole):
        step = places[start : start + whole]
        if order != "sequential" and work.kind != "pretrain":
            step.sort(key=lambda place: -len(found[place]["input_ids"]))
        batches = (step[at : at + size] for at in range(0, whole, size))
        yield [dict(collate([found[place] for place in batch])) for batch in batches]


def run(contestant: str, work: Work, started: float, order: str | None = None) -> dict[str, Any]:
    """Train a work and return what the meter saw, with what shows that it was the same work."""
    meter = Meter(started or time.time())
    if contestant == "bare":
        model, parts = bare(work, meter, order)
    else:
        model, parts = train(contestant, work, meter, order)
    return meter.result(parts, **_facts(model))


def _facts(model: Any) -> dict[str, Any]:
    with torch.device("meta"):  # 4-bit storage hides the true number of weights
        kind = type(groups.without_shell(model))
        whole = kind._from_config(model.config).num_parameters()
    return {"trainable_parameters": training.trainable_weights(model), "parameters": whole}
