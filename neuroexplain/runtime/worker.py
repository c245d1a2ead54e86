"""Work in a process of its own, which tells its progress and ends when nobody listens any more."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress

Work = Callable[..., Generator[Progress, None, Any]]


class Worker:
    """`work(*args)`, begun at once in a spawned process: both must be picklable.

    Where the one who listens hangs up, is interrupted or killed, the work is closed as a generator is, between two steps.
    """

    def __init__(self, name: str, work: Work, *args: Any) -> None:
        self.name = name
        self.pipe, tell = multiprocessing.Pipe(duplex=False)
        self._process = multiprocessing.get_context("spawn").Process(
            target=_run, args=(work, args, tell), daemon=True
        )
        with _without_interrupts():
            self._process.start()
        tell.close()

    def hear(self) -> Progress | None:
        """Wait for what it says next; None when it has finished. Raises NeuroexplainError where it failed."""
        try:
            told = self.pipe.recv()
        except EOFError:
            self._process.join()
            raise NeuroexplainError(
                f"The process of {self.name} ended with status {self._process.exitcode}. The last checkpoint is intact: run "
                "the same command again."
            ) from None
        if isinstance(told, Progress):
            return told
        self._process.join()  # that was its last word
        if told is not None:
            raise NeuroexplainError(str(told))
        return None

    def hang_up(self) -> None:
        """Listen no more; it notices when it next tells something."""
        self.pipe.close()

    def stop(self) -> None:
        """End it at once, wherever it is, and clean up after it."""
        self._process.terminate()
        self._process.join(timeout=5.0)
        self._process.kill()  # where it did not listen; else nothing
        self._process.join()
        self.pipe.close()

    def join(self) -> None:
        """Wait for its end."""
        self._process.join()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that begins meanwhile never hears what a terminal sends to all: whoever began it stops it. Ours waits."""
    resource_tracker.ensure_running()  # which would let signals through again when it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(work: Work, args: tuple[Any, ...], tell: Connection) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that files and semaphores are cleaned up
    with suppress(BrokenPipeError):
        try:
            with closing(work(*args)) as steps:
                for step in steps:
                    tell.send(step)
        except NeuroexplainError as error:
            tell.send(str(error))
        else:
            tell.send(None)
