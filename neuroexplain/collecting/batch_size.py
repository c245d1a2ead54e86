"""How many segments are read at once: the most that the device's memory holds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from neuroexplain.collecting.collector import Collector
from neuroexplain.errors import NeuroexplainError

CPU_BATCH_SIZE = 32  # segments
LARGEST_BATCH_SIZE = (
    256  # from 64 on a GPU reads no faster, and new candidates go 16 segments at a time at first
)


def find_batch_size(collector: Collector, n_segments: int) -> int:
    """On a CPU always the same; on a GPU the largest power of two, up to 256, that fits, found by trying before all else."""
    if collector.subject.device.type != "cuda":
        return CPU_BATCH_SIZE
    return largest_that_fits(collector.probe, min(LARGEST_BATCH_SIZE, n_segments))


def largest_that_fits(probe: Callable[[int], None], most: int) -> int:
    """The largest power of two, at most `most`, for which `probe` finds memory, and for an eighth more.

    The eighth is for what a long run's allocations leave in pieces. Raises NeuroexplainError where not even one fits.
    """
    fits, size = 0, 1
    while size <= most:
        try:
            probe(size + size // 8)
        except torch.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()
        fits, size = size, size * 2
    if not fits:
        raise NeuroexplainError(
            "The device's memory holds the model, but not one segment's activations beside what is kept of the neurons. "
            "Keep the windows in this machine's memory, or collect fewer layers at a time:  --windows host  |  --layers 0-15"
        )
    return fits
