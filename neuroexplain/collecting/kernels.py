"""Compiled kernels for a GPU: attention, norms and statistics as few kernels in place of many.

On an H200 a plain forward pass of 884 ms spent 202 ms on norms and rotary positions, each step a kernel that
reads and writes all of its values. torch.compile fuses the steps: 43,500 tokens/s in place of 36,300
(docs/benchmarks.md). The modules at which activations are read stay as they are.
"""

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
from neuroexplain.subject.model import Subject
from neuroexplain.units import Source

# How many graphs torch.compile makes of one module's code: in a few families each layer has its own, and
# beyond the limit modules run as they are.
MOST_GRAPHS = 256
# What a compiler that does not work raises. Running out of memory is a RuntimeError too, so it is caught
# before.
COMPILER_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)


def can_compile(device: torch.device) -> bool:
    """Whether this is a GPU with Triton and a C compiler, and TORCHDYNAMO_DISABLE is not set."""
    if device.type != "cuda" or torch._dynamo.config.disable:
        return False
    return has_triton() and any(shutil.which(name) for name in ("cc", "gcc", "clang"))


def compile_options() -> dict[str, Any]:
    """The options of torch.compile: static shapes, and two of Inductor's options if this torch has them.

    `emulate_precision_casts` rounds between steps as separate kernels do; without it half of the bfloat16
    values have other last bits a few layers on. `deterministic` gives the same kernels in each process, not
    those that won a trial.
    """
    from torch._inductor import config

    names = ("emulate_precision_casts", "deterministic")
    return {"dynamic": False, "options": {name: True for name in names if hasattr(config, name)}}


def parts_around(subject: Subject, sources: Iterable[Source]) -> list[nn.Module]:
    """Each layer's attention and norms: its parts that hold neither neurons nor a module of the sources.

    Torch's own modules are left out, since each is one kernel already.
    """
    read_modules = {subject.module(source.module) for source in sources if source.module is not None}
    modules = []
    for number, layer in enumerate(subject.layers):
        mlp = {
            subject.module(subject.path(number, below))
            for below in (subject.family.activation, subject.family.down)
        }
        parts = (part for part in layer.children() if not (read_modules | mlp) & set(part.modules()))
        modules += [part for part in parts if not type(part).__module__.startswith("torch.nn.")]
    return modules


def compile_around(subject: Subject, sources: Iterable[Source]) -> None:
    """Have the parts around the sources compiled at their next call."""
    options = compile_options()
    for part in parts_around(subject, sources):
        part.compile(**options)


def undo_compile(subject: Subject) -> None:
    """Have every part run uncompiled again."""
    for part in parts_around(subject, ()):
        part._compiled_call_impl = None


def compiled_sum_segments(batch_size: int) -> SumUp:
    """`sum_segments`, compiled to one pass over a batch of this size; other batches run eagerly.

    A kernel for any shape takes twice as long, and whether torch chooses it depends on what the process did
    before.
    """
    bare = inspect.unwrap(plain_sum_segments)  # without the shape checks that tests wrap around it
    compiled: SumUp = torch.compile(bare, **compile_options())

    def sum_up(acts: Tensor, center: Tensor) -> Sums:
        return (compiled if len(acts) == batch_size else sum_segments)(acts, center)

    return sum_up
