"""Teach SmolLM2 the form of an answer in a few steps: `python -m tests.bench.warm_up FOLDER`.

GRPO needs answers that are sometimes right; from the untrained model none would be.
"""

import sys
import tempfile
from typing import Any

from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cookbook import chat, data, forms, models, training
from tests.bench import rows


def main(folder: str) -> None:
    """Train with the settings of the recipe's warm-up, merge, and save the model."""
    words = rows.tokenizer()
    model = AutoModelForCausalLM.from_pretrained(models.resolve_model(rows.MODEL))
    sums = data.load_splits(rows.SUMS)["train"].select(range(40))
    shown = forms.as_conversations(
        sums.map(lambda row: {"completion": f"#### {row['answer']}"}), "train split"
    )
    tokenized = chat.supervise_answers(shown, words, words.eos_token_id)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model.float(),
            args=SFTConfig(
                output_dir=scratch,
                max_steps=5,
                per_device_train_batch_size=8,
                learning_rate=1e-3,
                activation_checkpointing=False,
                max_length=None,
                bf16=True,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=tokenized.select_columns(["input_ids", "labels"]),
            processing_class=words,
            peft_config=LoraConfig(
                r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
        )
        training.use_supervised_positions_loss(trainer)
        trainer.train()
        tuned: Any = trainer.model
        tuned.merge_and_unload().bfloat16().save_pretrained(folder)
    words.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
