"""Ctrl-C: at once, or, where work in progress would be lost, at the next step."""

from __future__ import annotations

import signal
import sys


class Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which typer would answer without a word."""


class Stopping:
    """What Ctrl-C does. The first one waits for the next step where `gently` is set; a second one never waits."""

    def __init__(self) -> None:
        self.gently = False
        self.asked = False

    def install(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self.answer)

    def check(self) -> None:
        """Called between two steps. Raises Interrupted where a stop was asked for."""
        if self.asked:
            raise Interrupted

    def answer(self, signal_number: int, frame: object) -> None:
        """A signal's handler."""
        again, self.asked = self.asked, True  # before anything is raised: Python drops what is raised in a __del__
        if again or not self.gently:
            raise Interrupted
        print("Stopping after this step ... (Ctrl-C again: at once)", file=sys.stderr, flush=True)


stopping = Stopping()
