"""Explain: exemplars -> explanations, predictions and scores, each side of a unit stored as soon as it is complete."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial

from neuroexplain.config import ExplainConfig
from neuroexplain.evidence import Explanation, Headline, Prediction, Status
from neuroexplain.explaining.choose import Asking, ExplainTask, explain_unit
from neuroexplain.explaining.score import find_predictions, predict_controls
from neuroexplain.explaining.trials import units_at_once
from neuroexplain.llm.engine import Engine
from neuroexplain.runs import Run
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.result_writer import Saving
from neuroexplain.scorers.base import OpenScorer
from neuroexplain.scoring.sides import Evidence
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.save_explained import save_prompt
from neuroexplain.store.units import load_unit
from neuroexplain.store.vocabulary import load_tokens
from neuroexplain.units import Side, UnitId

Target = tuple[UnitId, Side]  # what is explained
Answers = dict[Target, dict[int, Explanation]]  # by candidate


def run_explain(
    store: Store,
    run: Run,
    config: ExplainConfig,
    engine: Engine | None,
    scorer: OpenScorer | None,
    *,
    with_control: bool = False,
) -> Generator[Progress]:
    """Explain each side of the units and score what is written, unless `scorer` is None. What is finished is not done again.

    `engine` is None where the explainer asks no LLM. Many units are in work at once, each asked, tried and chosen from start to
    end; those that are complete are stored together every second. When all are, another unit's explanation is tried on each
    one's records, as the control: always where that costs no request a record, else `with_control`.
    """
    asking = Asking.of(config, engine)
    for prompt in (asking.prompt, asking.revising, scorer.prompt if scorer is not None else None):
        if prompt is not None:
            save_prompt(store, prompt.name, prompt.text)
    answers = find_answers(store, run, asking, config)
    found = [e for of_side in answers.values() for e in of_side.values()]
    predictions = find_predictions(store, found, scorer, retry_failed=config.retry_failed)
    pending = [target for target, own in answers.items() if not is_finished(asking, own, predictions, scorer)]
    at_once, together = units_at_once(scorer, engine.in_flight if engine is not None else 1, len(pending))
    work = partial(
        explain_unit, asking=asking, scorer=scorer, headline=headline_of(run, scorer), at_once=together
    )
    tasks = (plan_unit(store, run, target, answers[target], predictions) for target in pending)
    before, total = len(answers) - len(pending), len(answers)
    failed = sum(e.status.failed for e in found) + sum(p.status.failed for p in predictions.values())
    what = "units" if len(run.sides) == 1 else "sides of units"
    with Saving(store, run, asking.explainer.name, engine, scorer) as saving:
        last = Progress("explaining", before, total, what, failed)
        yield last
        for _, made in map_in_flight(work, tasks, at_once):
            saving.add(made)
            done = before + saving.n_units
            last = Progress(
                "explaining", done, total, what, failed + saving.n_failed, tokens=saving.prompt_tokens
            )
            yield last
        saving.flush()
        if scorer is not None:
            chosen = list_chosen(store, run, config, engine)
            for last in predict_controls(
                store,
                run,
                chosen,
                scorer,
                saving,
                with_control=with_control,
                retry_failed=config.retry_failed,
            ):
                yield last
    yield replace(last, note=saving.summary())


def headline_of(run: Run, scorer: OpenScorer | None) -> Headline:
    """What candidates are chosen by."""
    return run.headline if scorer is None else scorer.scorer.headline(run)


def list_chosen(store: Store, run: Run, config: ExplainConfig, engine: Engine | None) -> list[Explanation]:
    """The command's explanations that are chosen, in the order of units."""
    stored = find_answers(store, run, Asking.of(config, engine), replace(config, retry_failed=False))
    return [e for own in stored.values() for e in own.values() if e.chosen and e.status == Status.OK]


def find_answers(store: Store, run: Run, asking: Asking, config: ExplainConfig) -> Answers:
    """The stored answers to what this command asks, by side and candidate, without those that are to be asked again."""
    answers: Answers = {(unit, side): {} for unit in config.units for side in run.sides}
    first = config.units[0]
    keys = {one.request_key: one.candidate for side in run.sides for one in asking.possible(first, side)}
    model = asking.request(first, 0).provenance.model
    for explanation in list_explanations(store, run.id, explainer=asking.explainer.name, model=model):
        own = answers.get((explanation.unit, explanation.side))
        if own is not None and not (config.retry_failed and explanation.status.is_worth_retrying):
            candidate = keys.get(explanation.request_key)
            if candidate is not None:
                own[candidate] = explanation
    return answers


def is_finished(
    asking: Asking,
    found: Mapping[int, Explanation],
    predictions: Mapping[int, Prediction],
    scorer: OpenScorer | None,
) -> bool:
    """Whether the store holds all that the command would find out about a side of a unit, but for the control."""
    if 0 not in found:
        return False
    usable = [e for e in found.values() if e.status == Status.OK]
    wanted = set(range(asking.candidates)) | set(range(asking.candidates, asking.candidates + asking.revise))
    if found[0].status.has_nothing_to_ask:
        return True
    if usable and not any(e.chosen for e in usable):
        return False  # another command chose since
    if not asking.says_several and not wanted <= set(found):
        return not usable and set(range(asking.candidates)) <= set(found)  # nothing that could be revised
    return scorer is None or all((e.id or 0) in predictions for e in usable)


def plan_unit(
    store: Store,
    run: Run,
    target: Target,
    found: Mapping[int, Explanation],
    predictions: Mapping[int, Prediction],
) -> ExplainTask:
    """Read what a side's explanations need from the store."""
    unit = load_unit(store, run, target[0])
    tokens = load_tokens(store, run.id, {int(i) for x in unit.exemplars for i in x.token_ids})
    mine = {e.id: predictions[e.id] for e in found.values() if e.id is not None and e.id in predictions}
    return ExplainTask(Evidence.of(run, unit, target[1]), tokens, found, mine)
