"""`neuroexplain score`."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.engine_options import engines_of
from neuroexplain.cli.options import (
    DEFAULT_DB,
    SCORES,
    AsJson,
    Db,
    InFlight,
    Local,
    MaxWait,
    ModelName,
    OldScorerNames,
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
    Vllm,
    VllmArgs,
    WithBills,
    WithControl,
    scorer_names,
)
from neuroexplain.cli.output import print_json
from neuroexplain.cli.progress import draw, say
from neuroexplain.cli.select_units import say_rule, select_units
from neuroexplain.cli.shards import AllowFailed, PartFile, Shard, open_to_write, parse_part
from neuroexplain.embedding.base import DEFAULT_EMBEDDING
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.config import ScoreConfig
    from neuroexplain.evidence import Explanation, StoredScore
    from neuroexplain.runs import Run
    from neuroexplain.scorers.base import OpenScorer
    from neuroexplain.store.engine import Store
    from neuroexplain.subject.model import Subject
    from neuroexplain.units import UnitId, UnitSide

UnitNames = Annotated[str | None, typer.Argument(help="Units, like 3:17 or 15:0-99.")]
Hypothesis = Annotated[
    str | None,
    typer.Option(
        "--text", help="A hypothesis of yours to score; by default the stored explanations are scored."
    ),
]
Controls = Annotated[
    bool,
    typer.Option(
        "--controls",
        help="Make the controls that predictions lack, after parts of explaining were merged; of all units "
        "unless some are named.",
    ),
]
SubjectName = Annotated[
    str | None,
    typer.Option(
        "--subject",
        metavar="MODEL",
        help="Read the run's own model again, to measure what units do on text that looks like theirs: with "
        "tokens on which they often fire, and records of the nearest units. Judges and embedding then also "
        "tell how well an explanation keeps it apart (the score among look-alikes). Done once; later "
        "commands use it.",
        rich_help_panel=SCORES,
    ),
]


@app.command(
    epilog='Example:  neuroexplain score 3:17 --text "words about rivers"\n\n'
    "Judges beside simulation:  neuroexplain score 15:0-99 --scorer detection,fuzzing --control\n\n"
    "Hard negatives, too:  neuroexplain score 15:0-99 --scorer detection,fuzzing --subject ./model"
)
def score(
    context: typer.Context,
    units: UnitNames = None,
    text: Hypothesis = None,
    controls: Controls = False,
    db: Db = DEFAULT_DB,
    run_id: RunId = None,
    as_json: AsJson = False,
    server: Server = None,
    servers: Servers = None,
    vllm: Vllm = None,
    vllm_args: VllmArgs = "",
    local: Local = None,
    model: ModelName = None,
    tokenizer: ServedTokenizer = None,
    scorer: ScorerNames = None,
    simulator: OldScorerNames = None,
    score_records: ScoreRecords = None,
    bills: WithBills = None,
    subject: SubjectName = None,
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
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score stored explanations, or a hypothesis of your own."""
    from neuroexplain.config import ScoreConfig

    if text is not None and not text.strip():
        raise NeuroexplainError('The hypothesis is empty. Give one:  --text "words about rivers"')
    if controls and (text is not None or as_json):
        raise NeuroexplainError(
            "--controls is about stored explanations, and prints no scores: leave out --text and --json."
        )
    if not controls and (shard is not None or part is not None):
        raise NeuroexplainError("--shard and --part go with --controls. Name the units to score instead.")
    if not controls and units is None:
        raise NeuroexplainError(
            "Name units, like 3:17, or make controls of all:  neuroexplain score --controls"
        )
    if subject is not None:
        _check_subject_is_read(controls, scorer_names(context))
    scoring = ScoreConfig(scorer_names(context), engines_of(context)[1], score_records, bills, embedding)
    n_failed = _make_controls(context, scoring) if controls else _score_units(context, scoring)
    if n_failed:
        say(f"{n_failed:,} predictions failed; ask again with --retry-failed.")
        raise typer.Exit(0 if allow_failed else 1)


def _score_units(context: typer.Context, scoring: "ScoreConfig") -> int:
    """Score the explanations of the named units, and print the scores. Returns how many failed."""
    from neuroexplain.as_json import scores_json
    from neuroexplain.cli.tables import scores_text
    from neuroexplain.explaining.engines import open_engines
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run
    from neuroexplain.store.writer_lock import writer_lock

    options = context.params
    units, text, with_control = options["units"], options["text"], options["control"] or options["null"]
    engine = engines_of(context)[0]
    with ExitStack() as stack:
        store = stack.enter_context(open_store(options["db"]))
        run = load_run(store, options["run_id"])
        stack.enter_context(writer_lock(store, f"run {run.id}", "score"))
        unit_ids = select_units(store, run, None, units)
        say_rule(run)
        explanations = [] if text is not None else _stored_explanations(store, run, unit_ids, units)
        if options["subject"] is not None:  # before an engine takes the device's memory
            of_text = {(unit, side) for unit in unit_ids for side in run.sides} if text is not None else ()
            sides = {*of_text, *(e.unit_side for e in explanations)}
            _measure_hard(store, run, sides, options["subject"], options["trust_remote_code"])
        with open_engines(run, engine, scoring, explains=False, tell=say) as (_, scorers):
            if text is not None:  # only now: nothing is stored where an engine cannot be had
                explanations = _save_hypothesis(store, run, unit_ids, text)
            n_failed = _score(store, run, explanations, scorers, with_control, options["retry_failed"])
            scores = _list_report_scores(store, explanations, scorers)
    if options["as_json"]:
        print_json(scores_json(scores))
    else:
        print(scores_text(run, scores))
    return n_failed


def _check_subject_is_read(controls: bool, names: "Sequence[str]") -> None:
    """Raise NeuroexplainError unless one of the scorers reads what --subject measures."""
    from neuroexplain.scorers.base import SCORERS

    reading = [name for name in SCORERS.names() if SCORERS.load(name).reads_hard]
    if controls:
        raise NeuroexplainError("--controls reads no model but the scorer's: leave out --subject.")
    if not set(reading) & set(names):
        raise NeuroexplainError(
            f"--subject measures hard negatives, and --scorer {','.join(names)} does not read them.\n"
            f"Name a scorer that does ({', '.join(reading)}):  --scorer {reading[0]}"
        )


def _measure_hard(
    store: "Store", run: "Run", sides: "Collection[UnitSide]", model: str, trust_remote_code: bool
) -> None:
    """Measure what the units do on the records of their look-alikes, with the run's subject."""
    from neuroexplain.collecting.measure_hard import run_measure_hard
    from neuroexplain.subject.load import load_subject

    def load() -> "Subject":
        return load_subject(model, run.dtype, trust_remote_code=trust_remote_code)

    draw(run_measure_hard(store, run, sides, model, load), gently=True)


def _make_controls(context: typer.Context, scoring: "ScoreConfig") -> int:
    """Make the controls that stored predictions lack. Returns how many of them failed."""
    from neuroexplain.explaining.controls import find_controls, list_comparable, run_controls
    from neuroexplain.explaining.engines import open_engines
    from neuroexplain.selection import units_of_shard
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    options = context.params
    shard, part, db = parse_part(options["shard"]), options["part"], options["db"]
    with open_store(db, read_only=part is not None) as store:
        run = load_run(store, options["run_id"])
        among = list_comparable(store, run)
        units = {e.unit for e in among}
        if options["units"] is not None:
            units &= set(select_units(store, run, None, options["units"]))
        units = set(units_of_shard(units, shard))
        own = [e for e in among if e.unit in units]
        of_parts = find_controls(own, among).values()
        controls = {e.id for of_part in of_parts for e in of_part.values() if e.id is not None}
        n_failed = 0
        with (
            open_to_write(
                store, run, "score", shard, part, units, controls, retry_failed=options["retry_failed"]
            ) as target,
            open_engines(run, engines_of(context)[0], scoring, explains=False, tell=say) as (_, scorers),
        ):
            for scorer in scorers:
                n_failed += draw(
                    run_controls(
                        target, run, own, scorer, retry_failed=options["retry_failed"], records=store
                    )
                )
    say(f"Done: the controls of {len(own):,} explanations.")
    if part is not None:
        say(f"Join the parts when all are done:  neuroexplain merge PART ... --into {db}")
    return n_failed


def _score(
    store: "Store",
    run: "Run",
    explanations: "Sequence[Explanation]",
    scorers: "Sequence[OpenScorer]",
    with_control: bool,
    retry_failed: bool,
) -> int:
    """Score by each scorer in turn. Returns how many predictions failed."""
    from neuroexplain.explaining.score import run_score

    return sum(
        draw(
            run_score(store, run, explanations, scorer, with_control=with_control, retry_failed=retry_failed)
        )
        for scorer in scorers
    )


def _list_report_scores(
    store: "Store", explanations: "Sequence[Explanation]", scorers: "Sequence[OpenScorer]"
) -> "list[StoredScore]":
    """The explanations' scores by these scorers and models on the `report` records."""
    from neuroexplain.store.explanations import list_scores

    names = {(scorer.name, scorer.engine.model) for scorer in scorers}
    return [
        stored
        for stored in list_scores(store, [e.id for e in explanations if e.id is not None])
        if stored.score.split == "report" and (stored.scorer, stored.scorer_model) in names
    ]


def _stored_explanations(
    store: "Store", run: "Run", unit_ids: "Sequence[UnitId]", selection: str
) -> "list[Explanation]":
    """The units' explanations. Raises NeuroexplainError where they have none."""
    from neuroexplain.evidence import Status
    from neuroexplain.store.explanations import list_explanations

    explanations = [
        explanation
        for unit in unit_ids
        for explanation in list_explanations(store, run.id, unit, status=Status.OK)
    ]
    if not explanations:
        raise NeuroexplainError(
            "There is no explanation to score. "
            f"Write one:  neuroexplain explain --units {selection} --db {store.name}"
        )
    return explanations


def _save_hypothesis(
    store: "Store", run: "Run", unit_ids: "Sequence[UnitId]", text: str
) -> "list[Explanation]":
    """Store a person's hypothesis for each side of each unit."""
    from neuroexplain.evidence import HUMAN, Explanation, Provenance, Status
    from neuroexplain.store.save_explained import save_explanation

    provenance = Provenance(
        engine="none", engine_version=None, model=HUMAN, model_revision=None, prompt_sha256=None
    )
    return [
        save_explanation(store, run.id, Explanation(unit, HUMAN, Status.OK, text, provenance, side=side))
        for unit in unit_ids
        for side in run.sides
    ]
