"""`neuroexplain verify` and `neuroexplain upgrade`."""

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, Db, RunId
from neuroexplain.cli.progress import say


@app.command(epilog="Example:  neuroexplain verify --db demo.db > faults.txt")
def verify(db: Db = DEFAULT_DB, run_id: RunId = None) -> None:
    """Recompute every score from what is stored, and look for leaks and orphans."""
    from neuroexplain.explaining.verify import verify_run
    from neuroexplain.formatting import printable
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.integrity import count_orphans
    from neuroexplain.store.runs import load_run

    with open_store(db, read_only=True) as store:
        faults = list(verify_run(store, load_run(store, run_id)))
        n_orphans = count_orphans(store)
    for fault in faults:
        print(printable(fault))
    say(f"{len(faults)} faults, {n_orphans} orphans.")
    if faults or n_orphans:
        raise typer.Exit(1)


@app.command(epilog="Example:  neuroexplain upgrade --db old.db")
def upgrade(db: Db = DEFAULT_DB) -> None:
    """Bring a database to this version's schema."""
    from neuroexplain.store.engine import upgrade_store

    before, after = upgrade_store(db, say)
    say(f"{db}: schema version {before} to {after}.")
