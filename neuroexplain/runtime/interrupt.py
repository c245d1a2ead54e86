"""Ctrl-C, and being told to end: at once, or, where work in progress would be lost, at the next step."""

from __future__ import annotations

import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, a terminal that was closed


class Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which typer would answer without a word."""


class Stopping:
    """What SIGNALS do. The first one waits for the next step where `gently` is set; a second one never waits."""

    def __init__(self) -> None:
        self.gently = False
        self.asked: int | None = None  # the signal

    @property
    def status(self) -> int:
        """The exit status of a command that was stopped: 130 after Ctrl-C."""
        return 128 + (self.asked or signal.SIGINT)

    def install(self) -> None:
        self.asked = None
        for one in SIGNALS:
            if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN:  # ignored: by nohup
                signal.signal(one, self.answer)

    def check(self) -> None:
        """Called between two steps. Raises Interrupted where a stop was asked for."""
        if self.asked:
            raise Interrupted

    def answer(self, signal_number: int, frame: object) -> None:
        """A signal's handler."""
        again, self.asked = (
            self.asked,
            signal_number,
        )  # before anything is raised: Python drops what is raised in a __del__
        if again or not self.gently:
            raise Interrupted
        print("Stopping after this step ... (Ctrl-C again: at once)", file=sys.stderr, flush=True)


stopping = Stopping()
