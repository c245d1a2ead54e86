"""Explain: records -> explanations, predictions and scores, stored side by side of units.

In one direction: the plan compares the command with the store (plan.py), a task holds all that one side
needs, the side's loop asks and compares (side.py), the result writer stores. Controls come last, when all
explanations are there.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import replace
from functools import partial

from neuroexplain.config import ExplainConfig
from neuroexplain.evidence import Headline
from neuroexplain.explaining.bank import LabelBank
from neuroexplain.explaining.controls import predict_controls
from neuroexplain.explaining.plan import ExplainTask, Requests, list_chosen, plan_explanations
from neuroexplain.explaining.shares import Pending, Share
from neuroexplain.explaining.side import explain_side
from neuroexplain.explaining.trials import units_at_once
from neuroexplain.llm.engine import Engine
from neuroexplain.runs import Run
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.result_writer import ResultWriter
from neuroexplain.runtime.run_many import RunMany
from neuroexplain.scorers.base import OpenScorer
from neuroexplain.store.engine import Store
from neuroexplain.store.leases import open_leases
from neuroexplain.store.save_explained import save_prompt
from neuroexplain.store.vocabulary import load_vocabulary
from neuroexplain.units import UnitSide


def run_explain(
    store: Store,
    run: Run,
    config: ExplainConfig,
    engine: Engine | None,
    scorer: OpenScorer | None,
    *,
    with_control: bool = False,
    controls_later: bool = False,
    run_many: RunMany = map_in_flight,
    records: Store | None = None,
) -> Generator[Progress]:
    """Explain each side of the units, and score unless `scorer` is None. Finished sides are not done again.

    `engine` is None if the explainer asks no LLM. Many sides are in work at once; complete ones are stored
    every second. When all are complete, controls are tried: always where they cost no request, else
    `with_control`; never with `controls_later`, where other machines explain the other units. `records` is
    the store that holds the run's records, if it is not the one to write to.
    """
    requests = Requests.of(config, engine).with_bank(LabelBank, run)
    _save_prompts(store, requests, scorer)
    plan = plan_explanations(store, run, config, requests, scorer)
    whole = records or store
    read_again = partial(_tasks_of, store, run, config, requests, scorer, whole)
    n_sides, n_hypotheses = units_at_once(scorer, engine.in_flight if engine else 1, len(plan.pending))
    work = partial(
        explain_side,
        requests=requests,
        scorer=scorer,
        headline=headline_of(run, scorer),
        run_many=run_many,
        at_once=n_hypotheses,
    )
    unit_name = "units" if len(run.sides) == 1 else "sides of units"
    with (
        open_leases(store, run.id) as leases,
        ResultWriter(store, run, requests.explainer.name, engine, scorer, leases) as writer,
    ):
        start = progress = Progress("explaining", plan.n_finished, plan.n_targets, unit_name, plan.failures)
        yield progress
        if requests.bank is not None and plan.pending:
            yield from requests.bank.read(load_vocabulary(store, run.id))
        share = Share(leases, plan.tasks(whole, run), read_again)
        for results in share.run(run_many, work, n_sides, writer):
            if results is not None:
                writer.add(results)
            yield replace(writer.after(start, share.n_elsewhere), note=share.take_note())
        progress = writer.after(start, share.n_elsewhere)
        if scorer is not None and not controls_later:
            controls = predict_controls(
                *(store, run, list_chosen(store, run, config, engine), scorer, writer, leases),
                with_control=with_control,
                retry_failed=config.retry_failed,
                run_many=run_many,
                records=records,
            )
            for progress in controls:
                yield progress
    yield replace(progress, note=writer.summary())


def _save_prompts(store: Store, requests: Requests, scorer: OpenScorer | None) -> None:
    for prompt in (requests.prompt, requests.revision_prompt, None if scorer is None else scorer.prompt):
        if prompt is not None:
            save_prompt(store, prompt.name, prompt.text)


def _tasks_of(
    store: Store,
    run: Run,
    config: ExplainConfig,
    requests: Requests,
    scorer: OpenScorer | None,
    whole: Store,
    sides: Collection[UnitSide],
) -> list[Pending[ExplainTask]]:
    """The tasks on these sides' units, by what is stored now."""
    own = replace(config, units=tuple(sorted({unit for unit, _ in sides})))
    return plan_explanations(store, run, own, requests, scorer).tasks(whole, run)


def headline_of(run: Run, scorer: OpenScorer | None) -> Headline:
    """The score by which candidates are compared."""
    return run.headline if scorer is None else scorer.scorer.headline(run)
