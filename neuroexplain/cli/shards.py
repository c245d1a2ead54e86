"""Parts of explaining and scoring: their options, their units, and where they write."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.options import RUNNING
from neuroexplain.cli.progress import say
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.runs import Run
    from neuroexplain.store.engine import Store
    from neuroexplain.units import UnitId

Shard = Annotated[
    str | None,
    typer.Option(
        help="Take one part of the units, like 2/8; neuroexplain merge joins parts.", rich_help_panel=RUNNING
    ),
]
PartFile = Annotated[
    str | None,
    typer.Option(
        "--part",
        help="Write into this small file, and only read --db, so that machines can share it; neuroexplain "
        "merge joins such files.",
        rich_help_panel=RUNNING,
    ),
]
AllowFailed = Annotated[
    bool,
    typer.Option(
        "--allow-failed",
        help="End with status 0 even if some units failed: for scripts that go on then.",
        rich_help_panel=RUNNING,
    ),
]


def parse_part(text: str | None) -> tuple[int, int] | None:
    """(2, 8) of `2/8`. Raises NeuroexplainError if there is no such part."""
    from neuroexplain.selection import parse_shard

    if text is None:
        return None
    number, n = parse_shard(text)
    if not 1 <= number <= n:
        raise NeuroexplainError(f"--shard {number}/{n} is no part: write 1/8 to 8/8")
    return number, n


@contextmanager
def open_to_write(
    store: Store,
    run: Run,
    command: str,
    shard: tuple[int, int] | None,
    part: str | None,
    units: Iterable[UnitId],
    controls: Collection[int] = (),
    *,
    retry_failed: bool = False,
) -> Iterator[Store]:
    """The database that takes the results, locked: the file of a part, else `store`.

    controls: ids of explanations that the part compares with, whichever units they are of. Several parts may
    write to one database at a time: each has a lock of its own. On a PostgreSQL server any number of
    processes write together and share the units out, except with `retry_failed`, since what one has tried
    again in vain is no different from what is still to be tried.
    """
    from neuroexplain.store.postponed import create_postponed
    from neuroexplain.store.writer_lock import writer_lock

    is_shared = part is None and store.file is None
    of_part = "" if shard is None or is_shared else f" part {shard[0]} of {shard[1]}"
    what = f"run {run.id}{of_part}"
    if part is None:
        with writer_lock(store, what, command, is_shared=is_shared and not retry_failed):
            create_postponed(store.engine)
            yield store
        return
    from neuroexplain.store.parts import open_part

    with open_part(part, store, run, set(units), controls) as target, writer_lock(target, what, command):
        yield target


def say_controls_come_later(db: str, scorers: Iterable[str]) -> None:
    """Say what is to be done when all parts are explained."""
    names = ",".join(scorers)
    say(f"Join the parts when all are done:  neuroexplain merge PART ... --into {db}")
    if names:
        say(
            "A part makes no controls, which are other units' explanations. After the merge:  "
            f"neuroexplain score --controls --scorer {names} --db {db}  (with the scorer's engine)"
        )
