"""What is done for a processor, and that a GPU sees nothing of it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import LlamaConfig, MixtralConfig

from cookbook import answers, cpu, groups
from tests.unit import tiny

pytestmark = pytest.mark.unit


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Calls that would keep freed memory until this process ends."""
    calls: list[bool] = []
    monkeypatch.delenv("COOKBOOK_PROFILE", raising=False)
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: calls.append(True))
    return calls


def test_a_model_is_made_ready(kept: list[bool]) -> None:
    model: Any = tiny.model()
    layer: Any = torch.nn.Linear(2, 2)
    layer.support_avx512bf16_for_cpu = True
    model.add_module("packed", layer)
    cpu.prepare(model)
    assert model.config._attn_implementation == "eager"
    assert layer.support_avx512bf16_for_cpu is False
    assert kept == [True]


def test_what_a_recipe_does_without(kept: list[bool]) -> None:
    model: Any = tiny.model()
    before = model.config._attn_implementation
    cpu.prepare(model, eager=False, keep_memory=False)
    assert model.config._attn_implementation == before != "eager"
    assert kept == []


def test_a_profile_of_a_gpu_keeps_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "gpu80")
    model: Any = tiny.model()
    cpu.prepare(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_sees_nothing_of_it(kept: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny.model()
    cpu.prepare(model)
    trainer: Any = SimpleNamespace(compute_loss="its own")
    cpu.speed_up(trainer)
    monkeypatch.setattr(cpu, "PartialState", lambda: pytest.fail("a GPU's processes are told"))
    cpu.shard()
    assert (model.config._attn_implementation, kept) == ("sdpa", [])
    assert (cpu.attention(), cpu.arguments(), trainer.compute_loss) == (None, {}, "its own")


def test_a_trainer_gets_the_loss_at_supervised_positions() -> None:
    trainer: Any = SimpleNamespace(compute_loss="its own")
    cpu.speed_up(trainer)
    assert trainer.compute_loss != "its own"
    assert cpu.arguments() == {"use_cpu": True, "dataloader_pin_memory": False}


def _grpo(config: Any, **arguments: bool) -> Any:
    usual = {"activation_checkpointing": False, "gradient_checkpointing": False}
    return SimpleNamespace(
        args=SimpleNamespace(**usual | arguments),
        model=SimpleNamespace(config=config),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        reward_funcs=[],
    )


@pytest.mark.parametrize("kind", ["groups", "answers"])
def test_prompts_are_shared_where_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shared: dict[str, list[Any]] = {"groups": [], "answers": []}
    monkeypatch.setattr(groups, "read_prompts_once", shared["groups"].append)
    monkeypatch.setattr(answers, "read_prompts_once", shared["answers"].append)

    def made(config: Any, **settings: Any) -> Any:
        trainer = _grpo(config, **settings)
        if kind == "answers":  # DPO and KTO have no rewards to call
            del trainer.reward_funcs
        return trainer

    dense, experts = LlamaConfig(), MixtralConfig()
    trainer = made(dense)
    cpu.share_prompts(trainer)
    cpu.share_prompts(made(experts))
    cpu.share_prompts(made(dense, activation_checkpointing=True))
    monkeypatch.setenv("COOKBOOK_PROFILE", "gpu16")
    cpu.share_prompts(trainer)
    monkeypatch.delenv("COOKBOOK_PROFILE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cpu.share_prompts(trainer)
    assert shared.pop(kind) == [trainer]
    assert [*shared.values()] == [[]]


def test_processes_are_said_to_have_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """That Accelerate shards then is tested with the recipe, in tests/reliability."""
    state = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    monkeypatch.setattr(cpu, "PartialState", lambda: state)
    cpu.shard()
    assert state.distributed_type is DistributedType.MULTI_GPU


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    before = torch.get_num_threads()
    for processes, threads in ((2, 2), (8, 1)):
        with cpu.sharing(processes):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == before
