"""The benchmark on a GPU, as far as it needs none: arithmetic, budget, records, refusals."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from tests.bench import __main__ as bench
from tests.bench import documents, gpu, gpu_meter, gpu_records, gpu_rows, results
from tests.bench.gpu_operations import (
    Given,
    Passes,
    Weights,
    of_attention,
    of_model,
    of_weights,
    passes,
    weights,
)
from tests.bench.gpu_works import DEFAULT, NEEDS, OURS, SCALES, GpuWork, chosen, why_absent

pytestmark = pytest.mark.unit

TINY, FULL = SCALES["tiny"], SCALES["full"]
LORA = TINY["gpu-lora"]
GRPO = TINY["gpu-grpo"]


def model(tied: bool = False) -> LlamaForCausalLM:
    """A Llama of eight layers: the first layer's missing gradient of its inputs weighs little."""
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**sizes))
    made.set_attn_implementation("eager")  # products that torch counts one by one
    return made


def counted(trained: Any, rows: int, length: int) -> tuple[int, int]:
    """What torch counts of a forward and a backward pass: products with weights, and attention."""
    ids = torch.ones(rows, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        trained(input_ids=ids, labels=ids).loss.backward()
    found = counter.get_flop_counts()["Global"]
    attention = sum(count for kind, count in found.items() if "bmm" in str(kind))
    return sum(found.values()) - attention, attention


@pytest.mark.parametrize("tied", [False, True])
def test_full_fine_tuning_needs_six_operations_a_weight_and_token(tied: bool) -> None:
    trained = model(tied)
    has = of_model(trained)
    seen = Given(tokens=3 * 32, outputs=3 * 32, squares=3 * 32**2)
    products, attention = counted(trained, 3, 32)
    done = passes(TINY["gpu-full"])
    assert done == Passes(base=6, adapters=0, attention=3)
    assert of_weights(has, seen, done) == products
    # The plain kernel multiplies what is masked too, which is half of all pairs.
    assert of_attention(has, seen, done) == pytest.approx(attention / 2)
    looked_up = 0 if tied else 64 * 64
    norms = (2 * 8 + 1) * 64
    assert has.body + has.head == trained.num_parameters() - looked_up - norms


def test_lora_needs_four() -> None:
    """The base's weights get no gradient; the adapters' do."""
    plain = model()
    base = of_model(plain)
    adapted = get_peft_model(plain, LoraConfig(r=4, target_modules="all-linear"))
    trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    has = Weights(base.body, base.head, trained, base.attention)
    seen = Given(tokens=3 * 32, outputs=3 * 32, squares=3 * 32**2)
    products, attention = counted(adapted, 3, 32)
    done = passes(LORA)
    assert done == Passes(base=4, adapters=6, attention=3)
    assert of_weights(has, seen, done) == pytest.approx(products, rel=0.03)
    assert of_attention(has, seen, done) == pytest.approx(attention / 2)


def test_grpo_adds_what_it_reads() -> None:
    """Sampling, the reference where `beta` asks for it, and the sampled once more for vLLM."""
    assert passes(GRPO) == Passes(base=2 + 2 + 4, adapters=2 + 6, attention=1 + 1 + 3)
    assert passes(GRPO, old_log_probabilities=True) == Passes(base=10, adapters=10, attention=6)


def test_full_sizes_are_those_of_the_named_models() -> None:
    """The multiplied weights, by arithmetic from the published sizes."""
    layer = 2 * 4096 * (2 * 4096 + 1.5 * 11_008)
    assert weights(FULL["gpu-qlora"]).body == 32 * layer
    assert weights(FULL["gpu-qlora"]).head == 32_000 * 4096
    grouped = 2048 * (2 * 2048 + 2 * 512 + 3 * 8192)
    assert weights(FULL["gpu-full"]).body == 16 * grouped
    assert weights(FULL["gpu-pretrain"]).body == 12 * 12 * 768**2
    assert weights(FULL["gpu-pretrain"]).attention == 12 * 768


def test_batches_are_counted_without_padding() -> None:
    batch = {
        "input_ids": torch.ones(2, 5, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 5, 6, 7], [4, 5, 6, -100, -100]]),
    }
    assert gpu_meter.given(batch) == Given(tokens=8, outputs=3 + 2, squares=25 + 9)
    del batch["attention_mask"]
    assert gpu_meter.given(batch) == Given(tokens=10, outputs=5, squares=50)


def test_the_meter_leaves_the_warm_up_out() -> None:
    meter = gpu_meter.GpuMeter(LORA)  # one step to warm up, two that are timed
    collate = meter.counted(lambda one: one)
    for length in (2, 3, 4, 9):  # the last one is fetched ahead and never trained on
        ids = torch.ones(1, length, dtype=torch.long)
        collate({"input_ids": ids, "labels": ids})
    for _ in range(3):
        meter.on_step_begin()
        assert not meter.timed_to
        meter.on_step_end()
    found = meter.result()
    assert found["tokens"] == 3 + 4 and found["predicted_tokens"] == 2 + 3
    assert found["padding"] == 0 and found["seconds"] > 0
    with pytest.raises(RuntimeError, match="0 of 3 optimizer steps"):
        gpu_meter.GpuMeter(LORA).result()


def test_rows_have_the_lengths_of_chats() -> None:
    found = gpu_rows.lengths(FULL["gpu-lora"])
    assert len(found) == 24 * 16
    assert 350 < sum(found) / len(found) < 450 and max(found) <= 1024
    assert min(found) < 150 < 800 < max(found)
    assert set(gpu_rows.lengths(FULL["gpu-full"])) == {2048}
    row = gpu_rows.rows(LORA)[0]
    assert row["labels"].count(-100) == len(row["input_ids"]) // 2
    assert row["labels"][-1] == row["input_ids"][-1]
    words = gpu_rows.tokenizer(GRPO.config["vocab_size"])
    prompt = gpu_rows.rows(GRPO)[0]["prompt"]
    assert len(words(prompt)["input_ids"]) == GRPO.max_length
    assert len(words) == GRPO.config["vocab_size"]


def measured(speed: float = 100.0, **facts: Any) -> results.Run:
    """What a run leaves behind."""
    return {
        "device": "A Card",
        "seconds": 2.0,
        "tokens": 2 * speed,
        "operations": 8e12,
        "attention_operations": 2e12,
        "matmul_flops_per_second": 10e12,
        "peak_reserved_bytes": 3 * results.GIB,
        "peak_allocated_bytes": 2 * results.GIB,
        "startup_seconds": 5.0,
    } | facts


def test_a_record_has_shares_and_ratios() -> None:
    one = gpu_records.new(FULL["gpu-lora"], "full")
    gpu_records.add_run(one, OURS, 1, measured(300))
    gpu_records.add_run(one, DEFAULT, 1, measured(100))
    gpu_records.add_run(one, OURS, 2, measured(100))  # a round that the other has not
    assert one["contestants"][OURS]["mfu"] == pytest.approx(0.4)
    assert one["contestants"][OURS]["mfu_with_attention"] == pytest.approx(0.5)
    assert one["contestants"][OURS]["tokens_per_second"] == 200
    assert one["ours_is_times_as_fast_as"] == {DEFAULT: 3.0}
    said = gpu_records.lines(one, None)
    assert said[-1] == f"gpu-lora: 3.00x {DEFAULT}"
    assert f"gpu-lora: reaches 2 times {DEFAULT}: ours 3.00" in said
    full = gpu_records.new(FULL["gpu-full"], "full")
    gpu_records.add_run(full, OURS, 1, measured())
    gpu_records.add_run(full, "ours-compiled", 1, measured(115, operations=9.2e12))
    said = gpu_records.lines(full, one)
    assert "gpu-full: reaches 45% MFU: ours-compiled 46.0%" in said
    assert any("since " in line and "MFU +0%" in line for line in said)


def test_tables_show_what_was_measured_and_what_was_not() -> None:
    empty = gpu_records.table([])
    assert empty.count(gpu_records.NOT_MEASURED) == len(FULL)
    one = gpu_records.new(FULL["gpu-grpo"], "full")
    one["left_out"]["ours-vllm"] = "not installed, left out"
    gpu_records.add_run(one, OURS, 1, measured(sampling_seconds=1.5))
    shown = gpu_records.table([one])
    assert shown.count(gpu_records.NOT_MEASURED) == len(FULL) - 1
    row = "| A Card | ours | 1 | 100 | 1.00, 0.75 of them sampling | 0.40 | 0.50 | 3.0 GiB | - |"
    assert row in shown and "| ours-vllm | - | not installed, left out |" in shown
    text = "<!-- generated: bench/gpu -->\nold\n<!-- end generated -->"
    assert "old" not in documents.with_tables(text, [])


def fake(speeds: dict[str, float], seen: list[tuple[str, set[str]]], folder: Path) -> Any:
    """A run that takes no time; it notes which contestants were on disk when it began."""

    def once(work: GpuWork, contestant: str, *_: Any) -> results.Run:
        there = {
            name
            for path in folder.glob("*.json")
            for name in json.loads(path.read_text(encoding="utf-8"))[-1]["contestants"]
        }
        seen.append((f"{work.name} {contestant}", there))
        if contestant not in speeds:
            raise results.CouldNotRun("could not run: CUDA out of memory")
        return measured(speeds[contestant])

    return once


def test_a_failing_contestant_leaves_the_others_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is on disk before the next begins."""
    seen: list[tuple[str, set[str]]] = []
    folder = tmp_path / "kept"
    monkeypatch.setattr(gpu, "once", fake({OURS: 300, "ours-masked": 330}, seen, folder))
    order = gpu.turns([LORA], 2, None)
    records = gpu.compete(order, "tiny", gpu.Budget(1000), folder, tmp_path)
    names = [name.split()[1] for name, _ in seen]
    assert names == [OURS, DEFAULT, "ours-masked", OURS, "ours-masked"]
    assert [there for _, there in seen][1:3] == [{OURS}, {OURS}]
    (kept,) = results.history(next(folder.glob("gpu-lora-a-card.json")))
    assert kept == json.loads(json.dumps(records[0]))
    assert kept["left_out"] == {
        DEFAULT: "could not run: CUDA out of memory",
        **{name: "not installed, left out" for name in ("liger", "unsloth")},
    }
    assert kept["contestants"][OURS]["rounds"] == 2
    assert gpu_records.lines(kept, None)[-1] == "gpu-lora: 0.91x ours-masked"
    assert gpu_records.latest(folder) == []  # a rehearsal is never shown as measured
    gpu_records.write(gpu_records.new(LORA, "tiny"), folder)  # nothing measured: nothing written
    assert len(results.history(next(folder.glob("*.json")))) == 1


def test_what_does_not_fit_into_the_budget_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "once", fake({OURS: 300, DEFAULT: 100}, [], tmp_path))
    works = [FULL["gpu-pretrain"], FULL["gpu-grpo"]]  # expected to take 35 and 70 s
    order = gpu.turns(works, 1, (OURS,))
    pretrain, grpo = gpu.compete(order, "full", gpu.Budget(60), tmp_path, tmp_path)
    assert list(pretrain["contestants"]) == [OURS]
    assert "expected to take 70 s" in grpo["left_out"][OURS]
    assert "gpu-grpo round 1 ours: left out: expected to take 70 s" in capsys.readouterr().out
    budget = gpu.Budget(60)
    assert budget.expected(works[0], OURS) == works[0].expected_seconds
    budget.took = {("gpu-pretrain", OURS): 20.0, ("gpu-pretrain", DEFAULT): 50.0}
    assert budget.expected(works[0], OURS) == 20
    assert budget.expected(works[0], "ours-compiled") == 50
    assert budget.expected(works[1], OURS) == works[1].expected_seconds


def test_the_main_contestants_of_all_works_come_first() -> None:
    order = list(gpu.turns(list(FULL.values()), 2, None))
    first = [name for number, _, name in order[: 2 * len(FULL)] if number == 1]
    assert first == [OURS, DEFAULT] * len(FULL)
    assert len(order) == len(set((number, work.name, name) for number, work, name in order))
    assert [number for number, *_ in order] == sorted(number for number, *_ in order)


def test_a_run_that_fails_or_hangs_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(results.CouldNotRun, match="took longer than 0 s"):
        gpu.once(LORA, OURS, "tiny", tmp_path, 0.01)

    def fails(command: list[str], _: Any, log: Path, *__: Any, **___: Any) -> tuple[int, str]:
        assert command[1:6] == ["-m", "tests.bench.gpu_run", "gpu-lora", OURS, "tiny"]
        log.write_text("Traceback\nOutOfMemoryError: tried to allocate 90 GiB\n", encoding="utf-8")
        return 1, ""

    monkeypatch.setattr(results, "run_logged", fails)
    with pytest.raises(results.CouldNotRun, match="^OutOfMemoryError: tried"):
        gpu.once(LORA, OURS, "tiny", tmp_path, 60)
    assert "Traceback" in capsys.readouterr().out


def test_one_card_and_no_persons_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer would split a batch over several cards."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    found = gpu.variables("full")
    assert found["CUDA_VISIBLE_DEVICES"] == "3" and found["HF_HUB_OFFLINE"] == "1"
    assert "HF_HOME" not in found and "OMP_NUM_THREADS" not in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["gpu"]) == 2
    said = capsys.readouterr().err
    assert "no CUDA GPU" in said and "--scale tiny --results FOLDER" in said


@pytest.mark.parametrize("results_folder", [[], ["--results", "results/rehearsal"]])
def test_a_rehearsal_never_becomes_a_record(
    results_folder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["gpu", "--scale", "tiny", *results_folder]) == 2
    assert "no record" in capsys.readouterr().err


def test_works_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(["gpu"]) == list(FULL) == list(TINY)
    assert chosen(["gpu-grpo", "gpu-lora"]) == ["gpu-lora", "gpu-grpo"]
    assert chosen(["lora"]) == []
    assert bench.main(["--list"]) == 0
    assert "gpu-pretrain GPT-2 124M from scratch" in capsys.readouterr().out
    for wrong in (["gpu", "lora"], ["lora", "--scale", "tiny"]):
        with pytest.raises(SystemExit):
            bench.main(wrong)
    every = {name for work in FULL.values() for name in work.contestants}
    assert set(NEEDS) <= every
    assert all(work.contestants[:2] == (OURS, DEFAULT) for work in FULL.values())
    assert why_absent(OURS) is None


def test_one_work_is_rehearsed(tmp_path: Path) -> None:
    """The command as a person gives it: a process of its own for a real, tiny training."""
    command = ["gpu-lora", "--scale", "tiny", "--results", str(tmp_path), "--rounds", "1"]
    assert bench.main([*command, "--contestants", "ours-masked"]) == 0
    (kept,) = results.history(next(tmp_path.glob("gpu-lora-*.json")))
    (run,) = kept["contestants"]["ours-masked"]["runs"].values()
    assert kept["scale"] == "tiny" and run["passes"] == {"base": 4, "adapters": 6, "attention": 3}
    assert run["losses"][0] == pytest.approx(6.2, abs=0.2)  # ln 512: of random weights
    assert 0 < run["padding"] < 1 and run["tokens"] > run["predicted_tokens"] > 0
    assert sys.executable not in json.dumps(kept)


def test_the_main_contestants_fit_into_the_budget() -> None:
    """By the guesses that hold until something was measured."""
    main = [work.expected_seconds for work in SCALES["full"].values()]
    assert len(gpu.MAIN) * sum(main) <= gpu.BUDGET
