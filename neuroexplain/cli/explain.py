"""`neuroexplain explain`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.engine_options import engines_of
from neuroexplain.cli.options import (
    DEFAULT_DB,
    EXPLAINER,
    RUNNING,
    SCORES,
    Db,
    InFlight,
    Layers,
    Local,
    MaxWait,
    ModelName,
    OldScorerNames,
    OldUnits,
    OldWithControl,
    RetryFailed,
    RunId,
    ScoreRecords,
    ScorerNames,
    ScoringEmbedding,
    ServedTokenizer,
    Server,
    Servers,
    SimulatorLocal,
    SimulatorModel,
    SimulatorServer,
    SimulatorTokenizer,
    TrustRemoteCode,
    Units,
    Vllm,
    VllmArgs,
    WithBills,
    WithControl,
    renamed_option,
    scorer_names,
)
from neuroexplain.cli.progress import clock, draw, say
from neuroexplain.cli.select_units import keep_units, sample_units, say_rule, select_units
from neuroexplain.cli.shards import (
    AllowFailed,
    PartFile,
    Shard,
    open_to_write,
    parse_part,
    say_controls_come_later,
)
from neuroexplain.embedding.base import DEFAULT_EMBEDDING
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.config import EngineConfig, ExplainConfig, ScoreConfig
    from neuroexplain.explaining.estimate import Estimate
    from neuroexplain.runs import Run
    from neuroexplain.store.engine import Store

Sample = Annotated[
    int | None,
    typer.Option(
        min=1, help="Take N of the selected units that are not dead: a fair sample, by a stable hash."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N of the selected units.")]
Where = Annotated[
    str | None,
    typer.Option(help="unexplained: leave out units that an LLM has explained. Labels do not count."),
]
Below = Annotated[
    float | None,
    typer.Option(help="Leave out units that have an explanation or a label whose score is at least this."),
]
ExplainerName = Annotated[
    str,
    typer.Option(
        help="category (the words that fire), pairs (tokens with levels), excerpts (marked text), meanings "
        "(up to three hypotheses), bank (the best of some hundred labels of our own; takes --local MODEL) or "
        "tokens (asks no LLM). With a 0.5B model pairs, excerpts and meanings are far behind category.",
        rich_help_panel=EXPLAINER,
    ),
]
Candidates = Annotated[
    int,
    typer.Option(
        help="Explanations to ask for of each unit; the best on the select records is chosen.",
        rich_help_panel=EXPLAINER,
    ),
]
Revise = Annotated[
    int,
    typer.Option(
        help="Times that the explainer sees its mistakes and may answer again. No gain was seen with a "
        "0.5B model.",
        rich_help_panel=EXPLAINER,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the LLM's sampling.", rich_help_panel=EXPLAINER)]
NoScore = Annotated[
    bool, typer.Option("--no-score", help="Do not score the explanations.", rich_help_panel=SCORES)
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print what the command would cost, and do nothing.", rich_help_panel=RUNNING
    ),
]


@app.command(epilog="Example:  neuroexplain explain --units 15:0-99 --candidates 3 --local ./model")
def explain(
    context: typer.Context,
    db: Db = DEFAULT_DB,
    run_id: RunId = None,
    layer: Layers = None,
    units: Units = None,
    neurons: OldUnits = None,
    sample: Sample = None,
    limit: Limit = None,
    where: Where = None,
    below: Below = None,
    explainer: ExplainerName = "category",
    candidates: Candidates = 1,
    revise: Revise = 0,
    seed: Seed = 0,
    server: Server = None,
    servers: Servers = None,
    vllm: Vllm = None,
    vllm_args: VllmArgs = "",
    local: Local = None,
    model: ModelName = None,
    tokenizer: ServedTokenizer = None,
    scorer: ScorerNames = None,
    simulator: OldScorerNames = None,
    no_score: NoScore = False,
    score_records: ScoreRecords = None,
    bills: WithBills = None,
    control: WithControl = False,
    null: OldWithControl = False,
    embedding: ScoringEmbedding = DEFAULT_EMBEDDING,
    simulator_server: SimulatorServer = None,
    simulator_local: SimulatorLocal = None,
    simulator_model: SimulatorModel = None,
    simulator_tokenizer: SimulatorTokenizer = None,
    max_wait: MaxWait = 600.0,
    in_flight: InFlight = 64,
    retry_failed: RetryFailed = False,
    shard: Shard = None,
    part: PartFile = None,
    allow_failed: AllowFailed = False,
    dry_run: DryRun = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Let an LLM write a hypothesis for each unit, and score it on snippets that the LLM has not seen."""
    from neuroexplain.config import ScoreConfig

    if no_score and (candidates > 1 or revise):
        raise NeuroexplainError("--candidates and --revise choose by score: leave out --no-score.")
    own_engine = engines_of(context)[1]
    scoring = None
    if not no_score:
        scoring = ScoreConfig(scorer_names(context), own_engine, score_records, bills, embedding)
    if scoring is not None and revise:
        _check_shows_mistakes(scoring.scorers[0])
    _explain_selected(context, scoring)


def _check_shows_mistakes(scorer: str) -> None:
    """Raises NeuroexplainError if a revision could not be shown at which tokens the scorer is wrong."""
    from neuroexplain.scorers.base import SCORERS

    if not SCORERS.load(scorer, "--scorer").predicts_tokens:
        raise NeuroexplainError(
            f"--revise shows an LLM the tokens that a scorer predicts badly, and {scorer} judges whole "
            "windows. "
            f"Name a simulator first, as in  --scorer combined,{scorer}"
        )


def _explain_selected(context: typer.Context, scoring: "ScoreConfig | None") -> None:
    """Explain the units that the options select, or those of a part, and say what comes next."""
    from neuroexplain.config import ExplainConfig
    from neuroexplain.selection import units_of_shard
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    options = context.params
    engine, with_control = engines_of(context)[0], options["control"] or options["null"]
    shard, part, db = parse_part(options["shard"]), options["part"], options["db"]
    with open_store(db, read_only=part is not None) as store:
        run = load_run(store, options["run_id"])
        units = renamed_option(context, "units", "neurons")
        selected = select_units(store, run, options["layer"], units)
        selected = keep_units(store, run, selected, options["where"], options["below"])
        if not selected:
            say("Nothing to explain.")
            return
        selected = sample_units(store, run, selected, options["sample"])[: options["limit"]]
        own = units_of_shard(selected, shard)
        say_rule(run)
        names = ("explainer", "seed", "retry_failed", "candidates", "revise")
        # Of all units, so that the options are checked even if no unit is in this part.
        config = ExplainConfig(tuple(selected), *(options[name] for name in names))
        if options["dry_run"]:
            if own:
                _estimate(store, run, replace(config, units=tuple(own)), engine, scoring, with_control)
            return
        n_failed = 0
        with open_to_write(
            store, run, "explain", shard, part, own, retry_failed=config.retry_failed
        ) as target:
            if own:
                n_failed = _explain(
                    *(target, run, replace(config, units=tuple(own)), engine, scoring, with_control),
                    records=store,
                    controls_later=target is not store or shard is not None,
                )
    of_all = "" if shard is None else f" (part {shard[0]} of {shard[1]}, of {len(selected):,})"
    if shard is not None or part is not None:
        say_controls_come_later(db, () if scoring is None else scoring.scorers)
    _end(f"{len(own):,} {run.noun}{of_all}", n_failed, part or db, options["allow_failed"])


def _end(units: str, n_failed: int, db: str, allow_failed: bool) -> None:
    """Say what to do next. The status is 1 if something failed, unless that is allowed."""
    say(f"Done: {units}.  See them:  neuroexplain query --db {db}")
    if n_failed:
        say(f"{n_failed:,} explanations or predictions failed; ask again with --retry-failed.")
        say(f"Why:  neuroexplain query --failed --db {db}")
        raise typer.Exit(0 if allow_failed else 1)


def _explain(
    store: "Store",
    run: "Run",
    config: "ExplainConfig",
    engine_config: "EngineConfig",
    score_config: "ScoreConfig | None",
    with_control: bool,
    *,
    records: "Store",
    controls_later: bool,
) -> int:
    """Explain, and score by each scorer in turn. Returns how many explanations and predictions failed."""
    from neuroexplain.explaining.engines import open_engines
    from neuroexplain.explaining.plan import list_chosen
    from neuroexplain.explaining.run import run_explain
    from neuroexplain.explaining.score import run_score

    with open_engines(run, engine_config, score_config, explains=config.asks_llm, tell=say) as (
        engine,
        scorers,
    ):
        first = scorers[0] if scorers else None
        n_failed = draw(
            run_explain(
                *(store, run, config, engine, first),
                with_control=with_control,
                controls_later=controls_later,
                records=records,
            )
        )
        for scorer in scorers[1:]:
            n_failed += draw(
                run_score(
                    store,
                    run,
                    list_chosen(store, run, config, engine),
                    scorer,
                    with_control=with_control,
                    controls_later=controls_later,
                    retry_failed=config.retry_failed,
                    records=records,
                )
            )
    return n_failed


def _estimate(
    store: "Store",
    run: "Run",
    config: "ExplainConfig",
    engine_config: "EngineConfig",
    score_config: "ScoreConfig | None",
    with_control: bool,
) -> None:
    """Print what the command would cost."""
    from neuroexplain.explaining.engines import open_engines
    from neuroexplain.explaining.estimate import estimate_explain

    with open_engines(run, engine_config, score_config, explains=config.asks_llm, tell=say) as (
        engine,
        scorers,
    ):
        for scorer in scorers or (None,):
            if scorer is not None and len(scorers) > 1:
                say(f"Scored by {scorer.name}:")
            say(
                estimate_text(estimate_explain(store, run, config, engine, scorer, with_control=with_control))
            )


def estimate_text(estimate: "Estimate") -> str:
    """What an explain command would cost, in two lines."""
    finished = f" ({estimate.n_finished:,} are finished)" if estimate.n_finished else ""
    if not estimate.n_units:
        return f"Nothing to explain{finished}."
    at_once = f", {estimate.in_flight} at once: at best {clock(estimate.seconds / estimate.in_flight)}"
    return (
        f"{estimate.n_units:,} units to explain{finished}: about {estimate.n_requests:,} requests with "
        f"{estimate.n_prompt_tokens:,} prompt tokens.\n"
        f"One after the other {clock(estimate.seconds)}{at_once if estimate.in_flight > 1 else ''}."
    )
