"""What judges say beside an explanation's score: odd windows found, and AUROC among look-alikes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from neuroexplain.evidence import HARD, INTRUDER
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import chunks, sql_in

ScoreBeside: TypeAlias = tuple[float, float | None, float | None]


def list_intruders(reader: Reader, explanation_ids: Iterable[int]) -> dict[int, ScoreBeside]:
    """(share of odd windows found, its interval) by explanation, of the judge that finds most."""
    sql = (
        "SELECT explanation_id, value, ci_low, ci_high FROM scores WHERE split = 'report' "
        "AND metric = :metric AND subset = :subset AND value IS NOT NULL AND explanation_id "
    )
    best: dict[int, ScoreBeside] = {}
    for ids in chunks(explanation_ids):
        for row in reader.rows(f"{sql}{sql_in(ids)}", metric=INTRUDER[0], subset=INTRUDER[1]):
            if row.explanation_id not in best or best[row.explanation_id][0] < row.value:
                best[row.explanation_id] = row.value, row.ci_low, row.ci_high
    return best


def list_hard_scores(
    reader: Reader, explanation_ids: Iterable[int]
) -> dict[tuple[int, str, str], ScoreBeside]:
    """(AUROC among look-alikes, its interval) by explanation, scorer and model."""
    sql = (
        "SELECT explanation_id, scorer, scorer_model, value, ci_low, ci_high FROM scores "
        "WHERE split = 'report' AND subset = :subset AND value IS NOT NULL AND explanation_id "
    )
    return {
        (row.explanation_id, row.scorer, row.scorer_model): (row.value, row.ci_low, row.ci_high)
        for ids in chunks(explanation_ids)
        for row in reader.rows(f"{sql}{sql_in(ids)}", subset=HARD)
    }
