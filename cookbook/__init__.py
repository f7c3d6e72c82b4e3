"""What every recipe needs and no reader came to learn. See README.md here."""

import logging
import os
import warnings

# Huge pages for large tensors on a CPU. torch reads it at its first allocation, so it is here.
# Without it a tensor as large as the logits is paged in 4 KiB at a time, most of the time it takes.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# A warning at bitsandbytes' import, where a CPU has AVX512-BF16: an optional kernel for evaluation
# is missing. Nothing here would use it (`training.keep_4bit_layers_trainable`). Whatever imports
# bitsandbytes first, often transformers or peft, the cookbook was imported before.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# peft 0.21 and TRL 1.16 ask transformers under names that it has replaced: between them alone.
warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing")
