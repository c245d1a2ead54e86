"""A generator of progress that runs in a process of its own and stops when its caller stops listening."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress

Work = Callable[..., Generator[Progress, None, Any]]


@dataclass(frozen=True, slots=True)
class End:
    """The work is done, and has returned this."""

    result: Any


class Worker:
    """`work(*args)` in a spawned process, started at once. `work`, its arguments and what it returns must be
    picklable.

    When the caller disconnects, is interrupted or is killed, the generator is closed between two of its
    steps.
    """

    def __init__(self, name: str, work: Work, *args: Any) -> None:
        self.name = name  # for error messages
        self.result: Any = None  # what the work returned, once it has finished
        self.connection, sender = multiprocessing.Pipe(duplex=False)
        self._process = multiprocessing.get_context("spawn").Process(
            target=_run, args=(work, args, sender), daemon=True
        )
        with _blocked_interrupts():
            self._process.start()
        sender.close()

    def receive(self) -> Progress | None:
        """Wait for the next progress; None when the work has finished.

        Raises NeuroexplainError with the work's own message, or if the process ended without one.
        """
        try:
            message = self.connection.recv()
        except EOFError:
            self._process.join()
            raise NeuroexplainError(
                f"The process of {self.name} ended with status {self._process.exitcode}. "
                "The last checkpoint is intact: run the same command again."
            ) from None
        if isinstance(message, Progress):
            return message
        self._process.join()  # nothing follows the end or an error
        if not isinstance(message, End):
            raise NeuroexplainError(str(message))
        self.result = message.result
        return None

    def follow(self) -> Generator[Progress, None, Any]:
        """Yields every progress until the work has finished. Returns what the work returned."""
        while (progress := self.receive()) is not None:
            yield progress
        return self.result

    def disconnect(self) -> None:
        """Stop listening. The process notices when it next reports progress, and ends."""
        self.connection.close()

    def stop(self) -> None:
        """End the process at once, wherever it is, and wait for its end."""
        self._process.terminate()
        self._process.join(timeout=5.0)
        self._process.kill()  # does nothing to a process that has ended
        self._process.join()
        self.connection.close()

    def join(self) -> None:
        """Wait for the end of the process."""
        self._process.join()


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Block Ctrl-C and SIGHUP; a process spawned meanwhile inherits that and never receives them.

    A terminal sends them to every process. Only the parent answers them, after this block, and stops the
    others.
    """
    resource_tracker.ensure_running()  # started within the block, it would unblock the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(work: Work, args: tuple[Any, ...], sender: Connection) -> None:
    """Send every step's progress, then the end, or the message of a NeuroexplainError."""

    def until_end() -> Generator[Progress]:
        sender.send(End((yield from work(*args))))

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exit cleans up files and semaphores
    with suppress(BrokenPipeError):
        try:
            with closing(until_end()) as steps:
                for progress in steps:
                    sender.send(progress)
        except NeuroexplainError as error:
            sender.send(str(error))
