"""Settings that change speed or memory, never a result; each with its measurement.

The command line imports this module before all others, so it imports nothing but parts of the standard
library that Python has loaded by then.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

# Segments in a batch on a CPU. Collecting on two cores runs at 0.95 of the forward pass's speed with 32
# segments and a view of the windows, at 0.93 with 16 and without the view.
CPU_BATCH_SIZE = 32

# Segments in a batch on a GPU, at most. On an H200 batches of 64 to 1,024 segments read 36,151 to 36,436
# tokens/s, all the same. Larger batches have more new candidates than there are spare slots, so they are
# folded 16 segments at a time: batches of 1,024 for the first 10,000 segments, at 0.84 of the forward pass's
# speed.
LARGEST_BATCH_SIZE = 256

# Activations that are summed up at once on a CPU. In float32, with as many distances from the mean, they take
# 3.2 MB and stay in the processor's cache: 2.5 times as fast as a whole batch at once on two cores.
CACHED_ACTIVATIONS = 400_000

# Units whose vocabulary logits are computed at once. It bounds memory: 512 units x 128,256 tokens of Llama-3
# in float32 take 263 MB.
VOCABULARY_UNITS_AT_ONCE = 512

# Activations of latents that are computed at once, of all tokens of a batch together: 16 MiB in float32.
LATENTS_AT_ONCE = 1 << 22

# Cosines of latents' directions that are computed at once: 128 MiB in float32.
COSINES_AT_ONCE = 1 << 25

# Documents tokenized at once: a fast tokenizer spreads them over all cores, 870,000 tokens/s on two.
DOCUMENTS_AT_ONCE = 64

# Bytes of a corpus from which on it is tokenized by a second process while its segments are read. A smaller
# one is tokenized (16 MiB take about 5 s on two cores) before the second process would be ready.
LARGE_CORPUS = 16 * 2**20

# The numbers of mallopt's parameters in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune_garbage_collector() -> None:
    """Keep the garbage collector away from loaded modules, at start and at exit.

    With Python's own threshold of 700 new objects it looks through all modules again and again while they
    load, and once more at exit. `neuroexplain show` took 0.62 s with that and takes 0.50 s without.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def keep_freed_memory() -> None:
    """Have the C library keep freed memory in blocks of up to 32 MiB for this process, from now on.

    By default glibc returns it to the kernel, which clears it before the next use. Kept memory makes a
    forward pass of SmolLM2 1.14 times as fast on two cores; page faults fall to a fifth, and the peak of
    memory is the same.
    """
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # never shrink the heap
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the highest value that mallopt accepts


def processes_that_fit(n_tasks: int, task_bytes: int) -> int:
    """How many processes may work at n_tasks tasks of so many bytes: no more than processors, and half of the
    free memory.
    """
    import psutil

    by_memory = psutil.virtual_memory().available // (2 * max(task_bytes, 1))
    return int(max(1, min(n_tasks, os.cpu_count() or 1, by_memory)))
