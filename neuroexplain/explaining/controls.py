"""Controls: each explanation's records, scored with another unit's explanation.

A score that the control reaches too says nothing about the explanation.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from neuroexplain.evidence import TEXT_PARTS, Explanation, ExplanationResult, Prediction, Status, TextPart
from neuroexplain.explaining.predictions import PredictionPlan, PredictTask
from neuroexplain.explaining.shares import Share
from neuroexplain.explaining.trials import SideTrials, units_at_once
from neuroexplain.runs import Run
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.result_writer import ResultWriter
from neuroexplain.runtime.run_many import RunMany
from neuroexplain.scorers.base import OpenScorer
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.leases import Leases, open_leases
from neuroexplain.units import Side, UnitId


def predict_controls(
    store: Store,
    run: Run,
    explanations: Sequence[Explanation],
    scorer: OpenScorer,
    writer: ResultWriter,
    leases: Leases | None,
    *,
    with_control: bool,
    retry_failed: bool,
    run_many: RunMany = map_in_flight,
    records: Store | None = None,
) -> Generator[Progress]:
    """Try each explanation's control on its records, and store what was predicted.

    A rule is compared with another unit's rule, a whole text with another unit's whole text.
    Where every record costs a request, nothing is tried unless `with_control`. A person's own hypothesis has
    no control: on every unit it is the same. `records` is the store that holds the run's records and all its
    explanations, if `store` holds those of a part alone.
    """
    if not scorer.scorer.reads_explanation or (scorer.asks_per_record and not with_control):
        return
    whole = records or store
    controls = find_controls(explanations, list_comparable(whole, run))

    def lacks(explanation: Explanation, part: TextPart, prediction: Prediction | None) -> bool:
        return explanation.id in controls[part] and _lacks_control(prediction, retry_failed)

    plan = PredictionPlan(store, whole, run, explanations, scorer, lacks, retry_failed=False)
    n_units, n_hypotheses = units_at_once(scorer, 1, len(plan.pending))

    def try_control(task: PredictTask) -> ExplanationResult:
        trials = SideTrials(scorer, task.evidence, task.tokens, run_many, n_hypotheses)
        own_id = task.explanation.id or 0
        begun = {part: task.begin(part, scorer) for part in task.stored}
        return task.result({part: trials.add_control(p, controls[part][own_id]) for part, p in begun.items()})

    n_failed, n_done = 0, len(explanations) - len(plan.pending)
    yield Progress("comparing", n_done, len(explanations), "explanations")
    share = Share(leases, plan.pending, plan.read_again)
    for result in share.run(run_many, try_control, n_units, writer):
        if result is not None:
            writer.add([result], counts=False)
            n_failed += any(new.prediction.control_explanation_id is None for new in result.predictions)
            n_done += 1
        yield Progress(
            "comparing",
            n_done + share.n_elsewhere,
            len(explanations),
            "explanations",
            {Status.LLM_ERROR: n_failed} if n_failed else {},
            share.take_note(),
            tokens=writer.prompt_tokens,
            servers=writer.servers,
        )


def run_controls(
    store: Store,
    run: Run,
    explanations: Sequence[Explanation],
    scorer: OpenScorer,
    *,
    retry_failed: bool = False,
    run_many: RunMany = map_in_flight,
    records: Store | None = None,
) -> Generator[Progress]:
    """Try the controls that these explanations' stored predictions lack: see `predict_controls`."""
    with open_leases(store, run.id) as leases, ResultWriter(store, run, None, None, scorer, leases) as writer:
        yield from predict_controls(
            store,
            run,
            explanations,
            scorer,
            writer,
            leases,
            with_control=True,
            retry_failed=retry_failed,
            run_many=run_many,
            records=records,
        )


def list_comparable(store: Store, run: Run) -> list[Explanation]:
    """The explanations of a run that can be controls: chosen ones. A person's own are not compared."""
    stored = list_explanations(store, run.id, status=Status.OK)
    return [e for e in stored if e.chosen and not e.is_by_person]


def find_controls(
    explanations: Sequence[Explanation], among: Sequence[Explanation]
) -> dict[TextPart, dict[int, Explanation]]:
    """The controls of whole explanations, and of their rules: see find_controls_of."""
    return {
        part: find_controls_of(explanations, [e for e in among if part in e.text_parts])
        for part in TEXT_PARTS
    }


def find_controls_of(
    explanations: Sequence[Explanation], among: Sequence[Explanation]
) -> dict[int, Explanation]:
    """Each explanation's control, by the explanation's id; explanations without a control are left out.

    among: the run's explanations that can be controls, whichever command wrote them: so a control depends
    neither on the command nor on the machine. It is the next unit's explanation by the same explainer and
    model, of the same side, in the order of a stable hash, the first one after the last; of the same layer if
    there is one.
    """
    by_kind: dict[tuple[str, str, Side], dict[UnitId, Explanation]] = {}
    for explanation in sorted(among, key=lambda e: (e.candidate, e.request_key)):
        by_kind.setdefault(_kind_of(explanation), {}).setdefault(explanation.unit, explanation)
    successors: dict[tuple[str, str, Side], dict[UnitId, Explanation]] = {}
    for kind, of_unit in by_kind.items():
        ring = sorted(of_unit.values(), key=lambda e: (stable_hash(e.unit.layer, e.unit.index), e.unit))
        successors[kind] = _successors(ring)
        for layer in {e.unit.layer for e in ring}:
            successors[kind] |= _successors([e for e in ring if e.unit.layer == layer])
    pairs = ((e.id, successors.get(_kind_of(e), {}).get(e.unit)) for e in explanations)
    return {own: control for own, control in pairs if own is not None and control is not None}


def _lacks_control(prediction: Prediction | None, retry_failed: bool) -> bool:
    """Whether a control is still to be tried. A usable prediction has a reason if its control failed."""
    return (
        prediction is not None
        and prediction.status == Status.OK
        and prediction.control_explanation_id is None
        and (prediction.reason is None or retry_failed)
    )


def _kind_of(explanation: Explanation) -> tuple[str, str, Side]:
    return explanation.explainer, explanation.provenance.model, explanation.side


def _successors(ring: Sequence[Explanation]) -> dict[UnitId, Explanation]:
    """The next explanation in the ring, by unit; none in a ring of one."""
    return {e.unit: after for e, after in zip(ring, (*ring[1:], *ring[:1]), strict=True) if after is not e}
