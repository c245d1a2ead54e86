"""Objects -> terminal text (pure). All text of a corpus or an LLM passes through `printable`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neuroexplain.evidence import Exemplar, Failure, PredictedRecord, Prediction, Status, StoredScore
from neuroexplain.formatting import (
    explained_by,
    interval,
    number,
    printable,
    random_histogram,
    score_order,
    short_name,
    strength,
)
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.units import PEAK_INDEX

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from neuroexplain.demo.run import Highlights

BARS = " ▁▂▃▄▅▆▇█"
MARGIN = 12  # columns before a record's tokens


def cell_width(text: str) -> int:
    """Columns that the text takes on a terminal, harmless characters put for others."""
    from rich.cells import cell_len

    return cell_len(printable(text))


def query_table(rows: Sequence[QueryRow]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, pad_edge=False)
    named = next(
        (row.metric + (f", {row.subset}" if row.subset else "") for row in rows if row.scorer), "score"
    )
    several_subsets = len({row.subset for row in rows if row.subset}) > 1
    title = rows[0].metric if rows and several_subsets else named
    table.caption = f"score: {printable(title)}" if rows and any(row.scorer for row in rows) else None
    table.caption_justify = "left"
    for name, right in (
        ("unit", True),
        ("score", True),
        ("95% interval", True),
        ("explanation", False),
        ("by", False),
    ):
        table.add_column(
            name, justify="right" if right else "left", overflow="fold", no_wrap=name in ("unit", "score")
        )
    several = len({(row.scorer, row.scorer_model) for row in rows if row.scorer}) > 1
    if several:  # else a line is not told from the next
        table.add_column("scored by", overflow="fold")
    sides = {row.side for row in rows}
    for row in rows:
        by = explained_by(row.explainer, row.model)
        if len(sides) > 1 or "negative" in sides:
            by += f", {row.side} side"
        cells = [row.label, number(row.score), interval(row.ci_low, row.ci_high), row.explanation, by]
        if several:
            cells.append(f"{row.scorer}, {short_name(row.scorer_model or '')}" if row.scorer else "")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def failures_table(failures: Sequence[Failure]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("unit", "what", "status", "reason", "reply"):
        table.add_column(name, overflow="fold")
    for one in failures:
        cells = (str(one.unit), one.what, one.status, one.reason or "", (one.reply or "")[:200])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def scores_text(run: Run, scores: Sequence[StoredScore]) -> str:
    """One line a metric: the headline first."""
    lines = []
    for s in sorted(scores, key=lambda s: (s.unit, s.explanation_id, *score_order(run, s))):
        score = s.score
        value = f"{number(score.value)}  {interval(score.ci_low, score.ci_high)}"
        if score.status != Status.OK:
            value = f"{score.status}: {score.reason}"
        named = f"{score.metric}, {score.subset}"
        what = f"{run.label(s.unit)}  {s.scorer:8}  {named:30}  {value}  {score.n_records} records"
        lines.append(printable(what).rstrip())
    return "\n".join(lines)


def runs_table(runs: Sequence[Run], notes: Mapping[int, str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("run", "subject", "layers", "read", "tokens", "status", "holds"):
        table.add_column(name, overflow="fold")
    for run in runs:
        layers = f"{len(run.layers)} of {run.n_layers}"
        status = (
            run.status if run.finished_at is None else f"finished {run.finished_at[:16].replace('T', ' ')}"
        )
        cells = (
            str(run.id),
            short_name(run.subject),
            layers,
            run.activation,
            f"{run.n_tokens:,}",
            status,
            notes.get(run.id, ""),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def show_text(page: UnitPage, db: str, *, top: int = 5, width: int = 80) -> Group:
    """One neuron for a terminal of `width` columns: explanations, scores, coloured snippets, statistics, vocabulary."""
    from rich.console import Group
    from rich.text import Text

    neuron, run = page.unit, page.run
    lines: list[Text] = [
        Text.assemble(
            (f"{'neuron' if run.kind == 'mlp' else 'unit'} {run.label(neuron.id)}", "bold"),
            f"  {neuron.status}, run {run.id}, {run.activation}, {printable(short_name(run.subject))}",
        )
    ]
    lines.append(Text())
    for e in page.explanations:
        lines += _explanation_lines(page, e)
    if not page.explanations:
        lines.append(
            Text(f"not explained yet:  neuroexplain explain --units {neuron.id} --db {db}", style="dim")
        )
    simulated = {(r.kind, r.rank): r for s in _drawn(page) for r in s.records}
    scale = _scale(list(simulated.values()))
    if simulated:
        lines += [Text(), _simulated_by(page)]
    strongest = max((abs(x.activation) for x in neuron.exemplars), default=0.0)
    for kind in ("top", "bottom", "random"):
        shown = [x for x in neuron.exemplars if x.kind == kind][
            : top if kind != "random" else max(1, top // 2)
        ]
        if shown:
            lines += [Text(), Text(f"{kind} records", style="bold")]
        for x in shown:
            lines.append(record_line(page, x, strongest, width))
            if (x.kind, x.rank) in simulated:
                lines.append(_simulated_line(page, x, simulated[x.kind, x.rank], scale, width))
    s = neuron.stats
    if s is not None:
        said = f"mean {s.mean:.4g}, std {s.std:.4g}, min {s.min:.4g}, max {s.max:.4g}, {s.share_positive:.1%} above 0"
        lines += [Text(), Text("statistics", style="bold"), Text("  " + said)]
    lines.append(_histogram_line(neuron.exemplars))
    for name, pairs in (("promotes", neuron.promoted), ("suppresses", neuron.suppressed)):
        if pairs:
            tokens = "  ".join(f"{printable(page.tokens[i].text)!s} {logit:+.2f}" for i, logit in pairs)
            lines += [Text(), Text(name, style="bold"), Text("  " + tokens)]
    return Group(*lines)


def record_line(page: UnitPage, x: Exemplar, strongest: float, width: int = 80) -> Text:
    """A record around its peak, its tokens coloured by activation on a log scale; the peak also stands in brackets."""
    from rich.text import Text

    shown, peak = _around_peak(page, x, width)
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"  {x.activation:8.3g}  ", style="dim")
    for at in shown:
        token = page.tokens[int(x.token_ids[at])]
        text = printable(token.text)
        value = float(x.activations[at])
        style = activation_style(value, strongest) + (" italic" if token.special else "")
        line.append(f"[{text}]" if at == peak else text, style=style)
    return line


def _around_peak(page: UnitPage, x: Exemplar, width: int) -> tuple[range, int]:
    """The record's tokens that fit beside its activation into `width` columns, three fifths of it before the peak; the peak."""
    cells = [cell_width(page.tokens[int(i)].text) for i in x.token_ids]
    peak = PEAK_INDEX if x.kind != "random" else int(x.activations.argmax())
    room = width - MARGIN - len("[]") - cells[peak]
    first, before = peak, 0
    while first > 0 and before + cells[first - 1] <= max(0.6 * room, room - sum(cells[peak + 1 :])):
        first -= 1
        before += cells[first]
    end, room = peak + 1, room - before
    while end < len(cells) and cells[end] <= room:
        room -= cells[end]
        end += 1
    return range(first, end), peak


def demo_text(found: Highlights, db: str, width: int) -> Group:
    """What the demo found, and what to type next."""
    from rich.console import Group
    from rich.text import Text

    score = f" ({found.best[0][1].run.headline})" if found.best else ""
    title = f"The best explanations, scored{score} on text that the explainer did not see"
    lines = [Text(), Text(title, style="bold"), Text()]
    for row, page in found.best:
        strongest = max(abs(x.activation) for x in page.unit.exemplars)
        score = f"{number(row.correlation)} ({interval(row.ci_low, row.ci_high)})"
        lines.append(
            Text.assemble((row.label, "bold"), f"  {score}  ", (printable(row.explanation), "bold cyan"))
        )
        lines += [record_line(page, x, strongest, width) for x in page.unit.exemplars[:3]]
        lines.append(Text())
    lines.append(Text("How often a neuron's own explanation scores above another neuron's", style="bold"))
    for explainer, one in found.own_above_other:
        name = "the LLM (excerpts)" if explainer == "excerpts" else "the baseline (tokens, no LLM)"
        means = f"mean score {number(one.mean)}, another's {number(one.mean_other)}"
        lines.append(Text(f"  {name}: {one.n_won} of {one.n}; {means}"))
    neuron = found.best[0][0].unit if found.best else "0:0"
    lines += [
        Text(),
        Text(
            "These words are a 135M model's: take them as a demonstration. For a better explainer:",
            style="bold",
        ),
        Text(f"  neuroexplain explain --db {db} --units 3:0-99 --local MODEL"),
        Text("  (a hub name, a folder or a .gguf file; --server URL for a vLLM server)"),
        Text("Look around:", style="bold"),
        Text(f"  neuroexplain query --db {db}"),
        Text(f"  neuroexplain show {neuron} --db {db}"),
        Text(f"  neuroexplain serve --db {db}"),
    ]
    return Group(*lines)


def text_line(page: UnitPage, tokens: Sequence[str], acts: Sequence[float]) -> Group:
    """A person's own text: its tokens coloured relative to the neuron's strongest record, and the activation on each."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    strongest = max((abs(x.activation) for x in page.unit.exemplars), default=0.0)
    line, table = Text(), Table(box=None, pad_edge=False, show_header=False)
    for token, value in zip(tokens, acts, strict=True):
        style = activation_style(value, strongest)
        line.append(printable(token), style=style)
        table.add_row(Text(f"{value:.4g}", justify="right"), Text(printable(token), style=style))
    head = Text(
        f"unit {page.run.label(page.unit.id)}, its strongest activation is {strongest:.4g}", style="bold"
    )
    return Group(head, Text(), line, Text(), table)


def activation_style(value: float, strongest: float) -> str:
    """A background by the value's strength: green for positive values, red for negative ones."""
    found = strength(value, strongest)
    if found < 0.2:
        return ""
    shade = int(40 + 130 * found)
    return f"white on rgb(0,{shade},60)" if value > 0 else f"white on rgb({shade},30,30)"


def _explanation_lines(page: UnitPage, e: Any) -> list[Text]:
    from rich.text import Text

    by = explained_by(e.explainer, e.provenance.model)
    if len(page.run.sides) > 1 or e.side == "negative":
        by += f", {e.side} side"
    if e.status != Status.OK:
        return [Text(f"{e.status} ({by}): {printable(e.reason or '')}", style="dim")]
    lines = [Text.assemble((printable(e.text or ""), "bold cyan"), (f"   {by}", "dim"))]
    mine = [x for x in page.scores if x.explanation_id == e.id and x.score.split == "report"]
    for scorer, model in dict.fromkeys(
        (x.scorer, x.scorer_model) for x in sorted(mine, key=lambda x: score_order(page.run, x))
    ):
        lines.append(Text(f"  {printable(scorer)}, {printable(short_name(model))}", style="dim"))
        own = sorted(
            (x for x in mine if (x.scorer, x.scorer_model) == (scorer, model)),
            key=lambda x: score_order(page.run, x),
        )
        for score in (x.score for x in own):
            if score.status != Status.OK:
                value = f"{score.status}: {printable(score.reason or '')}"
            else:
                value = f"{number(score.value):5}  {interval(score.ci_low, score.ci_high):14}  {score.n_records} records"
                if score.control is not None:
                    value += f"  another's explanation {number(score.control)}"
            what = printable(f"{score.metric}, {score.subset}")
            lines.append(Text(f"  {what:30} {value}"))
    return lines


def _drawn(page: UnitPage) -> list[Prediction]:
    """The prediction that stands under the records: the first that holds levels."""
    return [p for p in page.predictions if p.codec == "levels" and p.records][:1]


def _simulated_by(page: UnitPage) -> Text:
    """Whose levels stand under the records, and from which explanation."""
    from rich.text import Text

    (one,) = _drawn(page)
    explained = next((e.text or "" for e in page.explanations if e.id == one.explanation_id), "")
    said = f"predicted by {one.scorer}, {short_name(one.provenance.model)}, from: {explained}"
    return Text(printable(said), style="dim", no_wrap=True, overflow="ellipsis")


def _scale(records: Sequence[PredictedRecord]) -> tuple[float, float]:
    """The least and the greatest level of a simulation; (0, 0) without any."""
    predicted = [float(level) for r in records for level in r.values if not math.isnan(level)]
    return (min(predicted), max(predicted)) if predicted else (0.0, 0.0)


def _simulated_line(
    page: UnitPage, x: Exemplar, r: PredictedRecord, scale: tuple[float, float], width: int
) -> Text:
    """Simulated levels under the true ones: a bar under each token of the crop that was scored, ? without a prediction."""
    from rich.text import Text

    shown, peak = _around_peak(page, x, width)
    levels, (low, high) = r.values, scale
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("simulated".ljust(MARGIN), style="dim")
    if not range(max(shown.start, r.first), min(shown.stop, r.first + len(r.values))):
        return line.append("(on tokens that do not fit here)", style="dim")
    for at in shown:
        cells = cell_width(page.tokens[int(x.token_ids[at])].text) + (len("[]") if at == peak else 0)
        inside = r.first <= at < r.first + len(r.values) and high > low
        level = float(levels[at - r.first]) if inside else 0.0
        bar = (
            "?"
            if math.isnan(level)
            else BARS[max(1, round((level - low) / (high - low) * 8))]
            if inside
            else " "
        )
        line.append(bar * cells, style="cyan")
    return line


def _histogram_line(exemplars: Sequence[Exemplar]) -> Text:
    import numpy as np
    from rich.text import Text

    counts, middles = random_histogram(exemplars, bins=32)
    if not counts:
        return Text()
    heights = np.ceil(8 * np.log1p(counts) / np.log1p(max(counts))).astype(int)
    return Text(
        f"  {middles[0]:.3g} "
        + "".join(BARS[h] for h in heights)
        + f" {middles[-1]:.3g}  (random records, log counts)"
    )
