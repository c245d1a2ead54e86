"""`neuroexplain merge`."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.progress import draw, say
from neuroexplain.cli.select_units import say_rule
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.runs import Run
    from neuroexplain.store.engine import Store

    Part = tuple[Store, Run]


@app.command(epilog="Example:  neuroexplain merge part1.db part2.db part3.db --into whole.db")
def merge(
    parts: Annotated[
        list[str],
        typer.Argument(metavar="A B ...", help="Databases of parts, made by collect or explain --shard."),
    ],
    into: Annotated[str, typer.Option(help="Database to write; created if missing.")],
    allow_mixed: Annotated[
        bool,
        typer.Option("--allow-mixed", help="Join parts of different batch shapes, dtypes or devices."),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            show_default="as many as pay",
            help="Layers of collected parts to merge at a time, each in a process of its own.",
        ),
    ] = None,
) -> None:
    """Join parts of one collection, or what several machines explained and scored of it.

    The result equals the work of one machine. Parts can be joined all at once, or some now and the others
    later. Parts of explaining are joined into the database that they were explained from, or copies of it
    into a new one; joining a part again changes nothing.
    """
    from neuroexplain.store.engine import open_store, remove_if_unused
    from neuroexplain.store.runs import load_run

    with ExitStack() as stack:
        stores = [stack.enter_context(open_store(part, read_only=True)) for part in parts]
        part_runs = [(store, load_run(store)) for store in stores]
        is_explained = not any(run.config.get("shard") for _, run in part_runs)
        with open_store(into, create=True) as target:
            try:
                if is_explained:
                    _merge_explained(part_runs, target)
                else:
                    _merge_collected(part_runs, target, allow_mixed, processes)
            except NeuroexplainError:
                remove_if_unused(target)
                raise


def _merge_collected(
    parts: "Sequence[Part]", into: "Store", allow_mixed: bool, n_processes: int | None
) -> None:
    from neuroexplain.collecting.merge import run_merge
    from neuroexplain.store.runs import count_explanations, load_run

    draw(run_merge(parts, into, allow_mixed=allow_mixed, n_processes=n_processes))
    run = load_run(into)
    say_rule(run)
    for store, part in parts:
        if count_explanations(store, part.id):
            say(
                f"Explanations of {store.name} were left behind: they are of a part of the text alone. "
                "Explain the whole."
            )
    shard = run.config.get("shard")
    completeness = f"{len(shard['parts'])} of {shard['of']} parts are in it." if shard else "It is whole."
    say(f"Run {run.id} in {into.name}: {run.n_tokens:,} tokens. {completeness}")


def _merge_explained(parts: "Sequence[Part]", into: "Store") -> None:
    from neuroexplain.explaining.merge import find_run, run_merge_explained
    from neuroexplain.scorers.base import SCORERS
    from neuroexplain.store.explanations import count_lacking_controls
    from neuroexplain.store.runs import count_explanations
    from neuroexplain.store.writer_lock import writer_lock

    before = find_run(parts, into)
    with writer_lock(into, "collections" if before is None else f"run {before[1].id}", "merge"):
        draw(run_merge_explained(parts, into))
    merged = find_run(parts, into)
    assert merged is not None
    run = merged[1]
    n = sum(n for _, _, _, n in count_explanations(into, run.id))
    say(f"Run {run.id} in {into.name}: {n:,} explanations and failed attempts.")
    for scorer, n_lacking in count_lacking_controls(into, run.id):
        if scorer in SCORERS.names() and not SCORERS.load(scorer).asks_per_record:
            say(
                f"{n_lacking:,} predictions by {scorer} have no control yet. When all parts are in it:  "
                f"neuroexplain score --controls --scorer {scorer} --db {into.name}"
            )
