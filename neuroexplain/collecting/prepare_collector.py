"""An empty collector for a run, the batch size that it reads with, and compiled kernels if they work."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import torch

from neuroexplain.collecting.batch_size import find_batch_size
from neuroexplain.collecting.collector import Collector
from neuroexplain.collecting.kernels import COMPILER_ERRORS, can_compile, undo_compile
from neuroexplain.config import CollectConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress
from neuroexplain.sources.base import SourceKind
from neuroexplain.subject.model import Subject

MANY_SEGMENTS = 1 << 20  # more than any batch has: the number of segments while it is not known


def prepare_collector(
    config: CollectConfig,
    kind: SourceKind,
    subject: Subject,
    layers: tuple[int, ...],
    n_segments: int | None,
    checkpoint: Mapping[str, Any] | None,
) -> Generator[Progress, None, tuple[Collector, int]]:
    """(collector, batch size). A checkpoint decides the batch size, and that plain kernels stay plain.

    Raises NeuroexplainError if the device's memory is too small.
    """
    undo_compile(subject)  # if an earlier run of this process has compiled it
    collector = _new_collector(config, kind, subject, layers)
    if checkpoint is not None:
        batch_size = int(checkpoint["batch_size"])
    else:
        batch_size = config.batch_size or find_batch_size(collector, n_segments or MANY_SEGMENTS)
    was_plain = checkpoint is not None and checkpoint["kernels"] != "compiled"
    if config.compile and not was_plain and can_compile(subject.device):
        yield from _compile(collector, batch_size)
    return collector, batch_size


def _new_collector(
    config: CollectConfig, kind: SourceKind, subject: Subject, layers: tuple[int, ...]
) -> Collector:
    try:
        return Collector(
            subject,
            layers,
            source=kind,
            activation=config.activation_name,
            sign=config.collected_sign,
            top_k=config.top_k,
            positions=range(*config.positions),
            special_peaks=config.special_peaks,
            n_random=config.random_records,
            n_sampled=config.sampled_records,
            n_background=config.n_background,
            seed=config.seed,
            windows_on_host=config.windows == "host",
        )
    except torch.OutOfMemoryError as error:
        raise NeuroexplainError(
            f"The device's memory does not hold the model and the {config.top_k + config.sampled_records} "
            "records kept of each unit. "
            "Keep the records' activations in this machine's memory, or collect fewer layers at a time:  "
            "--windows host  |  --layers 0-15"
        ) from error


def _compile(collector: Collector, batch_size: int) -> Generator[Progress]:
    """Compile kernels. If the compiler fails, the collector reads without them, and a note says so."""
    yield Progress("loading the model", note="Compiling the model's attention and norms ...")
    try:
        collector.compile(batch_size)
    except torch.OutOfMemoryError as error:
        raise NeuroexplainError(
            f"The device's memory does not hold a batch of {batch_size} segments beside the records of all "
            "units. Take a smaller --batch-size, or --windows host."
        ) from error
    except COMPILER_ERRORS as error:
        cause = getattr(error, "inner_exception", error)  # the compiler wraps the error that tells more
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        yield Progress(
            "loading the model",
            note=f"Compiling failed, so the model is read as it is, more slowly: {reason}",
        )
