"""`neuroexplain query`."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import (
    DEFAULT_DB,
    AsJson,
    Db,
    Embedding,
    Layers,
    OldScorerNames,
    OldUnits,
    RunId,
    Units,
    renamed_option,
)
from neuroexplain.cli.output import print_json, print_table
from neuroexplain.cli.progress import say
from neuroexplain.cli.select_units import select_layers, select_units
from neuroexplain.embedding.base import DEFAULT_EMBEDDING
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from neuroexplain.embedding.ranking import Similarities
    from neuroexplain.runs import QueryRow, Run
    from neuroexplain.store.engine import Store

SIDE_BY_SIDE = "Two side by side"

Words = Annotated[str | None, typer.Argument(help="Words that the explanation must hold.")]
Like = Annotated[
    str | None,
    typer.Option(
        help="Find explanations by meaning, nearest first: those like this text, joined with those that hold "
        "its words. At the first time every explanation gets a vector, which the database keeps."
    ),
]
PeakToken = Annotated[str | None, typer.Option(help="A token that the units peak on.")]
MinScore = Annotated[float | None, typer.Option(help="Smallest score to list.")]
MaxScore = Annotated[float | None, typer.Option(help="Greatest score to list.")]
Metric = Annotated[
    str | None,
    typer.Option(
        help="Metric to show and to sort by, like correlation_beyond_words or auprc; by default the run's "
        "headline. auprc, r_squared, absolute_deviation_explained and all metrics of judges (auroc, f1, "
        "balanced_accuracy) hardly fall where an explanation is too broad: docs/scores.md."
    ),
]
ScorerName = Annotated[
    str | None, typer.Option("--scorer", help="List only scores by this scorer, by its main metric.")
]
Sort = Annotated[
    str | None,
    typer.Option(
        help="Order of the rows: score, weakest (the lowest score first), lower (the lower end of the "
        "score's interval), activation or unit; score unless --like is given, which has its own. Of two side "
        "by side: second (where the second is higher), first or unit."
    ),
]
Limit = Annotated[int, typer.Option(min=1, max=100_000_000, help="Most rows to list.")]
ShowAll = Annotated[bool, typer.Option("--all", help="List candidates that were not chosen, too.")]
Failed = Annotated[
    bool, typer.Option("--failed", help="List what could not be explained or scored, and why.")
]
Runs = Annotated[
    str | None,
    typer.Option(
        "--runs",
        help="Compare two runs, like 1,2, unit by unit: both explanations and scores, and the "
        "difference, with its mean and interval.",
        rich_help_panel=SIDE_BY_SIDE,
    ),
]
Explainers = Annotated[
    str | None,
    typer.Option(
        "--explainers",
        help="Compare two explainers, like pairs,category; or one, for both of --runs.",
        rich_help_panel=SIDE_BY_SIDE,
    ),
]
Models = Annotated[
    str | None,
    typer.Option(
        "--models",
        help="Compare the explanations of two models, like A,B; or one, for both of --runs.",
        rich_help_panel=SIDE_BY_SIDE,
    ),
]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


@app.command(epilog="Example:  neuroexplain query relief --layer 15 --min-score 0.4")
def query(
    context: typer.Context,
    text: Words = None,
    like: Like = None,
    embedding: Embedding = DEFAULT_EMBEDDING,
    db: Db = DEFAULT_DB,
    run_id: RunId = None,
    layer: Layers = None,
    units: Units = None,
    neurons: OldUnits = None,
    peak_token: PeakToken = None,
    min_score: MinScore = None,
    max_score: MaxScore = None,
    metric: Metric = None,
    scorer: ScorerName = None,
    simulator: OldScorerNames = None,
    sort: Sort = None,
    limit: Limit = 20,
    show_all: ShowAll = False,
    failed: Failed = False,
    runs: Runs = None,
    explainers: Explainers = None,
    models: Models = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Find explanations by text, meaning, layer, score or peak token, best first."""
    from neuroexplain.lookup import find_explanations
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    if not (runs is None and explainers is None and models is None):
        _print_comparison(context, db)
        return
    _check_bounds(context.params)
    with open_store(db, read_only=like is None) as store:
        run = load_run(store, run_id)
        layers = None if layer is None else select_layers(run, layer)
        selection = renamed_option(context, "units", "neurons")
        unit_ids = None if selection is None else select_units(store, run, layer, selection)
        if failed:
            _print_failures(store, run, layers, limit, as_json)
            return
        rows = find_explanations(
            store,
            run,
            text=text,
            like=None if like is None else _find_similarities(store, run, like, embedding),
            layers=layers,
            units=unit_ids,
            metric=metric,
            scorer=renamed_option(context, "scorer", "simulator"),
            min_score=min_score,
            max_score=max_score,
            sort=sort,
            peak_token=peak_token,
            chosen_only=not show_all,
            limit=limit,
        )
    _print_rows(rows, db, as_json, as_csv)


def _print_comparison(context: typer.Context, db: str) -> None:
    """Two runs, explainers or models side by side, by the options of the command."""
    from neuroexplain.as_json import comparison_json
    from neuroexplain.cli.tables import comparison_lines, comparison_table
    from neuroexplain.comparing import compare, load_rows
    from neuroexplain.formatting import printable
    from neuroexplain.selection import parse_runs
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    options = context.params
    refused = ("like", "min_score", "max_score", "show_all", "failed", "as_csv")
    if named := [name for name in refused if options[name] not in (None, False)]:
        flag = {"show_all": "all", "as_csv": "csv"}.get(named[0], named[0].replace("_", "-"))
        raise NeuroexplainError(f"--{flag} does not go with two side by side: leave it out.")
    if options["runs"] is not None and options["run_id"] is not None:
        raise NeuroexplainError("--run and --runs are both given. Give --runs alone.")
    run_ids = (options["run_id"],) if options["runs"] is None else parse_runs(options["runs"])
    layer, selection = options["layer"], renamed_option(context, "units", "neurons")
    with open_store(db, read_only=True) as store:
        run = load_run(store, run_ids[0])
        comparison = compare(
            store,
            runs=run_ids,
            explainers=_names(options["explainers"]),
            models=_names(options["models"]),
            text=options["text"],
            layers=None if layer is None else select_layers(run, layer),
            units=None if selection is None else select_units(store, run, layer, selection),
            peak_token=options["peak_token"],
            metric=options["metric"],
            scorer=renamed_option(context, "scorer", "simulator"),
            sort=options["sort"],
        )
        rows = load_rows(store, comparison, options["limit"])
    if options["as_json"]:
        print_json(comparison_json(comparison, rows))
        return
    for line in comparison_lines(comparison):
        print(printable(line))
    if rows:
        print_table(comparison_table(rows))


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(","))


def _check_bounds(options: "Mapping[str, Any]") -> None:
    """Raise NeuroexplainError for options that do not go together."""
    bounds = ("text", "like", "min_score", "max_score", "peak_token", "metric", "scorer", "simulator")
    if options["failed"] and (options["as_csv"] or any(options[name] is not None for name in bounds)):
        raise NeuroexplainError(
            "--failed lists by --layer and --limit alone: leave out the words, the other bounds and --csv."
        )
    min_score, max_score = options["min_score"], options["max_score"]
    like, sort = options["like"], options["sort"]
    if min_score is not None and max_score is not None and min_score > max_score:
        raise NeuroexplainError(
            f"No score lies between --min-score {min_score:g} and --max-score {max_score:g}: swap them."
        )
    if like is not None and sort is not None:
        raise NeuroexplainError(f"--like has its own order: leave out --sort {sort}, or --like.")


def _find_similarities(store: "Store", run: "Run", text: str, embedding: str) -> "Similarities":
    from neuroexplain.cli.progress import draw
    from neuroexplain.config import find_api_key
    from neuroexplain.embedding.base import open_embedder
    from neuroexplain.embedding.index import MeaningIndex

    index = MeaningIndex(store, run, open_embedder(embedding, find_api_key()))
    draw(index.steps())
    return index.similarities(text)


def _print_failures(
    store: "Store", run: "Run", layers: tuple[int, ...] | None, limit: int, as_json: bool
) -> None:
    from neuroexplain.cli.tables import failures_table
    from neuroexplain.scorers.base import main_metrics
    from neuroexplain.store.failures import list_failures

    failures = list_failures(store, run, main_metrics(), layers, limit)
    if as_json:
        print_json([asdict(failure) for failure in failures])
    elif failures:
        print_table(failures_table(failures))
    else:
        say("Nothing failed.")


def _print_rows(rows: "Sequence[QueryRow]", db: str, as_json: bool, as_csv: bool) -> None:
    from neuroexplain.as_json import query_csv, query_json
    from neuroexplain.cli.tables import query_table
    from neuroexplain.formatting import printable

    if as_json:
        print_json(query_json(rows))
    elif as_csv:
        table = query_csv(rows)
        is_terminal = sys.stdout.isatty()
        sys.stdout.write("\n".join(map(printable, table.split("\n"))) if is_terminal else table)
    elif rows:
        print_table(query_table(rows))
    else:
        say("No explanation fits. See what there is:  neuroexplain runs --db " + db)
