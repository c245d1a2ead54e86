"""Find rows that contradict each other, which a sound database never holds."""

from __future__ import annotations

from neuroexplain.errors import StoreUnreadable
from neuroexplain.store.dialect import N_NOT_INDEXED
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import PREDICTION_TABLES, SCORE_TABLES
from neuroexplain.store.rows import IDS_AT_ONCE, decode_sample


def name_of(table: str) -> str:
    """What a row of a table is called: `rule score` of `rule_scores`."""
    return table.removesuffix("s").replace("_", " ")


MISPLACED = {  # message -> the query for the rows of a run that it is about; its columns fill the message
    **{
        f"{name_of(table)} {{}} of explanation {{}} stands under another unit or run": (
            f"SELECT s.id, e.id FROM {table} s JOIN explanations e ON e.id = s.explanation_id WHERE e.run_id "
            "= :run AND (s.run_id, s.layer, s.unit) <> (e.run_id, e.layer, e.unit) ORDER BY s.id"
        )
        for table in SCORE_TABLES.values()
    },
    **{
        f"{name_of(table)} {{}} of explanation {{}} stands under another run": (
            f"SELECT s.id, e.id FROM {table} s JOIN explanations e ON e.id = s.explanation_id "
            "WHERE e.run_id = :run AND s.run_id <> e.run_id ORDER BY s.id"
        )
        for table in PREDICTION_TABLES.values()
    },
    "explanation {} has scores, though its status is {}": (
        "SELECT id, status FROM explanations e WHERE run_id = :run AND status <> 'ok' "
        "AND EXISTS (SELECT 1 FROM scores s WHERE s.explanation_id = e.id) ORDER BY id"
    ),
    "{}:{}: {} explanations by {}, {}, of the {} side are chosen, not one": (
        "SELECT layer, unit, n, explainer, model, side FROM (SELECT layer, unit, explainer, model, side, "
        "sum(CASE WHEN chosen THEN 1 ELSE 0 END) AS n FROM explanations "
        "WHERE run_id = :run AND status = 'ok' AND explainer <> 'human' "
        "GROUP BY layer, unit, explainer, model, side) "
        "AS counted WHERE n <> 1 ORDER BY layer, unit, explainer, model, side"
    ),
    **{
        f"{name_of(table)} {{}} was compared with explanation {{}}, which is missing": (
            f"SELECT id, control_explanation_id FROM {table} WHERE run_id = :run "
            "AND control_explanation_id IS NOT NULL "
            "AND control_explanation_id NOT IN (SELECT id FROM explanations) ORDER BY id"
        )
        for table in (*PREDICTION_TABLES.values(), *SCORE_TABLES.values())
    },
    **{
        f"{name_of(table)} {{}} is of the prompt {{}}, which is missing": (
            f"SELECT id, prompt_sha256 FROM {table} WHERE run_id = :run "
            "AND prompt_sha256 IS NOT NULL AND prompt_sha256 NOT IN (SELECT sha256 FROM prompts) ORDER BY id"
        )
        for table in ("explanations", *PREDICTION_TABLES.values())
    },
}


def count_orphans(store: Store) -> int:
    """The number of predictions and scores without their explanation, and of exemplars without their unit."""
    without_explanation = "WHERE explanation_id NOT IN (SELECT id FROM explanations)"
    of_explanations = (*PREDICTION_TABLES.values(), *SCORE_TABLES.values())
    its_unit = "n.run_id = x.run_id AND n.layer = x.layer AND n.unit = x.unit"
    with store.read() as reader:
        return sum(
            int(reader.value(sql))
            for sql in (
                *(f"SELECT count(*) FROM {table} {without_explanation}" for table in of_explanations),
                f"SELECT count(*) FROM exemplars x WHERE NOT EXISTS (SELECT 1 FROM units n WHERE {its_unit})",
            )
        )


def list_unsound_samples(store: Store, run_id: int) -> list[str]:
    """A line for each sample whose thresholds are not those that were stored with it, or cannot be read."""
    lines: list[str] = []
    sql = (
        "SELECT * FROM samples WHERE run_id = :run AND (layer, unit, side) > (:layer, :unit, :side) "
        "ORDER BY layer, unit, side LIMIT :n"
    )
    last = (-1, -1, "")
    while True:
        with store.read() as reader:
            layer, unit, side = last
            rows = reader.rows(sql, run=run_id, layer=layer, unit=unit, side=side, n=IDS_AT_ONCE)
        if not rows:
            return lines
        for row in rows:
            try:
                if not decode_sample(row).is_sound:
                    lines.append(
                        f"{row.layer}:{row.unit}: its {row.side} thresholds differ from their checksum"
                    )
            except StoreUnreadable as error:
                lines.append(f"{row.layer}:{row.unit}: {str(error).splitlines()[0]}")
        last = (rows[-1].layer, rows[-1].unit, rows[-1].side)


def list_misplaced(store: Store, run_id: int) -> list[str]:
    """A line for each row of the run that contradicts another or refers to a missing row.

    One more line if the index of words lacks explanations.
    """
    lines: list[str] = []
    with store.read() as reader:
        for message, sql in MISPLACED.items():
            lines += [message.format(*row) for row in reader.rows(sql, run=run_id)]
        n_not_indexed = int(reader.value(N_NOT_INDEXED[reader.dialect], run=run_id))
    if n_not_indexed:
        lines.append(f"{n_not_indexed:,} explanations are not found by the search")
    return lines
