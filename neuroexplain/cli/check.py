"""`neuroexplain check`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.engine_options import default_engine, named_engine
from neuroexplain.cli.options import (
    DEFAULT_DB,
    AsJson,
    InFlight,
    Local,
    MaxWait,
    ModelName,
    RunId,
    ServedTokenizer,
    Server,
    Servers,
    TrustRemoteCode,
    Vllm,
    VllmArgs,
)
from neuroexplain.cli.output import print_json, stdout_console
from neuroexplain.cli.progress import draw, say
from neuroexplain.errors import NeuroexplainError
from neuroexplain.formatting import printable
from neuroexplain.runtime.interrupt import stopping
from neuroexplain.runtime.progress import Progress

if TYPE_CHECKING:
    from neuroexplain.explaining.known_neurons import KnownNeuron
    from neuroexplain.llm.engine import Engine
    from neuroexplain.runs import SimulatorCheck

DEFAULT_SIMULATORS = "lexical,words,combined"
Simulators = Annotated[
    str, typer.Option("--scorer", "--simulator", help="The simulators to check; digits takes the longest.")
]
OfKind = Annotated[
    int, typer.Option("--neurons", min=1, help="Known neurons of each of six kinds to check by.")
]
AllNeurons = Annotated[bool, typer.Option("--all", help="Check by all known neurons.")]
PlaceToStore = Annotated[
    str | None,
    typer.Option(
        "--db",
        envvar="NEUROEXPLAIN_DB",
        help="Database to store the figures in, with a run (default: neuroexplain.db, if there is one).",
    ),
]


@app.command(
    epilog="Example:  neuroexplain check --local ./model   |   neuroexplain check --server URL --all"
)
def check(
    server: Server = None,
    servers: Servers = None,
    vllm: Vllm = None,
    vllm_args: VllmArgs = "",
    local: Local = None,
    model: ModelName = None,
    tokenizer: ServedTokenizer = None,
    simulators: Simulators = DEFAULT_SIMULATORS,
    of_kind: OfKind = 2,
    all_neurons: AllNeurons = False,
    db: PlaceToStore = None,
    run_id: RunId = None,
    as_json: AsJson = False,
    max_wait: MaxWait = 600.0,
    in_flight: InFlight = 64,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure how well a model simulates, on neurons whose true explanation is known.

    Each simulator predicts them from the true explanation and from two false ones. A neuron is won if the
    true one has the highest correlation. Which simulator to use is said at the end. The figures are stored
    with the run, and stand beside its scores.
    """
    from neuroexplain.explaining.check import neurons_to_check
    from neuroexplain.explaining.engines import open_engine

    names = _simulator_names(simulators)
    default = default_engine(max_wait, in_flight, trust_remote_code)
    named = named_engine(
        default,
        server=server,
        servers=servers,
        local=local,
        model=model,
        vllm=vllm,
        vllm_args=vllm_args,
        tokenizer=tokenizer,
    )
    place = _place_to_store(db, run_id)
    neurons = neurons_to_check(None if all_neurons else of_kind)
    checks: list[SimulatorCheck] = []
    stopping.farewell = "Interrupted. A check keeps nothing: begin again, or with fewer --neurons."
    with ExitStack() as stack:
        engine = open_engine(named or default, stack, say)
        draw(_events(names, engine, neurons, checks))
    if as_json:
        print_json(_json(checks))
    else:
        console = stdout_console()
        for part in _report(checks):
            console.print(part)
    if place is not None:
        _store(place, checks)


def _simulator_names(listed: str) -> list[str]:
    """The names in a list with commas. Raises NeuroexplainError if there is none, or an unknown one."""
    from neuroexplain.explaining.check import simulators

    names = [name.strip() for name in listed.split(",") if name.strip()]
    unknown = [name for name in names if name not in simulators()]
    if unknown or not names:
        raise NeuroexplainError(
            f"--scorer {listed!r}: there is no simulator {', '.join(unknown) or 'named'}. "
            f"There is {', '.join(simulators())}."
        )
    return names


def _place_to_store(db: str | None, run_id: int | None) -> tuple[str, int] | None:
    """The database and the run's id; None where none is named and the default one cannot take the figures."""
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    is_named = db is not None or run_id is not None
    if not is_named and not Path(DEFAULT_DB).exists():
        return None
    try:
        with open_store(db or DEFAULT_DB) as store:
            return db or DEFAULT_DB, load_run(store, run_id).id
    except NeuroexplainError as error:
        if is_named:
            raise
        say(f"The figures will be printed and not stored: {error}")
        return None


def _store(place: tuple[str, int], checks: Sequence[SimulatorCheck]) -> None:
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.save_explained import save_checks

    db, run_id = place
    with open_store(db) as store:
        save_checks(store, run_id, checks)
    say(f"Stored with run {run_id} of {db}: it stands beside the scores.")


def _events(
    names: Sequence[str], engine: Engine, neurons: Sequence[KnownNeuron], checks: list[SimulatorCheck]
) -> Generator[Progress]:
    """Progress by neuron; `checks` gets what each simulator earned."""
    from neuroexplain.explaining.check import check_simulators
    from neuroexplain.runs import SimulatorCheck

    n_done = dict.fromkeys(names, 0)
    for name, result in check_simulators(names, engine, neurons):
        if isinstance(result, SimulatorCheck):
            checks.append(result)
        else:
            n_done[name] += 1
            yield Progress(name, n_done[name], len(neurons), "neurons")


def _json(checks: Sequence[SimulatorCheck]) -> dict[str, object]:
    from neuroexplain.explaining.check import best_of

    best = best_of(checks)
    simulators = {check.scorer: asdict(check) for check in checks}
    return {"model": best.scorer_model, "best": best.scorer, "simulators": simulators}


def _report(checks: Sequence[SimulatorCheck]) -> list[object]:
    """The figures of each simulator, of the best one by kind, and what to use."""
    from rich.table import Table
    from rich.text import Text

    from neuroexplain.explaining.check import best_of

    table = Table("simulator", "won", "true", "false", "margin", "tokens a scored token", "seconds", box=None)
    for check in checks:
        means = map(_cell, (check.mean_true, check.mean_false, check.mean_margin))
        cost = _cell(check.computed_per_token, 1), _cell(check.seconds, 0)
        table.add_row(check.scorer, f"{check.n_won} of {check.n_neurons}", *means, *cost)
    best = best_of(checks)
    kinds = Table(f"{best.scorer}, by kind", "won", "true", "margin", box=None)
    for kind, figures in best.kinds.items():
        means = map(_cell, (figures["mean_true"], figures["mean_margin"]))
        kinds.add_row(kind, f"{figures['n_won']} of {figures['n']}", *means)
    advice = Text(
        f"{printable(best.scorer_model)} simulates best with  --scorer {best.scorer}\n"
        f"Guessing wins {best.n_by_chance:.0f} of {best.n_neurons}. true: mean correlation of true "
        "explanations; margin: how far it is above that of the best false one."
    )
    return [table, "", kinds, "", advice]


def _cell(value: float | int | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
