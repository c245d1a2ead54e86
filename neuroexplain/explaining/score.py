"""Score stored explanations: held-out records -> predictions -> scores, then controls."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from neuroexplain.evidence import (
    Explanation,
    ExplanationResult,
    Prediction,
    Split,
    Status,
    TextPart,
)
from neuroexplain.explaining.controls import predict_controls
from neuroexplain.explaining.predictions import PredictionPlan, PredictTask
from neuroexplain.explaining.shares import Share
from neuroexplain.explaining.trials import SideTrials, units_at_once
from neuroexplain.runs import Run
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.result_writer import ResultWriter
from neuroexplain.runtime.run_many import RunMany
from neuroexplain.scorers.base import OpenScorer
from neuroexplain.scoring.side_evidence import HELD_OUT
from neuroexplain.scoring.splits import split_by_rank
from neuroexplain.store.engine import Store
from neuroexplain.store.hard import list_measured
from neuroexplain.store.leases import open_leases
from neuroexplain.store.save_explained import save_prompt


def run_score(
    store: Store,
    run: Run,
    explanations: Sequence[Explanation],
    scorer: OpenScorer,
    *,
    with_control: bool = False,
    controls_later: bool = False,
    retry_failed: bool = False,
    run_many: RunMany = map_in_flight,
    records: Store | None = None,
) -> Generator[Progress]:
    """Score stored explanations and their rules on held-out records, then their controls on the same.

    A scorer that asks per record reads `report` alone; the others read `select` too, for calibration. Of
    hard negatives that were measured since, a stored prediction gets those alone, and its control again.
    `controls_later` and `records`: as for `run_explain`.
    """
    if scorer.prompt is not None:
        save_prompt(store, scorer.prompt.name, scorer.prompt.text)
    whole = records or store
    measured = list_measured(whole, run.id) if scorer.scorer.reads_hard else set()
    compared: set[int] = set()  # explanations whose stored control is to be tried again on more records

    def lacks(explanation: Explanation, part: TextPart, prediction: Prediction | None) -> bool:
        is_complete = _is_complete(run, scorer, prediction, explanation.unit_side in measured)
        if not is_complete and prediction is not None and prediction.control_explanation_id is not None:
            compared.add(prediction.explanation_id)
        return not is_complete

    plan = PredictionPlan(store, whole, run, explanations, scorer, lacks, retry_failed=retry_failed)
    splits: tuple[Split, ...] = ("report",) if scorer.asks_per_record else HELD_OUT
    n_units, n_hypotheses = units_at_once(scorer, 1, len(plan.pending))

    def score(task: PredictTask) -> ExplanationResult:
        return _predict(task, scorer, splits, run_many, n_hypotheses)

    wants_all = with_control or not scorer.asks_per_record
    n_finished = len(explanations) - len(plan.pending)
    with open_leases(store, run.id) as leases, ResultWriter(store, run, None, None, scorer, leases) as writer:
        yield (start := Progress("scoring", n_finished, len(explanations), "explanations", plan.failures))
        share = Share(leases, plan.pending, plan.read_again)
        for result in share.run(run_many, score, n_units, writer):
            if result is not None:
                writer.add([result])
            yield replace(writer.after(start, share.n_elsewhere), note=share.take_note())
        if controls_later:
            return
        yield from predict_controls(
            store,
            run,
            explanations if wants_all else [e for e in explanations if e.id in compared],
            scorer,
            writer,
            leases,
            with_control=with_control or bool(compared),
            retry_failed=retry_failed,
            run_many=run_many,
            records=records,
        )


def _predict(
    task: PredictTask, scorer: OpenScorer, splits: tuple[Split, ...], run_many: RunMany, n_hypotheses: int
) -> ExplanationResult:
    """The explanation's and its rule's predictions on these splits, continued from what is stored."""
    trials = SideTrials(scorer, task.evidence, task.tokens, run_many, n_hypotheses)
    begun = {part: task.begin(part, scorer) for part in task.stored}
    hypotheses = {part: task.explanation.hypotheses_of(part) for part in begun}
    return task.result({part: trials.extend(p, hypotheses[part], splits) for part, p in begun.items()})


def _is_complete(run: Run, scorer: OpenScorer, prediction: Prediction | None, is_measured: bool) -> bool:
    """Whether nothing is left to predict: it failed, or it has the `report` records that the scorer reads.

    is_measured: whether the side's hard records are stored.
    """
    if prediction is None or prediction.status != Status.OK:
        return prediction is not None
    if run.split_rule == "ranks":
        return any(split_by_rank(record.rank) == "report" for record in prediction.records)
    is_read = bool(prediction.has_report) and scorer.has_read(prediction)
    return is_read and not (is_measured and prediction.n_hard is None)
