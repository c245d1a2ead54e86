"""`neuroexplain check`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.engine_options import default_engine, named_engine
from neuroexplain.cli.options import (
    AsJson,
    InFlight,
    Local,
    MaxWait,
    ModelName,
    ServedTokenizer,
    Server,
    TrustRemoteCode,
    Vllm,
    VllmArgs,
)
from neuroexplain.cli.output import print_json, stdout_console
from neuroexplain.cli.progress import draw, say
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.interrupt import stopping
from neuroexplain.runtime.progress import Progress

if TYPE_CHECKING:
    from neuroexplain.explaining.check import SimulatorCheck
    from neuroexplain.explaining.known_neurons import KnownNeuron
    from neuroexplain.llm.engine import Engine

DEFAULT_SIMULATORS = "lexical,words,combined"


@app.command(
    epilog="Example:  neuroexplain check --local ./model   |   neuroexplain check --server URL --all"
)
def check(
    server: Server = None,
    vllm: Vllm = None,
    vllm_args: VllmArgs = "",
    local: Local = None,
    model: ModelName = None,
    tokenizer: ServedTokenizer = None,
    simulators: Annotated[
        str,
        typer.Option("--scorer", "--simulator", help="The simulators to check; digits takes the longest."),
    ] = DEFAULT_SIMULATORS,
    of_kind: Annotated[
        int, typer.Option("--neurons", min=1, help="Known neurons of each of six kinds to check by.")
    ] = 2,
    all_neurons: Annotated[bool, typer.Option("--all", help="Check by all known neurons.")] = False,
    as_json: AsJson = False,
    max_wait: MaxWait = 600.0,
    in_flight: InFlight = 64,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure how well a model simulates, on neurons whose true explanation is known.

    Each simulator predicts them from the true explanation and from two false ones. A neuron is won if the
    true one has the highest correlation. Which simulator to use is said at the end.
    """
    from neuroexplain.explaining.check import neurons_to_check
    from neuroexplain.explaining.check import simulators as known_simulators
    from neuroexplain.explaining.engines import open_engine

    names = [name.strip() for name in simulators.split(",") if name.strip()]
    unknown = [name for name in names if name not in known_simulators()]
    if unknown or not names:
        raise NeuroexplainError(
            f"--scorer {simulators!r}: there is no simulator {', '.join(unknown) or 'named'}. "
            f"There is {', '.join(known_simulators())}."
        )
    default = default_engine(max_wait, in_flight, trust_remote_code)
    named = named_engine(
        default,
        server=server,
        local=local,
        model=model,
        vllm=vllm,
        vllm_args=vllm_args,
        tokenizer=tokenizer,
    )
    neurons = neurons_to_check(None if all_neurons else of_kind)
    checks: list[SimulatorCheck] = []
    stopping.farewell = "Interrupted. A check keeps nothing: begin again, or with fewer --neurons."
    with ExitStack() as stack:
        engine = open_engine(named or default, stack, say)
        draw(_events(names, engine, neurons, checks))
        model_name, version = engine.model, engine.version
    if as_json:
        print_json(_json(model_name, version, checks))
    else:
        console = stdout_console()
        for part in _report(model_name, checks, len(neurons)):
            console.print(part)


def _events(
    names: Sequence[str], engine: Engine, neurons: Sequence[KnownNeuron], checks: list[SimulatorCheck]
) -> Generator[Progress]:
    """Progress by neuron; `checks` gets what each simulator earned."""
    from neuroexplain.explaining.check import SimulatorCheck, check_simulators

    n_done = dict.fromkeys(names, 0)
    for name, result in check_simulators(names, engine, neurons):
        if isinstance(result, SimulatorCheck):
            checks.append(result)
        else:
            n_done[name] += 1
            yield Progress(name, n_done[name], len(neurons), "neurons")


def _json(model: str, version: str, checks: Sequence[SimulatorCheck]) -> dict[str, object]:
    from neuroexplain.explaining.check import best_of

    simulators = {check.scorer: {**check.summary, **check.cost, "kinds": check.kinds} for check in checks}
    return {"model": model, "version": version, "best": best_of(checks).scorer, "simulators": simulators}


def _report(model: str, checks: Sequence[SimulatorCheck], n_neurons: int) -> list[object]:
    """The figures of each simulator, of the best one by kind, and what to use."""
    from rich.table import Table
    from rich.text import Text

    from neuroexplain.explaining.check import N_FALSE, best_of

    table = Table("simulator", "won", "true", "false", "margin", "tokens a scored token", "seconds", box=None)
    for check in checks:
        summary, cost = check.summary, check.cost
        means = [_cell(summary[f"mean_{name}"]) for name in ("true", "false", "margin")]
        table.add_row(
            check.scorer,
            f"{summary['wins']} of {summary['n']}",
            *means,
            _cell(cost["computed_per_token"], 1),
            _cell(cost["seconds"], 0),
        )
    best = best_of(checks)
    kinds = Table(f"{best.scorer}, by kind", "won", "true", "margin", box=None)
    for kind, summary in best.kinds.items():
        means = [_cell(summary[f"mean_{name}"]) for name in ("true", "margin")]
        kinds.add_row(kind, f"{summary['wins']} of {summary['n']}", *means)
    chance = n_neurons / (1 + N_FALSE)
    advice = Text(
        f"{model} simulates best with  --scorer {best.scorer}\n"
        f"Guessing wins {chance:.0f} of {n_neurons}. true: mean correlation of true explanations; margin: "
        "how far it is above that of the best false one."
    )
    return [table, "", kinds, "", advice]


def _cell(value: float | int | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
