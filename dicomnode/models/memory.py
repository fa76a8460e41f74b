"""How a training keeps its memory; to be settled before torch is imported.

Each step of a training frees what the next one asks for again, some hundreds of megabytes in large blocks. glibc gives
such blocks back to the kernel, which clears every page anew at its first touch: a fifth of the time of a step went
there. Kept, and in huge pages where the kernel offers them, it is touched once (benchmarks/training.py).
"""

from __future__ import annotations

import ctypes
import os
import sys

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # read by torch's allocator at its first block
# Parameters of mallopt(3): no block is mapped by itself, and the top of the heap is never given back.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER, _AHEAD = 2**31 - 1, 256 << 20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, and torch ask for huge pages, unless the operator chose otherwise.

    Returns
    -------
    bool
        Whether the C library took it; others than glibc are left as they are.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _AHEAD))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
