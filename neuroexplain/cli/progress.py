"""Draw a pipeline's progress: bars with rate and time left on a terminal, plain lines elsewhere. All on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator

from neuroexplain.formatting import printable
from neuroexplain.runtime.interrupt import stopping
from neuroexplain.runtime.progress import Progress

LINE_EVERY = 10.0  # seconds between plain lines


def draw(events: Generator[Progress], *, gently: bool = False) -> int:
    """Consume a pipeline and show how far it is. Returns how many failed, in all its stages together.

    `gently`: Ctrl-C takes effect between two of its steps, and the pipeline is closed there.
    """
    failed: dict[str, int] = {}

    def counted() -> Iterator[Progress]:
        for event in events:
            failed[event.stage] = event.failed
            yield event
            stopping.gently = gently  # from the first step on
            stopping.check()  # what a handler raises can be lost

    try:
        (_draw_bars if sys.stderr.isatty() else _draw_lines)(counted())
    finally:
        stopping.gently = False
        events.close()
    return sum(failed.values())


def say(text: str) -> None:
    """One plain line on standard error, harmless whatever it quotes."""
    print("\n".join(printable(line) for line in text.split("\n")), file=sys.stderr, flush=True)


def _draw_lines(events: Iterable[Progress]) -> None:
    last: Progress | None = None
    began = shown = time.monotonic()
    before = 0  # what an earlier command had done, which says nothing about the rate
    for event in events:
        now = time.monotonic()
        if event.note is not None:
            say(event.note)
        if last is None or event.stage != last.stage:
            began = shown = now
            before = event.done
        finished = event.total is not None and event.done >= event.total > 0
        was_finished = last is not None and last.stage == event.stage and last.done == event.done
        if (finished and not was_finished) or now - shown >= LINE_EVERY:
            shown = now
            say(_line(event, event.done - before, now - began))
        last = event


def _line(event: Progress, done: int, seconds: float) -> str:
    of = f" of {event.total:,}" if event.total is not None else ""
    text = f"{event.stage}: {event.done:,}{of} {event.unit}".rstrip()
    if done and seconds > 0:
        text += f", {_rate(event, done, seconds)}"
        if event.total is not None and event.done < event.total:
            text += f", {clock(seconds * (event.total - event.done) / done)} left"
    return text + (f", {event.failed:,} failed" if event.failed else "")


def _rate(event: Progress, done: int, seconds: float) -> str:
    tokens = f", {event.tokens / seconds:,.0f} prompt tokens/s" if event.tokens else ""
    return f"{done / seconds:,.1f}/s{tokens}"


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
        tasks = {}
        began = {}
        before = {}  # what an earlier command had done, which says nothing about the rate
        for event in events:
            if event.note is not None:
                bars.console.print(printable(event.note), markup=False, highlight=False)
            if event.stage not in tasks:
                began[event.stage], before[event.stage] = time.monotonic(), event.done
                tasks[event.stage] = bars.add_task(
                    event.stage, total=event.total, unit=event.unit, rate="", failed=""
                )
            seconds, done = time.monotonic() - began[event.stage], event.done - before[event.stage]
            bars.update(
                tasks[event.stage],
                completed=event.done,
                total=event.total,
                rate=_rate(event, done, seconds) if done and seconds > 0.1 else "",
                failed=f", {event.failed:,} failed" if event.failed else "",
            )
