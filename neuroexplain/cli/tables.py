"""Rows -> tables and lines for the terminal (pure). Corpus and LLM text passes through `printable`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neuroexplain.evidence import Failure, Headline, Status, StoredScore
from neuroexplain.formatting import (
    beginning,
    check_text,
    explained_by,
    headline_name,
    interval,
    intruder_text,
    join_sessions,
    number,
    percent,
    printable,
    rule_first,
    score_name,
    score_order,
    session_text,
    short_name,
    signed,
    undefined_text,
)
from neuroexplain.runs import QueryRow, Run, Session, SimulatorCheck
from neuroexplain.status_words import status_words

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

    from neuroexplain.comparison import ComparedRow, Comparison
    from neuroexplain.store.score_summaries import ScoreSummary

CELL_MARGIN = 3  # columns between two cells of a table
LONGEST_WORD = 20  # columns: a longer word, like a path, may be broken


def query_table(rows: Sequence[QueryRow]) -> Listing:
    """One line a row, with the metric named below. The scorer is a column where rows differ in it."""
    scored = [row for row in rows if row.scorer]
    has_scorers = len({(row.scorer, row.scorer_model) for row in scored}) > 1
    has_sides = any(row.side == "negative" for row in rows)
    has_beyond = any(row.beyond_words is not None for row in rows)
    has_rules = any(row.rule_score is not None for row in rows)
    has_intruders = any(row.intruder is not None for row in rows)
    has_hard = any(row.hard is not None for row in rows)
    figures = ["score", "95% interval", *(["rule"] if has_rules else [])]
    figures += ["beyond"] if has_beyond else []
    figures += ["alike"] if has_hard else []
    figures += ["odd one"] if has_intruders else []
    names = ["unit", *figures, "explanation", "by", *(["scored by"] if has_scorers else [])]
    table = Listing(names, right=("unit", *figures))
    if scored:
        subsets = tuple(dict.fromkeys(row.subset for row in rows if row.subset))
        table.caption = f"score: {printable(headline_name(Headline(scored[0].metric, subsets)))}"
        if has_rules:
            table.caption += "; rule: the same of the rule alone, without the examples in brackets"
        if has_beyond:
            table.caption += "; beyond: the same without the words that stand in the explanation"
        if has_hard:
            table.caption += (
                "; alike: AUROC among look-alikes, text where one expects the unit to fire, and it does not"
            )
        if has_intruders:
            table.caption += (
                "; odd one: how often a judge finds the odd one of five windows of the unit without the "
                "explanation (guessing: 0.2); chance: guessing explains it, so the unit has no meaning in "
                "one sentence; unclear: too few rounds"
            )
    for row in rows:
        by = explained_by(row.explainer, row.model) + (f", {row.side} side" if has_sides else "")
        cells = [row.label, number(row.score), interval(row.ci_low, row.ci_high)]
        cells += [number(row.rule_score)] if has_rules else []
        cells += [number(row.beyond_words)] if has_beyond else []
        cells += [number(row.hard)] if has_hard else []
        cells += [intruder_text(row)] if has_intruders else []
        cells += [rule_first(row.explanation, row.rule, row.examples), by]
        if has_scorers:
            cells.append(f"{row.scorer}, {short_name(row.scorer_model or '')}" if row.scorer else "")
        table.add(cells)
    return table


def comparison_lines(comparison: Comparison) -> list[str]:
    """Who is compared, by which score, and the figures."""
    from neuroexplain.comparing import describe

    c, s = comparison, comparison.summary
    lines = [
        f"first:  {describe(c.first)}",
        f"second: {describe(c.second)}",
        f"{s.n:,} units scored in both: {headline_name(c.headline)} by "
        f"{explained_by(c.scorer, c.scorer_model)}",
    ]
    if s.n_unscored:
        lines[-1] += f"; left out, since a score lacks: {s.n_unscored:,}"
    means = {"mean of the first": s.first, "mean of the second": s.second}
    for name, mean in means.items():
        lines.append(f"{name + ':':22}{number(mean.value)}   {interval(mean.ci_low, mean.ci_high)}".rstrip())
    d = s.difference
    bounds = "" if d.ci_low is None else f"{signed(d.ci_low)} to {signed(d.ci_high)} (95%, paired)"
    lines.append(f"{'second less first:':22}{signed(d.value)}  {bounds}".rstrip())
    equal = f"; equal at {s.n_equal:,}" if s.n_equal else ""
    lines.append(f"{'second higher:':22}{percent(s.share_second_higher)} of units{equal}")
    return [*lines, *c.notes]


def comparison_table(rows: Sequence[ComparedRow]) -> Listing:
    """One line a unit: both scores, their difference, both explanations."""
    has_sides = any(row.first.side == "negative" for row in rows)
    figures = ["first", "second", "difference"]
    table = Listing(["unit", *figures, "first explanation", "second explanation"], right=("unit", *figures))
    for row in rows:
        label = row.first.label + (f" {row.first.side}" if has_sides else "")
        scores = [number(row.first.score), number(row.second.score), signed(row.difference)]
        texts = (rule_first(r.explanation, r.rule, r.examples) for r in (row.first, row.second))
        table.add([label, *scores, *texts])
    return table


def failures_table(failures: Sequence[Failure]) -> Listing:
    """One line a failure, with the beginning of the reply."""
    table = Listing(["unit", "what", "status", "reason", "reply"])
    for failure in failures:
        reply = beginning(failure.reply or "")
        status = status_words(failure.status)
        table.add([str(failure.unit), failure.what, status, failure.reason or "", reply])
    return table


def scores_text(run: Run, scores: Sequence[StoredScore]) -> str:
    """One line a metric, a unit's headline first."""
    lines = []
    for stored in sorted(scores, key=lambda s: (s.unit, s.explanation_id, *score_order(run, s))):
        score = stored.score
        value = f"{number(score.value)}  {interval(score.ci_low, score.ci_high)}"
        if score.status != Status.OK:
            value = f"{status_words(score.status)}: {score.reason}"
        metric = score_name(score)
        unit = run.label(stored.unit)
        line = f"{unit}  {stored.scorer:8}  {metric:30}  {value}  {score.n_records} records"
        lines.append(printable(line).rstrip())
    return "\n".join(lines)


def runs_table(runs: Sequence[Run], holdings: Mapping[int, str]) -> Listing:
    """One line a run. `holdings` says what each holds, by the run's id."""
    table = Listing(["run", "subject", "layers", "read", "tokens", "status", "holds"])
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
        table.add(cells)
    return table


def summaries_table(run: Run, summaries: Sequence[ScoreSummary]) -> Listing:
    """The headline scores of a run in numbers: one line a layer, explainer and scorer."""
    has_sides = len({s.side for s in summaries}) > 1
    scorers = {explained_by(s.scorer, s.scorer_model) for s in summaries}
    own_column = ["scored by"] if len(scorers) > 1 else []
    figures = ["scored", "undefined", "mean", "95% interval", "above control"]
    table = Listing(["layer", "by", *own_column, *figures], right=("layer", *figures))
    by_scorer = f" by {min(scorers)}" if not own_column else ""
    table.caption = (
        f"run {run.id}: {headline_name(run.headline)}{by_scorer}, mean over units that have one; "
        "above control: the share that scores above another unit's explanation on the same records"
    )
    for s in summaries:
        by = explained_by(s.explainer, s.model) + (f", {s.side} side" if has_sides else "")
        cells = [str(s.layer), by, *([explained_by(s.scorer, s.scorer_model)] if own_column else [])]
        cells += [f"{s.n_scored:,}", undefined_text(s), number(s.mean), interval(s.ci_low, s.ci_high)]
        table.add([*cells, percent(s.share_above_control)])
    return table


def session_lines(run: Run, sessions: Iterable[Session]) -> list[str]:
    """What commands did to a run and what it cost, one line for each pair of explainer and scorer."""
    lines = []
    for session in join_sessions(sessions):
        by = []
        if session.explainer is not None:
            by.append(f"explained by {explained_by(session.explainer, session.model or session.explainer)}")
        if session.scorer is not None:
            by.append(f"scored by {explained_by(session.scorer, session.scorer_model or session.scorer)}")
        lines.append(printable(f"run {run.id}, {', '.join(by)}: {session_text(session)}"))
    return lines


def check_lines(run: Run, checks: Iterable[SimulatorCheck]) -> list[str]:
    """How well simulators do on known neurons, one line a simulator."""
    return [
        printable(f"run {run.id}, {explained_by(check.scorer, check.scorer_model)} {check_text(check)}")
        for check in checks
    ]


@dataclass
class Listing:
    """Rows under named columns: a table, or one block a row where its words would be broken."""

    names: Sequence[str]
    right: Collection[str] = ()  # columns that are aligned there
    caption: str | None = None
    rows: list[list[str]] = field(default_factory=list)

    def add(self, cells: Sequence[str]) -> None:
        """Append a row. Its texts are made harmless."""
        self.rows.append([printable(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        columns = zip(self.names, *self.rows, strict=True)
        widths = [max(_word_width(text) for text in column) for column in columns]
        if sum(widths) + CELL_MARGIN * len(widths) <= options.max_width:
            yield self._table()
            return
        for row in self.rows:
            yield Text()
            for name, cell in zip(self.names, row, strict=True):
                if cell:
                    yield Text.assemble((f"{name}: ", "dim"), cell)
        if self.caption:
            yield Text(f"\n{self.caption}", style="dim italic")

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE, pad_edge=False, caption=self.caption, caption_justify="left")
        for name in self.names:
            table.add_column(name, justify="right" if name in self.right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def _word_width(text: str) -> int:
    """Columns of the longest word, at most LONGEST_WORD: a longer one is broken anyway."""
    from rich.cells import cell_len

    return min(LONGEST_WORD, max((cell_len(word) for word in text.split()), default=0))
