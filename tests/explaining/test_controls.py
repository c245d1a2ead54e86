"""Controls: another unit's explanation on the same records."""

import random

import numpy as np
import pytest

from neuroexplain.evidence import Explanation, Provenance
from neuroexplain.explaining.controls import find_controls_of
from neuroexplain.explaining.score import run_score
from neuroexplain.explaining.verify import verify_run
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scoring.side_evidence import Trial
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.store.vocabulary import load_tokens
from neuroexplain.units import CROP_LENGTH, UnitId
from tests.explaining.explained import by_words, explain
from tests.fakes import ScriptedLlm


def test_digits_are_compared_with_another_explanation_when_asked(store, local):
    run, digits = load_run(store), DigitsSimulator(local)
    explain(store, ScriptedLlm(by_words), digits)
    explanations = list_explanations(store, run.id)
    scores = [s.score for s in list_scores(store, [e.id for e in explanations])]
    assert {score.control_reason for score in scores if score.metric == "correlation"} == {"not asked for"}
    list(run_score(store, run, explanations, digits, with_control=True))
    texts = {e.id: e.text for e in explanations}
    for prediction in list_predictions(store, texts):
        assert prediction.control_explanation_id not in (None, prediction.explanation_id)
        exemplars = {(x.kind, x.rank): x for x in load_unit(store, run, prediction.unit).exemplars}
        trials = []
        for r in prediction.records:
            crop = exemplars[r.key].token_ids[r.first : r.first + CROP_LENGTH]
            trials.append(Trial(*r.key, "report", r.first, tuple(crop.tolist())))
        tokens = load_tokens(store, run.id, {i for trial in trials for i in trial.token_ids})
        others = digits.run(texts[prediction.control_explanation_id], trials, tokens).trials
        for r, other in zip(prediction.records, others, strict=True):
            np.testing.assert_allclose(r.control, other.values, atol=0.01)  # stored in half precision
    assert list(verify_run(store, run)) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_null_is_the_next_neurons_in_the_order_of_the_hash(seed):
    picks = random.Random(seed)
    nobody = Provenance("none", None, "m", None, None)
    neurons = {
        UnitId(picks.choice([0, 0, 1, 2, 2, 2, 3]), picks.randrange(50))
        for _ in range(picks.choice([1, 2, 5, 20]))
    }
    explanations = [Explanation(n, "pairs", "ok", "x", nobody, id=i) for i, n in enumerate(neurons, 1)]
    controls = find_controls_of(explanations, explanations)
    for e in explanations:
        others = [x for x in explanations if x.unit != e.unit]
        others = [x for x in others if x.unit.layer == e.unit.layer] or others
        place = lambda x: (stable_hash(x.unit.layer, x.unit.index), x.unit)  # noqa: E731
        after = [x for x in others if place(x) > place(e)] or others
        assert controls.get(e.id) is (min(after, key=place) if after else None)
