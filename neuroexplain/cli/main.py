"""The command line: flags -> configurations, errors -> exit codes. Pipelines are imported when their command runs.

Annotations are no strings here: typer would compile each of them at every start. The garbage collector is made to leave the
modules alone, while they load and when the process ends: that was a fifth of the time that `show` takes.
"""

import atexit
import gc
import io

gc.set_threshold(100_000)
atexit.register(gc.freeze)

# ruff: noqa: E402
import json
import os
import re
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroexplain.cli.progress import clock, draw, say
from neuroexplain.errors import EngineLost, NeuroexplainError
from neuroexplain.runtime.interrupt import Interrupted, stopping

if TYPE_CHECKING:
    from rich.console import Console

    from neuroexplain.config import EngineConfig
    from neuroexplain.explaining.estimate import Estimate
    from neuroexplain.runs import Run
    from neuroexplain.units import UnitId

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find out what the neurons of a language model do.\n\nBegin with:  neuroexplain demo",
)

Db = Annotated[
    str, typer.Option("--db", envvar="NEUROEXPLAIN_DB", help="Database: a file or an SQLAlchemy URL.")
]
Units = Annotated[str | None, typer.Option("--units", help="Units, like 15:0-99,20:7; of heads 15:3.40 too.")]
OldUnits = Annotated[str | None, typer.Option("--neurons", help="The old name of --units.")]
RunId = Annotated[int | None, typer.Option("--run", help="Which run; the latest finished one unless told.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]
Server = Annotated[str | None, typer.Option("--server", help="URL of a vLLM (OpenAI-compatible) server.")]
Vllm = Annotated[str | None, typer.Option("--vllm", help="Start vLLM with this model for this run.")]
VllmArgs = Annotated[str, typer.Option("--vllm-args", help="More for vLLM's command line, in one string.")]
Local = Annotated[
    str | None, typer.Option("--local", help="Model for this process: hub name, folder or .gguf file.")
]
ModelName = Annotated[str | None, typer.Option("--model", help="Which of the server's models.")]
MaxWait = Annotated[
    float, typer.Option("--max-wait", help="Seconds without any answer until a server is given up.")
]
InFlight = Annotated[int, typer.Option("--in-flight", help="Requests to a server at a time, at most.")]
SimulatorServer = Annotated[
    str | None, typer.Option("--simulator-server", help="The simulator's server, if another.")
]
SimulatorLocal = Annotated[
    str | None, typer.Option("--simulator-local", help="The simulator's model for this process.")
]
SimulatorModel = Annotated[
    str | None, typer.Option("--simulator-model", help="Which of the simulator's server's models.")
]
ScorerNames = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="One or more: digits (a capable model judges each token, after Bills et al. 2023; unless told) or lexical "
        "(any model, no context). The first chooses among candidates.",
    ),
]
OldScorers = Annotated[str | None, typer.Option("--simulator", help="The old name of --scorer.")]
WithControl = Annotated[
    bool,
    typer.Option(
        "--control", help="Score another unit's explanation on the same records too (lexical always does)."
    ),
]
OldControl = Annotated[bool, typer.Option("--null", help="The old name of --control.")]
DEFAULT_DB = "neuroexplain.db"


def _show_version(wanted: bool) -> None:
    if wanted:
        from neuroexplain import __version__

        print(f"neuroexplain {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Example:  neuroexplain collect --model ./llama --dataset 'texts/*.jsonl' --segments 4000"
)
def collect(
    model: Annotated[str, typer.Option(help="Subject: hub name, folder or .gguf file.")],
    dataset: Annotated[
        list[str], typer.Option(help="Text: files, a glob, a folder or a hub data set; may be repeated.")
    ],
    db: Db = DEFAULT_DB,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, like 0-31 or 3,5; all unless told.")] = None,
    source: Annotated[
        str,
        typer.Option(
            help="The units: mlp (neurons), heads (dimensions of attention heads) or residual (of the stream)."
        ),
    ] = "mlp",
    activation: Annotated[
        str | None,
        typer.Option(
            help="Of neurons: act (the activation function's output; unless told) or post (what enters down-projection)."
        ),
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option(help="positive, negative or both; unless told positive of neurons, else both."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Strongest records kept of each unit.")] = 32,
    segments: Annotated[
        int | None, typer.Option(help="Segments of 128 tokens to read; all unless told.")
    ] = None,
    sampling: Annotated[str, typer.Option(help="random or sequential.")] = "random",
    positions: Annotated[
        str, typer.Option(help="Which tokens of a segment may be peaks, half open.")
    ] = "64:97",
    special_peaks: Annotated[bool, typer.Option(help="Whether special tokens may be peaks.")] = True,
    random_records: Annotated[int, typer.Option(help="Random records kept for comparison.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the order of visit and the random records.")] = 0,
    batch_size: Annotated[str, typer.Option(help="Segments read at once, or auto.")] = "auto",
    device: Annotated[
        str, typer.Option(help="cpu, cuda or auto; several collect a part each: cuda:0,cuda:1.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    shard: Annotated[
        str | None, typer.Option(help="Collect one part, like 2/8; neuroexplain merge joins parts.")
    ] = None,
    windows: Annotated[
        str,
        typer.Option(
            help="Where records are kept while collecting: device, or host to spare a GPU's memory."
        ),
    ] = "device",
    compile: Annotated[
        bool, typer.Option(help="On a GPU: make few kernels of the model's many with torch.compile.")
    ] = True,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 300.0,
) -> None:
    """Read a corpus with a language model and keep each unit's strongest snippets."""
    from neuroexplain.config import CollectConfig
    from neuroexplain.selection import parse_layers, parse_positions, parse_shard

    for name, value, known in (
        ("--sign", sign or "both", ("positive", "negative", "both")),
        ("--sampling", sampling, ("random", "sequential")),
        ("--dtype", dtype, ("auto", "float32", "bfloat16", "float16")),
        ("--windows", windows, ("device", "host")),
    ):
        if value not in known:
            raise NeuroexplainError(f"{name} {value!r} is not one of {', '.join(known)}.")
    if batch_size != "auto" and not batch_size.isdecimal():
        raise NeuroexplainError(f"--batch-size {batch_size!r} is neither a number nor auto.")
    config = CollectConfig(
        model=model,
        dataset=tuple(dataset),
        dataset_config=dataset_config,
        split=split,
        text_column=text_column,
        revision=revision,
        layers=parse_layers(layers) if layers is not None else None,
        source=source,
        activation=activation,
        sign=sign,  # type: ignore[arg-type]
        top_k=top_k,
        segments=segments,
        sampling=sampling,  # type: ignore[arg-type]
        positions=parse_positions(positions),
        special_peaks=special_peaks,
        random_records=random_records,
        seed=seed,
        batch_size=None if batch_size == "auto" else int(batch_size),
        device=device,
        dtype=dtype,
        shard=parse_shard(shard) if shard is not None else None,
        windows=windows,  # type: ignore[arg-type]
        compile=compile,
        checkpoint_every=checkpoint_every,
    )
    from neuroexplain.collecting.run import find_finished_run, run_collect
    from neuroexplain.corpus.documents import find_files
    from neuroexplain.store.engine import open_store, remove_if_unused
    from neuroexplain.store.runs import count_units, load_run

    find_files(config.dataset)
    with open_store(db, create=True) as store:
        done = find_finished_run(store, config)
        if done is not None:
            say(f"Nothing to do: run {done.id} in {db} was collected with these options.")
            return
        try:
            if len(config.devices) > 1:
                from neuroexplain.collecting.devices import run_collect_on_devices

                draw(run_collect_on_devices(store, config), gently=True)
            else:
                draw(run_collect(store, config), gently=True)
        except NeuroexplainError:
            remove_if_unused(store)
            raise
        run = load_run(store)
        counts = count_units(store, run.id)
        say(
            f"Run {run.id} in {db}: {sum(counts.values()):,} {run.noun} of {len(run.layers)} layers "
            f"from {run.n_tokens:,} tokens, {counts.get('dead', 0):,} dead.\n"
            f"Next:  neuroexplain explain --db {db} --layer {run.layers[0]} --local MODEL"
        )


@app.command(epilog="Example:  neuroexplain explain --units 15:0-99 --explainer excerpts --local ./model")
def explain(
    ctx: typer.Context,
    db: Db = DEFAULT_DB,
    layer: Annotated[str | None, typer.Option("--layer", "--layers", help="Layers, like 15 or 3-5.")] = None,
    units: Units = None,
    neurons: OldUnits = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, help="Only N of the selected units that are not dead: a fair sample, by a stable hash."
        ),
    ] = None,
    explainer: Annotated[
        str,
        typer.Option(
            help="pairs (tokens with levels), excerpts (marked text), meanings (up to three hypotheses), tokens (asks no LLM)."
        ),
    ] = "pairs",
    scorer: ScorerNames = None,
    simulator: OldScorers = None,
    candidates: Annotated[
        int, typer.Option(help="Explanations of each neuron; the best on the select records is chosen.")
    ] = 1,
    revise: Annotated[
        int, typer.Option(help="Times that the explainer is shown its mistakes and may answer again.")
    ] = 0,
    server: Server = None,
    vllm: Vllm = None,
    vllm_args: VllmArgs = "",
    local: Local = None,
    model: ModelName = None,
    simulator_server: SimulatorServer = None,
    simulator_local: SimulatorLocal = None,
    simulator_model: SimulatorModel = None,
    max_wait: MaxWait = 600.0,
    in_flight: InFlight = 64,
    no_score: Annotated[bool, typer.Option("--no-score", help="Do not score what is written.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N units of the selection.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again where the last answer could not be used.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost, and do nothing.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the LLM's sampling.")] = 0,
    control: WithControl = False,
    null: OldControl = False,
    run_id: RunId = None,
) -> None:
    """Let an LLM write a hypothesis for each neuron, and score it on snippets that it has not seen."""
    from neuroexplain.config import ExplainConfig, ScoreConfig

    default = _default_engine(max_wait, in_flight)
    own = _engine_config(simulator_server, simulator_local, simulator_model, server, default=default)
    score_config = None if no_score else ScoreConfig(_scorers(ctx), own)
    engine_config = (
        _engine_config(server, local, model, vllm=vllm, vllm_args=vllm_args, default=default) or default
    )
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    with open_store(db) as store:
        run = load_run(store, run_id)
        wanted = tuple(
            _sample(store, run, _select(store, run, layer, _renamed(ctx, "units", "neurons")), sample)[:limit]
        )
        config = ExplainConfig(wanted, explainer, seed, retry_failed, candidates, revise)  # type: ignore[arg-type]
        if no_score and (candidates > 1 or revise):
            raise NeuroexplainError("--candidates and --revise choose by score: leave out --no-score.")
        from neuroexplain.explaining.engines import open_engines
        from neuroexplain.explaining.estimate import estimate_explain
        from neuroexplain.explaining.run import list_chosen, run_explain
        from neuroexplain.explaining.score import run_score

        controlled = control or null
        with open_engines(run, engine_config, score_config, explains=config.asks_llm, tell=say) as (
            engine,
            scorers,
        ):
            first = scorers[0] if scorers else None
            if dry_run:
                for one in scorers or (None,):
                    if len(scorers) > 1 and one is not None:
                        say(f"Scored by {one.name}:")
                    say(
                        _estimate_text(
                            estimate_explain(store, run, config, engine, one, with_control=controlled)
                        )
                    )
                return
            failed = draw(run_explain(store, run, config, engine, first, with_control=controlled))
            for more in scorers[1:]:
                chosen = list_chosen(store, run, config, engine)
                failed += draw(
                    run_score(store, run, chosen, more, with_control=controlled, retry_failed=retry_failed)
                )
    say(f"Done: {len(wanted):,} {run.noun}.  See them:  neuroexplain query --db {db}")
    if failed:
        say(
            f"{failed:,} explanations or predictions failed; ask again with --retry-failed.\n"
            f"Why:  neuroexplain query --failed --db {db}"
        )
        raise typer.Exit(1)


@app.command(epilog='Example:  neuroexplain score 3:17 --text "words about rivers"')
def score(
    ctx: typer.Context,
    units: Annotated[str, typer.Argument(help="Units, like 3:17 or 15:0-99.")],
    text: Annotated[
        str | None, typer.Option(help="A hypothesis of yours; else the stored explanations are scored.")
    ] = None,
    db: Db = DEFAULT_DB,
    scorer: ScorerNames = None,
    simulator: OldScorers = None,
    server: Server = None,
    vllm: Vllm = None,
    vllm_args: VllmArgs = "",
    local: Local = None,
    model: ModelName = None,
    simulator_server: SimulatorServer = None,
    simulator_local: SimulatorLocal = None,
    simulator_model: SimulatorModel = None,
    max_wait: MaxWait = 600.0,
    in_flight: InFlight = 64,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again where a request failed.")
    ] = False,
    control: WithControl = False,
    null: OldControl = False,
    run_id: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Score stored explanations, or a hypothesis of your own."""
    from neuroexplain.cli.render import scores_text
    from neuroexplain.config import ScoreConfig
    from neuroexplain.evidence import Explanation, Provenance, Status
    from neuroexplain.formatting import scores_json
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.explanations import list_explanations, list_scores
    from neuroexplain.store.runs import load_run
    from neuroexplain.store.save_explained import save_explanation

    default = _default_engine(max_wait, in_flight)
    own = _engine_config(simulator_server, simulator_local, simulator_model, server, default=default)
    score_config = ScoreConfig(_scorers(ctx), own)
    engine_config = (
        _engine_config(server, local, model, vllm=vllm, vllm_args=vllm_args, default=default) or default
    )
    with open_store(db) as store:
        run = load_run(store, run_id)
        wanted = _select(store, run, None, units)
        if text is not None and not text.strip():
            raise NeuroexplainError('The hypothesis is empty. Give one:  --text "words about rivers"')
        asked = (
            []
            if text is not None
            else [e for n in wanted for e in list_explanations(store, run.id, n, status=Status.OK)]
        )
        if text is None and not asked:
            raise NeuroexplainError(
                f"There is no explanation to score. Write one:  neuroexplain explain --units {units} --db {db}"
            )
        from neuroexplain.explaining.engines import open_engines
        from neuroexplain.explaining.score import run_score

        with open_engines(run, engine_config, score_config, explains=False, tell=say) as (_, scorers):
            if text is not None:
                mine = Provenance(
                    engine="none", engine_version=None, model="human", model_revision=None, prompt_sha256=None
                )
                asked = [
                    save_explanation(
                        store, run.id, Explanation(unit, "human", Status.OK, text, mine, side=side)
                    )
                    for unit in wanted
                    for side in run.sides
                ]
            failed = sum(
                draw(
                    run_score(store, run, asked, one, with_control=control or null, retry_failed=retry_failed)
                )
                for one in scorers
            )
            names = {(one.name, one.engine.model) for one in scorers}
        found = list_scores(store, [e.id for e in asked if e.id is not None])
        found = [s for s in found if s.score.split == "report" and (s.scorer, s.scorer_model) in names]
    if as_json:
        _print_json(scores_json(found))
    else:
        print(scores_text(run, found))
    if failed:
        say(f"{failed:,} predictions failed; ask again with --retry-failed.")
        raise typer.Exit(1)


@app.command(epilog="Example:  neuroexplain query relief --layer 15 --min-score 0.4")
def query(
    ctx: typer.Context,
    text: Annotated[str | None, typer.Argument(help="Words that the explanation holds.")] = None,
    db: Db = DEFAULT_DB,
    layer: Annotated[str | None, typer.Option("--layer", "--layers", help="Layers, like 15 or 3-5.")] = None,
    units: Units = None,
    neurons: OldUnits = None,
    min_score: Annotated[float | None, typer.Option(help="Least score.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Greatest score.")] = None,
    sort: Annotated[str, typer.Option(help="score, activation or unit.")] = "score",
    peak_token: Annotated[str | None, typer.Option(help="A token that the neurons peak on.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Which metric to show and to sort by, like correlation; the run's headline unless told."
        ),
    ] = None,
    scorer: Annotated[
        str | None, typer.Option("--scorer", help="Only scores by this one, by its main metric.")
    ] = None,
    simulator: OldScorers = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000_000, help="Rows at most.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="Candidates that were not chosen, too.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="What could not be explained or scored, and why.")
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    run_id: RunId = None,
) -> None:
    """Find explanations by text, layer, score or peak token, best first."""
    from neuroexplain.cli.render import failures_table, query_table
    from neuroexplain.formatting import printable, query_csv, query_json
    from neuroexplain.lookup import find_explanations
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.explanations import list_failures
    from neuroexplain.store.runs import load_run

    if failed and (
        as_csv
        or any(
            given is not None for given in (text, min_score, max_score, peak_token, metric, scorer, simulator)
        )
    ):
        raise NeuroexplainError(
            "--failed lists by --layer and --limit alone: leave out the words, the other bounds and --csv."
        )
    if min_score is not None and max_score is not None and min_score > max_score:
        raise NeuroexplainError(
            f"No score lies between --min-score {min_score:g} and --max-score {max_score:g}: swap them."
        )
    with open_store(db, read_only=True) as store:
        run = load_run(store, run_id)
        layers = _layers_of(run, layer) if layer is not None else None
        wanted = _renamed(ctx, "units", "neurons")
        selected = _select(store, run, layer, wanted) if wanted is not None else None
        if failed:
            failures = list_failures(store, run.id, layers, limit)
            if as_json:
                _print_json([asdict(one) for one in failures])
            elif failures:
                _print(failures_table(failures))
            else:
                say("Nothing failed.")
            return
        rows = find_explanations(
            store,
            run,
            text=text,
            layers=layers,
            units=selected,
            metric=metric,
            scorer=_renamed(ctx, "scorer", "simulator"),
            min_score=min_score,
            max_score=max_score,
            sort=sort,
            peak_token=peak_token,
            chosen_only=not show_all,
            limit=limit,
        )
    if as_json:
        _print_json(query_json(rows))
    elif as_csv:
        table = query_csv(rows)
        sys.stdout.write("\n".join(map(printable, table.split("\n"))) if sys.stdout.isatty() else table)
    elif rows:
        _print(query_table(rows))
    else:
        say("No explanation fits. See what there is:  neuroexplain runs --db " + db)


@app.command(
    epilog='Example:  neuroexplain show 15:16   |   neuroexplain show 15:16 --text "a river" --model ./llama'
)
def show(
    unit: Annotated[str, typer.Argument(help="LAYER:UNIT, both from 0, like 15:16; of heads 15:3.40 too.")],
    db: Db = DEFAULT_DB,
    top: Annotated[int, typer.Option(min=1, help="Top records to show.")] = 8,
    text: Annotated[
        str | None, typer.Option(help="A text of yours: what the neuron does on each of its tokens.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --text: the subject to read it with; the run's own unless told.")
    ] = None,
    as_json: AsJson = False,
    run_id: RunId = None,
) -> None:
    """Show one neuron: explanations and scores, snippets, statistics, promoted tokens."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no threads are started to draw one page
    from neuroexplain.cli.render import show_text
    from neuroexplain.formatting import show_json
    from neuroexplain.lookup import load_page
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    with open_store(db, read_only=True) as store:
        run = load_run(store, run_id)
        try:
            wanted = run.find_unit(unit)
        except ValueError as error:
            raise NeuroexplainError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error
        page = load_page(store, run, wanted)
    if text is not None:
        from neuroexplain.cli.render import text_line
        from neuroexplain.probe import Probe

        tokens, acts = Probe(model or run.subject, run.dtype).activations(text, run, wanted)
        if as_json:
            said = {
                "layer": wanted.layer,
                "unit": wanted.index,
                "neuron": wanted.index,
                "tokens": tokens,
                "activations": acts,
            }
            _print_json(said)
        else:
            _print(text_line(page, tokens, acts))
        return
    if as_json:
        _print_json(show_json(page))
    else:
        console = _console()
        console.print(show_text(page, db, top=top, width=console.width))


@app.command(epilog="Example:  neuroexplain serve --db demo.db, then open http://127.0.0.1:8080")
def serve(
    db: Db = DEFAULT_DB,
    host: Annotated[
        str, typer.Option(help="Address to listen at; beyond this machine only with a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")
    ] = 8080,
    model: Annotated[
        str | None, typer.Option(help="The subject, to try texts of your own: hub name, folder or .gguf.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="NEUROEXPLAIN_TOKEN", help="What every reader must bring.")
    ] = None,
) -> None:
    """Read neurons in the browser: pages, search and a JSON API over one database, which is never written to."""
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    if host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise NeuroexplainError(
            f"--host {host} lets other machines in, and no token is set. Set one:  NEUROEXPLAIN_TOKEN=$(openssl rand -hex 16)"
        )
    with open_store(db, read_only=True) as store:
        dtype = load_run(store).dtype
        from neuroexplain.probe import Probe
        from neuroexplain.web.app import make_app
        from neuroexplain.web.serving import listen, serve_until_stopped

        made = make_app(store, probe=Probe(model, dtype) if model is not None else None, token=token)
        listening, address = listen(host, port)
        say(f"{db} is at {address}  (Ctrl-C ends it)")
        serve_until_stopped(made, listening)


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
    from neuroexplain.cli.render import runs_table
    from neuroexplain.formatting import join_sessions, printable, run_json, session_text
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import count_explanations, count_units, list_runs, list_sessions

    with open_store(db, read_only=True) as store:
        found = list_runs(store)
        notes = {}
        sessions = {run.id: list_sessions(store, run.id) for run in found}
        for run in found:
            parts = [f"{n:,} {run.noun} {status}" for status, n in count_units(store, run.id).items()]
            parts += [
                f"{n:,} by {name} ({status})" for name, _, status, n in count_explanations(store, run.id)
            ]
            notes[run.id] = ", ".join(parts)
    if as_json:
        _print_json(
            [
                run_json(run) | {"holds": notes[run.id], "sessions": [asdict(s) for s in sessions[run.id]]}
                for run in found
            ]
        )
    elif found:
        _print(runs_table(found, notes))
        for run in found:
            for one in join_sessions(sessions[run.id]):
                by = ", ".join(filter(None, (one.explainer, one.model, one.scorer, one.scorer_model)))
                print(printable(f"run {run.id}, {by}: {session_text(one)}"))
    else:
        say(f"{db} holds no run yet. Collect one:  neuroexplain collect --db {db} --model ... --dataset ...")


@app.command(epilog="Example:  neuroexplain merge part1.db part2.db part3.db --into whole.db")
def merge(
    parts: Annotated[
        list[str], typer.Argument(metavar="A B ...", help="Databases with parts that collect --shard made.")
    ],
    into: Annotated[str, typer.Option(help="Database that gets them joined; made where there is none.")],
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Join parts of different batch shapes, dtypes or devices.")
    ] = False,
) -> None:
    """Join parts of one collection, all at once or some now and the result with others later: equal to collecting it whole."""
    from contextlib import ExitStack

    from neuroexplain.collecting.merge import run_merge
    from neuroexplain.store.engine import open_store, remove_if_unused
    from neuroexplain.store.runs import load_run

    with ExitStack() as opened:
        stores = [opened.enter_context(open_store(part, read_only=True)) for part in parts]
        found = [(store, load_run(store)) for store in stores]
        with open_store(into, create=True) as target:
            try:
                draw(run_merge(found, target, allow_mixed=allow_mixed))
            except NeuroexplainError:
                remove_if_unused(target)
                raise
            run = load_run(target)
    missing = run.config.get("shard")
    left = f" {len(missing['parts'])} of {missing['of']} parts are in it." if missing else " It is whole."
    say(f"Run {run.id} in {into}: {run.n_tokens:,} tokens.{left}")


@app.command(
    "import",
    epilog="Example:  neuroexplain import llama3-neurons ./data --layers 15 --tokenizer ./Meta-Llama-3-8B",
)
def import_(
    file_format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="llama3-neurons (index.npy, act.npy, token.npy) or parquet (our own export).",
        ),
    ],
    source: Annotated[Path, typer.Argument(metavar="IN", help="The folder.")],
    db: Db = DEFAULT_DB,
    layers: Annotated[
        str | None, typer.Option("--layers", "--layer", help="Only these layers (llama3-neurons).")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="The subject's tokenizer (llama3-neurons): hub name or folder.")
    ] = "meta-llama/Meta-Llama-3-8B",
    activation: Annotated[
        str, typer.Option(help="What the arrays hold, act or post (llama3-neurons).")
    ] = "act",
) -> None:
    """Read data that others published, so that it can be explained without collecting; or a run that was exported."""
    from neuroexplain.formats.base import FORMATS, ReadOptions, read_formats
    from neuroexplain.selection import parse_layers
    from neuroexplain.store.engine import open_store, remove_if_unused
    from neuroexplain.store.runs import load_run

    reader = FORMATS.find(file_format)
    if reader is None or not reader.is_read:
        raise NeuroexplainError(
            f"The format {file_format!r} is not known; there is {', '.join(read_formats())}."
        )
    options = ReadOptions(parse_layers(layers) if layers is not None else None, tokenizer, activation)
    if not source.is_dir():
        raise NeuroexplainError(f"There is no folder {source}. Give the one that holds the data.")
    with open_store(db, create=True) as store:
        try:
            draw(reader.read(store, source, options))
        except NeuroexplainError:
            remove_if_unused(store)
            raise
        run = load_run(store)
    say(
        f"Run {run.id} in {db}: {len(run.layers)} layers.\nNext:  neuroexplain explain --db {db} --layer {run.layers[0]}"
    )


@app.command(epilog="Example:  neuroexplain export parquet ./out --db demo.db")
def export(
    ctx: typer.Context,
    file_format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="site (the viewer as static files), parquet (a Hugging Face data set), jsonl, neuronpedia or llama3-neurons.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist yet.")],
    db: Db = DEFAULT_DB,
    layers: Annotated[
        str | None, typer.Option("--layers", "--layer", help="Only these layers (site, jsonl, neuronpedia).")
    ] = None,
    units: Units = None,
    neurons: OldUnits = None,
    every: Annotated[
        bool, typer.Option("--every", help="Units without an explanation too (site, jsonl, neuronpedia).")
    ] = False,
    run_id: RunId = None,
) -> None:
    """Write a run for others to read.

    parquet holds all of it, llama3-neurons all top records, the rest the units that are explained.
    """
    from neuroexplain.formats.base import FORMATS, written_formats
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run
    from neuroexplain.store.units import list_explained_ids, list_unit_ids

    writer = FORMATS.find(file_format)
    if writer is None or not writer.is_written:
        raise NeuroexplainError(
            f"The format {file_format!r} is not known; there is {', '.join(written_formats())}."
        )
    with open_store(db, read_only=True) as store:
        run = load_run(store, run_id)
        named = _renamed(ctx, "units", "neurons")
        if writer.holds_whole_runs and (layers is not None or named is not None):
            raise NeuroexplainError(
                f"{file_format} holds all units of a run; leave out --layers and --units."
            )
        chosen_layers = _layers_of(run, layers) if layers is not None else None
        selected = set(_select(store, run, layers, named)) if named is not None else None
        listed: list[UnitId] = []
        if not writer.holds_whole_runs:
            list_ids = list_unit_ids if every else list_explained_ids
            listed = [
                unit
                for unit in list_ids(store, run.id, chosen_layers)
                if selected is None or unit in selected
            ]
            if not listed:
                raise NeuroexplainError(
                    "No unit of these is explained yet. To export them all the same:  --every"
                )
        draw(writer.write(store, run, listed, out))
    say(f"Wrote {out}.")


@app.command(
    epilog="Example:  neuroexplain plot distribution --db demo.db   |   neuroexplain plot 15:16 --out act"
)
def plot(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="layers, distribution, above, or a neuron like 15:16 for its activations."
        ),
    ],
    db: Db = DEFAULT_DB,
    out: Annotated[
        Path | None, typer.Option(help="Where to write: OUT.svg and OUT.png; named after WHAT unless told.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Which metric to draw; the run's headline unless told.")
    ] = None,
    scorer: Annotated[str | None, typer.Option(help="Draw this scorer's main metric.")] = None,
    run_id: RunId = None,
) -> None:
    """Draw scores by layer, their distribution, the share of neurons above each score, or a neuron's activations."""
    from functools import partial

    from neuroexplain import plots
    from neuroexplain.scorers.base import choose_headline
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run
    from neuroexplain.store.search import list_headline_scores
    from neuroexplain.store.units import load_unit

    drawn = {
        "layers": plots.scores_by_layer,
        "distribution": plots.score_distribution,
        "above": plots.share_above,
    }
    with open_store(db, read_only=True) as store:
        run = load_run(store, run_id)
        if what in drawn:
            headline = choose_headline(run, metric, scorer)
            scores = list_headline_scores(store, run, headline)
            if not scores:
                raise NeuroexplainError(
                    f"{db} holds no score yet. Make some:  neuroexplain explain --db {db} --layer 0"
                )
            chosen = partial(drawn[what], scores=scores, name=str(headline))
        else:
            try:
                unit = run.find_unit(what)
            except ValueError as error:
                raise NeuroexplainError(f"{what!r} is none of {', '.join(drawn)}; and {error}.") from error
            chosen = partial(plots.activation_histogram, neuron=load_unit(store, run, unit))
    target = out if out is not None else Path(what.replace(":", "-"))
    try:
        files = plots.save_figure(chosen, target)
    except OSError as error:
        raise NeuroexplainError(f"Cannot write {target}: {error.strerror}.") from error
    say(f"Wrote {', '.join(map(str, files))}.")


@app.command(epilog="Example:  neuroexplain verify --db demo.db > faults.txt")
def verify(db: Db = DEFAULT_DB, run_id: RunId = None) -> None:
    """Recompute every score from what is stored, and look for leaks and orphans."""
    from neuroexplain.explaining.score import verify_run
    from neuroexplain.formatting import printable
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.integrity import count_orphans
    from neuroexplain.store.runs import load_run

    with open_store(db, read_only=True) as store:
        wrong = list(verify_run(store, load_run(store, run_id)))
        orphans = count_orphans(store)
    for line in wrong:
        print(printable(line))
    say(f"{len(wrong)} faults, {orphans} orphans.")
    if wrong or orphans:
        raise typer.Exit(1)


@app.command(epilog="Example:  neuroexplain upgrade --db old.db")
def upgrade(db: Db = DEFAULT_DB) -> None:
    """Bring a database to this version's schema."""
    from neuroexplain.store.engine import upgrade_store

    before, after = upgrade_store(db, say)
    say(f"{db}: schema version {before} to {after}.")


@app.command(epilog="Example:  neuroexplain demo --out /tmp   |   neuroexplain demo --local ./model")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.db.")] = Path(),
    local: Annotated[
        str | None, typer.Option("--local", help="Explainer in place of SmolLM2: a model for this process.")
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", help="Explainer in place of SmolLM2: URL of a vLLM server.")
    ] = None,
    model: ModelName = None,
    segments: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Collect, explain and score a real small model on real text: offline, without a GPU, in some minutes."""
    from neuroexplain.cli.render import demo_text
    from neuroexplain.demo.run import find_highlights, run_demo
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    if not out.is_dir():
        raise NeuroexplainError(f"There is no folder {out}. Make it first, or leave out --out.")
    db = str(out / "demo.db")
    draw(run_demo(db, _engine_config(server, local, model), segments))
    with open_store(db, read_only=True) as store:
        found = find_highlights(store, load_run(store))
    console = _console()
    console.print(demo_text(found, db, console.width))


def main() -> None:
    """The console script."""
    stopping.install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars; ours are plain lines there
    try:
        app(default_map=_read_defaults())
    except NeuroexplainError as error:
        say(f"Error: {error}")
        sys.exit(1 if isinstance(error, EngineLost) else 2)
    except Interrupted:
        say("Interrupted. What was finished is kept; run the same command again to go on from there.")
        sys.exit(stopping.status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _read_defaults() -> dict[str, Any]:
    """Options from neuroexplain.toml in the working folder: one table a command."""
    file = Path("neuroexplain.toml")
    if not file.is_file():
        return {}
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise NeuroexplainError(f"Cannot read {file}: {error}") from error
    commands = typer.main.get_group(app).commands
    defaults: dict[str, Any] = {}
    for name, options in tables.items():
        if name not in commands or not isinstance(options, dict):
            raise NeuroexplainError(
                f"{file} has {name!r}, which is no command; tables are {', '.join(sorted(commands))}."
            )
        known = {
            flag.lstrip("-"): one
            for one in commands[name].params
            for flag in one.opts
            if flag.startswith("--")
        }
        for key, value in options.items():
            option = known.get(key.replace("_", "-"))
            if option is None:
                raise NeuroexplainError(
                    f"{file}, [{name}]: there is no option {key!r}; there are {', '.join(sorted(known))}."
                )
            values = value if option.multiple and isinstance(value, list) else [value]
            wanted = WANTED.get(option.type.name.removesuffix(" range"), "a text")
            if any(type(one) not in KINDS[wanted] for one in values) or (
                option.multiple and values is not value
            ):
                listed = "a list, each item " if option.multiple else ""
                raise NeuroexplainError(f"{file}, [{name}]: {key} is {value!r}; wanted is {listed}{wanted}.")
            defaults.setdefault(name, {})[option.name] = value
    return defaults


WANTED = {
    "int": "a whole number",
    "float": "a number",
    "boolean": "true or false",
}  # by the names that typer gives types
KINDS = {"a whole number": (int,), "a number": (int, float), "true or false": (bool,), "a text": (str, int)}


def _drop_run(db: str, run_id: int) -> None:
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import list_runs
    from neuroexplain.store.save_collected import delete_run

    with open_store(db) as store:
        known = [run.id for run in list_runs(store)]
        if run_id not in known:
            raise NeuroexplainError(
                f"There is no run {run_id} in {db}: it holds {', '.join(map(str, known)) or 'none'}."
            )
        delete_run(store, run_id)
        checkpoint = store.checkpoint_path(run_id)
        checkpoint.unlink(missing_ok=True)
        for tokens in checkpoint.parent.glob("neuroexplain-*.tokens*"):  # other runs can make theirs again
            tokens.unlink()
    say(f"Run {run_id} and all that belonged to it is gone from {db}.")


def _scorers(context: typer.Context) -> tuple[str, ...]:
    """The scorers named, `digits` where there is none."""
    named = _renamed(context, "scorer", "simulator")
    return ("digits",) if named is None else tuple(name.strip() for name in named.split(",") if name.strip())


def _renamed(context: typer.Context, name: str, old_name: str) -> Any:
    """The value of an option or of its old name. Raises NeuroexplainError where both are given; flags win over files."""
    given: dict[str, tuple[Any, bool]] = {}  # the value, and whether it was typed
    for option in (name, old_name):
        source = getattr(context.get_parameter_source(option), "name", "")
        if source in ("COMMANDLINE", "DEFAULT_MAP") and context.params[option] is not None:
            given[option] = context.params[option], source == "COMMANDLINE"
    if len(given) == 2 and len({is_typed for _, is_typed in given.values()}) == 1:
        raise NeuroexplainError(
            f"--{old_name} is the old name of --{name}, and both are given. Give --{name} alone."
        )
    typed = {option: value for option, (value, is_typed) in given.items() if is_typed or len(given) == 1}
    return next(iter(typed.values()), context.params[name])


def _sample(store: Any, run: "Run", units: "list[UnitId]", n: int | None) -> "list[UnitId]":
    """N of the units that are not dead, by a stable hash, in ascending order; all of them where no N is given."""
    from neuroexplain.evidence import Status
    from neuroexplain.stable_hash import stable_hash
    from neuroexplain.store.units import list_unit_ids

    if n is None:
        return units
    alive = set(list_unit_ids(store, run.id, {unit.layer for unit in units}, Status.OK))
    order = sorted(
        alive & set(units), key=lambda unit: (stable_hash(run.seed, "sample", unit.layer, unit.index), unit)
    )
    return sorted(order[:n])


def _select(store: Any, run: "Run", layers: str | None, units: str | None) -> "list[UnitId]":
    """The units named; raises NeuroexplainError where the run does not hold one."""
    from neuroexplain.selection import parse_units
    from neuroexplain.store.units import list_unit_ids

    if layers is None and units is None:
        raise NeuroexplainError(
            "Name a layer, layers or units:  --layer 15 | --layers 3-5 | --units 15:0-99,20:7"
        )
    if layers is not None and units is not None:
        raise NeuroexplainError(
            f"--layer {layers} and --units {units} are both given, one of them perhaps in neuroexplain.toml: name one."
        )
    if layers is not None:
        return list_unit_ids(store, run.id, _layers_of(run, layers))
    wanted = parse_units(units or "", {source.layer: source.group_size for source in run.sources})
    for one in wanted:
        if one.index >= run.width(one.layer):
            raise NeuroexplainError(
                f"Run {run.id} has no unit {one}: it holds {run.size}, both counted from 0."
            )
    return list(wanted)


def _layers_of(run: "Run", typed: str) -> tuple[int, ...]:
    """The layers named; raises NeuroexplainError where the run does not hold one."""
    from neuroexplain.selection import parse_layers

    wanted = parse_layers(typed)
    missing = [one for one in wanted if one not in run.layers]
    if missing:
        raise NeuroexplainError(
            f"Run {run.id} has no layer {missing[0]}: it has {len(run.layers)} of them, {min(run.layers)} to {max(run.layers)}."
        )
    return wanted


def _engine_config(
    server: str | None,
    local: str | None,
    model: str | None,
    base: str | None = None,
    *,
    vllm: str | None = None,
    vllm_args: str = "",
    default: "EngineConfig | None" = None,
) -> "EngineConfig | None":
    """The engine that was named; None where none was. A model alone is one of the server `base`, or of the default one."""
    if server is None and local is None and vllm is None:
        if model is None:
            return None
        server = base
    more: list[str] = []
    if vllm_args:
        from neuroexplain.llm.vllm import split_words

        more = split_words(vllm_args, "--vllm-args")
    default = default or _default_engine()
    return replace(default, server=server, vllm=vllm, vllm_args=tuple(more), local=local, model=model)


def _default_engine(max_wait: float = 600.0, in_flight: int = 64) -> "EngineConfig":
    from neuroexplain.config import EngineConfig

    secret, command = (
        os.environ.get("NEUROEXPLAIN_API_KEY", "").strip() or None,
        os.environ.get("NEUROEXPLAIN_VLLM"),
    )
    config = EngineConfig(api_key=secret, vllm_command=command, max_wait=max_wait, in_flight=in_flight)
    url = os.environ.get("NEUROEXPLAIN_SERVER")
    return replace(config, default_server=url) if url else config


def _estimate_text(estimate: "Estimate") -> str:
    finished = f" ({estimate.n_finished:,} are finished)" if estimate.n_finished else ""
    if not estimate.n_units:
        return f"Nothing to explain{finished}."
    at_once = f", {estimate.in_flight} at once: at best {clock(estimate.seconds / estimate.in_flight)}"
    return (
        f"{estimate.n_units:,} neurons to explain{finished}: about {estimate.n_requests:,} requests with "
        f"{estimate.n_prompt_tokens:,} prompt tokens.\n"
        f"One after the other {clock(estimate.seconds)}{at_once if estimate.in_flight > 1 else ''}."
    )


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=False)


def _print(renderable: Any) -> None:
    _console().print(renderable)


def _print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=not _speaks_utf8(), allow_nan=False)
    sys.stdout.write(_ACTED_ON.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


# What a terminal acts on or hides and JSON leaves as it is: controls from U+007F on, marks of direction and of no width.
_ACTED_ON = re.compile(r"[\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def _speaks_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


if __name__ == "__main__":
    main()
