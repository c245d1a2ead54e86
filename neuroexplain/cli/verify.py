"""`neuroexplain verify` and `neuroexplain upgrade`."""

from typing import Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, Db, RunId, TrustRemoteCode
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


Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="The subject's tokenizer (hub name or folder): its tokens are stored anew, with their spaces."
    ),
]


@app.command(
    epilog="Example:  neuroexplain upgrade --db old.db   |   "
    "neuroexplain upgrade --db old.db --tokenizer ./Llama-2-7b"
)
def upgrade(
    db: Db = DEFAULT_DB, tokenizer: Tokenizer = None, trust_remote_code: TrustRemoteCode = False
) -> None:
    """Bring a database to this version's schema, and with --tokenizer mend the texts of its tokens."""
    from neuroexplain.store.engine import open_store, upgrade_store

    before, after = upgrade_store(db, say)
    say(f"{db}: schema version {before} to {after}.")
    if tokenizer is not None:
        from neuroexplain.collecting.mend_vocabulary import mend_vocabularies

        with open_store(db) as store:
            runs = mend_vocabularies(store, tokenizer, trust_remote_code=trust_remote_code)
        say(f"Mended the texts of tokens of run {', '.join(str(run.id) for run in runs)}.")
