"""Experts are trained by LoRA and by full fine-tuning, and what is in 4 bits is said."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Glm4MoeConfig,
    GraniteMoeConfig,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
    T5Config,
    set_seed,
)

from cookbook import experts, training
from cookbook.profiles import CookbookError
from tests.unit import tiny

pytestmark = pytest.mark.unit

SMALL: dict[str, Any] = {
    "vocab_size": 46,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
FOUR: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
HEADS: dict[str, Any] = {"head_dim": 8}
QWEN3 = Qwen3MoeConfig(**SMALL, **FOUR, **HEADS, moe_intermediate_size=24)
MIXTRAL = MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
SHARED = Qwen2MoeConfig(
    **SMALL,
    **FOUR,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=40,
    mlp_only_layers=[1],
)
FAMILIES: dict[str, PretrainedConfig] = {
    "qwen3-moe": QWEN3,
    "mixtral": MIXTRAL,
    "olmoe": OlmoeConfig(**SMALL, **FOUR),
    "granitemoe": GraniteMoeConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe, a shared expert and a dense layer": SHARED,
    "glm4-moe, the same in a model that peft converts": Glm4MoeConfig(
        **SMALL,
        **HEADS,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
    ),
}
ATTENTION = [f"self_attn.{letter}_proj" for letter in "koqv"]
IDS = torch.arange(2, 42).reshape(4, 10)


def build(config: PretrainedConfig) -> Any:
    """Return a model whose experts do not all start near nothing, as they would at 0.02."""
    set_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def adapt(config: PretrainedConfig) -> Any:
    set_seed(1)
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", **experts.lora_targets(config))
    return get_peft_model(build(config), lora)


def step(model: Any) -> None:
    """Train for one step; B starts at 0, so that only it is changed by the first."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    loss_of(model).backward()
    optimizer.step()


def loss_of(model: Any) -> torch.Tensor:
    logits = model(input_ids=IDS, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return logits


def shape_of_experts(model: Any) -> list[str]:
    return [name for name, one in model.named_parameters() if one.dim() == 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_changes_every_expert_and_merges_and_reloads(family: str, tmp_path: Path) -> None:
    config = FAMILIES[family]
    before = dict(build(config).named_parameters())
    model = adapt(config)
    step(model)
    adapted = logits_of(model)
    assert not torch.allclose(adapted, logits_of(build(config)), atol=1e-3), "nothing was learned"
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(build(config), tmp_path)
    torch.testing.assert_close(logits_of(reloaded), adapted)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits_of(merged), adapted, rtol=1e-4, atol=1e-4)
    after = dict(merged.named_parameters())
    assert after.keys() == before.keys()
    tensors = shape_of_experts(merged)
    assert {name.rpartition(".")[2] for name in tensors} == {"gate_up_proj", "down_proj"}
    for name in tensors:
        changed = (after[name] - before[name]).flatten(1).abs().amax(1)
        assert (changed > 0).all(), f"{name}: an expert was not trained"


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_leaves_routers_and_trains_every_other_matrix_of_a_layer(family: str) -> None:
    merged = adapt(FAMILIES[family])
    step(merged)
    after = dict(merged.merge_and_unload().named_parameters())
    before = dict(build(FAMILIES[family]).named_parameters())
    same = {name for name in before if torch.equal(before[name], after[name])}
    inside = {name for name in same if before[name].dim() > 1 and ".layers." in name}
    router = re.compile(r"(mlp|block_sparse_moe)\.(gate|router|shared_expert_gate)\.weight$")
    assert {name for name in before if router.search(name)} == inside


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expert_has_an_adapter_of_the_rank_asked_for(family: str) -> None:
    model = adapt(FAMILIES[family])
    heights = {
        one.shape[0]
        for name, one in model.named_parameters()
        if "lora_A" in name and ".experts." in name
    }
    assert heights == {4 * 4}


def test_names_are_those_of_the_layers() -> None:
    for config in (QWEN3, MIXTRAL):
        assert experts.lora_targets(config) == {
            "target_modules": ATTENTION,
            "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
        }
    parameters = experts.lora_targets(SHARED)["target_parameters"]
    assert "mlp.shared_expert.up_proj.weight" in parameters
    assert "mlp.up_proj.weight" in parameters, "of the dense layer"


def test_a_model_gives_the_names_that_its_configuration_gives() -> None:
    assert experts.lora_targets(build(SHARED)) == experts.lora_targets(SHARED)


def test_tensors_that_are_no_experts_are_left_alone() -> None:
    """A state space's convolution, and gates of a recurrence, have three dimensions too."""
    found = experts.lora_targets(JambaConfig(**SMALL, mamba_dt_rank=4, use_mamba_kernels=False))
    assert not [name for name in found["target_parameters"] if "conv" in name]
    assert {"feed_forward.experts.down_proj"} < set(found["target_parameters"])
    gates = RecurrentGemmaConfig(
        **SMALL | {"num_hidden_layers": 3}, lru_width=32, attention_window_size=8
    )
    assert experts.lora_targets(gates) == {"target_modules": "all-linear"}


def test_models_without_experts_have_all_linear_layers_adapted() -> None:
    t5 = T5Config(vocab_size=46, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2)
    for config in (LlamaConfig(**SMALL), t5):
        assert experts.lora_targets(config) == {"target_modules": "all-linear"}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
def test_peft_alone_forgets_the_experts_of_granite_and_adapts_the_router_of_qwen3() -> None:
    """If this fails, peft changed, and `lora_targets` may be simpler."""
    shapes = []
    for family in ("granitemoe", "qwen3-moe"):
        alone = LoraConfig(r=4, target_modules="all-linear")
        model = get_peft_model(build(FAMILIES[family]), alone)
        named = {name: one.shape for name, one in model.named_parameters() if "lora_A" in name}
        shapes.append({re.sub(r".*(mlp|moe)\.", "", name): one for name, one in named.items()})
    granite, qwen3 = shapes
    assert not [name for name in granite if "experts" in name]
    assert "gate.lora_A.default.weight" in qwen3
    assert qwen3["experts.base_layer.lora_A.default.weight"][0] == 4 * 8, "rank 8 where 4 was asked"


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_gives_every_tensor_and_every_expert_a_gradient(family: str) -> None:
    model = build(FAMILIES[family])
    loss_of(model).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name
    for name in shape_of_experts(model):
        parts = model.get_parameter(name).grad.flatten(1).abs().amax(1)
        assert (parts > 0).all(), f"{name}: an expert has no gradient"


def test_active_weights_are_counted_by_hand() -> None:
    idle = 2 * 2 * 3 * 32 * 24  # two of four experts, two layers, three matrices
    whole = build(QWEN3).num_parameters()
    assert experts.active_weights(build(QWEN3)) == (whole - idle, whole)
    one_layer = 2 * 3 * 32 * 24  # the other is dense, and the shared expert sees every token
    whole = build(SHARED).num_parameters()
    assert experts.active_weights(build(SHARED)) == (whole - one_layer, whole)
    assert experts.active_weights(adapt(SHARED)) == (whole - one_layer, whole)
    dense = tiny.model()
    assert experts.active_weights(dense) == (dense.num_parameters(), dense.num_parameters())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, config in {"experts": SHARED, "dense": LlamaConfig(**SMALL)}.items():
        made[name] = tmp_path_factory.mktemp(name)
        build(config).save_pretrained(made[name])
    return made


def load_in_4bit(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=quantization
    )
    training.keep_4bit_layers_trainable(model)
    return model


def test_4bit_counts_are_those_of_the_linear_layers(folders: dict[str, Path]) -> None:
    attention = 2 * (2 * 32 * 32 + 2 * 16 * 32)
    dense, shared = 3 * 32 * 48, 3 * 32 * 40 + 32  # a shared expert has a gate of one row
    model = load_in_4bit(folders["experts"])
    whole = build(SHARED).num_parameters()
    assert experts.in_4bit(model) == (attention + dense + shared, whole)
    text = experts.in_4bit_text(model)
    assert text.startswith(f"{attention + dense + shared:,} of {whole:,} weights in 4 bits (")
    assert "the experts' weights stay in 16 bits: bitsandbytes quantizes nn.Linear" in text
    lora = LoraConfig(r=4, **experts.lora_targets(model))
    assert experts.in_4bit_text(get_peft_model(model, lora)) == text, "adapters do not count"


def test_without_experts_the_sentence_is_short(folders: dict[str, Path]) -> None:
    few, whole = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48), 0
    whole = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).num_parameters()
    text = experts.in_4bit_text(load_in_4bit(folders["dense"]))
    assert text == f"{few:,} of {whole:,} weights in 4 bits ({few / whole:.0%})"


def test_every_linear_layer_has_to_be_in_4_bits(folders: dict[str, Path]) -> None:
    model = load_in_4bit(folders["dense"])
    assert experts.check_4bit(model) == f"14 linear layers in 4 bits\n{experts.in_4bit_text(model)}"
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(32, 48)
    with pytest.raises(CookbookError, match="1 of 14 linear layers are not in 4 bits"):
        experts.check_4bit(model)


def test_a_model_without_4_bits_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(CookbookError, match="No weight of the model is in 4 bits"):
        experts.in_4bit_text(AutoModelForCausalLM.from_pretrained(folders["experts"]))


def test_qlora_trains_the_experts_in_16_bits_and_the_layers_in_4(folders: dict[str, Path]) -> None:
    model: Any = load_in_4bit(folders["experts"], torch.float32)
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", **experts.lora_targets(model))
    model = get_peft_model(model, lora)
    before = logits_of(model)
    step(model.train())
    trained = {name for name, one in model.named_parameters() if "lora_B" in name and one.any()}
    for part in ("self_attn.q_proj", "mlp.experts.lora_B", "experts.base_layer", "shared_expert"):
        assert [name for name in trained if part in name], part
    assert loss_of(model).item() < functional.cross_entropy(
        before[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
    )


def test_peft_cannot_adapt_a_tensor_that_bitsandbytes_quantized() -> None:
    """If this fails, the experts of QLoRA can be in 4 bits."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    model = build(QWEN3)
    layer = model.get_submodule("model.layers.0.mlp.experts")
    replace_parameter_4bit(layer, "down_proj", quant_type="nf4")
    assert loss_of(model).isfinite(), "bitsandbytes itself can"
    name = "model.layers.0.mlp.experts.down_proj"
    model = get_peft_model(model, LoraConfig(target_modules=[], target_parameters=[name]))
    with pytest.warns(UserWarning, match="Could not find any LoRA parametrization"):
        loss_of(model)
    with pytest.raises(RuntimeError, match="require gradients"):
        loss_of(model)


def test_lora_leaves_out_the_layers_that_mamba_computes_itself() -> None:
    config = MambaConfig(vocab_size=46, hidden_size=16, num_hidden_layers=1, state_size=4)
    named = experts.lora_targets(config)
    assert named == {"target_modules": ["mixer.dt_proj", "mixer.in_proj", "mixer.x_proj"]}
    model = MambaForCausalLM(config)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **named))
