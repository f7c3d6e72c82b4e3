"""What memory is free, what a training took, and how to keep it."""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import psutil
import torch

GIB = 2**30
# glibc's switches, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def free_bytes() -> int:
    """Return the memory that is free where models go: on the GPU if there is one, else in RAM."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def reset_peak() -> None:
    """Start the count of peak memory anew, so that what follows is measured alone.

    On a GPU through torch; for a process on Linux through the kernel (proc(5), clear_refs). Other
    systems have no such switch: there the peak stays that of the whole process.
    """
    gc.collect()
    switch = Path("/proc/self/clear_refs")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif switch.exists():
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # what is kept of freed memory is not what follows will need
        switch.write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """Return this process's peak memory: the GPU's where there is one, else resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for the next step's tensors; tell whether it will.

    After each training step glibc hands gigabytes back to the kernel, which has to clear every page
    of them before the next step gets them again. For training on a CPU, on Linux with glibc;
    elsewhere nothing changes. Until it ends the process then holds as much as it ever needed.
    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and libc.mallopt(_M_MMAP_MAX, 0))
