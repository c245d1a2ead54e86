"""Rows -> tables and lines for the terminal (pure). Corpus and LLM text passes through `printable`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from neuroexplain.evidence import Failure, Status, StoredScore
from neuroexplain.formatting import (
    explained_by,
    interval,
    join_sessions,
    number,
    printable,
    score_order,
    session_text,
    short_name,
)
from neuroexplain.runs import QueryRow, Run, Session

if TYPE_CHECKING:
    from rich.table import Table

LONGEST_REPLY = 200  # characters of a reply that could not be used: enough to see what went wrong


def query_table(rows: Sequence[QueryRow]) -> Table:
    """One line a row, with the metric named below. The scorer is a column where rows differ in it."""
    scored = [row for row in rows if row.scorer]
    has_scorers = len({(row.scorer, row.scorer_model) for row in scored}) > 1
    has_sides = any(row.side == "negative" for row in rows)
    names = ["unit", "score", "95% interval", "explanation", "by", *(["scored by"] if has_scorers else [])]
    table = _table(names, right=("unit", "score", "95% interval"), unbroken=("unit", "score"))
    if scored:
        subsets = {row.subset for row in rows if row.subset}
        metric = scored[0].metric + (f", {scored[0].subset}" if len(subsets) == 1 else "")
        table.caption, table.caption_justify = f"score: {printable(metric)}", "left"
    for row in rows:
        by = explained_by(row.explainer, row.model) + (f", {row.side} side" if has_sides else "")
        cells = [row.label, number(row.score), interval(row.ci_low, row.ci_high), row.explanation, by]
        if has_scorers:
            cells.append(f"{row.scorer}, {short_name(row.scorer_model or '')}" if row.scorer else "")
        _add_row(table, cells)
    return table


def failures_table(failures: Sequence[Failure]) -> Table:
    """One line a failure, with the beginning of the reply."""
    table = _table(["unit", "what", "status", "reason", "reply"])
    for failure in failures:
        reply = (failure.reply or "")[:LONGEST_REPLY]
        _add_row(table, [str(failure.unit), failure.what, failure.status.words, failure.reason or "", reply])
    return table


def scores_text(run: Run, scores: Sequence[StoredScore]) -> str:
    """One line a metric, a unit's headline first."""
    lines = []
    for stored in sorted(scores, key=lambda s: (s.unit, s.explanation_id, *score_order(run, s))):
        score = stored.score
        value = f"{number(score.value)}  {interval(score.ci_low, score.ci_high)}"
        if score.status != Status.OK:
            value = f"{score.status.words}: {score.reason}"
        metric = f"{score.metric}, {score.subset}"
        unit = run.label(stored.unit)
        line = f"{unit}  {stored.scorer:8}  {metric:30}  {value}  {score.n_records} records"
        lines.append(printable(line).rstrip())
    return "\n".join(lines)


def runs_table(runs: Sequence[Run], holdings: Mapping[int, str]) -> Table:
    """One line a run. `holdings` says what each holds, by the run's id."""
    table = _table(["run", "subject", "layers", "read", "tokens", "status", "holds"])
    for run in runs:
        finished_at = (run.finished_at or "")[:16].replace("T", " ")
        cells = [
            str(run.id),
            short_name(run.subject),
            f"{len(run.layers)} of {run.n_layers}",
            run.activation,
            f"{run.n_tokens:,}",
            f"finished {finished_at}" if finished_at else run.status,
            holdings.get(run.id, ""),
        ]
        _add_row(table, cells)
    return table


def session_lines(run: Run, sessions: Iterable[Session]) -> list[str]:
    """What commands did to a run and what it cost, one line for each pair of explainer and scorer."""
    lines = []
    for session in join_sessions(sessions):
        names = (session.explainer, session.model, session.scorer, session.scorer_model)
        by = ", ".join(name for name in names if name)
        lines.append(printable(f"run {run.id}, {by}: {session_text(session)}"))
    return lines


def _table(names: Sequence[str], right: Sequence[str] = (), unbroken: Sequence[str] = ()) -> Table:
    """An empty table. Columns in `right` are aligned there; those in `unbroken` are never wrapped."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in names:
        justify = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in unbroken)  # type: ignore[arg-type]
    return table


def _add_row(table: Table, cells: Sequence[str]) -> None:
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells))
