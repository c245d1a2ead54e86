"""The words of the system: what a status means, and which score stands for a unit."""

from dataclasses import replace

import pytest

from neuroexplain.evidence import Headline, Score, Status, Unit
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import create_run
from neuroexplain.units import UnitId
from tests.fakes import run_fields


def test_only_what_went_wrong_is_tried_again():
    assert {status for status in Status if not status.failed} == {Status.OK, Status.DEAD, Status.NOT_CHOSEN}
    assert {status for status in Status if status.has_nothing_to_ask} == {Status.DEAD, Status.NO_RECORDS}
    assert all(status.failed for status in Status if status.is_worth_retrying)


def test_a_status_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="fine"):
        Status("fine")


def test_the_headline_is_the_runs(tmp_path):
    with open_store(str(tmp_path / "runs.db"), create=True) as store:
        create_run(store, run_fields(1, 2))
        create_run(store, run_fields(1, 2, n_random=0))
        create_run(store, run_fields(1, 2, n_sampled=4, split_rule="passages", config={"sign": "both"}))
        create_run(store, run_fields(1, 2, config={"sign": "both"}))
        runs = list_runs(store)
        collected, imported, sampled, both = (run.headline for run in runs)
    assert (collected, imported, sampled, both) == (
        Headline("correlation", ("top_and_random",)),
        Headline("correlation", ("top",)),
        Headline("correlation", ("population",)),
        Headline("correlation", ("top_and_random", "bottom_and_random")),
    )
    for run in runs:
        unit = Unit(UnitId(0, 0), Status.OK, None, (), (), ())
        of_sides = [SideEvidence.of(run, unit, side).headline_subset for side in run.sides]
        assert tuple(dict.fromkeys(of_sides)) == run.headline.subsets
    score = Score("report", "top", "correlation", Status.OK, 0.5, 64, 2)
    assert imported.is_of(score)
    assert not imported.is_of(replace(score, split="select"))
    assert not collected.is_of(score)
