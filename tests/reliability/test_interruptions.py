"""Whatever ends a training costs no more than the steps since the last checkpoint, and says so."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from cookbook import training
from cookbook.profiles import CookbookError
from tests.reliability import kills
from tests.reliability.methods import COMMON, METHODS, STEPS, full, rows

IN_CI = 2  # kills of each method; `python -m tests.reliability` records more


@pytest.mark.unit
@pytest.mark.held("kills")
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_training_ends_where_an_undisturbed_one_does(method: str, tmp_path: Path) -> None:
    seen = kills.survive(method, tmp_path, IN_CI, random.Random(method))
    assert seen.kills == dict.fromkeys(kills.MOMENTS, IN_CI // 2)
    assert seen.largest_difference == 0.0


class StopAt(TrainerCallback):
    """Stop a training after a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, *given: Any, **_: Any) -> None:
        if given[1].global_step == self.step:
            given[2].should_save = given[2].should_training_stop = True


def trained(method: str, folder: Path, stop_at: int = 0) -> dict[str, torch.Tensor]:
    """Train from the newest checkpoint on, and return the weights."""
    trainer: Any = METHODS[method](folder)
    trainer.add_callback(StopAt(stop_at))
    with contextlib.suppress(CookbookError), training.guarded(trainer):
        trainer.train(resume_from_checkpoint=training.newest_whole_checkpoint(folder))
    assert trainer.state.global_step == (stop_at or STEPS)
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the same order every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.unit
@pytest.mark.parametrize("method", METHODS)
def test_a_later_epoch_is_resumed_in_its_order(
    method: str, tmp_path: Path, one_thread: None
) -> None:
    """An epoch has five or six steps; at its end and inside the next another order is drawn."""
    whole = trained(method, tmp_path / "whole" / "checkpoints")
    for step in (5, 6, 7):
        folder = tmp_path / f"cut at {step}" / "checkpoints"
        trained(method, folder, step)
        for name, weight in trained(method, folder).items():
            assert torch.equal(weight, whole[name]), (step, name)


@pytest.mark.unit
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_longest_rows_come_first_and_leave_no_trace(
    method: str, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`full` draws rows at random, and `lora` batches of like length."""
    lengths: list[int] = []

    def seen(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
        lengths.clear()
        trainer: Any = METHODS[method](folder)

        def look(_: torch.nn.Module, given: Any, named: dict[str, Any]) -> None:
            lengths.append(named["input_ids"].shape[1])

        trainer.model.register_forward_pre_hook(look, with_kwargs=True)
        with training.guarded(trainer):
            trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, {name: one.detach() for name, one in trainer.model.named_parameters()}

    losses, weights = seen(tmp_path / "tried")
    assert lengths[0] == max(map(len, rows()["input_ids"])) == max(lengths)
    with monkeypatch.context() as patched:
        patched.setattr(training._Guard, "_try_longest", lambda *_: None)
        plain, same = seen(tmp_path / "plain")
    assert losses == plain
    assert all(torch.equal(weights[name], same[name]) for name in same)


@pytest.mark.unit
def test_sigterm_saves_a_checkpoint_and_ends_the_process(tmp_path: Path) -> None:
    process = kills.Process("full", tmp_path, "--terminate-at", "5")
    assert process.ended() == -signal.SIGTERM
    assert "SIGTERM: saved a checkpoint after step 5" in process.printed
    assert "end" not in process.printed.splitlines(), "what comes after a training is not executed"
    checkpoint = training.newest_whole_checkpoint(tmp_path / "checkpoints")
    assert training.step_of(checkpoint) == 5, "5 is no multiple of save_steps"


@pytest.mark.unit
@pytest.mark.parametrize("method", METHODS)
def test_a_finished_training_is_not_trained_on(method: str, tmp_path: Path) -> None:
    ended = trained(method, tmp_path)
    for name, weight in trained(method, tmp_path).items():
        assert torch.equal(weight, ended[name]), name


@pytest.mark.unit
def test_what_a_report_needs_is_there_after_nothing_was_trained(tmp_path: Path) -> None:
    trained("full", tmp_path)
    again = full(tmp_path)
    with training.guarded(again):
        again.train(resume_from_checkpoint=training.newest_whole_checkpoint(tmp_path))
    assert again.state.log_history[-1]["train_runtime"] > 0


@pytest.mark.unit
def test_sigterm_means_afterwards_what_it_meant_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer = full(tmp_path)
    with training.guarded(trainer):
        assert signal.getsignal(signal.SIGTERM) != before
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.unit
def test_training_that_ended_early_is_not_scored(tmp_path: Path) -> None:
    trainer = full(tmp_path)
    trainer.add_callback(StopAt(2))
    with (
        pytest.raises(CookbookError, match=f"step 2 of {STEPS}.*resumes"),
        training.guarded(trainer),
    ):
        trainer.train()


def failing_at(step: int, fail: Any, folder: Path) -> Any:
    """A trainer whose loss calls `fail` in a step."""
    trainer: Any = full(folder)
    usual = trainer.compute_loss

    def compute_loss(*given: Any, **named: Any) -> torch.Tensor:
        if trainer.state.global_step + 1 == step:
            fail()
        loss: torch.Tensor = usual(*given, **named)
        return loss

    trainer.compute_loss = compute_loss
    return trainer


def raise_cuda_error() -> None:
    """What a GPU says."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fill_memory() -> None:
    """What a CPU says, really."""
    torch.empty(10**15)


@pytest.mark.unit
@pytest.mark.parametrize("fail", [raise_cuda_error, fill_memory])
def test_out_of_memory_says_what_to_lower(fail: Any, tmp_path: Path) -> None:
    trainer = failing_at(1, fail, tmp_path)
    wanted = r"per_device_train_batch_size` \(4\).*gradient_accumulation_steps` \(2\)"
    with pytest.raises(CookbookError, match=wanted), training.guarded(trainer):
        trainer.train()


@pytest.mark.unit
def test_another_error_comes_through(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    trainer = failing_at(1, fail, tmp_path / "not yet made" / "checkpoints")
    with pytest.raises(RuntimeError, match="mat1"), training.guarded(trainer):
        trainer.train()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB: room for some checkpoints of the small model and a part of one more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.unit
def test_a_full_disk_is_named_and_the_checkpoint_before_is_whole(small_disk: Path) -> None:
    trainer = full(small_disk)
    with pytest.raises(CookbookError, match="disk of .* is full"), training.guarded(trainer):
        trainer.train()
    failed_at = trainer.state.global_step
    kept = training.newest_whole_checkpoint(small_disk)
    assert training.step_of(kept) == failed_at - COMMON["save_steps"] > 0
    shutil.rmtree(small_disk / f"checkpoint-{failed_at}")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = full(small_disk)
    with training.guarded(again):
        again.train(resume_from_checkpoint=kept)
