"""Faults of a few characters, each of another kind, and the test that has to catch it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

GPT2 = "01-Full-Fine-Tuning/GPT-2-From-Scratch.ipynb"
FALCON = "02-PEFT/Falcon-7B-LoRA.ipynb"
OPT = "03-Instruction-Tuning/Financial-Sentiment-OPT.ipynb"
GRPO = "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO.ipynb"
QWEN3 = "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational.ipynb"
DATA, TRAINING = "cookbook/data.py", "cookbook/training.py"
UNIT_DATA, UNIT_TRAINING = "tests/unit/test_data.py", "tests/unit/test_training.py"
HUB = "tests/hub/test_notebooks.py::test_the_notebook_runs_against_the_hub"
RULES = "tests/contract/test_notebooks.py"


@dataclass(frozen=True)
class Fault:
    """One fault: where it is planted, and the test that fails of it."""

    name: str
    file: str
    plant: Callable[[str], str]
    test: str


def swap(old: str, new: str) -> Callable[[str], str]:
    """Return a change of a text's first place; in a notebook, of the source of a cell."""

    def change(text: str) -> str:
        if text.startswith("{") and '"cells"' in text:
            notebook = json.loads(text)
            for cell in notebook["cells"]:
                source = "".join(cell["source"])
                if cell["cell_type"] == "code" and old in source:
                    cell["source"] = source.replace(old, new, 1).splitlines(keepends=True)
                    return json.dumps(notebook)
        if old not in text:
            raise ValueError(f"{old!r} is not there any more: change the catalogue with it")
        return text.replace(old, new, 1)

    return change


def _output(text: str) -> str:
    notebook = json.loads(text)
    cell = next(one for one in notebook["cells"] if one["cell_type"] == "code")
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["3\n"]}]
    return json.dumps(notebook)


def _doubled(text: str) -> str:
    """Another version of a package beside the one that is locked."""
    start = text.index('[[package]]\nname = "nvidia-cublas"')
    end = text.index("[[package]]", start + 1)
    package = text[start:end]
    version = package.partition('version = "')[2].partition('"')[0]
    return text[:end] + package.replace(version, "13.10.0.20", 1) + text[end:]


def _secret(text: str) -> str:
    # Put together here, so that this file holds none.
    return text + "\n# token: " + "hf_" + "aBcD1234eFgH5678iJkL" + "9012mNoP3456qR" + "\n"


FAULTS = (
    Fault(
        "a label off by one",
        TRAINING,
        swap("labels, (0, 1), value=IGNORED)[:, 1:]", "labels, (0, 2), value=IGNORED)[:, 2:]"),
        f"{UNIT_TRAINING}::test_a_decoder_alone_predicts_the_token_after_each",
    ),
    Fault(
        "the end of turn masked",
        DATA,
        swap("answer[::-1].index(end_of_turn)]", "answer[::-1].index(end_of_turn) - 1]"),
        f"{UNIT_DATA}::test_the_loss_sees_the_answer_and_nothing_of_the_prompt",
    ),
    Fault(
        "the prompt supervised",
        DATA,
        swap('"labels": [IGNORED] * shared + answer', '"labels": whole[:shared] + answer'),
        f"{UNIT_DATA}::test_the_loss_sees_the_answer_and_nothing_of_the_prompt",
    ),
    Fault(
        "the test rows trained on",
        DATA,
        swap(
            'return DatasetDict(train=cut["train"], test',
            'return DatasetDict(train=cut["test"], test',
        ),
        f"{UNIT_DATA}::test_own_files_of_every_format_get_a_test_split",
    ),
    Fault(
        "copies of training rows in the test split",
        DATA,
        swap("if index not in copies]", "if True]"),
        f"{UNIT_DATA}::test_copies_of_training_rows_leave_the_cut_test_split",
    ),
    Fault(
        "a dropped row not counted",
        DATA,
        swap("dropped[example] += 1", "dropped[example] += 0"),
        f"{UNIT_DATA}::test_empty_rows_are_dropped_and_counted",
    ),
    Fault(
        "long rows cut",
        DATA,
        swap("return rows.select(kept)", "return rows"),
        f"{UNIT_DATA}::test_rows_over_the_limit_are_dropped_not_cut",
    ),
    Fault(
        "the wrong LoRA targets",
        FALCON,
        swap('target_modules="all-linear"', 'target_modules=["query_key_value"]'),
        "tests/contract/test_lesson.py",
    ),
    Fault(
        "a 4-bit layer left out",
        FALCON,
        swap("modeling_falcon.FalconLinear = torch.nn.Linear", "pass"),
        f"{HUB}[{FALCON[:-6]}-gpu16]",
    ),
    Fault(
        "adapters in bfloat16",
        TRAINING,
        swap("weight.data = weight.data.float()", "weight.data = weight.data.bfloat16()"),
        f"{UNIT_TRAINING}::test_trainable_weights_become_float32",
    ),
    Fault(
        "a torn checkpoint taken",
        TRAINING,
        swap("        if problem is None:", "        if True:"),
        f"{UNIT_TRAINING}::test_a_torn_checkpoint_is_left_out",
    ),
    Fault(
        "the oldest checkpoint taken",
        TRAINING,
        swap("int(one.name[11:]), reverse=True)", "int(one.name[11:]))"),
        f"{UNIT_TRAINING}::test_the_newest_whole_checkpoint_is_found",
    ),
    Fault(
        "another order of data after a resume",
        TRAINING,
        swap("torch.manual_seed(args.seed + epoch)", "pass"),
        "tests/reliability/test_interruptions.py::test_a_later_epoch_is_resumed_in_its_order",
    ),
    Fault(
        "accumulated micro-batches too heavy",
        TRAINING,
        swap(
            "return total * processes / num_items", "return total / targets.numel() + 0 * num_items"
        ),
        f"{UNIT_TRAINING}::test_accumulated_micro_batches_equal_the_whole_batch",
    ),
    Fault(
        "a finished run overwritten",
        TRAINING,
        swap("folder.with_name(f", "folder.parent.joinpath(f"),
        f"{UNIT_TRAINING}::test_a_finished_run_is_kept_beside_the_new_one",
    ),
    Fault(
        "a reward for two answers",
        GRPO,
        swap('if not mark or "####" in before or', "if not mark or"),
        "tests/unit/test_rewards.py::test_an_answer_earns",
    ),
    Fault(
        "a template without its switch",
        QWEN3,
        swap(
            "return with_mode(data.as_conversations(pairs), thinking)",
            "return data.as_conversations(pairs)",
        ),
        f"{HUB}[{QWEN3[:-6]}-gpu16]",
    ),
    Fault(
        "an interval of half the width",
        "cookbook/evaluation.py",
        swap("resamples // 40", "resamples // 4"),
        "tests/unit/test_evaluation.py::test_a_statistic_that_is_no_mean_has_an_interval_too",
    ),
    Fault(
        "a loss that is better when higher",
        FALCON,
        swap("higher_is_better=False", "higher_is_better=True"),
        "tests/contract/test_lesson.py",
    ),
    Fault(
        "a plan twice too small",
        "cookbook/planner.py",
        swap("optimizer=8.0 * trained", "optimizer=4.0 * trained"),
        "tests/unit/test_planner.py::test_full_fine_tuning_holds_sixteen_bytes_a_weight",
    ),
    Fault(
        "an archive whose hash is not compared",
        "cookbook/offline/download.py",
        swap("and _sha256(path) == source.sha256", ""),
        "tests/unit/test_offline_download.py::test_a_damaged_kept_archive_comes_anew",
    ),
    Fault(
        "a path of the machine in the results",
        "cookbook/report.py",
        swap("Path(source).name if Path(source)", "source if Path(source)"),
        "tests/unit/test_report.py::test_no_path_of_the_machine_is_recorded",
    ),
    Fault(
        "a secret in a file",
        "SETUP.md",
        _secret,
        "tests/contract/test_secrets.py::test_the_repository_holds_no_secret",
    ),
    Fault(
        "a package doubled in the lock",
        "poetry.lock",
        _doubled,
        "tests/contract/test_lock.py::test_one_version_of_each_package",
    ),
    Fault("an output left in a notebook", FALCON, _output, f"{RULES}::test_rule"),
    Fault(
        "pip in a notebook",
        GPT2,
        swap(
            "print(check_environment(",
            "get_ipython().system('pip install x')\nprint(check_environment(",
        ),
        f"{RULES}::test_rule",
    ),
    Fault(
        "code of others trusted",
        OPT,
        swap(
            "AutoTokenizer.from_pretrained(",
            "AutoTokenizer.from_pretrained(trust_remote_code=True, pretrained_model_name_or_path=",
        ),
        f"{RULES}::test_rule",
    ),
    Fault(
        "a port open to all",
        "docker-compose.yml",
        swap("127.0.0.1:${JUPYTER_PORT", "0.0.0.0:${JUPYTER_PORT"),
        "tests/contract/test_containers.py::test_a_service_is_reached_from_this_machine_alone",
    ),
    Fault(
        "an image that runs as root",
        "Dockerfile",
        swap("USER ${USER_UID}", "USER root"),
        "tests/contract/test_containers.py::test_no_image_runs_as_root",
    ),
    Fault(
        "a link to nothing",
        "README.md",
        swap("(SETUP.md)", "(SETTING-UP.md)"),
        "tests/contract/test_docs.py::test_links_resolve",
    ),
    Fault(
        "a failure that CI does not see",
        ".github/workflows/ci.yml",
        swap("run: make lint", "run: make lint || true"),
        "tests/contract/test_workflow.py::test_jobs_are_limited_and_hide_no_failure",
    ),
    Fault(
        "a figure of a record changed",
        "results/recipes/02-PEFT/Falcon-7B-LoRA/cpu-2x-amd-epyc-bfloat16-seed0.json",
        swap('"after": 3.0', '"after": 2.9'),
        "tests/contract/test_records.py::test_a_record_is_as_it_was_written",
    ),
)
