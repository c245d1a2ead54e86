"""Measure how often a true explanation scores above false ones, on neurons of known behaviour:

    python scripts/eval_simulators.py --neurons tests/known/neurons.json --simulator lexical
    python scripts/eval_simulators.py --neurons FILE.json --simulator digits --local MODEL|--server URL

FILE holds a list of {"name", "kind", "true", "false": [5], "top": [{"tokens": [64 strings], "activations":
[64]}], "random": [...]}, and may be a .json.gz; a kind is a word like "syntax" and may be missing. Of each
kind every second neuron is in the half `choose`, by which a simulator is chosen, the others in `report`, by
which it is reported. Whole records are scored, without crops. A neuron is won if its true explanation
has a higher correlation than every false one. An undefined correlation or a failed simulation is counted
apart and is in no mean; a neuron whose true explanation has no correlation is not won. `tokens` are the
prompt tokens that were sent to the model, `computed` those that were not in a cache (null if a server does
not tell), and `computed_per_token` is by scored token and explanation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from neuroexplain.config import EngineConfig
from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.errors import NeuroexplainError
from neuroexplain.explaining.engines import open_engine
from neuroexplain.explaining.known_neurons import (
    HALVES,
    NO_TOKENIZER,
    Outcome,
    cost_of,
    evaluate,
    read_neurons,
    summarize,
    summarize_kinds,
)
from neuroexplain.scorers._simulation import OpenSimulator
from neuroexplain.scorers.base import SCORERS


def open_simulator(options: argparse.Namespace, stack: ExitStack) -> OpenSimulator:
    local = embedded_model() if options.local is None and options.server is None else options.local
    config = EngineConfig(server=options.server, local=local, model=options.model, api_key=options.api_key)
    scorer = SCORERS.load(options.scorer)
    engine = open_engine(config, stack, lambda line: print(line, file=sys.stderr))
    return scorer.open(engine, SimpleNamespace(tokenizer_sha256=NO_TOKENIZER))


def table_of(outcomes: Sequence[Outcome]) -> Table:
    table = Table("neuron", "kind", "true", "best false", "margin", "", box=None)
    for x in sorted(outcomes, key=lambda x: (x.margin is None, x.margin)):
        figures = (x.true, max(x.false, default=None), x.margin)
        cells = ["-" if value is None else f"{value:.2f}" for value in figures]
        table.add_row(x.name, x.kind, *cells, "; ".join([*(["won"] if x.won else []), *x.reasons]))
    return table


def table_of_kinds(outcomes: Sequence[Outcome]) -> Table:
    table = Table("kind", "wins", "true", "false", "margin", "undefined", box=None)
    for kind, summary in {**summarize_kinds(outcomes), "all": summarize(outcomes)}.items():
        means = (summary["mean_true"], summary["mean_false"], summary["mean_margin"])
        cells = ["-" if value is None else f"{value:.3f}" for value in means]
        table.add_row(kind, f"{summary['wins']} of {summary['n']}", *cells, str(summary["undefined"]))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=Path, required=True)
    parser.add_argument("--scorer", "--simulator", dest="scorer", choices=SCORERS.names(), required=True)
    parser.add_argument("--local", help="a model to run in this process (default: the embedded one)")
    parser.add_argument("--server", help="the URL of a vLLM server")
    parser.add_argument("--model", help="which of the server's models")
    parser.add_argument("--api-key", help="of the server")
    parser.add_argument(
        "--records",
        type=int,
        help="use this many top and this many random records of each neuron (default: all)",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="take every n-th of these neurons, from the first on (default: 1)",
    )
    parser.add_argument("--false", type=int, help="false explanations of each neuron (default: all)")
    parser.add_argument(
        "--half", choices=("all", *HALVES), default="all", help="which neurons (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    console = Console(stderr=True)
    try:
        neurons = read_neurons(options.neurons, options.records, options.half)[:: options.every]
        if options.false is not None:
            neurons = [replace(n, explanations=n.explanations[: 1 + options.false]) for n in neurons]
        with ExitStack() as stack:
            scorer = open_simulator(options, stack)
            began, outcomes = time.perf_counter(), []
            columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console) as bar:
                for outcome in bar.track(
                    evaluate(neurons, scorer), total=len(neurons), description="neurons"
                ):
                    outcomes.append(outcome)
            cost = cost_of(scorer.engine.usage, neurons, time.perf_counter() - began)
            # The version says how a server gave probabilities.
            print(f"{scorer.engine.model}: {scorer.engine.version}", file=sys.stderr)
    except (NeuroexplainError, OSError, json.JSONDecodeError, KeyError) as error:
        print(
            f"{type(error).__name__}: {error}" if not isinstance(error, NeuroexplainError) else error,
            file=sys.stderr,
        )
        return 2
    if options.json:
        print(json.dumps({**summarize(outcomes), **cost, "kinds": summarize_kinds(outcomes)}))
        return 0
    costs = ", ".join(f"{name} {value}" for name, value in cost.items())
    Console().print(table_of(outcomes), "", table_of_kinds(outcomes), "", costs, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
