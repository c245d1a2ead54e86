"""How far tokenizing has come, for processes that read a corpus which another one tokenizes.

The count lies in shared memory. A pipe to each reader would fill while that reader is busy, and block the
writer.
"""

from __future__ import annotations

import multiprocessing
import time

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress

TOKENIZING, FINISHED, FAILED = 0, 1, 2  # states
POLL_EVERY = 0.02  # seconds: a batch takes the subject longer


class SharedProgress:
    """The number of tokens that can be read, and a state. Spawned processes get it as an argument."""

    def __init__(self) -> None:
        self._shared = multiprocessing.get_context("spawn").RawArray("q", 2)

    def set(self, n_tokens: int | None = None, state: int | None = None) -> None:
        """Change one of the two, or both: the number first."""
        for index, value in enumerate((n_tokens, state)):
            if value is not None:
                self._shared[index] = value

    def get(self) -> tuple[int, int]:
        """(n_tokens, state)."""
        n_tokens, state = self._shared
        return n_tokens, state


class Follower:
    """Receives progress from a SharedProgress as one receives it from a Worker."""

    def __init__(self, shared: SharedProgress) -> None:
        self._shared, self._n_tokens = shared, 0

    def receive(self) -> Progress | None:
        """Wait for more tokens; None when all can be read. Raises NeuroexplainError if no more will come."""
        parent = multiprocessing.parent_process()
        while True:
            n_tokens, state = self._shared.get()
            if state == FINISHED:
                return None
            if state == FAILED or (parent is not None and not parent.is_alive()):
                raise NeuroexplainError("The corpus is not tokenized to its end. Run the same command again.")
            if n_tokens > self._n_tokens:
                self._n_tokens = n_tokens
                return Progress("tokenizing", n_tokens, unit="tokens")
            time.sleep(POLL_EVERY)

    def stop(self) -> None:
        """Do nothing: the process that tokenizes goes on for other readers."""
