"""`neuroexplain merge`."""

from contextlib import ExitStack
from typing import Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.progress import draw, say
from neuroexplain.cli.select_units import say_rule
from neuroexplain.errors import NeuroexplainError


@app.command(epilog="Example:  neuroexplain merge part1.db part2.db part3.db --into whole.db")
def merge(
    parts: Annotated[
        list[str], typer.Argument(metavar="A B ...", help="Databases of parts, made by collect --shard.")
    ],
    into: Annotated[str, typer.Option(help="Database to write; created if missing.")],
    allow_mixed: Annotated[
        bool,
        typer.Option("--allow-mixed", help="Join parts of different batch shapes, dtypes or devices."),
    ] = False,
) -> None:
    """Join parts of one collection. The result equals a collection in one piece.

    Parts can be joined all at once, or some now and their result with the others later.
    """
    from neuroexplain.collecting.merge import run_merge
    from neuroexplain.store.engine import open_store, remove_if_unused
    from neuroexplain.store.runs import load_run

    with ExitStack() as stack:
        stores = [stack.enter_context(open_store(part, read_only=True)) for part in parts]
        part_runs = [(store, load_run(store)) for store in stores]
        with open_store(into, create=True) as target:
            try:
                draw(run_merge(part_runs, target, allow_mixed=allow_mixed))
            except NeuroexplainError:
                remove_if_unused(target)
                raise
            run = load_run(target)
        say_rule(run)
    shard = run.config.get("shard")
    completeness = f"{len(shard['parts'])} of {shard['of']} parts are in it." if shard else "It is whole."
    say(f"Run {run.id} in {into}: {run.n_tokens:,} tokens. {completeness}")
