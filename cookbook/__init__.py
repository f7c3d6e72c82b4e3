"""What every recipe needs and no reader came to learn. See ARCHITECTURE.md."""

import logging
import os

# Huge pages for large tensors on a CPU. torch reads it at its first allocation, so it is here.
# Without it a tensor as large as the logits is paged in 4 KiB at a time, most of the time it takes.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# A warning at bitsandbytes' import, where a CPU has AVX512-BF16: an optional kernel for evaluation
# is missing. Nothing here would use it (`training.keep_4bit_layers_trainable`). Whatever imports
# bitsandbytes first, often transformers or peft, the cookbook was imported before.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
