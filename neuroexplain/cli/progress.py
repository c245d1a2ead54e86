"""Draw a pipeline's progress: bars with rate and time left on a terminal, plain lines elsewhere. All on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from neuroexplain.cli.render import printable
from neuroexplain.pipeline.progress import Progress

LINE_EVERY = 10.0  # seconds between plain lines


def draw(events: Iterable[Progress]) -> Progress | None:
    """Consume a pipeline and show how far it is. Returns the last event, None when there was none."""
    return _draw_bars(events) if sys.stderr.isatty() else _draw_lines(events)


def say(text: str) -> None:
    """One plain line on standard error, harmless whatever it quotes."""
    print("\n".join(printable(line) for line in text.split("\n")), file=sys.stderr, flush=True)


def _draw_lines(events: Iterable[Progress]) -> Progress | None:
    last: Progress | None = None
    began = shown = time.monotonic()
    for event in events:
        now = time.monotonic()
        if event.note is not None:
            say(event.note)
        if last is None or event.stage != last.stage:
            began = shown = now
        finished = event.total is not None and event.done >= event.total > 0
        was_finished = last is not None and last.stage == event.stage and last.done == event.done
        if (finished and not was_finished) or now - shown >= LINE_EVERY:
            shown = now
            say(_line(event, now - began))
        last = event
    return last


def _line(event: Progress, seconds: float) -> str:
    of = f" of {event.total:,}" if event.total is not None else ""
    text = f"{event.stage}: {event.done:,}{of} {event.unit}".rstrip()
    if event.done and seconds > 0:
        text += f", {event.done / seconds:,.1f}/s"
        if event.total is not None and event.done < event.total:
            text += f", {_clock(seconds * (event.total - event.done) / event.done)} left"
    return text + (f", {event.failed:,} failed" if event.failed else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _draw_bars(events: Iterable[Progress]) -> Progress | None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    last: Progress | None = None
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
        for event in events:
            if event.note is not None:
                bars.console.print(printable(event.note), markup=False, highlight=False)
            if event.stage not in tasks:
                began[event.stage] = time.monotonic()
                tasks[event.stage] = bars.add_task(event.stage, total=event.total, unit=event.unit, rate="", failed="")
            seconds = time.monotonic() - began[event.stage]
            bars.update(
                tasks[event.stage],
                completed=event.done,
                total=event.total,
                rate=f"{event.done / seconds:,.1f}/s" if event.done and seconds > 0.1 else "",
                failed=f", {event.failed:,} failed" if event.failed else "",
            )
            last = event
    return last
