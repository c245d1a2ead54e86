"""Draw progress on standard error: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

from neuroexplain.formatting import printable
from neuroexplain.runtime.interrupt import stopping
from neuroexplain.runtime.progress import Progress
from neuroexplain.status_words import status_counts

LINE_EVERY = 10.0  # seconds between plain lines: a log of hours stays readable
FIRST_RATE = 0.1  # seconds until a bar shows a rate: earlier ones jump
_listeners: list[Callable[[Progress], None]] = []  # the last one takes progress in the place of the terminal


@contextmanager
def listening(listener: Callable[[Progress], None]) -> Iterator[None]:
    """Hand all progress to the listener meanwhile, which may raise Interrupted to stop the command."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


def draw(events: Generator[Progress], *, gently: bool = False) -> int:
    """Run a command's steps and show how far it is. Returns how many items failed, in all stages together.

    `gently`: Ctrl-C takes effect between two steps, and the generator is closed there.
    """
    n_failed: dict[str, int] = {}  # by stage

    def watched() -> Iterator[Progress]:
        for event in events:
            n_failed[event.stage] = event.n_failed
            yield event
            stopping.gently = gently  # from the first step on
            stopping.check()  # an exception that a signal handler raises can be lost

    try:
        if _listeners:
            for event in watched():
                _listeners[-1](event)
        else:
            (_draw_bars if sys.stderr.isatty() else _draw_lines)(watched())
    finally:
        stopping.gently = False
        events.close()
    return sum(n_failed.values())


def say(text: str) -> None:
    """Print plain lines on standard error, harmless whatever they quote."""
    print("\n".join(printable(line) for line in text.split("\n")), file=sys.stderr, flush=True)


def _draw_lines(events: Iterable[Progress]) -> None:
    previous: Progress | None = None
    began = printed_at = time.monotonic()
    n_before = 0  # done by an earlier command, which says nothing about the rate
    for event in events:
        now = time.monotonic()
        if event.note is not None:
            say(event.note)
        if previous is None or event.stage != previous.stage:
            began = printed_at = now
            n_before = event.done
        is_finished = event.total is not None and event.done >= event.total > 0
        is_repeated = previous is not None and (previous.stage, previous.done) == (event.stage, event.done)
        if (is_finished and not is_repeated) or now - printed_at >= LINE_EVERY:
            printed_at = now
            say(_line(event, event.done - n_before, now - began))
        previous = event


def _line(event: Progress, n_new: int, seconds: float) -> str:
    """A stage's progress as one line. n_new: done in these seconds."""
    of_total = f" of {event.total:,}" if event.total is not None else ""
    text = f"{event.stage}: {event.done:,}{of_total} {event.unit}".rstrip()
    if n_new and seconds > 0:
        text += f", {_rate(event, n_new, seconds)}"
        if event.total is not None and event.done < event.total:
            text += f", {clock(seconds * (event.total - event.done) / n_new)} left"
    return text + _failures(event)


def _failures(event: Progress) -> str:
    return f"; {status_counts(event.failures)}" if event.failures else ""


def _rate(event: Progress, n_new: int, seconds: float) -> str:
    tokens = f", {event.tokens / seconds:,.0f} prompt tokens/s" if event.tokens else ""
    servers = f", {event.servers[0]} of {event.servers[1]} servers" if event.servers else ""
    return f"{n_new / seconds:,.1f}/s{tokens}{servers}"


def clock(seconds: float) -> str:
    """Seconds as 1:02 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _draw_bars(events: Iterable[Progress]) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]}{task.fields[failed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
    )
    with bars:
        tasks, began, n_before = {}, {}, {}  # by stage; n_before as in _draw_lines
        for event in events:
            stage = event.stage
            if event.note is not None:
                bars.console.print(printable(event.note), markup=False, highlight=False)
            if stage not in tasks:
                began[stage], n_before[stage] = time.monotonic(), event.done
                tasks[stage] = bars.add_task(stage, total=event.total, unit=event.unit, rate="", failed="")
            seconds, n_new = time.monotonic() - began[stage], event.done - n_before[stage]
            bars.update(
                tasks[stage],
                completed=event.done,
                total=event.total,
                rate=_rate(event, n_new, seconds) if n_new and seconds > FIRST_RATE else "",
                failed=_failures(event),
            )
