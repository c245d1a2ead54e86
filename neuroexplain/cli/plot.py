"""`neuroexplain plot`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, Db, RunId
from neuroexplain.cli.progress import say
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.store.engine import Store

CHARTS = ("layers", "distribution", "above")


@app.command(
    epilog="Example:  neuroexplain plot distribution --db demo.db   |   neuroexplain plot 15:16 --out act   "
    "|   neuroexplain plot above --runs 1,2 --layer 15"
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
    runs: Annotated[
        str | None,
        typer.Option(
            help="above: the curves of several runs in one picture, like 1,2: of neurons and latents, say."
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="above: only units of these layers, like 15 or 3-5.")
    ] = None,
) -> None:
    """Draw scores by layer, their distribution or the share above each score; or a unit's activations."""
    from neuroexplain import plots
    from neuroexplain.store.engine import open_store

    if what != "above" and not (runs is None and layer is None):
        option = "--layer" if runs is None else "--runs"
        raise NeuroexplainError(f"{option} goes with `plot above` alone: leave it out, or draw above.")
    if not (runs is None or run_id is None):
        raise NeuroexplainError("--run and --runs are both given. Give --runs alone.")
    with open_store(db, read_only=True) as store:
        if what == "above":
            chart = _above(store, run_id, runs, layer, metric=metric, scorer=scorer)
        elif what in CHARTS:
            chart = _scores(store, what, run_id, metric, scorer)
        else:
            chart = _activations(store, what, run_id)
    target = out if out is not None else Path(what.replace(":", "-"))
    try:
        files = plots.save_figure(chart, target)
    except OSError as error:
        raise NeuroexplainError(f"Cannot write {target}: {error.strerror}.") from error
    say(f"Wrote {', '.join(map(str, files))}.")


def _above(
    store: "Store", run_id: int | None, runs: str | None, layer: str | None, **score: str | None
) -> Callable[..., Any]:
    """Draws the curves of some runs. What they leave out, and how they differ, is printed."""
    from neuroexplain import plots
    from neuroexplain.cli.select_units import select_layers
    from neuroexplain.formatting import headline_name
    from neuroexplain.score_curves import load_curves
    from neuroexplain.selection import parse_runs
    from neuroexplain.store.runs import load_run

    run_ids = (run_id,) if runs is None else parse_runs(runs)
    layers = None
    if layer is not None:
        layers = {number for each in run_ids for number in select_layers(load_run(store, each), layer)}
    loaded = load_curves(store, run_ids, layers=layers, **score)
    for note in loaded.notes:
        say(note)
    for curve in loaded.curves:
        say(f"{curve.name}: {plots.counts(curve)}.")
    return partial(plots.share_above, curves=loaded.curves, name=headline_name(loaded.headline))


def _scores(
    store: "Store", what: str, run_id: int | None, metric: str | None, scorer: str | None
) -> Callable[..., Any]:
    """Draws the scores of a run by layer, or their distribution."""
    from neuroexplain import plots
    from neuroexplain.scorers.base import choose_headline
    from neuroexplain.store.runs import load_run
    from neuroexplain.store.search import list_headline_scores

    run = load_run(store, run_id)
    headline = choose_headline(run, metric, scorer)
    scores = list_headline_scores(store, run, headline)
    if not scores:
        raise NeuroexplainError(
            f"{store.name} holds no score yet. Make some:  neuroexplain explain --db {store.name} --layer 0"
        )
    draw = plots.scores_by_layer if what == "layers" else plots.score_distribution
    return partial(draw, scores=scores, name=str(headline))


def _activations(store: "Store", what: str, run_id: int | None) -> Callable[..., Any]:
    """Draws a unit's activations."""
    from neuroexplain import plots
    from neuroexplain.store.runs import load_run
    from neuroexplain.store.units import load_unit

    run = load_run(store, run_id)
    try:
        unit = run.find_unit(what)
    except ValueError as error:
        raise NeuroexplainError(f"{what!r} is none of {', '.join(CHARTS)}; and {error}.") from error
    return partial(plots.activation_histogram, unit=load_unit(store, run, unit))
