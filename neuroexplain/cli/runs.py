"""`neuroexplain runs`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, AsJson, Db
from neuroexplain.cli.output import print_json, print_table
from neuroexplain.cli.progress import say
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.runs import Run
    from neuroexplain.store.engine import Store


@app.command(epilog="Example:  neuroexplain runs --db demo.db")
def runs(
    db: Db = DEFAULT_DB,
    as_json: AsJson = False,
    drop: Annotated[int | None, typer.Option(help="Remove this run and all that belongs to it.")] = None,
) -> None:
    """List what was collected and explained."""
    if drop is not None:
        _drop_run(db, drop)
        return
    from neuroexplain.as_json import run_json, summary_json
    from neuroexplain.cli.tables import check_lines, runs_table, session_lines, summaries_table
    from neuroexplain.formatting import dictionary_lines, printable
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import list_checks, list_runs, list_sessions
    from neuroexplain.store.score_summaries import summarize_scores
    from neuroexplain.store.vocabulary import lacks_token_bytes

    with open_store(db, read_only=True) as store:
        stored = list_runs(store)
        holdings = {run.id: _holdings(store, run) for run in stored}
        in_words = {run.id: _holdings_text(store, run) for run in stored}
        sessions = {run.id: list_sessions(store, run.id) for run in stored}
        checks = {run.id: list_checks(store, run.id) for run in stored}
        summaries = {run.id: summarize_scores(store, run) for run in stored}
        lacking = [run for run in stored if lacks_token_bytes(store, run.id)]
    if as_json:
        print_json(
            [
                run_json(run)
                | {"holds": holdings[run.id], "sessions": [asdict(session) for session in sessions[run.id]]}
                | {"checks": [asdict(check) for check in checks[run.id]]}
                | {"scores": [summary_json(summary) for summary in summaries[run.id]]}
                for run in stored
            ]
        )
    elif stored:
        print_table(runs_table(stored, in_words))
        for run in stored:
            for line in session_lines(run, sessions[run.id]):
                print(line)
        for run in stored:
            for line in dictionary_lines(run):
                print(f"run {run.id}, {line}")
        for run in stored:
            if summaries[run.id]:
                print_table(summaries_table(run, summaries[run.id]))
            for line in check_lines(run, checks[run.id]):
                print(line)
        for run in lacking:
            print(f"run {run.id}: an earlier version stored its tokens' texts, which may lack spaces.")
            print(printable(f"Mend them:  neuroexplain upgrade --tokenizer {run.subject} --db {db}"))
    else:
        say(f"{db} holds no run yet. Collect one:  neuroexplain collect --db {db} --model ... --dataset ...")


def _holdings(store: "Store", run: "Run") -> str:
    """How many units and explanations a run holds, by the names of statuses: for programs."""
    from neuroexplain.store.runs import count_explanations, count_units

    counts = [f"{n:,} {run.noun} {status}" for status, n in count_units(store, run.id).items()]
    for name, _, status, n in count_explanations(store, run.id):
        counts.append(f"{n:,} by {name} ({status.replace('_', ' ')})")
    return ", ".join(counts)


def _holdings_text(store: "Store", run: "Run") -> str:
    """As _holdings, in words."""
    from neuroexplain.formatting import explanations_text, units_text
    from neuroexplain.store.runs import count_explanations, count_units

    lines = explanations_text(count_explanations(store, run.id))
    return ". ".join([units_text(count_units(store, run.id), run.noun), *lines])


def _drop_run(db: str, run_id: int) -> None:
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import list_runs
    from neuroexplain.store.save_collected import delete_run
    from neuroexplain.store.writer_lock import writer_lock

    with open_store(db) as store:
        ids = [run.id for run in list_runs(store)]
        if run_id not in ids:
            raise NeuroexplainError(
                f"There is no run {run_id} in {db}: it holds {', '.join(map(str, ids)) or 'none'}."
            )
        with writer_lock(store, f"run {run_id}", "runs --drop"):
            delete_run(store, run_id)
        checkpoint = store.checkpoint_path(run_id)
        checkpoint.unlink(missing_ok=True)
        for tokens in checkpoint.parent.glob("neuroexplain-*.tokens*"):  # another run tokenizes again
            tokens.unlink()
    say(f"Run {run_id} and all that belonged to it is gone from {db}.")
