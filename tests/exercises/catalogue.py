"""The notebooks' exercises: what each changes, and which figures its answer shows.

The text of an exercise, what to expect and its answer are in the notebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Exercise:
    """One exercise: lines of the notebook's code, as they are and as they become."""

    name: str
    title: str  # of its line in the table
    changes: tuple[tuple[str, str], ...]
    shown: tuple[str, ...]  # metrics, or what `printed` finds
    printed: Mapping[str, str] = field(default_factory=dict)  # name -> pattern with one number


ALPHA = "    lora_alpha=config.lora_alpha,\n"


def setting(name: str, old: str, new: str) -> tuple[str, str]:
    """Return the change of a setting's value in the column `cpu`, whose width stays."""
    start = f'    "{name}":'.ljust(35) + "("
    return f"{start}{old}, ", f"{start}{new},".ljust(len(f"{start}{old}, "))


# Where a seed changes scores as much as an exercise may (see results/recipes): several of them.
SEEDS = {
    "03-Instruction-Tuning/Financial-Sentiment-OPT": (0, 1),
    "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO": (0, 1, 2),
}

# Of held-out pairs, by how much both answers became likelier than the reference finds them.
AWAY = {
    "nats, chosen": r"reference: chosen ([+-][\d.]+)",
    "nats, rejected": r"reference: chosen [+-][\d.]+, rejected ([+-][\d.]+)",
}

# The same of single answers, by their thumbs.
THUMBS = {
    "nats, up": r"reference: up ([+-][\d.]+)",
    "nats, down": r"reference: up [+-][\d.]+, down ([+-][\d.]+)",
}

COUNTED = 'print(f"training {training.train_in_float32(reward_model):,} weights")\n'
ALONE = "reward_model.requires_grad_(False).base_model.model.score.requires_grad_(True)"

# What the reward model says of a policy that was trained to please it.
PLEASED = {
    "sampled, after training to please": r"sampled +([\d.]+) [^\n]*\nreward of a greedy answer",
    "reward of a greedy answer": r"reward of a greedy answer ([+-][\d.]+)",
}

# Of four methods the one that an exercise is about.
ONE_METHOD = ('"methods": ("lora_r8 full ia3 prompt_tuning",', '"methods": ("lora_r8",')

EXERCISES: dict[str, tuple[Exercise, ...]] = {
    "01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning": (
        Exercise(
            "rate",
            "`learning_rate` 1e-3",
            (setting("learning_rate", "1e-4", "1e-3"),),
            ("held_out_loss", "general_text_loss"),
        ),
        Exercise(
            "four",
            "`processes` 4",
            (
                setting("processes", "2", "4"),
                setting("per_device_train_batch_size", "4", "2"),
            ),
            ("held_out_loss", "MiB of weights held", "seconds"),
            {"MiB of weights held": r"MiB\n +\d+ +0 +([\d.]+) "},
        ),
        Exercise(
            "keep",
            '`"reshard_after_forward": False`',
            (('"reshard_after_forward": True', '"reshard_after_forward": False'),),
            ("held_out_loss", "MiB at the peak", "seconds"),
            {"MiB at the peak": r"MiB\n +\d+ +0 .*?([\d.]+)\n"},
        ),
    ),
    "01-Full-Fine-Tuning/GPT-2-From-Scratch": (
        Exercise(
            "vocabulary",
            "`vocab_size` 1024",
            (setting("vocab_size", "2048", "1024"),),
            ("held_out_loss", "bits per byte"),
            {"bits per byte": r"after: ([\d.]+) bits"},
        ),
        Exercise(
            "depth",
            "`n_layer` 6",
            (setting("n_layer", "3", "6"),),
            ("held_out_loss", "weights", "seconds"),
            {"weights": r"([\d,]+) weights, \d+ layers"},
        ),
        Exercise(
            "constant",
            "a constant rate after the climb",
            (
                (
                    '    lr_scheduler_type="cosine_with_min_lr",\n'
                    '    lr_scheduler_kwargs={"min_lr_rate": 0.1},\n',
                    '    lr_scheduler_type="constant_with_warmup",\n',
                ),
            ),
            ("held_out_loss", "general_text_loss"),
        ),
    ),
    "02-PEFT/Falcon-7B-LoRA": (
        Exercise(
            "rank",
            "`lora_r` 4, `lora_alpha` 8",
            (setting("lora_r", "16", "4"), setting("lora_alpha", "32", "8")),
            ("held_out_loss", "rouge_l", "weights trained"),
            {"weights trained": r"training ([\d,]+) weights"},
        ),
        Exercise(
            "whole",
            "questions are learned too",
            (
                (
                    'row = tokenized["train"][0]\n',
                    'train = tokenized["train"]\n'
                    'train = train.map(lambda row: {"labels": row["input_ids"]})\n'
                    'tokenized["train"] = train\n'
                    'row = tokenized["test"][0]\n',
                ),
            ),
            ("held_out_loss", "rouge_l", "general_text_loss"),
        ),
        Exercise(
            "dora",
            "`use_dora=True`",
            ((ALPHA, ALPHA + "    use_dora=True,\n"),),
            ("held_out_loss", "rouge_l", "minutes planned"),
            {"minutes planned": r"([\d.]+) minutes: [\d.e+]+ operations"},
        ),
    ),
    "02-PEFT/PEFT-Methods-Compared": (
        Exercise(
            "one-rate",
            "`1e-3` for all",
            (
                (
                    "rates[name] = comparing.recorded_rate(config, name) or BEGIN[name]",
                    "rates[name] = 1e-3",
                ),
            ),
            tuple(f"held_out_loss_{one}" for one in ("lora_r8", "full", "ia3", "prompt_tuning")),
        ),
        Exercise(
            "steps",
            "`worked_steps` True",
            (
                ONE_METHOD,
                setting("worked_steps", "False", "True"),
                setting("max_new_tokens", "12", "40"),
            ),
            ("exact_match_lora_r8", "general_text_loss"),
        ),
        Exercise(
            "scale",
            "`alpha or 8 * r`",
            (ONE_METHOD, ("lora_alpha=alpha or 2 * r,", "lora_alpha=alpha or 8 * r,")),
            ("held_out_loss_lora_r8", "exact_match_lora_r8", "general_text_loss"),
        ),
    ),
    "03-Instruction-Tuning/Financial-Sentiment-OPT": (
        Exercise(
            "fewer",
            "`train_examples_per_class` 64",
            (setting("train_examples_per_class", "256", "64"),),
            ("accuracy", "macro_f1", "finance_accuracy"),
        ),
        Exercise(
            "natural",
            "classes as they come",
            (
                (
                    "balanced = concatenate_datasets("
                    "[rows.select(range(per_class)) for rows in by_class])\n",
                    "balanced = shuffled.take(per_class * len(labels))\n",
                ),
            ),
            ("accuracy", "macro_f1", "finance_macro_f1"),
        ),
        Exercise(
            "attention",
            "adapters on queries and values alone",
            (
                (
                    "    **experts.lora_targets(model_config),\n",
                    '    target_modules=["q_proj", "v_proj"],\n',
                ),
            ),
            ("accuracy", "finance_accuracy", "weights trained"),
            {"weights trained": r"training ([\d,]+) weights"},
        ),
    ),
    "03-Instruction-Tuning/Summarization-FLAN-T5": (
        Exercise(
            "same-rate",
            "`full_learning_rate` 1e-3",
            (setting("full_learning_rate", "5e-5", "1e-3"),),
            ("rougeL_full", "rougeL_lora", "general_text_loss"),
        ),
        Exercise(
            "rank",
            "`lora_r` 2, `lora_alpha` 4",
            (setting("lora_r", "16", "2"), setting("lora_alpha", "32", "4")),
            ("rougeL_lora", "weights of LoRA"),
            {"weights of LoRA": r"lora +([\d,]+) "},
        ),
        Exercise(
            "adafactor",
            '`optim="adafactor"`',
            (
                (
                    '        lr_scheduler_type="cosine",\n',
                    '        lr_scheduler_type="cosine",\n        optim="adafactor",\n',
                ),
            ),
            ("rougeL_full", "rougeL_lora", "peak_memory_gib"),
        ),
    ),
    "04-Reasoning-Tuning/Financial-Reasoning-Gemma-3": (
        Exercise(
            "fewer-steps",
            "`max_steps` 24",
            (setting("max_steps", "48", "24"),),
            ("exact_match_unseen_numbers", "exact_match_unseen_template"),
        ),
        Exercise(
            "figure-alone",
            "no steps, the figure alone",
            (
                (
                    '"content": row["completion"].strip()}],\n',
                    """"content": f"#### {row['#### figure']}"}],\n""",
                ),
            ),
            ("exact_match_unseen_numbers", "exact_match_unseen_template"),
        ),
        Exercise(
            "like-lengths",
            '`train_sampling_strategy` `"group_by_length"`',
            (('("random", "group_by_length"', '("group_by_length", "group_by_length"'),),
            ("exact_match_unseen_numbers", "exact_match_unseen_template", "seconds"),
        ),
    ),
    "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO": (
        Exercise(
            "no-kl",
            "`beta` 0",
            (setting("beta", "0.02", "0.0"),),
            ("exact_match", "exact_match_sampled", "general_text_loss"),
        ),
        Exercise(
            "small-groups",
            "`num_generations` 4",
            (setting("num_generations", "8", "4"),),
            ("exact_match", "exact_match_sampled", "seconds"),
        ),
        Exercise(
            "dr-grpo",
            '`loss_type="dr_grpo"`, `scale_rewards="none"`',
            (
                (
                    "        beta=config.beta,\n",
                    "        beta=config.beta,\n"
                    '        loss_type="dr_grpo",\n        scale_rewards="none",\n',
                ),
            ),
            ("exact_match", "exact_match_sampled", "in_format"),
        ),
    ),
    "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational": (
        Exercise(
            "no-chat",
            "`chat_share` 0",
            (setting("chat_share", "0.25", "0.0"),),
            ("exact_match_thinking", "exact_match_direct", "chat_loss"),
        ),
        Exercise(
            "fewer-thoughts",
            "`thinking_share` 0.25",
            (setting("thinking_share", "0.5", "0.25"),),
            ("exact_match_thinking", "exact_match_direct", "adherence_thinking"),
        ),
        Exercise(
            "rslora",
            "`use_rslora=True`",
            ((ALPHA, ALPHA + "    use_rslora=True,\n"),),
            ("exact_match_thinking", "exact_match_direct", "general_text_loss"),
        ),
    ),
    "05-Export-and-Serving/Export-and-Serve": (
        Exercise(
            "rank",
            "`lora_r` 64, `lora_alpha` 128",
            (setting("lora_r", "16", "64"), setting("lora_alpha", "32", "128")),
            ("MiB of the adapter", "MiB in 8 bits", "tokens a second", "held_out_loss"),
            {
                "MiB of the adapter": r"export-and-serve: (\d+) MiB",
                "MiB in 8 bits": r"q8_0 +(\d+) MiB\n",
                "tokens a second": r"q8_0 +\d+ +\d+ +([\d.]+) ",
            },
        ),
        Exercise(
            "merge",
            "merged in bfloat16",
            (
                (
                    "exact = models.from_pretrained(model_path, dtype=torch.float32)\n",
                    "exact = models.from_pretrained(model_path, dtype=torch.bfloat16)\n",
                ),
                ("merged = wrong.unload()", "merged = wrong.unload().float()"),
            ),
            ("loss of the answers", "answers of 16 as the file in float32"),
            {
                "loss of the answers": r"transformers, torch.float32: ([\d.]+) ",
                "answers of 16 as the file in float32": r"f32 +(\d+) of 16 ",
            },
        ),
        Exercise(
            "slots",
            '`"--parallel", "2"`',
            (('"--parallel", "8"', '"--parallel", "2"'),),
            ("two at once", "eight at once", "seconds an answer of eight"),
            {
                "two at once": r"2 at once: (\d+) tokens",
                "eight at once": r"8 at once: (\d+) tokens",
                "seconds an answer of eight": r"8 at once: .* ([\d.]+) s an answer",
            },
        ),
    ),
    "06-Preference-Tuning/DPO-Preference-Tuning": (
        Exercise(
            "small-beta",
            "`beta` 0.1",
            (setting("beta", "1.0", "0.1"),),
            ("exact_match_sampled", "exact_match", "pair_accuracy", *AWAY),
            AWAY,
        ),
        Exercise(
            "off-policy",
            "numbers that nobody answers, rejected",
            (
                (
                    'said = {"chosen": right[0], "rejected": text}\n',
                    'said = {"chosen": right[0], "rejected": f"#### {number}"}\n',
                ),
            ),
            ("exact_match_sampled", "exact_match", "pair_accuracy"),
        ),
        Exercise(
            "with-sft",
            '`loss_type` `"sigmoid"` and `"sft"`',
            (
                (
                    "        loss_type=[config.loss_type],\n",
                    '        loss_type=[config.loss_type, "sft"],\n',
                ),
            ),
            ("exact_match_sampled", "exact_match", *AWAY),
            AWAY,
        ),
    ),
    "06-Preference-Tuning/KTO-Thumbs-Up-Down": (
        Exercise(
            "like-weights",
            "both weights 1",
            (
                (
                    '    "desirable_weight": max(1.0, ratio),\n',
                    '    "desirable_weight": 1.0,\n',
                ),
            ),
            ("exact_match_sampled", "exact_match", *THUMBS),
            THUMBS,
        ),
        Exercise(
            "noisy",
            "every fifth thumb wrong",
            (
                (
                    'liked = own_answers.is_right(text, problem["answer"])\n',
                    'liked = own_answers.is_right(text, problem["answer"]) '
                    "!= (len(found) % 5 == 0)\n",
                ),
            ),
            ("exact_match_sampled", "exact_match", "thumb_auc"),
        ),
        Exercise(
            "without-kl",
            '`loss_type` `"apo_zero_unpaired"`',
            (setting("loss_type", '"kto"', '"apo_zero_unpaired"'),),
            ("exact_match_sampled", "exact_match", "seconds", *THUMBS),
            THUMBS,
        ),
    ),
    "06-Preference-Tuning/Reward-Model-and-Best-of-N": (
        Exercise(
            "leash",
            "`rl_beta` 0.1",
            (setting("rl_beta", "0.0", "0.1"),),
            ("sampled, after training to please", "reward of a greedy answer"),
            PLEASED,
        ),
        Exercise(
            "fewer",
            "`sampled_problems` 96",
            (setting("sampled_problems", "256", "96"),),
            ("pair_accuracy", "exact_match_best_of_4", "best of 16"),
            {"best of 16": r"best of 16 +exact_match ([\d.]+) "},
        ),
        Exercise(
            "probe",
            "the new layer alone",
            ((COUNTED, f"{ALONE}\n{COUNTED}"),),
            ("pair_accuracy", "exact_match_best_of_4", "exact_match_voted"),
        ),
    ),
}
