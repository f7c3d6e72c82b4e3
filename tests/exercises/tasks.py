"""What each exercise asks, and what to expect of it: the text in the notebook above its answer.

A contract test holds the two together.
"""

TASKS: dict[str, dict[str, str]] = {
    "01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning": {
        "rate": (
            "A number: LoRA's learning rate. Set `learning_rate` to 1e-3, with which "
            "adapters are trained in [02-PEFT](../02-PEFT/Falcon-7B-LoRA.ipynb). Expect "
            "all weights to move ten times as far, and read the loss on general text."
        ),
        "four": (
            "The processes: four in place of two. Set `processes` to 4. The notebook then "
            "says that the batch is no multiple of what they take at once: set "
            "`per_device_train_batch_size` to 2. Expect the same training, half of the "
            "weights in each process, and no gain in time on two cores."
        ),
        "keep": (
            'The method: weights that stay. Set `"reshard_after_forward": False`: after '
            "the forward pass a layer's weights are kept for the backward pass (ZeRO, "
            "stage 2). Expect less traffic and a higher peak."
        ),
    },
    "01-Full-Fine-Tuning/GPT-2-From-Scratch": {
        "vocabulary": (
            "A number: half the vocabulary. Set `vocab_size` to 1024. Expect a lower loss "
            "per token, since there are fewer tokens to choose from, and more tokens for "
            "the same text. Which of the two models is better? Only bits per byte can "
            "tell."
        ),
        "depth": (
            "The shape: twice the layers. Set `n_layer` to 6. Expect more weights, a "
            "longer training on the same tokens, and a lower loss. Is it worth the time?"
        ),
        "constant": (
            "The method: no decay. Replace the cosine by "
            '`lr_scheduler_type="constant_with_warmup"` (and drop `lr_scheduler_kwargs`). '
            "Expect a curve that stays noisy to its end. How much does the decay give?"
        ),
    },
    "02-PEFT/Falcon-7B-LoRA": {
        "rank": (
            "A number: a quarter of the rank. Set `lora_r` to 4 and `lora_alpha` to 8, so "
            "that their ratio stays. Expect a quarter of the trained weights. How much of "
            "the improvement goes with them? QLoRA's ablation (appendix A) says: hardly "
            "any."
        ),
        "whole": (
            "The labels: learn the questions, too. Before the row is shown, give the "
            "training rows `labels` equal to their `input_ids`. Expect a lower training "
            "loss, since questions here are alike. The held-out loss still counts answers "
            "alone: does learning to ask help answering, or does it take strength from "
            "it?"
        ),
        "dora": (
            "The method: DoRA. Add `use_dora=True` to `LoraConfig` ([Liu et "
            "al.](https://arxiv.org/abs/2402.09353)): the adapter then learns a direction "
            "and, apart from it, a length for each row of the weight. Expect a similar "
            "loss. What does it cost?"
        ),
    },
    "03-Instruction-Tuning/Financial-Sentiment-OPT": {
        "fewer": (
            "A number: a quarter of the examples. Set `train_examples_per_class` to 64. "
            "The steps stay, so each sentence is seen four times as often. Expect less, "
            "but how much less?"
        ),
        "natural": (
            "The data: classes as they come. Take `balanced = shuffled.take(per_class * "
            "len(labels))`: as many rows, in their natural shares. Expect accuracy to "
            "hold and macro-F1 to show what it hides."
        ),
        "attention": (
            "The method: fewer adapters. Replace `lora_targets` by "
            '`target_modules=["q_proj", "v_proj"]`, as the first LoRA paper did. Expect a '
            "fifth of the trained weights. QLoRA (figure 2) found that this does not "
            "reach full fine-tuning."
        ),
    },
    "03-Instruction-Tuning/Summarization-FLAN-T5": {
        "same-rate": (
            "A number: one rate for both. Set `full_learning_rate` to 1e-3, that of LoRA. "
            "Expect one of the two to suffer. Which, and where does it show first: in "
            "ROUGE, or on general text?"
        ),
        "rank": (
            "The adapter: rank 2. Set `lora_r` to 2 and `lora_alpha` to 4. Expect an "
            "eighth of the trained weights. How many does a change of manner need?"
        ),
        "adafactor": (
            'The method: an optimizer that remembers less. Add `optim="adafactor"` to the '
            "trainer's arguments ([Shazeer and Stern](https://arxiv.org/abs/1804.04235)): "
            "it keeps sums over rows and columns in place of a mean for each weight. T5 "
            "was trained with it. Expect less memory, above all for full fine-tuning."
        ),
    },
    "04-Reasoning-Tuning/Financial-Reasoning-Gemma-3": {
        "fewer-steps": (
            "A number: half the steps. Set `max_steps` to 24. Expect the form to be there "
            "already. What about the arithmetic, on new numbers and on new kinds of "
            "problems?"
        ),
        "figure-alone": (
            "The data: the figure alone. In `as_turns` let the completion be only the "
            "last line: `f\"#### {row['#### figure']}\"`. Expect shorter answers. Can the "
            "model do all steps at once, in its head?"
        ),
        "like-lengths": (
            "The method: batches of like length. Set `train_sampling_strategy` to "
            '`"group_by_length"` on the `cpu` profile. Expect less padding, and batches '
            "of one template each. Which of the two weighs more?"
        ),
    },
    "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO": {
        "no-kl": (
            "A number: no KL term. Set `beta` to 0, TRL's default. Expect the model to "
            "move further from where it started. Does the reward gain by it, and what "
            "does general text say?"
        ),
        "small-groups": (
            "The groups: four answers in place of eight. Set `num_generations` to 4. The "
            "answers of a step stay 64, so that they come from twice as many problems. "
            "Expect more groups without a signal, and more problems seen."
        ),
        "dr-grpo": (
            'The method: Dr. GRPO. Add `loss_type="dr_grpo"` and `scale_rewards="none"` '
            "to `GRPOConfig` ([Liu et al.](https://arxiv.org/abs/2503.20783)): advantages "
            "are not divided by the group's standard deviation, which favours problems "
            "that are nearly always right or wrong. Expect smaller advantages, hence "
            "smaller steps at the same learning rate."
        ),
    },
    "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational": {
        "no-chat": (
            "A number: no chat. Set `chat_share` to 0. Its rows become problems with "
            "direct answers. Expect the chat loss to show what the model loses when it is "
            "trained on problems alone."
        ),
        "fewer-thoughts": (
            "The mixture: half of the thoughts. Set `thinking_share` to 0.25. Expect "
            "obedience in both modes to stay. Are the thoughts as good?"
        ),
        "rslora": (
            "The method: rank-stabilized LoRA. Add `use_rslora=True` to `LoraConfig` "
            "([Kalajdzievski](https://arxiv.org/abs/2312.03732)): the update is scaled by "
            "$\\alpha / \\sqrt{r}$ in place of $\\alpha / r$, four times as much at rank 16. "
            "Expect what a larger learning rate does."
        ),
    },
}
