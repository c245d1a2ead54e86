"""Few kernels in place of many, made by torch.compile: of what a GPU spends on neither matrix products nor us."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from neuroexplain.collecting.statistics import Sums, SumUp, plain_sum_segments, sum_segments
from neuroexplain.subject.load import Subject
from neuroexplain.units import Source

MOST_GRAPHS = 256  # of one module's code: of few families each layer has its own
# What a compiler that does not work raises; running out of memory is none of it.
FAILED = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)


def can_compile(device: torch.device) -> bool:
    """Whether it is a GPU, with Triton and a C compiler at hand, and TORCHDYNAMO_DISABLE is not set."""
    if device.type != "cuda" or torch._dynamo.config.disable:
        return False
    return has_triton() and any(shutil.which(name) for name in ("cc", "gcc", "clang"))


def how() -> dict[str, Any]:
    """What torch.compile is told: batches have one shape; the same kernels in each process, not the fastest by a trial.

    Values are rounded in between as the separate kernels do: else half of the bfloat16 ones have other last bits layers on.
    """
    from torch._inductor import config

    wanted = ("emulate_precision_casts", "deterministic")
    return {"dynamic": False, "options": {name: True for name in wanted if hasattr(config, name)}}


def parts_around(subject: Subject, sources: Iterable[Source]) -> list[nn.Module]:
    """Each layer's attention and norms: its parts that hold neither neurons nor what is read.

    Torch's own modules are one kernel as they are.
    """
    read = {subject.module(source.module) for source in sources if source.module is not None}
    found = []
    for number, layer in enumerate(subject.layers):
        mlp = {
            subject.module(subject.path(number, below))
            for below in (subject.family.activation, subject.family.down)
        }
        parts = (part for part in layer.children() if not (read | mlp) & set(part.modules()))
        found += [part for part in parts if not type(part).__module__.startswith("torch.nn.")]
    return found


def compile_around(subject: Subject, sources: Iterable[Source]) -> None:
    """Have the parts around what is read compiled when they are first called."""
    told = how()
    for part in parts_around(subject, sources):
        part.compile(**told)


def undo(subject: Subject) -> None:
    """Have every part run as it was."""
    for part in parts_around(subject, ()):
        part._compiled_call_impl = None


def compiled_sum_segments(batch_size: int) -> SumUp:
    """`sum_segments` in one pass over the activations, in place of eight; for batches of this size, others go as before."""
    bare = inspect.unwrap(plain_sum_segments)  # without the checks of shapes that tests put around it
    compiled: SumUp = torch.compile(bare, **how())

    def sum_up(acts: Tensor, center: Tensor) -> Sums:
        return (compiled if len(acts) == batch_size else sum_segments)(acts, center)

    return sum_up
