"""The benchmark's arithmetic, and that its contestants are given the same work."""

import inspect
import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from cookbook.pairs import ANSWERS
from tests.bench import __main__ as bench
from tests.bench import contestants, documents, meter, peers, results, rows
from tests.bench.works import CHOICES, LENGTHS, WITHOUT, WORKS, Work

pytestmark = pytest.mark.unit

WORK = Work(
    "lora",
    "LoRA",
    "lora",
    ("ours", "defaults"),
    max_length=64,
    examples_per_step=4,
    timed_steps=2,
    learning_rate=1e-3,
)


def run(seconds: list[float], tokens: list[int], rate: float = 1e9, **facts: Any) -> results.Run:
    """What a contestant's process leaves behind."""
    return {
        "seconds": seconds,
        "tokens": tokens,
        "losses": [2.0, 1.0],
        "rewards": [],
        "startup_seconds": 3.0,
        "peak_memory_bytes": 2 * results.GIB,
        "matmul_flops_per_second": rate,
        "parameters": 1000,
        "trainable_parameters": 10,
        "versions": {"torch": "2"},
    } | facts


def test_the_warm_up_is_not_timed() -> None:
    assert results.rate(run([9.0, 1.0, 3.0], [100, 40, 40]), warm_up=1) == 20.0


def test_medians_and_mfu() -> None:
    three = [run([1, 1, 1], [1, speed, speed]) for speed in (10, 50, 20)]
    found = results.summary(three, WORK)
    assert found["tokens_per_second"] == 20
    assert found["tokens_per_second_of_each_round"] == [10, 50, 20]
    assert found["tokens_per_operation"] == 20 / 1e9
    assert found["steps_per_minute"] == 60
    assert found["rounds"] == 3


def test_mfu_counts_what_each_kind_of_training_needs() -> None:
    """A frozen weight needs 4 operations a token and a trained one 6; records of all ages agree."""
    found = results.summary([run([1, 1, 1], [1, 20, 20])], WORK)

    def mfu(work: str, contestant: str = "ours") -> float | None:
        one = {"work": work, "contestants": {contestant: found}}
        return results.mfu(one, contestant)

    speed = 20 / 1e9
    assert mfu("lora") == mfu("qlora") == mfu("lora-512") == pytest.approx(4060 * speed)
    assert mfu("full") == pytest.approx(6000 * speed)
    assert mfu("grpo", "defaults") == pytest.approx((8 * 1000 + 8 * 10) * speed)
    # Not to be told: a prompt that is read once for its group, an encoder's tokens.
    assert mfu("dpo", "defaults") == pytest.approx((6 * 1000 + 6 * 10) * speed)
    assert mfu("dpo") is mfu("grpo") is mfu("seq2seq") is None
    old = {key: value for key, value in found.items() if key != "tokens_per_operation"}
    old["mfu"] = 6 * 1000 * speed
    assert results.tokens_per_operation(old) == pytest.approx(speed)
    unknown = results.record(WORK, {"ours": [run([1, 1, 1], [1, 8, 8])] * 2}, {})
    unknown["contestants"]["bare"] = unknown["contestants"]["ours"]
    assert "| - | 2.0 GiB |" in results.table([unknown | {"work": "seq2seq"}])


def test_tables_that_are_only_looked_up_are_not_counted() -> None:
    shape = contestants.GPT2
    assert results.LOOKED_UP == {"pretrain": shape["n_positions"] * shape["n_embd"]}


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that slows down in the middle slows both, and changes no ratio."""
    ours = [run([1, 4, 4], [8, 8, 8]), run([1, 40, 40], [8, 8, 8]), run([1, 4, 4], [8, 8, 8])]
    theirs = [run([4 * second for second in one["seconds"]], [8, 8, 8]) for one in ours]
    found = results.record(WORK, {"ours": ours, "defaults": theirs}, {"litgpt": "no wheel"})
    assert found["ours_is_times_as_fast_as"] == {"defaults": 4.0}
    assert results.lines(found, None) == [
        "lora: litgpt could not run: no wheel",
        "lora: 4.00x defaults",
    ]
    assert "| LoRA | " in results.table([found]) and "could not run: no wheel" in results.table(
        [found]
    )


def test_another_work_is_said() -> None:
    """A contestant that trains other weights, fewer tokens or another loss is no competitor."""
    same = run([1, 1, 1], [100, 100, 100])
    others = {
        "defaults": [same],
        "ours": [run([1, 1, 1], [98, 102, 99], losses=[2.1, 1.0])],
        "bare": [run([1, 1, 1], [50, 50, 50])],
        "litgpt": [run([1, 1, 1], [100, 100, 100], trainable_parameters=11)],
        "axolotl": [run([1, 1, 1], [100, 100, 100], losses=[2.5, 1.0])],
    }
    assert results.record(WORK, others, {})["other_work"] == [
        "bare: tokens 150 instead of 300",
        "litgpt: trainable weights 11 instead of 10",
        "axolotl: loss of the first step 2.5 instead of 2",
    ]
    assert "lora: bare: tokens 150 instead of 300" in results.lines(
        results.record(WORK, others, {}), None
    )


def test_the_history_is_kept_and_a_slowdown_is_said(tmp_path: Path) -> None:
    fast, slow = (
        results.record(WORK, {"ours": [run([1, 1, 1], [1, speed, speed])]}, {})
        for speed in (100, 50)
    )
    assert results.add(fast, tmp_path) is None
    before = results.add(slow, tmp_path)
    assert before == json.loads(json.dumps(fast))
    assert [one["contestants"] for one in results.history(next(tmp_path.glob("*.json")))] == [
        json.loads(json.dumps(one["contestants"])) for one in (fast, slow)
    ]
    assert results.latest(tmp_path)[0]["contestants"]["ours"]["tokens_per_second"] == 50
    assert any(
        "tokens/s -50%, MFU -50%, memory +0%" in line for line in results.lines(slow, before)
    )


def test_measured_gains_are_written_into_a_table() -> None:
    """Only the last cell of a row changes, and only under a line that names the work."""
    choices = Work(**{**asdict(WORK), "name": "choices", "contestants": ()})
    runs = {
        "ours": [run([1, 1, 1], [8, 8, 8])],
        "without-kept-memory": [run([1, 1.5, 1.5], [8, 8, 8])],
        "without-lean-casts": [run([1, 0.8, 0.8], [8, 8, 8])],
        "without-like-lengths": [run([1, 1.2, 1.2], [8, 8, 8])],
    }
    for name, seconds in (("ours", 1), ("without-kept-memory", 1.5), ("without-lean-casts", 0.8)):
        runs[name].append(run([1, seconds, seconds], [8, 8, 8]))
    runs["without-like-lengths"].append(run([1, 0.9, 0.9], [8, 8, 8]))
    records = [results.record(choices, runs, {})]
    text = (
        "Why.\n\n<!-- measured: choices -->\n"
        "| setting | why | times | memory |\n| --- | --- | --- | --- |\n"
        "| `keep_freed_memory` | pages | 0 | ? |\n\n| `keep_freed_memory` | elsewhere | 7 | 7 |\n"
    )
    filled = documents.with_gains(text, records)
    assert filled == text.replace("| pages | 0 | ? |", "| pages | 1.50 | +0% |")
    assert documents.with_gains(filled, records) == filled
    with pytest.raises(KeyError):
        documents.with_gains(text.replace("keep_freed_memory", "read_prompts_once"), records)
    assert "| kept-memory | 1.50 |" in results.gains_table(records)
    assert "| lean-casts | 0.80 |" in results.gains_table(records)
    assert documents.gain("choices", "disable_input_dtype_casting", records) == "0.80 | +0%"
    now_so_now_so = documents.gain("choices", "train_sampling_strategy", records)
    assert now_so_now_so == "no gain seen (1.05) | +0%"
    assert not re.search("kept-memory|lean-casts", results.table(records))
    shown = "<!-- generated: bench/choices -->\nold\n<!-- end generated -->"
    assert "old" not in documents.with_tables(shown, records)
    assert "| kept-memory | 1.50 |" in documents.with_tables(shown, records)


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    found = results.record(WORK, {"ours": [run([1, 1, 1], [1, 5, 5])]}, {})
    results.plot([found | {"work": "choices"}], tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()  # it has a table of its own
    results.plot([found], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_real_tokens_leave_padding_out() -> None:
    ids = torch.tensor([[1, 2, 0], [3, 0, 0]])
    labels = torch.tensor([[5, -100], [6, 7]])
    assert meter.real_tokens({"input_ids": ids}) == 6
    assert meter.real_tokens({"input_ids": ids, "attention_mask": (ids > 0).long()}) == 3
    pair = {"attention_mask": (ids > 0).long(), "labels": labels, "decoder_input_ids": labels}
    assert meter.real_tokens(pair) == 3 + 3


def test_steps_are_timed_from_their_beginning() -> None:
    clock = meter.Meter(started=time.time() - 5)
    count = clock.counted(lambda batch: {"input_ids": torch.ones(batch, 7)})
    for _ in range(2):
        clock.begin_step()
        count(2), count(1)
        time.sleep(0.02)
        clock.end_step()
    found = clock.result(2, parameters=1)
    assert found["tokens"] == [21, 21]
    assert 5 <= found["startup_seconds"] < 6
    assert all(0.02 <= one < 0.5 for one in found["seconds"])
    with pytest.raises(RuntimeError, match="no optimizer step"):
        meter.Meter(0.0).result(1)


def test_what_went_into_a_step_before_the_training_is_counted_to_it() -> None:
    watch = meter.Meter(time.time() - 5)
    watch.micro_batches = [10, 10]
    watch.earlier = [2.0, 1.0]
    for _ in range(2):
        watch.begin_step()
        watch.end_step()
    found = watch.result(1)
    assert found["startup_seconds"] == pytest.approx(2, abs=0.5)
    assert found["seconds"] == pytest.approx([2, 1], abs=0.5)


def test_pairs_are_wrong_by_the_carry() -> None:
    found = rows.preferences(WORKS["dpo"])
    assert len(found) == WORKS["dpo"].steps * WORKS["dpo"].examples_per_step
    for row in found:
        right, wrong = (int(row[one][0]["content"].removeprefix("#### ")) for one in ANSWERS)
        assert sum(map(int, re.findall(r"\d+", row["prompt"][1]["content"]))) == right
        assert abs(right - wrong) == 10


def test_every_contestant_is_given_the_same_rows() -> None:
    """One tokenizes messages itself, the other gets token ids: the words are the same."""
    work = WORKS["lora"]
    tokenized, asked = rows.supervised(work), rows.fitting_conversations(work)
    words = rows.tokenizer()
    assert len(tokenized) == len(asked) == work.steps * work.examples_per_step
    for row, conversation in zip(tokenized.take(8), asked.take(8)):
        answer = conversation["completion"][0]["content"]
        said = str(words.decode([one for one in row["labels"] if one != -100]))
        assert said.startswith(answer)
        assert len(row["input_ids"]) <= work.max_length


def test_works_are_named_once_and_every_choice_is_taken_away() -> None:
    assert set(WORKS) >= {"lora", "full", "qlora", "pretrain", "grpo", "seq2seq"}
    assert WORKS["choices"].contestants == ("ours", *(f"{WITHOUT}{one}" for one in CHOICES))
    source = inspect.getsource(contestants)
    for work in WORKS.values():
        for one in work.contestants:
            if one.startswith(WITHOUT):  # a name that nothing reads would measure `ours` twice
                assert f'without != "{one.removeprefix(WITHOUT)}"' in source or (
                    f'without == "{one.removeprefix(WITHOUT)}"' in source
                )
    for length in LENGTHS:
        work = WORKS[f"lora-{length}"]
        assert work.max_length * work.examples_per_step == 2048


def test_an_unknown_work_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["nonsense"])
    assert "there is no work nonsense; there are lora, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kept"),
    [([], True), (["--rounds", "4"], False), (["--contestants", "ours"], False)],
)
def test_only_whole_records_are_kept(
    options: list[str], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record without some contestants would leave holes in the tables drawn from it."""
    found = results.record(WORK, {"ours": [run([1, 1, 1], [8, 8, 8])]}, {})
    added: list[results.Record] = []
    monkeypatch.setattr(bench, "compete", lambda *_: found)
    monkeypatch.setattr(results, "add", added.append)
    monkeypatch.setattr(results, "plot", lambda *_: None)
    monkeypatch.setattr(documents, "rewrite", lambda *_: None)
    assert bench.main(["lora", *options]) == 0
    assert bool(added) == kept


def test_what_a_failed_contestant_said_last_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"one\nImportError: {Path.home()}/x is missing\n\n", encoding="utf-8")
    assert results.last_line(log) == "ImportError: ~/x is missing"


def test_a_persons_own_settings_do_not_reach_a_contestant(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "COOKBOOK_PROFILE", "HF_HOME", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, "1")
    found = peers.variables()
    assert not {"OMP_NUM_THREADS", "COOKBOOK_PROFILE", "HF_HOME", "MALLOC_ARENA_MAX"} & set(found)
    assert found["HF_HUB_OFFLINE"] == "1"
