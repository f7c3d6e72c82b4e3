"""Runs are resumed or kept, torn checkpoints are left out, and the faster loss is the same loss."""

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

from cookbook import training
from cookbook.profiles import CookbookError
from tests.unit import tiny

pytestmark = pytest.mark.unit

CONFIG = SimpleNamespace(profile="cpu", own=False, seed=0, learning_rate=1e-3)


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    run = training.prepare_run(tmp_path / "cpu", CONFIG)
    (run / "checkpoints" / "checkpoint-5").mkdir()
    training.prepare_run(tmp_path / "cpu", CONFIG)
    assert (run / "checkpoints" / "checkpoint-5").is_dir()


def test_a_finished_run_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    run = training.prepare_run(tmp_path / "cpu", CONFIG)
    for number in (1, 2):
        (run / "metrics.json").write_text(f"{number}", encoding="utf-8")
        training.prepare_run(tmp_path / "cpu", CONFIG)
        assert not (run / "metrics.json").exists()
        kept = tmp_path / f"cpu.{number}" / "metrics.json"
        assert kept.read_text(encoding="utf-8") == f"{number}"


def test_other_settings_never_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = training.prepare_run(tmp_path / "cpu", CONFIG)
    (run / "checkpoints" / "checkpoint-5").mkdir()
    training.prepare_run(tmp_path / "cpu", SimpleNamespace(**{**vars(CONFIG), "seed": 1}))
    assert not (run / "checkpoints" / "checkpoint-5").exists()
    assert (tmp_path / "cpu.1" / "checkpoints" / "checkpoint-5").is_dir()
    assert "other settings (seed) was kept as cpu.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": "b"}, "other rows (the data changed)"),
        ({"model_files": "b"}, "other weights (the model changed)"),
    ],
    ids=["rows", "model_files"],
)
def test_other_content_never_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], said: str
) -> None:
    """The same names and settings, and in the file other rows, or in the folder another model."""
    made_of = {"rows": "a", "model_files": "a"}
    run = training.prepare_run(tmp_path / "cpu", CONFIG, made_of)
    (run / "checkpoints" / "checkpoint-5").mkdir()
    training.prepare_run(tmp_path / "cpu", CONFIG, dict(made_of))
    assert (run / "checkpoints" / "checkpoint-5").is_dir(), "the same content is resumed"
    training.prepare_run(tmp_path / "cpu", CONFIG, made_of | changed)
    assert not (run / "checkpoints" / "checkpoint-5").exists()
    assert f"{said} was kept as cpu.1" in capsys.readouterr().out


def _trainer(folder: Path, max_steps: int = 3) -> Any:
    rows = [[3, *range(6 + n, 12 + n), 4, *range(20, 24 + n % 3), 1] for n in range(8)]
    labels = [[-100] * 8 + row[8:] for row in rows]
    return Trainer(
        model=tiny.model(),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=max_steps,
            save_steps=1,
            logging_steps=1,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": labels}),
        data_collator=DataCollatorForTokenClassification(tiny.tokenizer()),
    )


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert training.newest_whole_checkpoint(tmp_path / "none yet") is None
    _trainer(tmp_path).train()
    assert Path(str(training.newest_whole_checkpoint(tmp_path))).name == "checkpoint-3"


def test_a_checkpoint_tells_its_step() -> None:
    assert training.step_of("runs/02-PEFT/Falcon-7B/cpu/checkpoints/checkpoint-120") == 120
    assert training.step_of(None) == 0


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_torn_checkpoint_is_left_out(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _trainer(tmp_path).train()
    torn = tmp_path / "checkpoint-3" / file
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    assert Path(str(training.newest_whole_checkpoint(tmp_path))).name == "checkpoint-2"
    assert "checkpoint-3 is not whole" in capsys.readouterr().out


def test_a_missing_trainer_state_is_noticed(tmp_path: Path) -> None:
    _trainer(tmp_path).train()
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    assert Path(str(training.newest_whole_checkpoint(tmp_path))).name == "checkpoint-2"


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = _trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    _trainer(tmp_path / "cut", max_steps=4).train()
    for step in (3, 4):  # as if the machine had stopped after step 2
        (tmp_path / "cut" / f"checkpoint-{step}" / "optimizer.pt").unlink()
    resumed = _trainer(tmp_path / "cut", max_steps=4)
    resumed.train(resume_from_checkpoint=training.newest_whole_checkpoint(tmp_path / "cut"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_supervised_loss_equals_the_models_own(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    model = tiny.model()
    own = model(**batch).loss
    logits, targets = training.supervised_logits(model, dict(batch))
    assert logits.shape == (int((batch["labels"][:, 1:] != -100).sum()), 46)
    assert torch.allclose(functional.cross_entropy(logits, targets), own, atol=1e-6)


def test_the_supervised_loss_trains_to_the_same_weights(tmp_path: Path) -> None:
    plain, faster = _trainer(tmp_path / "plain"), _trainer(tmp_path / "faster")
    training.use_supervised_positions_loss(faster)
    plain.train()
    faster.train()
    curves = [[entry["loss"] for entry in t.state.log_history[:-1]] for t in (plain, faster)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    for one, other in zip(plain.model.parameters(), faster.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path: Path) -> None:
    """T5's own loss ignores the size of the step: without our function the gradient doubles."""
    whole = _t5_after_a_step(tmp_path, 1, ours=True)
    parts = _t5_after_a_step(tmp_path, 2, ours=True)
    doubled = _t5_after_a_step(tmp_path, 2, ours=False)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    assert (doubled - whole).abs().max() > 100 * (parts - whole).abs().max()


def _t5_after_a_step(folder: Path, parts: int, ours: bool) -> torch.Tensor:
    """Return the weights of a tiny T5 after one step of plain gradient descent on four rows."""
    model = tiny.encoder_decoder(d_model=16, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    rows = [{"input_ids": [5, 6, 7], "labels": [8] * length} for length in (1, 5, 2, 7)]
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder),
            max_steps=1,
            per_device_train_batch_size=len(rows) // parts,
            gradient_accumulation_steps=parts,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0,
            train_sampling_strategy="sequential",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tiny.tokenizer(), model=model),
    )
    if ours:
        training.use_supervised_positions_loss(trainer)
    trainer.train()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_trainable_weights_become_float32() -> None:
    model: Any = tiny.model()
    model.to(torch.bfloat16)
    head = model.get_input_embeddings().weight
    for weight in model.parameters():
        weight.requires_grad = weight is head
    assert training.train_in_float32(model) == head.numel()
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}
    assert model.model.norm.weight.dtype == torch.bfloat16
    head.requires_grad = False
    with pytest.raises(CookbookError, match="No weight is trainable"):
        training.train_in_float32(model)


def test_costs_are_told_and_the_optimizer_s_means_are_freed(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    trainer.train()
    means = weakref.ref(next(iter(trainer.optimizer.state.values()))["exp_avg"])
    told = training.costs(trainer)
    gc.collect()
    assert means() is None
    assert told["weights_trained"] == trainer.model.num_parameters()
    assert told["seconds"] > 0 and told["peak_memory_bytes"] > 2**20


def test_the_largest_change_is_that_of_what_is_trained() -> None:
    model: Any = tiny.model()
    norm, head = model.model.norm.weight, model.get_input_embeddings().weight
    norm.requires_grad = False
    before = training.copy_of_trainable(model)
    assert training.largest_change(model, before) == 0
    with torch.no_grad():
        norm += 3
        head[2, 1] -= 0.5
    assert training.largest_change(model, before) == pytest.approx(0.5)
    head.data = head.data.bfloat16()
    with pytest.raises(CookbookError, match="was torch.float32 and is torch.bfloat16"):
        training.largest_change(model, before)


def test_only_weights_that_are_trained_count() -> None:
    model = tiny.model()
    assert training.trainable_weights(model) == sum(one.numel() for one in model.parameters())
    for name, weight in model.named_parameters():
        weight.requires_grad = name.endswith("layers.1.mlp.up_proj.weight")
    assert training.trainable_weights(model) == 64 * 32


def test_a_decoder_alone_predicts_the_token_after_each() -> None:
    labels = torch.tensor([[-100, 7, 1], [5, 1, -100]])
    shifted = training.shifted_labels(tiny.model(), labels)
    assert shifted.tolist() == [[7, 1, -100], [1, -100, -100]]


def test_an_encoder_decoder_shifts_its_own_labels() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    labels = torch.tensor([[5, 7, 1], [5, 1, -100]])
    assert training.shifted_labels(model, labels).tolist() == labels.tolist()


def test_a_weight_without_gradient_is_noticed() -> None:
    model = tiny.model()
    ids = torch.tensor([[3, 6, 7, 1]])
    assert training.check_gradients(model, model(input_ids=ids, labels=ids).loss) > 0
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(CookbookError, match="unused first"):
        training.check_gradients(model, model(input_ids=ids, labels=ids).loss)


def test_the_run_record_is_json(tmp_path: Path) -> None:
    run = training.prepare_run(tmp_path / "cpu", CONFIG)
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["learning_rate"] == 1e-3


def test_a_run_whose_record_was_cut_off_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training.prepare_run(tmp_path / "cpu", CONFIG)
    (run / "checkpoints" / "checkpoint-5").mkdir()

    def stop_in_the_middle(path: Path, text: str, **_: Any) -> int:
        with path.open("w", encoding="utf-8") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", stop_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            training.prepare_run(run, CONFIG)
    assert (training.prepare_run(run, CONFIG) / "checkpoints" / "checkpoint-5").is_dir()
