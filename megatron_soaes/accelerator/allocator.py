"""How a process keeps the memory it frees, on a CPU."""

from __future__ import annotations

import ctypes
import functools
import platform

# The numbers of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor; False where the C library is another one.

    By default every tensor of some megabytes is mapped anew from the kernel and given back when it
    dies, and each of its pages is zeroed again at the first touch: a tenth to a fifth of a training
    step. The price is that the process keeps the most memory it ever held, as a GPU's caching
    allocator does.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
