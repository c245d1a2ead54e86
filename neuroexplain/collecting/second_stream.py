"""A second CUDA stream, on which a layer is folded while the next layer is computed.

Folding asks the device for numbers four times a layer (how many candidates there are, and which), and waits
for them. On the model's own stream the device would be idle meanwhile. On a second stream, one call later,
the next layer's kernels are queued already: 0.913 of the forward pass's speed in place of 0.898 on an H200.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SecondStream:
    """Runs each fold one call later on a GPU; on a CPU at once."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._pending: tuple[Callable[[], None], Tensor, Any] | None = None  # fold, what it reads, event

    def defer(self, fold: Callable[[], None], values: Tensor) -> None:
        """Run the fold that was deferred before, and defer this one.

        It reads `values`, which must not change until then.
        """
        if self.stream is None:
            fold()
            return
        computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        computed.record(torch.cuda.current_stream(self.stream.device))
        pending, self._pending = self._pending, (fold, values, computed)
        if pending is not None:
            self._run(*pending)

    def finish(self) -> None:
        """Run the last fold. What the current stream does from here on sees the results of all folds."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._run(*pending)
        if self.stream is not None:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def discard(self) -> None:
        """Drop the deferred fold of a batch that failed before its end."""
        self._pending = None

    def _run(self, fold: Callable[[], None], values: Tensor, computed: Any) -> None:
        assert self.stream is not None
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(computed)
            # The memory of `values` is reused only when this stream has read them, even if the fold fails.
            values.record_stream(self.stream)
            fold()
