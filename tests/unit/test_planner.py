"""The planner's counts against models that are really built and really run."""

import copy
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GraniteMoeConfig,
    JambaConfig,
    JetMoeConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
)
from transformers.integrations import moe

from cookbook import experts, planner, training
from cookbook.chat import IGNORED
from cookbook.memory import GIB
from cookbook.planner import Shape
from cookbook.profiles import CookbookError
from tests.unit import tiny

pytestmark = pytest.mark.unit

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 16}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL, **GROUPED),
    "falcon": FalconConfig(**SMALL, multi_query=True),
    "opt": OPTConfig(**SMALL, ffn_dim=96, word_embed_proj_dim=64, dropout=0.0),
    "gemma3": Gemma3TextConfig(**SMALL, **GROUPED),
    "qwen3": Qwen3Config(**SMALL, **GROUPED),
    "gemma3, two kinds of layers": Gemma3TextConfig(
        **SMALL,
        **GROUPED,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=64, n_head=4, n_layer=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    "t5": T5Config(
        vocab_size=64, d_model=64, d_kv=16, d_ff=96, num_heads=4, num_layers=4, dropout_rate=0.0
    ),
}
EXPERTS: dict[str, Any] = {**SMALL, **GROUPED, "num_experts_per_tok": 2}
WITH_EXPERTS: dict[str, PretrainedConfig] = {
    "qwen3-moe": Qwen3MoeConfig(**EXPERTS, num_experts=8, moe_intermediate_size=32),
    "mixtral": MixtralConfig(**EXPERTS, num_local_experts=8),
    "granitemoe": GraniteMoeConfig(**EXPERTS, num_local_experts=8),
    "qwen2-moe, a shared expert and a dense layer": Qwen2MoeConfig(
        **EXPERTS,
        num_experts=8,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
        mlp_only_layers=[0],
    ),
}
MEASURED_RATE = planner.matmul_rate
SECONDS = planner._seconds  # before the fixture below takes its place
RATE = 3e10
SETTINGS = SimpleNamespace(
    max_steps=10,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    activation_checkpointing=False,
)
SHAPE = Shape(rows=4, length=24, outputs=5)
LORA = LoraConfig(r=4, target_modules="all-linear")
NF4: dict[str, Any] = {"dtype": torch.bfloat16, "load_in_4bit": True}


@pytest.fixture(autouse=True)
def some_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured takes seconds for each plan."""
    monkeypatch.setattr(planner, "_seconds", lambda _, __, operations, ___: (operations / RATE, 0))


def plan(config: PretrainedConfig, shape: Shape = SHAPE, **changes: Any) -> planner.Plan:
    settings = SimpleNamespace(**vars(SETTINGS) | changes.pop("settings", {}))
    given: dict[str, Any] = {"dtype": torch.float32} | changes
    return planner.plan_training(config, settings, shape, shape, **given)


def really(
    config: PretrainedConfig, lora: LoraConfig | None, dtype: torch.dtype, one_by_one: bool = False
) -> tuple[int, int]:
    """Run a micro-batch of `SHAPE` and return the bytes it kept and its operations.

    `one_by_one` runs each expert by itself, in products that torch's counter knows.
    """
    if one_by_one:
        config = copy.deepcopy(config)
        config._experts_implementation = "eager"
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    held = dtype if lora else torch.float32
    model: Any = kind.from_config(config, dtype=held, attn_implementation="eager").train()
    if lora:
        model = get_peft_model(model, lora)
        training.train_in_float32(model)
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    weights |= {one.untyped_storage().data_ptr() for one in model.buffers()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.ones(SHAPE.rows, SHAPE.length, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": ids, "use_cache": False}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, : SHAPE.outputs]
    autocast = torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
    lean = disable_input_dtype_casting(model) if lora else nullcontext()
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, hidden: (hidden[0][:, -SHAPE.outputs :],)
    )
    with FlopCounterMode(display=False) as counter:
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, autocast, lean:
            logits = model(**inputs).logits.flatten(0, 1)
        targets = torch.zeros(len(logits), dtype=torch.long)
        loss = functional.cross_entropy(logits.float(), targets)
        loss.backward()
    return sum(one.nbytes() for one in kept.values()), counter.get_total_flops()


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_a_step_keeps_and_computes(dtype: torch.dtype, family: str, adapted: bool) -> None:
    if dtype == torch.float32 and family != "llama":
        pytest.skip("one family is enough to see that nothing is cast")
    lora = LoraConfig(r=4, target_modules="all-linear") if adapted else None
    found = plan(FAMILIES[family], lora=lora, dtype=dtype)
    assert lora is None or lora.target_modules == "all-linear", "the plan changed what it was given"
    kept, operations = really(FAMILIES[family], lora, dtype)
    activations = found.memory.activations / planner.ALLOCATOR["cpu"]
    assert activations == pytest.approx(kept, rel=0.02)
    assert found.operations == 10 * 2 * operations


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", WITH_EXPERTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_a_step_keeps_and_computes_with_experts(
    dtype: torch.dtype, family: str, adapted: bool
) -> None:
    if dtype == torch.float32 and family != "qwen3-moe":
        pytest.skip("one family is enough to see that nothing is cast")
    config = WITH_EXPERTS[family]
    lora = LoraConfig(r=4, **experts.lora_targets(config)) if adapted else None
    found = plan(config, lora=lora, dtype=dtype)
    kept, _ = really(config, lora, dtype)
    assert found.memory.activations / planner.ALLOCATOR["cpu"] == pytest.approx(kept, rel=0.02)
    _, operations = really(config, lora, dtype, one_by_one=True)
    assert found.operations == 10 * 2 * operations


def test_more_experts_take_memory_and_no_time() -> None:
    """Of a router's work alone there is more: it gives each expert a score."""
    few, many = (
        plan(Qwen3MoeConfig(**EXPERTS, num_experts=count, moe_intermediate_size=256))
        for count in (8, 32)
    )
    tensors = 4 * 3 * 64 * 256  # of one expert in each of four layers
    assert many.memory.base_weights - few.memory.base_weights == 4 * 24 * (tensors + 4 * 64)
    assert many.operations == pytest.approx(few.operations, rel=0.02)
    assert few.weights - few.active == 6 * tensors
    assert many.weights - many.active == 30 * tensors


def test_experts_are_held_in_16_bits_where_the_rest_is_in_4() -> None:
    config = WITH_EXPERTS["qwen3-moe"]
    lora = LoraConfig(r=4, **experts.lora_targets(config))
    found = plan(config, lora=lora, **NF4).memory.base_weights
    attention = 4 * (2 * 64 * 64 + 2 * 64 * 32)
    whole = AutoModelForCausalLM.from_config(config).num_parameters()
    assert found == pytest.approx(attention * planner.NF4_BITS / 8 + 2 * (whole - attention))


def test_the_plan_says_held_and_active_weights_where_they_differ() -> None:
    config = WITH_EXPERTS["qwen3-moe"]
    whole = AutoModelForCausalLM.from_config(config).num_parameters()
    active = whole - 4 * 6 * 3 * 64 * 32
    for lora in (None, LoraConfig(r=4, **experts.lora_targets(config))):
        found = plan(config, lora=lora)
        assert f"\n{whole:,} weights held, {active:,} active for a token\n" in str(found)
    dense = plan(FAMILIES["llama"])
    assert dense.weights == dense.active and "held" not in str(dense)


def test_the_products_of_older_cards_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There transformers has a product of its own, of which torch's counter knows nothing."""
    usual = plan(WITH_EXPERTS["mixtral"]).operations
    monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda *_: False)
    assert plan(WITH_EXPERTS["mixtral"]).operations == usual


def test_experts_among_layers_without_attention_are_planned() -> None:
    config = JambaConfig(**EXPERTS, num_experts=8, mamba_dt_rank=4, use_mamba_kernels=False)
    found = plan(config)
    assert found.weights - found.active == 2 * 6 * 3 * 64 * 96  # experts are in every other layer


def test_experts_that_run_by_content_are_refused() -> None:
    config = JetMoeConfig(**SMALL, num_key_value_heads=4, kv_channels=16, num_local_experts=4)
    with pytest.raises(CookbookError, match="A jetmoe model cannot be planned"):
        plan(config)


def test_layers_that_differ_are_all_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers that are alike two are: what a further one adds is known then, for any number."""
    traced = []
    trace = planner._trace

    def watched(model: Any, *given: Any) -> tuple[float, ...]:
        traced.append(model.config.get_text_config().num_hidden_layers)
        return trace(model, *given)

    monkeypatch.setattr(planner, "_trace", watched)
    plan(FAMILIES["llama"])
    plan(FAMILIES["gemma3, two kinds of layers"])
    assert traced == [1, 2, 4]


def test_full_fine_tuning_holds_sixteen_bytes_a_weight() -> None:
    count = AutoModelForCausalLM.from_config(FAMILIES["llama"]).num_parameters()
    memory = plan(FAMILIES["llama"], dtype=torch.bfloat16).memory
    assert (memory.base_weights, memory.gradients, memory.optimizer) == (
        4 * count,
        4 * count,
        8 * count,
    )
    assert memory.adapter_weights == 0


def test_adapters_alone_have_gradients_and_optimizer_states() -> None:
    base = AutoModelForCausalLM.from_config(FAMILIES["llama"])
    count = base.num_parameters()
    adapters = training.trainable_weights(get_peft_model(base, copy.deepcopy(LORA)))
    memory = plan(FAMILIES["llama"], dtype=torch.bfloat16, lora=LORA).memory
    assert memory.base_weights == 2 * count
    assert memory.adapter_weights == memory.gradients == memory.optimizer / 2 == 4 * adapters
    wide = plan(FAMILIES["llama"], dtype=torch.bfloat16, lora=LORA, base_dtype=torch.float32)
    assert wide.memory.base_weights == 4 * count


FALCON_7B = FalconConfig(
    vocab_size=65024, hidden_size=4544, num_attention_heads=71, num_hidden_layers=32
)
ONE_CARD = Shape(rows=2, length=512, outputs=64)


def test_falcon_7b_in_4_bits_is_planned_without_its_memory() -> None:
    before = psutil.Process().memory_info().rss
    found = plan(
        FALCON_7B, ONE_CARD, lora=LORA, settings={"activation_checkpointing": True}, **NF4
    ).memory
    assert psutil.Process().memory_info().rss - before < GIB, "7B in 16 bits would be 14 GB"
    assert 3.5 * GIB < found.base_weights < 5 * GIB
    assert found.total - found.process < 15 * GIB


def test_checkpointing_saves_activations_and_costs_a_forward_pass() -> None:
    on, off = (
        plan(FALCON_7B, ONE_CARD, lora=LORA, settings={"activation_checkpointing": one}, **NF4)
        for one in (True, False)
    )
    assert on.memory.activations < off.memory.activations / 8
    assert on.memory.optimizer == off.memory.optimizer
    assert 1.3 < on.operations / off.operations < 1.6


def test_answers_share_their_prompt() -> None:
    apart = plan(FAMILIES["llama"], Shape(rows=32, length=46, outputs=6))
    shared = plan(FAMILIES["llama"], Shape(rows=4, length=40, outputs=6, answers=8))
    assert shared.operations < 0.35 * apart.operations
    assert shared.memory.activations < 0.5 * apart.memory.activations


def test_time_is_operations_over_what_the_machine_reaches() -> None:
    one, two = (plan(FAMILIES["llama"], settings={"max_steps": steps}) for steps in (10, 20))
    assert two.operations == 2 * one.operations
    assert one.seconds == pytest.approx(planner.BESIDE_PARTS * one.operations / RATE)
    assert plan(FAMILIES["llama"], passes=1.5).operations == 1.5 * one.operations
    assert "total" in str(one) and "minutes" in str(one)


def _setup(config: PretrainedConfig, **changes: Any) -> planner._Setup:
    usual = {"held": torch.float32, "lora": None, "load_in_4bit": False, "dtype": torch.float32}
    return planner._Setup(config, eager=True, **usual | changes)


def test_what_each_further_layer_adds_tells_what_all_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of 2 s and 10 operations beside what takes 3 s and 30; an update of 1 s a layer."""
    monkeypatch.setattr(planner, "matmul_rate", lambda _: 1.0)
    monkeypatch.setattr(
        planner,
        "_timed",
        lambda _, n, *__: planner._Timed(30.0 + 10 * n, 3.0 + 2 * n, 0.1 * n, 100 * n),
    )
    setup = _setup(LlamaConfig(num_hidden_layers=20))
    assert SECONDS(setup, SHAPE, 30.0 + 200, 2000) == pytest.approx((43.0, 2.0))


def test_layers_that_are_too_large_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "matmul_rate", lambda _: 1e6)
    setup = _setup(FAMILIES["llama"])
    assert planner._timed(setup, 1, SHAPE, 1e6) is None
    assert SECONDS(setup, SHAPE, 7e5, 1) == pytest.approx((2.0, 0.0)), "at the usual share"
    monkeypatch.setattr(planner, "free_bytes", lambda: 1000)
    assert planner._timed(setup, 1, SHAPE, 1e15) is None


@pytest.mark.parametrize("name", ["llama", "t5", "falcon in 4 bits"])
def test_a_few_layers_are_really_trained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    step = planner._step

    def watched(model: Any, *given: Any) -> None:
        step(model, *given)
        trained.append(model)

    monkeypatch.setattr(planner, "_step", watched)
    family = name.partition(" ")[0]
    small = name.endswith("bits")
    changes = {
        "lora": LORA,
        "load_in_4bit": True,
        **dict.fromkeys(("held", "dtype"), torch.bfloat16),
    }
    setup = _setup(FAMILIES[family], **(changes if small else {}))
    found = planner._timed(setup, 1, SHAPE, 1e12)
    assert found is not None and min(found.step, found.update) > 0
    weights = {name: one for name, one in trained[-1].named_parameters() if one.requires_grad}
    assert found.trained == sum(one.numel() for one in weights.values())
    assert all(one.grad is not None for one in weights.values())
    assert bool(small) is any(type(one).__name__ == "Linear4bit" for one in trained[-1].modules())
    assert all("lora" in one for one in weights) or not small


def test_the_matrix_rate_is_this_machines() -> None:
    left = torch.ones(512, 512)
    count = 50
    begin = time.perf_counter()
    for _ in range(count):
        left @ left
    rate = count * 2 * 512**3 / (time.perf_counter() - begin)
    assert 0.1 < MEASURED_RATE(torch.float32, 0.1) / rate < 10


class Emulating(TorchDispatchMode):
    """A clock that a slow device would show: each matrix product advances it, nothing else does."""

    def __init__(self, rate: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rate, self.now = rate, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.mm.default:
            self.now += 2.0 * args[0].numel() * args[1].shape[1] / self.rate
            return args[0]
        return func(*args, **(kwargs or {}))


# A product of 1,536 rows takes 0.01 s, 0.2 s, 0.5 s, 7 s and 36 s.
@pytest.mark.parametrize("rate", [7e11, 3.5e10, 1.5e10, 1e9, 2e8])
def test_the_matrix_rate_is_measured_in_seconds_also_where_it_is_low(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Emulating(rate) as clock:
        monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert MEASURED_RATE(torch.float32) == pytest.approx(rate)
    assert clock.now < 7


def _rows(lengths: list[int], labelled: int = 2) -> Dataset:
    ids = [[7] * length for length in lengths]
    labels = [[IGNORED] * (length - labelled) + [7] * labelled for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def test_shapes_are_those_of_the_batches() -> None:
    rows = _rows([10, 30, 10, 30, 10, 30, 10, 30])
    longest, typical = planner.shapes(rows, SETTINGS, grouped=True)
    assert longest == Shape(rows=4, length=30, outputs=2)
    assert typical == Shape(rows=4, length=20, outputs=2)
    assert planner.shapes(rows, SETTINGS, grouped=False)[1].length == 30, "each batch has a 30"
    assert planner.shapes(rows, SETTINGS, grouped=True, all_outputs=True)[1].outputs == 20
    assert planner.shapes(_rows([5, 9]), SETTINGS, grouped=True)[0] == Shape(2, 9, 2)


def test_a_group_of_answers_reads_its_prompt_once_on_a_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [[{"role": "user", "content": " ".join(["w1"] * n)}] for n in (4, 9, 6)]
    settings = SimpleNamespace(
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=5,
        activation_checkpointing=False,
    )
    monkeypatch.delenv("COOKBOOK_PROFILE", raising=False)
    given = (prompts, tiny.tokenizer(), FAMILIES["llama"], settings)
    longest, typical = planner.answer_shapes(*given)
    assert (longest.rows, longest.outputs, longest.answers) == (2, 5, 8)
    assert (longest.length - typical.length, typical.rows) == (9 - 6, 2)
    monkeypatch.setenv("COOKBOOK_PROFILE", "gpu16")
    assert planner.answer_shapes(*given)[0] == Shape(16, longest.length + 5, 5)


def test_a_plan_draws_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of what it times are random."""
    monkeypatch.setattr(planner, "_seconds", lambda *_: (float(torch.rand(1)), 0.0))
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    plan(FAMILIES["llama"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_longest_batch_has_the_most_labels() -> None:
    rows = concatenate_datasets([_rows([10] * 4), _rows([10] * 4, labelled=8)])
    longest, typical = planner.shapes(rows, SETTINGS, grouped=False)
    assert (longest.outputs, typical.outputs) == (8, 5)


def test_logits_and_their_gradients_are_counted() -> None:
    few, many = (plan(FAMILIES["llama"], Shape(4, 24, outputs)).memory for outputs in (5, 10))
    elements = 4 * 5 * FAMILIES["llama"].vocab_size
    assert few.logits == 2 * (4 + 4) * elements, "logits and softmax, each with its gradient"
    assert many.logits == 2 * few.logits
    assert many.activations < 1.1 * few.activations


def test_the_plan_is_shown_beside_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    memory = planner.Memory(GIB, GIB, 0, 0, 0, 0, 0)
    prediction = planner.Plan(memory, operations=6e12, rate=5e10)
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(global_step=40, log_history=[{"train_runtime": 100.0}])
    )
    found = prediction.compared(trainer)
    assert found["seconds"] == {"planned": 120.0, "measured": 100.0}
    assert found["peak_memory_bytes"]["planned"] == 2 * GIB
    assert found["peak_memory_bytes"]["measured"] > 0
    assert "minutes: 2.00 planned, 1.67 measured (+20%)" in capsys.readouterr().out
    resumed = prediction.compared(trainer, "runs/checkpoints/checkpoint-30")
    assert resumed["seconds"]["planned"] == 30.0
