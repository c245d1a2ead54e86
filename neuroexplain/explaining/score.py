"""Score stored explanations: held-out records -> predictions -> scores, then controls."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from neuroexplain.evidence import Explanation, ExplanationResult, Prediction, Split, Status
from neuroexplain.explaining.controls import predict_controls
from neuroexplain.explaining.predictions import PredictTask, find_predictions, load_predict_task
from neuroexplain.explaining.trials import SideTrials, units_at_once
from neuroexplain.runs import Run
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.result_writer import ResultWriter
from neuroexplain.runtime.run_many import RunMany
from neuroexplain.scorers.base import OpenScorer, compute_scores
from neuroexplain.scoring.codecs import as_stored
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
    """Score stored explanations on held-out records, then their controls on the same records.

    A scorer that asks per record reads `report` alone; the others read `select` too, for calibration.
    `controls_later` and `records`: as for `run_explain`.
    """
    if scorer.prompt is not None:
        save_prompt(store, scorer.prompt.name, scorer.prompt.text)
    stored = find_predictions(store, explanations, scorer, retry_failed=retry_failed)
    pending = [e for e in explanations if not _is_complete(run, scorer, stored.get(e.id or 0))]
    splits: tuple[Split, ...] = ("report",) if scorer.asks_per_record else HELD_OUT
    n_units, n_hypotheses = units_at_once(scorer, 1, len(pending))

    def score(task: PredictTask) -> ExplanationResult:
        trials = SideTrials(scorer, task.evidence, task.tokens, run_many, n_hypotheses)
        prediction = as_stored(trials.extend(task.prediction, task.explanation.hypotheses, splits))
        scores = tuple(compute_scores(task.evidence, prediction))
        return ExplanationResult(task.explanation, prediction, scores, replaces=task.stored)

    n_finished, n_failed = len(explanations) - len(pending), sum(p.status.failed for p in stored.values())
    whole = records or store
    tasks = (load_predict_task(whole, run, e, scorer, stored.get(e.id or 0)) for e in pending)
    with ResultWriter(store, run, None, None, scorer) as writer:
        progress = Progress("scoring", n_finished, len(explanations), "explanations", n_failed)
        yield progress
        for _, result in run_many(score, tasks, n_units):
            writer.add([result])
            yield replace(
                progress,
                done=n_finished + writer.n_units,
                failed=n_failed + writer.n_failed,
                tokens=writer.prompt_tokens,
            )
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
