"""What every recipe needs and no reader came to learn. See ARCHITECTURE.md."""

import os

# Huge pages for large tensors on a CPU. torch reads it at its first allocation, so it is here.
# Without it a tensor as large as the logits is paged in 4 KiB at a time, most of the time it takes.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
