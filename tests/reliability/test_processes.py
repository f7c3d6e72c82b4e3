"""The same training in one process, in two, on two machines, and from each other's checkpoints."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from cookbook import training
from cookbook.profiles import ROOT
from tests.reliability import hosts, processes
from tests.reliability.processes import Job, run_of
from tests.unit import tiny

pytestmark = [pytest.mark.unit, pytest.mark.held("processes")]

FOLDER = ROOT / "01-Full-Fine-Tuning"
# Of a loss near 3.8 that falls by 0.2, and of weights that move by 0.002. Float32 sums in another
# order; the differences recorded in results/reliability/processes.json are below a tenth of it.
LOSS, WEIGHT = 2e-5, 1e-5


def assert_the_same_training(one: Path, other: Path) -> None:
    """Losses at every step and weights at the end agree, and there was something to agree on."""
    found = processes.difference(one, other)
    assert found.loss < LOSS and found.weight < WEIGHT, found
    assert found.learned > 1000 * LOSS and found.moved > 100 * WEIGHT, found


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The recipe, to be launched."""
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def alone(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training in one process."""
    runs = tmp_path_factory.mktemp("alone")
    job.run(processes.processes(1), runs)
    return runs


@pytest.fixture(scope="module")
def together(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in two processes."""
    runs = tmp_path_factory.mktemp("together")
    printed = job.run(processes.processes(2), runs)
    assert printed.count("examples an update") == 1, "the first process speaks for both"
    return runs


def test_two_processes_train_what_one_does(alone: Path, together: Path) -> None:
    assert_the_same_training(alone, together)
    one, two = (processes.metrics(runs)["train"]["tokens"] for runs in (alone, together))
    assert one == two


def test_each_process_holds_its_share(alone: Path, together: Path) -> None:
    count = sum(one.numel() for one in tiny.model(**processes.SHAPE).parameters())
    steps = 4 * len(list(tiny.model().parameters()))  # AdamW counts them, for each tensor
    (whole,) = processes.held(alone, 1)
    assert (whole["weights"], whole["optimizer"]) == (4 * count, 8 * count + steps)
    for share in processes.held(together, 2):
        assert (share["weights"], share["optimizer"]) == (2 * count, 4 * count + steps)


@pytest.mark.parametrize(("wrote", "reads"), [(2, 1), (1, 2)])
def test_a_checkpoint_goes_on_in_another_number_of_processes(
    wrote: int, reads: int, job: Job, alone: Path, together: Path, tmp_path: Path
) -> None:
    source = {1: alone, 2: together}[wrote]
    job.resume(source, 30, reads, tmp_path)
    assert processes.metrics(tmp_path)["train"]["resumed_from_step"] == 30
    assert_the_same_training(source, tmp_path)


def test_sigterm_lets_all_processes_save_at_the_same_step(
    job: Job, together: Path, tmp_path: Path
) -> None:
    printed, step = job.preempt(tmp_path)
    assert f"SIGTERM: saved a checkpoint after step {step}." in printed
    assert 10 < step < processes.STEPS
    assert not (run_of(tmp_path) / "metrics.json").exists(), "no half-trained model is scored"
    job.run(processes.processes(2), tmp_path)
    assert processes.metrics(tmp_path)["train"]["resumed_from_step"] == step
    assert_the_same_training(together, tmp_path)


def test_two_machines_train_together_and_one_is_lost(
    job: Job, together: Path, tmp_path: Path
) -> None:
    if why := hosts.impossible():
        pytest.skip(why)
    step = job.lose_a_machine(tmp_path)
    assert 10 <= step < processes.STEPS
    assert processes.metrics(tmp_path)["train"]["resumed_from_step"] == step
    assert_the_same_training(together, tmp_path)


def test_accelerate_launches_the_script_too(job: Job, together: Path, tmp_path: Path) -> None:
    """By the file of the folder, with the two things that a machine without a GPU needs."""
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    given = ["--config_file", str(FOLDER / "one-machine.yaml"), "--cpu", "--num_processes", "2"]
    job.run([*accelerate, *given], tmp_path)
    assert_the_same_training(together, tmp_path)


@pytest.mark.parametrize("name", ["one-machine", "several-machines"])
def test_accelerate_reads_every_line_of_a_configuration(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = FOLDER / f"{name}.yaml"
    read = load_config_from_file(str(path)).to_dict()
    for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert read[key] == value, key


@pytest.mark.parametrize(
    "wrong",
    [
        "pytorch_model_fsdp_0/__1_0.distcp cut",
        "optimizer_0/__0_0.distcp gone",
        "pytorch_model_fsdp_0/.metadata gone",
        "optimizer_0/.metadata cut",
        "optimizer_0/.metadata noise",
        "rng_state_1.pth cut",
        "rng_state_1.pth gone",
        "world_size gone",
        "world_size noise",
        "trainer_state.json cut",
        "scheduler.pt gone",
    ],
)
def test_a_torn_checkpoint_of_two_processes_is_left_out(
    wrong: str, together: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(run_of(together) / "checkpoints", folder)
    assert training.step_of(training.newest_whole_checkpoint(folder)) == processes.STEPS
    name, how = wrong.split(" ")
    path = folder / f"checkpoint-{processes.STEPS}" / name
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "noise":
        path.write_bytes(bytes(byte ^ 0x5A for byte in content))
    assert training.step_of(training.newest_whole_checkpoint(folder)) == 30
    assert f"checkpoint-{processes.STEPS} is not whole" in capsys.readouterr().out
