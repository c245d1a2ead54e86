"""How many segments are read at once: as many as the device's memory holds, up to a limit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from neuroexplain.collecting.collector import Collector
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.tuning import CPU_BATCH_SIZE, LARGEST_BATCH_SIZE


def find_batch_size(collector: Collector, n_segments: int) -> int:
    """A constant on a CPU; on a GPU the largest power of two that fits, found by trying."""
    if collector.subject.device.type != "cuda":
        return CPU_BATCH_SIZE
    return largest_that_fits(collector.probe, min(LARGEST_BATCH_SIZE, n_segments))


def largest_that_fits(probe: Callable[[int], None], limit: int) -> int:
    """The largest power of two, at most `limit`, for which `probe` finds memory with an eighth added.

    The eighth is for memory that a long run's allocations leave in pieces: running out of it later would cost
    the run, since another batch size is another run. Raises NeuroexplainError if not even one segment fits.
    """
    largest, size = 0, 1
    while size <= limit:
        try:
            probe(size + size // 8)
        except torch.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()
        largest, size = size, size * 2
    if not largest:
        raise NeuroexplainError(
            "The device's memory holds the model, but not one segment's activations beside the records of "
            "all units. Keep the records' activations in this machine's memory, or collect fewer layers at a "
            "time:  --windows host  |  --layers 0-15"
        )
    return largest
