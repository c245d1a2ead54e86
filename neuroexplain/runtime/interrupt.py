"""Ctrl-C and other signals to stop: at once, or after the current step if that saves its work."""

from __future__ import annotations

import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, a closed terminal


class Interrupted(BaseException):
    """A signal stopped the command. Not KeyboardInterrupt, on which typer would exit without a message."""


class Stopping:
    """The handler of SIGNALS, and whether one has arrived.

    While `gently` is set, the first signal takes effect at the next `check`, between two steps. A second
    signal takes effect at once.
    """

    def __init__(self) -> None:
        self.gently = False
        self.signal_number: int | None = None  # the signal that arrived last
        # What a stopped command says. A command that keeps nothing says so instead.
        self.farewell = "Interrupted. Finished work is kept; the same command goes on from there."

    @property
    def status(self) -> int:
        """The exit status of a stopped command: 130 after Ctrl-C."""
        return 128 + (self.signal_number or signal.SIGINT)

    def install(self) -> None:
        """Become the handler of SIGNALS. SIGHUP stays ignored under nohup."""
        self.signal_number = None
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.receive)

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived. Called between two steps.

        It is needed after every signal: Python drops an exception that a handler raises inside a `__del__`.
        """
        if self.signal_number:
            raise Interrupted

    def receive(self, signal_number: int, frame: object) -> None:
        """The handler itself."""
        is_second = self.signal_number is not None
        self.signal_number = signal_number  # before anything is raised, so that `check` sees it
        if is_second or not self.gently:
            raise Interrupted
        print("Stopping after this step ... (Ctrl-C again: at once)", file=sys.stderr, flush=True)


stopping = Stopping()
