"""Memory and minutes of a training, predicted before a model is loaded.

One micro-batch is traced on tensors that have a shape and no content, so nothing is computed. What
it keeps for its backward pass, and its operations, are counted then: for this very model, attention
and precision.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from statistics import mean
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from datasets import Dataset
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.integrations import moe  # noqa: F401  (defines torch.ops.transformers)

from cookbook.chat import IGNORED
from cookbook.cpu import attention, can_share_prompts, prepare
from cookbook.experts import active_weights, quantize
from cookbook.memory import GIB, free_bytes, peak_memory_bytes
from cookbook.profiles import CookbookError
from cookbook.training import step_of, train_in_float32

# NF4 with double quantization: 4 bits a weight, and 0.127 bits for the two levels of scales
# (QLoRA, section 3: https://arxiv.org/abs/2305.14314).
NF4_BITS = 4.127
# What is held for a byte of activations: room for what a layer computes on the way, and holes
# between tensors of ever other sizes. glibc's malloc, kept from returning memory: 1.6 to 2.2,
# measured with the recipes. CUDA's caching allocator: PyTorch's notes on memory management.
ALLOCATOR = {"cpu": 1.85, "cuda": 1.15}
# Seconds of a training step over those of its parts, timed alone: data, logging, what the parts
# push out of each other's caches. Recorded: a run under results/recipes holds both.
BESIDE_PARTS = 1.3
_TIMED_LAYERS = (5, 2, 1)  # of a model, timed instead of all; fewer where they are large
_LONGEST_STEP = 6.0  # seconds that one step of them may take, about
_USUAL_SHARE = 0.35  # of a large product's rate, where not even one layer can be timed


def _grouped(left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Return the operations of a product whose rows are dealt to experts: each row is in one."""
    return 2 * int(left[-2]) * int(left[-1]) * int(right[-1])


def _grouped_backward(left: Any, right: Any, *given: Any, **named: Any) -> int:
    """Return those of both of its gradients; `left` and `right` are the product's factors."""
    return 2 * _grouped(left, right)


# What torch's counter does not know: the products of transformers' experts, and of those on cards
# before compute capability 8.0.
OF_EXPERTS = {
    torch.ops.aten._grouped_mm: _grouped,
    torch.ops.transformers.grouped_mm_fallback: _grouped,
    torch.ops.transformers.grouped_mm_fallback_backward: _grouped_backward,
}


@dataclass(frozen=True)
class Shape:
    """A micro-batch: `rows` of `length` tokens, the last `outputs` of which get logits.

    Of an encoder-decoder, `length` and `outputs` are those of the encoder and the decoder. With
    `answers` above 1 each row is a prompt, read once, and `outputs` the length of each answer.
    """

    rows: int
    length: int
    outputs: int
    answers: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs, part by part."""

    process: float  # what is there before: Python, libraries, data, other models
    base_weights: float
    adapter_weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float  # of the last layer and the loss, with their gradients

    @property
    def total(self) -> float:
        """All parts together, in bytes."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Plan:
    """A prediction; `print` shows it."""

    memory: Memory
    operations: float  # of the whole training
    rate: float  # operations a second that training reaches, here
    weights: int = 0  # of the model, without adapters
    active: int = 0  # those that a token goes through: fewer where there are experts

    @property
    def seconds(self) -> float:
        """Seconds from the first training step to the last."""
        return self.operations / self.rate

    def __str__(self) -> str:
        rows = [
            f"{field.name.replace('_', ' '):<16} {getattr(self.memory, field.name) / GIB:6.2f} GiB"
            for field in fields(Memory)
        ]
        rows.append(f"{'total':<16} {self.memory.total / GIB:6.2f} GiB")
        if self.active != self.weights:
            rows.append(f"{self.weights:,} weights held, {self.active:,} active for a token")
        rows.append(
            f"{self.seconds / 60:.1f} minutes: {self.operations:.2e} operations, "
            f"{self.rate:.2e} a second"
        )
        return "\n".join(rows)

    def compared(
        self, trainer: Trainer, resumed_from: str | None = None
    ) -> dict[str, dict[str, float]]:
        """Show the prediction beside what was measured, and return both for `write_metrics`.

        Call it after `trainer.train()`, with `memory.reset_peak()` before that. `resumed_from` is
        the checkpoint that training went on from: what came before it took no time today.
        """
        today = 1 - step_of(resumed_from) / trainer.state.global_step
        seconds = float(trainer.state.log_history[-1]["train_runtime"])
        peak = {"planned": self.memory.total, "measured": float(peak_memory_bytes())}
        times = {"planned": today * self.seconds, "measured": seconds}
        found = {"seconds": times, "peak_memory_bytes": peak}
        for name, unit, size in (("seconds", "minutes", 60), ("peak_memory_bytes", "GiB", GIB)):
            planned, seen = found[name].values()
            print(
                f"{unit}: {planned / size:.2f} planned, {seen / size:.2f} measured "
                f"({planned / seen - 1:+.0%})"
            )
        return found


def plan_training(
    model_config: PretrainedConfig,
    settings: SimpleNamespace,
    longest: Shape,
    typical: Shape,
    *,
    dtype: torch.dtype,
    lora: Any = None,
    load_in_4bit: bool = False,
    base_dtype: torch.dtype | None = None,
    passes: float = 1.0,
    beside: float = 0.0,
    eager: bool = True,
) -> Plan:
    """Predict the memory of a step over `longest` and the time of `max_steps` over `typical`.

    `settings` is the notebook's `config`. Minutes are what a few of the model's layers, with random
    weights, take on this machine now, for as many operations as all have. `dtype` is what the
    device computes in under autocast; a frozen base is held in it too, or in `base_dtype`. What is
    trained is float32. `passes` multiplies the operations, for what a method does beside training
    passes. `beside` is what another model takes, in bytes, that will be held meanwhile. `eager` is
    as in `cpu.prepare`.
    """
    held = torch.float32 if lora is None else base_dtype or dtype
    models = [_without_content(model_config, held, lora, n, eager) for n in (None, 1, 2)]
    checkpointing = bool(getattr(settings, "activation_checkpointing", False))
    kept, logits, operations = _needs(models, longest, dtype, checkpointing)
    if typical != longest:
        *_, operations = _needs(models, typical, dtype, checkpointing)
    model = models[0]
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    sizes = (one.numel() * one.element_size() for one in model.parameters())
    frozen = float(sum(sizes)) - 4 * trained
    if load_in_4bit:
        frozen = _in_4_bits(model, frozen)
    active, weights = active_weights(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    process = beside + (device == "cpu") * float(psutil.Process().memory_info().rss)
    micro_batches = settings.gradient_accumulation_steps
    setup = _Setup(model_config, held, lora, eager, load_in_4bit, dtype)
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices):  # what is drawn later does not depend on a plan
        step, update = _seconds(setup, typical, operations, trained)
    seconds = BESIDE_PARTS * (passes * micro_batches * step + update)
    operations *= passes * micro_batches
    return Plan(
        Memory(
            process=process,
            base_weights=4.0 * trained if lora is None else frozen,
            adapter_weights=0.0 if lora is None else 4.0 * trained,
            gradients=4.0 * trained,
            optimizer=8.0 * trained,
            activations=ALLOCATOR[device] * kept,
            logits=logits,
        ),
        operations=settings.max_steps * operations,
        rate=operations / seconds,
        weights=weights,
        active=active,
    )


def shapes(
    rows: Dataset, settings: SimpleNamespace, *, grouped: bool, all_outputs: bool = False
) -> tuple[Shape, Shape]:
    """Return the longest and the typical micro-batch of tokenized rows.

    `grouped` tells whether batches are made of rows of like length. Logits are counted where labels
    are, or everywhere with `all_outputs`. The longest has the most labels of any batch, too.
    """
    counts = [
        (len(ids), sum(one != IGNORED for one in labels))
        for ids, labels in zip(rows["input_ids"], rows["labels"])
    ]
    size = min(settings.per_device_train_batch_size, len(counts))
    if grouped:
        counts = sorted(counts)
    batches = [counts[at : at + size] for at in range(0, len(counts) - size + 1, size)]
    lengths = [max(length for length, _ in batch) for batch in batches]
    labelled = [mean(count for _, count in batch) for batch in batches]
    if all_outputs:
        labelled = [float(length) for length in lengths]
    return (
        Shape(size, max(lengths), round(max(labelled))),
        Shape(size, round(mean(lengths)), round(mean(labelled))),
    )


def answer_shapes(
    prompts: Iterable[list[dict[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
    settings: SimpleNamespace,
) -> tuple[Shape, Shape]:
    """Return the longest and the typical micro-batch of GRPO, if answers grow as long as they may.

    A prompt is read once for its whole group where `cpu.share_prompts` sees to it, or else with
    every answer.
    """
    template: Any = tokenizer.apply_chat_template
    lengths = [len(template(p, add_generation_prompt=True, return_dict=False)) for p in prompts]
    answers, new = settings.per_device_train_batch_size, settings.max_completion_length
    group = settings.num_generations
    shared = can_share_prompts(model_config, settings.activation_checkpointing)

    def shape(length: int) -> Shape:
        if shared:
            return Shape(answers // group, length, new, answers=group)
        return Shape(answers, length + new, new)

    return shape(max(lengths)), shape(sum(lengths) // len(lengths))


def matmul_rate(dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Return the operations a second of a large matrix product on this machine's fastest device.

    The best of ten measurements of `seconds` each: what else runs can only slow one down. Where the
    device emulates the type, a large product takes minutes, and a small one is measured.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 1536
    factors = torch.ones(2, size, size, dtype=dtype, device=device)

    def multiply(size: int, count: int) -> float:
        left, right = factors[:, :size, :size].contiguous()
        begin = time.perf_counter()
        for _ in range(count):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count

    small = size // 8
    if min(multiply(small, 1) for _ in range(3)) * 8**3 > 5 * seconds:
        size = small
    once = min(multiply(size, 1) for _ in range(3))
    count = max(1, round(seconds / once))
    return 2.0 * size**3 / min(multiply(size, count) for _ in range(10))


@dataclass(frozen=True)
class _Setup:
    """How a model is trained: what `plan_training` was asked for."""

    config: PretrainedConfig
    held: torch.dtype
    lora: Any
    eager: bool
    load_in_4bit: bool
    dtype: torch.dtype


def _seconds(setup: _Setup, shape: Shape, operations: float, trained: int) -> tuple[float, float]:
    """Return the seconds of a micro-batch of that many `operations`, and those of an update of
    `trained` weights.

    One layer and a few are timed, which tells what each further one adds.
    """
    rate = _USUAL_SHARE * matmul_rate(setup.dtype)
    few = _timed(setup, 1, shape, rate)
    if few is None:
        return operations / rate, 0.0
    layers = int(setup.config.get_text_config().num_hidden_layers)
    counts = [count for count in _TIMED_LAYERS if count <= layers]
    more = next(filter(None, (_timed(setup, count, shape, rate) for count in counts)))
    slope = few.step / few.operations
    if more.operations > few.operations:
        slope = max(0.0, more.step - few.step) / (more.operations - few.operations)
    step = few.step + (operations - few.operations) * slope
    return step, more.update * trained / more.trained


@dataclass(frozen=True)
class _Timed:
    """What a part of a model took, in seconds, for its operations and its trained weights."""

    operations: float
    step: float
    update: float
    trained: int


def _timed(setup: _Setup, layers: int, shape: Shape, rate: float) -> _Timed | None:
    """Train the first `layers` on random tokens for some steps; None where they are too large."""
    outline = _without_content(setup.config, setup.held, setup.lora, layers, setup.eager)
    _, _, operations, _ = _trace(outline, shape, setup.dtype)
    size = sum(one.numel() * one.element_size() for one in outline.parameters())
    if operations > rate * _LONGEST_STEP or size > free_bytes() / 4:
        return None
    model = _with_content(setup, layers)
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, fused=True)

    def step() -> None:
        _step(model, shape, setup.dtype)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return _Timed(operations, _best(step), _best(update), sum(one.numel() for one in weights))


def _best(function: Callable[[], None], times: int = 4) -> float:
    """Return the seconds of the fastest of several calls, after one that does not count."""
    found = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def _step(model: PreTrainedModel, shape: Shape, dtype: torch.dtype) -> None:
    """Run a micro-batch forward and backward, as a trainer does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext()
    with autocast, _lean(model):
        logits = _forward(model, shape, device)
        targets = torch.zeros(len(logits), dtype=torch.long, device=device)
        loss = functional.cross_entropy(logits.float(), targets)
    loss.backward()


def _with_content(setup: _Setup, layers: int) -> PreTrainedModel:
    """Return the model's first `layers` with random weights, ready to be trained."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = _family(setup.config).from_config(_first(setup.config, layers), dtype=setup.held)
    if setup.load_in_4bit:
        quantize(model, setup.dtype)
    prepare(model, eager=setup.eager, keep_memory=False)
    return _adapted(model, setup.lora)


def _without_content(
    model_config: PretrainedConfig,
    dtype: torch.dtype,
    lora: Any,
    layers: int | None,
    eager: bool,
) -> PreTrainedModel:
    """Return the model as it will be trained, or its first `layers`, with shapes for weights."""
    with torch.device("meta"):
        model = _family(model_config).from_config(
            _first(model_config, layers),
            dtype=dtype,
            attn_implementation=attention() if eager else None,
        )
        return _adapted(model, lora)


def _family(config: PretrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _first(model_config: PretrainedConfig, layers: int | None) -> PretrainedConfig:
    """Return the configuration of a model of text, or of its first `layers`."""
    pairs = model_config.is_encoder_decoder
    config = copy.deepcopy(model_config if pairs else model_config.get_text_config())
    if layers:
        config.num_hidden_layers = layers
        for kinds in ("layer_types", "mlp_layer_types"):
            if vars(config).get(kinds):  # some compute it: Jamba
                setattr(config, kinds, getattr(config, kinds)[:layers])
    return config


def _adapted(model: PreTrainedModel, lora: Any) -> PreTrainedModel:
    """Return the model in training mode, with adapters in float32 where it gets some."""
    if lora is not None:
        from peft import get_peft_model

        # peft writes the names of the layers it finds into the configuration it is given
        wrapped: Any = get_peft_model(model, copy.deepcopy(lora))
        train_in_float32(wrapped)
        model = wrapped
    model.train()
    return model


def _in_4_bits(model: PreTrainedModel, frozen: float) -> float:
    """Return the bytes of frozen weights with linear layers in NF4; the head stays as it is."""
    head = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            weight = layer.weight
            if not weight.requires_grad:
                frozen += weight.numel() * (NF4_BITS / 8 - weight.element_size())
    return frozen


def _needs(
    models: list[PreTrainedModel], shape: Shape, dtype: torch.dtype, checkpointing: bool
) -> tuple[float, float, float]:
    """Return what a micro-batch takes: bytes kept for the backward pass, bytes of the logits, and
    operations.

    `models` are the model, and its first and first two layers. Tracing a layer takes a tenth of a
    second; where all are alike, the few tell what each further one adds.
    """
    text = models[0].config.get_text_config()
    layers, width = int(text.num_hidden_layers), text.hidden_size

    def of_all(one: float, two: float) -> float:
        return one + (layers - 1) * (two - one)

    whole, *few = (sum(weight.numel() for weight in one.parameters()) for one in models)
    one_kind = len(set(getattr(text, "layer_types", None) or [""])) == 1
    if layers > 2 and one_kind and whole == of_all(*few):
        found = tuple(map(of_all, *(_trace(model, shape, dtype) for model in models[1:])))
    else:
        found = _trace(models[0], shape, dtype)
    total, of_loss, operations, forward = found
    if checkpointing:  # each layer keeps its input, and one at a time computes the rest again
        inputs = shape.rows * shape.length * width * (4 if dtype == torch.float32 else 2)
        return inputs * layers + total / layers, of_loss, operations + forward
    return total, of_loss, operations


def _trace(model: PreTrainedModel, shape: Shape, dtype: torch.dtype) -> tuple[float, ...]:
    """Return the bytes that a micro-batch keeps, those of its logits, and its operations: all, and
    those of the forward pass.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kept: dict[int, tuple[int, torch.UntypedStorage]] = {}  # held, so that no address occurs twice
    with FakeTensorMode(allow_non_fake_inputs=True), _placed(model, device) as weights:

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes(), storage
            return tensor

        autocast = torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with FlopCounterMode(display=False, custom_mapping=OF_EXPERTS) as counter:
            with hooks, autocast, _lean(model), _content_missed(model):
                logits = _forward(model, shape, device)
            total = float(sum(size for size, _ in kept.values()))
            targets = torch.zeros(len(logits), dtype=torch.long, device=device)
            loss = functional.cross_entropy(logits.float(), targets)
            forward = counter.get_total_flops()
            loss.backward()
        operations = float(counter.get_total_flops())
    # The logits and their gradient as computed, their softmax and its gradient in float32.
    of_loss = float(logits.numel() * 2 * (4 + logits.element_size()))
    return total, of_loss, operations, float(forward)


def _forward(model: PreTrainedModel, shape: Shape, device: str) -> torch.Tensor:
    """Return the logits of a micro-batch: (rows * outputs, vocabulary)."""

    def tokens(rows: int, length: int) -> torch.Tensor:
        return torch.ones(rows, length, dtype=torch.long, device=device)

    call: Any = model
    ids = tokens(shape.rows, shape.length)
    head: Any = model.get_output_embeddings()

    def at_outputs(_: Any, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (hidden[0][:, -shape.outputs :].flatten(0, 1),)  # as `training.output_layer_at`

    hook = head.register_forward_pre_hook(at_outputs)
    try:
        if model.config.is_encoder_decoder:
            target = tokens(shape.rows, shape.outputs)
            result = call(input_ids=ids, attention_mask=ids, decoder_input_ids=target)
        elif shape.answers == 1:
            result = call(input_ids=ids, attention_mask=ids, use_cache=False)
        else:
            read = call(input_ids=ids, attention_mask=ids, use_cache=True)
            read.past_key_values.batch_repeat_interleave(shape.answers)
            answers = tokens(shape.rows * shape.answers, shape.outputs)
            whole = tokens(len(answers), shape.length + shape.outputs)
            cache = read.past_key_values
            result = call(input_ids=answers, attention_mask=whole, past_key_values=cache)
        logits: torch.Tensor = result.logits
        return logits
    finally:
        hook.remove()


@contextmanager
def _content_missed(model: PreTrainedModel) -> Iterator[None]:
    """Say so where a forward pass wants to know what its tensors hold."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise CookbookError(
            f"A {model.config.model_type} model cannot be planned: transformers runs its experts "
            "in a way that depends on the values in tensors, and a plan has shapes alone. Set "
            "COOKBOOK_MODEL to a model whose experts it runs together, like Qwen3-MoE or Mixtral."
        ) from error


@contextmanager
def _lean(model: PreTrainedModel) -> Iterator[None]:
    """Leave casts to autocast, as the recipes' training cells do with adapters."""
    if hasattr(model, "peft_config"):
        from peft.helpers import disable_input_dtype_casting

        with disable_input_dtype_casting(model):
            yield
    else:
        yield


@contextmanager
def _placed(model: PreTrainedModel, device: str) -> Iterator[set[int]]:
    """Give weights and buffers a device, still without content; yield their storages."""
    fake: dict[int, Any] = {}
    before = []
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, value in list(table.items()):
                if value is None:
                    continue
                before.append((table, name, value))
                if id(value) not in fake:
                    empty = torch.empty(value.shape, dtype=value.dtype, device=device)
                    if isinstance(value, torch.nn.Parameter):
                        empty = torch.nn.Parameter(empty, requires_grad=value.requires_grad)
                    fake[id(value)] = empty
                table[name] = fake[id(value)]
    try:
        yield {value.untyped_storage()._cdata for value in fake.values()}
    finally:
        for table, name, value in before:
            table[name] = value
