"""Faults of a few characters, each of another kind, and the test that has to catch it."""

from __future__ import annotations

from tests.faults.planting import (
    Fault,
    doubled,
    figure_bettered,
    output_left,
    swap,
    token_pasted,
)

GPT2 = "01-Full-Fine-Tuning/GPT-2-From-Scratch.ipynb"
FALCON = "02-PEFT/Falcon-7B-LoRA.ipynb"
OPT = "03-Instruction-Tuning/Financial-Sentiment-OPT.ipynb"
GRPO = "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO.ipynb"
QWEN3 = "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational.ipynb"
DATA, TRAINING = "cookbook/data.py", "cookbook/training.py"
CHAT, UNIT_CHAT = "cookbook/chat.py", "tests/unit/test_chat.py"
UNIT_DATA, UNIT_TRAINING = "tests/unit/test_data.py", "tests/unit/test_training.py"
HUB = "tests/hub/test_notebooks.py::test_the_notebook_runs_against_the_hub"
RULE = "tests/contract/test_notebooks.py::test_rule"
LESSON, CONTAINERS = "tests/contract/test_lesson.py", "tests/contract/test_containers.py"

FAULTS = (
    Fault(
        "a label off by one",
        "each position learns the token after the next",
        TRAINING,
        swap("labels, (0, 1), value=IGNORED)[:, 1:]", "labels, (0, 2), value=IGNORED)[:, 2:]"),
        (f"{UNIT_TRAINING}::test_a_decoder_alone_predicts_the_token_after_each",),
    ),
    Fault(
        "the end of turn masked",
        "the model never learns to stop",
        CHAT,
        swap("return ends[-1] + 1 if ends", "return ends[-1] if ends"),
        (f"{UNIT_CHAT}::test_the_loss_sees_the_answer_and_nothing_of_the_prompt",),
    ),
    Fault(
        "the prompt supervised",
        "the model learns to write questions",
        CHAT,
        swap("    labels = [IGNORED] * len(ids)", "    labels = list(ids)"),
        (f"{UNIT_CHAT}::test_the_loss_sees_the_answer_and_nothing_of_the_prompt",),
    ),
    Fault(
        "long rows cut",
        "what is over the limit stays, and would lose its end of turn",
        DATA,
        swap("return rows.select(kept)", "return rows"),
        (f"{UNIT_DATA}::test_rows_over_the_limit_are_dropped_not_cut",),
    ),
    Fault(
        "a dropped row not counted",
        "rows disappear and nobody is told",
        "cookbook/forms.py",
        swap("            count = len(found)\n", "            count = 0\n"),
        ("tests/unit/test_forms.py::test_many_dropped_rows_are_named_in_short",),
    ),
    Fault(
        "a held-out file trained on",
        "val.jsonl beside train.jsonl becomes training rows",
        "cookbook/files.py",
        swap('("validation", "valid", "val", "dev", "devel", "development")', '("dev",)'),
        (f"{UNIT_DATA}::test_what_is_held_out_is_scored_and_never_trained_on[val.jsonl]",),
    ),
    Fault(
        "a header supervised",
        "a template without a generation prompt: the model learns to write the header",
        CHAT,
        swap("if header := _missing_header(tokenizer):", "if header := '':"),
        (
            f"{UNIT_CHAT}::test_what_is_learned_is_what_has_to_be_generated_after_the_prompt"
            "[no-generation-prompt-one turn]",
        ),
    ),
    Fault(
        "other rows resumed",
        "the file changed, and the old training goes on",
        TRAINING,
        swap("settings | (made_of or {})", "settings"),
        (f"{UNIT_TRAINING}::test_other_content_never_resumes[rows]",),
    ),
    Fault(
        "a score coloured",
        "a model's own repetition penalty decides what is called greedy",
        "cookbook/evaluation.py",
        swap("_autocast(model), _without_own_settings(model):", "_autocast(model):"),
        (
            "tests/unit/test_models.py"
            "::test_a_models_own_settings_do_not_colour_what_is_called_greedy[repetition_penalty]",
        ),
    ),
    Fault(
        "an answer learned again",
        "of two answers side by side the second is learned with the first before it",
        CHAT,
        swap("and not self._keeps_apart:", "and False:"),
        (
            f"{UNIT_CHAT}::test_what_is_learned_is_what_has_to_be_generated_after_the_prompt"
            "[gemma-two answers]",
        ),
    ),
    Fault(
        "experts left out",
        "LoRA trains the attention of a Mixture-of-Experts alone",
        "cookbook/experts.py",
        swap('if not tensors and "mamba" not in', 'if tensors and "mamba" not in'),
        (
            "tests/unit/test_experts.py"
            "::test_lora_leaves_routers_and_trains_every_other_matrix_of_a_layer[qwen3-moe]",
        ),
    ),
    Fault(
        "the test rows trained on",
        "the split leaks: the score is of what was learned by heart",
        DATA,
        swap('(train=cut["train"], test=cut', '(train=splits["train"], test=cut'),
        (f"{UNIT_DATA}::test_own_files_of_every_format_get_a_test_split",),
    ),
    Fault(
        "copies of training rows tested",
        "the split leaks through near-duplicates",
        DATA,
        swap("if index not in copies]", "if True]"),
        (f"{UNIT_DATA}::test_copies_of_training_rows_leave_the_cut_test_split",),
    ),
    Fault(
        "a copy in capitals not seen",
        "near-duplicates are compared letter by letter",
        "cookbook/deduplicate.py",
        swap("text.casefold()", "text"),
        ("tests/unit/test_deduplicate.py::test_case_and_punctuation_do_not_matter",),
    ),
    Fault(
        "another test split in each run",
        "seeds are compared on different rows",
        DATA,
        swap("test_size=TEST_SHARE, seed=0)", "test_size=TEST_SHARE)"),
        ("tests/unit/test_same_rows.py::test_the_cut_test_split_follows_no_seed",),
    ),
    Fault(
        "pickled weights accepted",
        "loading a model can run code",
        "cookbook/models.py",
        swap('sorted(folder.glob("*.safetensors"))', 'sorted(folder.glob("*.[sb]*"))'),
        (
            "tests/unit/test_models.py"
            "::test_what_cannot_be_trained_is_refused_before_it_is_loaded[pickled weights]",
        ),
    ),
    Fault(
        "code of others trusted",
        "loading a tokenizer runs what a stranger uploaded",
        OPT,
        swap("from_pretrained(model_path)\n", "from_pretrained(model_path, trust_remote_code=1)\n"),
        (f"{RULE}[Financial-Sentiment-OPT-no_remote_code]",),
    ),
    Fault(
        "the wrong LoRA targets",
        "adapters on the attention alone, under a name that other models lack",
        FALCON,
        swap("**experts.lora_targets(model_config)", 'target_modules=["query_key_value"]'),
        (
            f"{LESSON}::test_adapters_are_on_every_linear_layer[Falcon-7B-LoRA]",
            f"tests/recipes/test_any_model.py::test_own_model_and_data[{FALCON[:-6]}-float32]",
        ),
    ),
    Fault(
        "a 4-bit layer left out",
        "the model takes four times the memory and says 4 bits",
        FALCON,
        swap("modeling_falcon.FalconLinear = torch.nn.Linear", "pass"),
        (f"{HUB}[{FALCON[:-6]}-gpu16]",),
    ),
    Fault(
        "adapters in bfloat16",
        "small updates round away",
        TRAINING,
        swap("weight.data = weight.data.float()", "weight.data = weight.data.bfloat16()"),
        (f"{UNIT_TRAINING}::test_trainable_weights_become_float32",),
    ),
    Fault(
        "micro-batches that weigh the same",
        "the mean of means: accumulated gradients are too large",
        TRAINING,
        swap(
            "return total * processes / num_items", "return total / targets.numel() + 0 * num_items"
        ),
        (f"{UNIT_TRAINING}::test_accumulated_micro_batches_equal_the_whole_batch",),
    ),
    Fault(
        "a loss over masked positions",
        "the loss is divided by prompt and padding too",
        TRAINING,
        swap("processes / num_items_in_batch", 'processes / inputs["labels"].numel()'),
        (f"{UNIT_TRAINING}::test_the_supervised_loss_trains_to_the_same_weights",),
    ),
    Fault(
        "a torn checkpoint taken",
        "a killed training goes on from half a file",
        TRAINING,
        swap("        if problem is None:", "        if True:"),
        (f"{UNIT_TRAINING}::test_a_torn_checkpoint_is_left_out[optimizer.pt]",),
    ),
    Fault(
        "the oldest checkpoint taken",
        "a killed training repeats hours",
        TRAINING,
        swap("int(one.name[11:]), reverse=True)", "int(one.name[11:]))"),
        (f"{UNIT_TRAINING}::test_the_newest_whole_checkpoint_is_found",),
    ),
    Fault(
        "another order of data after a resume",
        "a resumed training sees some rows twice and others never",
        TRAINING,
        swap("torch.manual_seed(args.seed + epoch)", "pass"),
        ("tests/reliability/test_interruptions.py::test_a_later_epoch_is_resumed_in_its_order",),
    ),
    Fault(
        "a finished run overwritten",
        "metrics.json of an earlier run is lost",
        TRAINING,
        swap("if finished or earlier", "if earlier"),
        (f"{UNIT_TRAINING}::test_a_finished_run_is_kept_beside_the_new_one",),
    ),
    Fault(
        "a reward for two answers",
        "GRPO learns to guess often",
        GRPO,
        swap('if not mark or "####" in before or', "if not mark or"),
        ("tests/unit/test_rewards.py::test_an_answer_earns",),
    ),
    Fault(
        "a template without its switch",
        "answers without a thought are trained with the template of thoughts",
        QWEN3,
        swap(
            '"chat_template_kwargs": {"enable_thinking": thinking},',
            '"chat_template_kwargs": {"enable_thinking": True},',
        ),
        (f"{HUB}[{QWEN3[:-6]}-gpu16]",),
    ),
    Fault(
        "an interval of 50 %",
        "chance looks like progress",
        "cookbook/evaluation.py",
        swap("resamples // 40", "resamples // 4"),
        ("tests/unit/test_evaluation.py::test_the_interval_narrows_with_more_examples",),
    ),
    Fault(
        "a loss that is better when higher",
        "a model that got worse is called better",
        FALCON,
        swap("higher_is_better=False", "higher_is_better=True"),
        (
            f"{LESSON}::test_a_loss_is_better_when_lower_and_all_else_when_higher[Falcon-7B-LoRA]",
            f"tests/recipes/test_recipes.py::test_the_notebook_runs_and_learns[{FALCON[:-6]}]",
        ),
    ),
    Fault(
        "forgetting on another text",
        "the forgetting check compares two texts",
        FALCON,
        swap("text_loss(tuned, tokenizer, general,", "text_loss(tuned, tokenizer, general[24:],"),
        (
            "tests/contract/test_forgetting.py::test_the_text_is_the_same_before_and_after"
            "[Falcon-7B-LoRA]",
        ),
    ),
    Fault(
        "a plan twice too small",
        "a training that was said to fit ends for lack of memory",
        "cookbook/planner.py",
        swap("logits.numel() * 2 * (4", "logits.numel() * (4"),
        ("tests/unit/test_planner.py::test_logits_and_their_gradients_are_counted",),
    ),
    Fault(
        "an archive whose hash is not compared",
        "another file is read than the one that was pinned",
        "cookbook/offline/download.py",
        swap("and _sha256(path) == source.sha256", ""),
        ("tests/unit/test_offline_download.py::test_another_content_is_deleted_unread",),
    ),
    Fault(
        "a member outside its archive",
        "an archive chooses what is read",
        "cookbook/offline/archives.py",
        swap('or ".." in path.parts or', "or"),
        ("tests/unit/test_offline_archives.py::test_a_member_outside_the_archive_is_refused",),
    ),
    Fault(
        "a path of the machine in the results",
        "a record names a person's folders",
        "cookbook/report.py",
        swap("Path(source).name if Path(source)", "source if Path(source)"),
        ("tests/unit/test_report.py::test_no_path_of_the_machine_is_recorded",),
    ),
    Fault(
        "runs where one happens to stand",
        "a relative path: each folder gets a runs of its own",
        "cookbook/report.py",
        swap('else ROOT / "runs"', 'else Path("runs")'),
        ("tests/unit/test_same_rows.py::test_runs_lie_in_the_repository_wherever_one_stands",),
    ),
    Fault(
        "a token pasted into a document",
        "a secret is published",
        "SETUP.md",
        token_pasted,
        ("tests/contract/test_secrets.py::test_the_repository_holds_no_secret",),
    ),
    Fault(
        "a token printed",
        "a secret is in the output of an executed notebook",
        FALCON,
        swap('print(check_environment("peft"), ', 'print(*__import__("os").environ.items(), '),
        (f"{HUB}[{FALCON[:-6]}-gpu16]",),
    ),
    Fault(
        "a package doubled in the lock",
        "two CUDA libraries of one name end torch's import",
        "poetry.lock",
        doubled,
        ("tests/contract/test_lock.py::test_one_version_of_each_package",),
    ),
    Fault(
        "an output left in a notebook",
        "each execution changes the file",
        FALCON,
        output_left,
        (f"{RULE}[Falcon-7B-LoRA-stripped]",),
    ),
    Fault(
        "pip in a notebook",
        "versions of nobody's lock are installed",
        GPT2,
        swap("print(check_environment(", "get_ipython().system('pip install x')\nprint(("),
        (f"{RULE}[GPT-2-From-Scratch-installs_nothing]",),
    ),
    Fault(
        "a port open to all",
        "a notebook server listens to the network",
        "docker-compose.yml",
        swap("127.0.0.1:${JUPYTER_PORT", "0.0.0.0:${JUPYTER_PORT"),
        (f"{CONTAINERS}::test_a_service_is_reached_from_this_machine_alone",),
    ),
    Fault(
        "Jupyter open to all",
        "a notebook server listens to the network, without a container",
        "Makefile",
        swap("JUPYTER_IP ?= 127.0.0.1", "JUPYTER_IP ?= 0.0.0.0"),
        ("tests/install/test_makefile.py::test_jupyter_listens_on_this_machine_only",),
    ),
    Fault(
        "an image that runs as root",
        "a notebook owns the container",
        "Dockerfile",
        swap("USER ${USER_UID}\n\n# --- prod", "USER root\n\n# --- prod"),
        (f"{CONTAINERS}::test_no_image_runs_as_root",),
    ),
    Fault(
        "a link to nothing",
        "a reader ends nowhere",
        "README.md",
        swap("(SETUP.md)", "(SETTING-UP.md)"),
        ("tests/contract/test_docs.py::test_links_resolve[README.md]",),
    ),
    Fault(
        "a failure that the workflow hides",
        "GitHub shows green",
        ".github/workflows/ci.yml",
        swap("run: make lint", "run: make lint || true"),
        ("tests/contract/test_workflow.py::test_jobs_are_limited_and_hide_no_failure",),
    ),
    Fault(
        "a failure that Make hides",
        "a target ends well though a tool of it found something",
        "Makefile",
        swap("\t@$(BIN)/flake8 $(SOURCES)", "\t-@$(BIN)/flake8 $(SOURCES)"),
        ("tests/contract/test_exit_status.py::test_make_ends_with_what_fails_first[lint]",),
    ),
    Fault(
        "a failure that .ci/run hides",
        "what gates a merge goes on after a failed phase",
        ".ci/run",
        swap("set -euo pipefail", "set -uo pipefail"),
        ("tests/contract/test_exit_status.py::test_ci_ends_with_what_fails_first",),
    ),
    Fault(
        "a figure of a record changed",
        "a result is shown that nobody measured",
        "results/recipes/02-PEFT/Falcon-7B-LoRA/cpu-2x-amd-epyc-bfloat16-seed0.json",
        figure_bettered,
        (
            "tests/contract/test_records.py::test_a_record_is_as_it_was_written",
            "tests/unit/test_record.py::test_the_committed_tables_are_current",
        ),
    ),
    Fault(
        "answers sampled without a mask",
        "padding on the left is read as if it were text",
        "cookbook/gpu.py",
        swap("not plain or not torch.is_grad_enabled()", "not plain"),
        ("tests/unit/test_gpu.py::test_scoring_and_sampling_keep_their_mask",),
    ),
    Fault(
        "a sliding window without its mask",
        "layers see further back than the model was made for",
        "cookbook/gpu.py",
        swap('named["mask_function"] is causal_mask_function and', "True and"),
        ("tests/unit/test_gpu.py::test_sliding_windows_keep_their_mask[mistral]",),
    ),
    Fault(
        "a processor's setting that no record depends on",
        "a recipe is changed, and its record still holds the proof",
        "cookbook/commands/cpu_code.py",
        swap("asked = {\"== 'cpu'\": True, \"!= 'cpu'\": False}", "asked = {\"== 'cpu'\": False}"),
        ("tests/unit/test_cpu_code.py::test_what_a_gpu_alone_runs_is_as_if_it_were_not_there",),
    ),
    Fault(
        "a GPU check that waits for JupyterLab",
        "minutes on a GPU are lost for a package that nothing imports",
        "tests/gpu/kernel.py",
        swap("profiles.required_packages = wanted", "pass"),
        ("tests/gpu/test_kernel.py::test_the_notebook_asks_for_what_it_imports",),
    ),
)
