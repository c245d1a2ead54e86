"""How often judges find the odd window of units, beside their explanations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from neuroexplain.evidence import INTRUDER
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import chunks, sql_in

IntruderShare: TypeAlias = tuple[float, float | None, float | None]


def list_intruders(reader: Reader, explanation_ids: Iterable[int]) -> dict[int, IntruderShare]:
    """(share of odd windows found, its interval) by explanation, of the judge that finds most."""
    sql = (
        "SELECT explanation_id, value, ci_low, ci_high FROM scores WHERE split = 'report' "
        "AND metric = :metric AND subset = :subset AND value IS NOT NULL AND explanation_id "
    )
    best: dict[int, IntruderShare] = {}
    for ids in chunks(explanation_ids):
        for row in reader.rows(f"{sql}{sql_in(ids)}", metric=INTRUDER[0], subset=INTRUDER[1]):
            if row.explanation_id not in best or best[row.explanation_id][0] < row.value:
                best[row.explanation_id] = row.value, row.ci_low, row.ci_high
    return best
