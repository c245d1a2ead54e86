"""`neuroexplain plot`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, Db, RunId
from neuroexplain.cli.progress import say
from neuroexplain.errors import NeuroexplainError


@app.command(
    epilog="Example:  neuroexplain plot distribution --db demo.db   |   neuroexplain plot 15:16 --out act"
)
def plot(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="layers, distribution, above, or a unit like 15:16 for its activations."
        ),
    ],
    db: Db = DEFAULT_DB,
    out: Annotated[
        Path | None, typer.Option(help="Files to write: OUT.svg and OUT.png; by default named after WHAT.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Metric to draw; by default the run's headline.")] = None,
    scorer: Annotated[str | None, typer.Option(help="Draw this scorer's main metric.")] = None,
    run_id: RunId = None,
) -> None:
    """Draw scores by layer, their distribution or the share above each score; or a unit's activations."""
    from neuroexplain import plots
    from neuroexplain.scorers.base import choose_headline
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run
    from neuroexplain.store.search import list_headline_scores
    from neuroexplain.store.units import load_unit

    charts = {
        "layers": plots.scores_by_layer,
        "distribution": plots.score_distribution,
        "above": plots.share_above,
    }
    with open_store(db, read_only=True) as store:
        run = load_run(store, run_id)
        if what in charts:
            headline = choose_headline(run, metric, scorer)
            scores = list_headline_scores(store, run, headline)
            if not scores:
                raise NeuroexplainError(
                    f"{db} holds no score yet. Make some:  neuroexplain explain --db {db} --layer 0"
                )
            chart = partial(charts[what], scores=scores, name=str(headline))
        else:
            try:
                unit = run.find_unit(what)
            except ValueError as error:
                raise NeuroexplainError(f"{what!r} is none of {', '.join(charts)}; and {error}.") from error
            chart = partial(plots.activation_histogram, unit=load_unit(store, run, unit))
    target = out if out is not None else Path(what.replace(":", "-"))
    try:
        files = plots.save_figure(chart, target)
    except OSError as error:
        raise NeuroexplainError(f"Cannot write {target}: {error.strerror}.") from error
    say(f"Wrote {', '.join(map(str, files))}.")
