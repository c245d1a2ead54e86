"""Work on a layer's activations while the device computes the next layer's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Behind:
    """Does each piece of work one call later on a GPU, on a stream of its own; on a processor at once.

    Folding activations asks the device for numbers, and waits for them: how many candidates there are, and which. By then the
    next layer's kernels are queued on the stream that is current here, so that the device has work meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._waiting: tuple[Callable[[], None], Tensor, Any] | None = (
            None  # work, what it reads, and when that is there
        )

    def do(self, work: Callable[[], None], acts: Tensor) -> None:
        """Do what waited, and have this work wait. It reads `acts`, which must keep their values until then."""
        if self.stream is None:
            work()
            return
        made = torch.cuda.Event()  # type: ignore[no-untyped-call]
        made.record(torch.cuda.current_stream(self.stream.device))
        waiting, self._waiting = self._waiting, (work, acts, made)
        if waiting is not None:
            self._do_now(*waiting)

    def finish(self) -> None:
        """Do what still waits; what the current stream does from here on sees all of it."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._do_now(*waiting)
        if self.stream is not None:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def forget(self) -> None:
        """Drop what still waits, of a batch that was not read to its end."""
        self._waiting = None

    def _do_now(self, work: Callable[[], None], acts: Tensor, made: Any) -> None:
        assert self.stream is not None
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(made)
            acts.record_stream(
                self.stream
            )  # nobody gets their memory before this stream has read them, also where work fails
            work()
