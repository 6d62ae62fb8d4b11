"""The C library's allocator, told to keep what large tensors free for the next ones."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep up to 2 GiB of freed memory in this process instead of giving it back to the system at once.

    Large tensors, such as the activations of pictures, otherwise get new pages from the system at every update, and
    each page must be cleared: without that an update from pixels takes up to a third less time on a CPU, and a process
    up to two fifths more memory (`docs/speed.md`). The zoo's commands call this as they start; in a program of your own
    it is yours to call.

    Returns:
        Whether the C library could be told: glibc can, others are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _BYTES) and mallopt(_TRIM_THRESHOLD, _BYTES))
