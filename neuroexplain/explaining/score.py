"""Score stored explanations: held-out records -> predictions -> scores, then controls."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from neuroexplain.evidence import (
    Explanation,
    ExplanationResult,
    Prediction,
    Split,
    Status,
    TextPart,
    failures_among,
)
from neuroexplain.explaining.controls import predict_controls
from neuroexplain.explaining.predictions import PredictTask, find_predictions, load_predict_task, stored_parts
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

    A scorer that asks per record reads `report` alone; the others read `select` too, for calibration.
    `controls_later` and `records`: as for `run_explain`.
    """
    if scorer.prompt is not None:
        save_prompt(store, scorer.prompt.name, scorer.prompt.text)
    stored = find_predictions(store, explanations, scorer, retry_failed=retry_failed)

    def missing(explanation: Explanation) -> dict[TextPart, Prediction | None]:
        of_parts = stored_parts(stored, explanation, explanation.text_parts)
        return {part: p for part, p in of_parts.items() if not _is_complete(run, scorer, p)}

    pending = [e for e in explanations if missing(e)]
    splits: tuple[Split, ...] = ("report",) if scorer.asks_per_record else HELD_OUT
    n_units, n_hypotheses = units_at_once(scorer, 1, len(pending))

    def score(task: PredictTask) -> ExplanationResult:
        trials = SideTrials(scorer, task.evidence, task.tokens, run_many, n_hypotheses)
        begun = {part: task.begin(part, scorer) for part in task.stored}
        hypotheses = {part: task.explanation.hypotheses_of(part) for part in begun}
        return task.result({part: trials.extend(p, hypotheses[part], splits) for part, p in begun.items()})

    n_finished, failures = len(explanations) - len(pending), failures_among(p.status for p in stored.values())
    whole = records or store
    tasks = (load_predict_task(whole, run, e, missing(e)) for e in pending)
    with ResultWriter(store, run, None, None, scorer) as writer:
        start = Progress("scoring", n_finished, len(explanations), "explanations", failures)
        yield start
        for _, result in run_many(score, tasks, n_units):
            writer.add([result])
            yield writer.after(start)
        writer.flush()
        if controls_later:
            return
        yield from predict_controls(
            store,
            run,
            explanations,
            scorer,
            writer,
            with_control=with_control,
            retry_failed=retry_failed,
            run_many=run_many,
            records=records,
        )


def _is_complete(run: Run, scorer: OpenScorer, prediction: Prediction | None) -> bool:
    """Whether nothing is left to predict: it failed, or it has the `report` records that the scorer reads."""
    if prediction is None or prediction.status != Status.OK:
        return prediction is not None
    if run.split_rule == "ranks":
        return any(split_by_rank(record.rank) == "report" for record in prediction.records)
    return bool(prediction.has_report) and scorer.has_read(prediction)
