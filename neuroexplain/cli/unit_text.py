"""All about one unit -> text for the terminal (pure). Corpus and LLM text passes through `printable`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from neuroexplain.evidence import Exemplar, Explanation, PredictedRecord, Prediction, Score, Status, Unit
from neuroexplain.formatting import (
    RecordGroup,
    activation_histogram,
    check_text,
    density,
    dictionary_text,
    explained_by,
    group_by_strength,
    headline_name,
    interval,
    number,
    printable,
    rule_comparison,
    rule_first,
    score_name,
    score_order,
    short_name,
    strength,
)
from neuroexplain.runs import UnitPage
from neuroexplain.status_words import status_words
from neuroexplain.units import UnitId

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from neuroexplain.demo.run import Highlights

BARS = " ▁▂▃▄▅▆▇█"
MARGIN = 12  # columns before a record's tokens: its activation
BEFORE_PEAK = (
    0.6  # share of a line's room that is kept for tokens before the peak: they explain it more often
)
FAINTEST = 0.2  # strength below which a token has no background, so that strong tokens stand out


def cell_width(text: str) -> int:
    """Columns that the text takes on a terminal, after `printable`."""
    from rich.cells import cell_len

    return cell_len(printable(text))


def show_text(page: UnitPage, db: str, *, top: int = 5, width: int = 80) -> Group:
    """One unit for a terminal of `width` columns: explanations, scores, records, statistics, vocabulary."""
    from rich.console import Group

    return Group(
        *_title(page),
        *_explanations(page, db),
        *_records(page, top, width),
        *_statistics(page),
        *_vocabulary(page),
        *_nearest(page),
    )


def _title(page: UnitPage) -> list[Text]:
    from rich.text import Text

    unit, run = page.unit, page.run
    name = f"{'neuron' if run.kind == 'mlp' else 'unit'} {run.label(unit.id)}"
    state = "" if unit.status == Status.OK else f"{status_words(unit.status)}, "
    about = f"  {state}run {run.id}, {run.activation}, {printable(short_name(run.subject))}"
    return [Text.assemble((name, "bold"), about), Text()]


def _explanations(page: UnitPage, db: str) -> list[Text]:
    from rich.text import Text

    if not page.explanations:
        command = f"neuroexplain explain --units {page.unit.id} --db {db}"
        return [Text(f"not explained yet:  {command}", style="dim")]
    return [line for explanation in page.explanations for line in _explanation_lines(page, explanation)]


def _explanation_lines(page: UnitPage, explanation: Explanation) -> list[Text]:
    """An explanation, and under each scorer one line a score on the `report` records."""
    from rich.text import Text

    by = explained_by(explanation.explainer, explanation.provenance.model)
    if len(page.run.sides) > 1 or explanation.side == "negative":
        by += f", {explanation.side} side"
    if explanation.status != Status.OK:
        reason = printable(explanation.reason or "")
        return [Text(f"{status_words(explanation.status)} ({by}): {reason}", style="dim")]
    text = explanation.rule or explanation.text or ""
    lines = [Text.assemble((printable(text), "bold cyan"), (f"   {by}", "dim"))]
    if explanation.rule is not None:
        lines.append(_examples_line(page, explanation))
    scores = [s for s in page.scores if s.explanation_id == explanation.id and s.score.split == "report"]
    scores.sort(key=lambda stored: score_order(page.run, stored))
    for scorer, model in dict.fromkeys((stored.scorer, stored.scorer_model) for stored in scores):
        check = page.check_of(scorer, model)
        trust = "" if check is None else f", which {check_text(check)}"
        lines.append(Text(f"  {printable(scorer)}, {printable(short_name(model))}{trust}", style="dim"))
        lines.append(Text(SCORE_COLUMNS, style="dim"))
        for stored in scores:
            if (stored.scorer, stored.scorer_model) == (scorer, model):
                style = "bold" if page.run.headline.is_of(stored.score) else ""
                lines.append(Text(_score_line(stored.score), style=style))
    return lines


def _examples_line(page: UnitPage, explanation: Explanation) -> Text:
    """The examples behind a rule, the rule's own score, and what the examples add to it."""
    from rich.text import Text

    line = Text(f"  such as {printable(', '.join(explanation.examples or ()))}", style="cyan")
    comparison = rule_comparison(page, explanation)
    return line if comparison is None else line.append(f"   {comparison}", style="dim")


SCORE_COLUMNS = "  score  95% interval    control  records"


def _score_line(score: Score) -> str:
    """A score under SCORE_COLUMNS, and its name; its status and reason where it is undefined."""
    name = printable(score_name(score))
    if score.status != Status.OK:
        return f"  {'-':>5}  {name}: {status_words(score.status)}: {printable(score.reason or '')}"
    control = "" if score.control is None else number(score.control)
    bounds = interval(score.ci_low, score.ci_high)
    return f"  {number(score.value):>5}  {bounds:14}  {control:>7}  {score.n_records:>7}  {name}"


def _records(page: UnitPage, top: int, width: int) -> list[Text]:
    """The strongest records of each kind and half as many random ones, each above its predicted levels.

    Then some of the sampled records, by strength.
    """
    from rich.text import Text

    prediction = _levels_to_draw(page)
    predicted = {} if prediction is None else {r.key: r for r in prediction.records}
    scale = _level_scale(list(predicted.values()))
    lines = [] if prediction is None else [Text(), _prediction_title(page, prediction)]
    strongest = max((abs(x.activation) for x in page.unit.exemplars), default=0.0)
    for title, records in _titled_records(page, top):
        lines += [Text(), title] if title.style == "bold" else [title]
        for record in records:
            lines.append(record_line(page, record, strongest, width))
            levels = predicted.get(record.key)
            if levels is not None and (record.kind != "sampled" or _is_in_sight(page, record, levels, width)):
                lines.append(_levels_line(page, record, levels, scale, width))
    return lines


def _titled_records(page: UnitPage, top: int) -> Iterator[tuple[Text, Sequence[Exemplar]]]:
    """The records to draw, each list after its title."""
    from rich.text import Text

    for kind in ("top", "bottom", "random"):
        n_lines = top if kind != "random" else max(1, top // 2)
        if records := [x for x in page.unit.exemplars if x.kind == kind][:n_lines]:
            yield Text(f"{kind} records", style="bold"), records
    for side in page.run.sides:
        sampled = [x for x in page.unit.exemplars if x.kind == "sampled" and x.side == side]
        if not sampled:
            continue
        of_side = f" of the {side} side" if len(page.run.sides) > 1 else ""
        n_each = max(1, top // 4)
        yield Text(f"sampled records{of_side}, the first of each group", style="bold"), ()
        for group in group_by_strength(sampled):
            yield Text(f"  {group.title}{_weights_text(page, group)}", style="dim"), group.records[:n_each]


def _weights_text(page: UnitPage, group: RecordGroup) -> str:
    """How many segments each record of a group stands for, as text after its title."""
    weights = [1 / p for x in group.records if (p := page.probability(x)) is not None]
    if not weights:
        return ""
    low, high = f"{min(weights):,.0f}", f"{max(weights):,.0f}"
    n_segments = low if low == high else f"{low} to {high}"
    noun = "segment" if n_segments == "1" else "segments"
    each = "each stands" if len(group.records) > 1 else "it stands"
    return f"; {each} for {n_segments} {noun}"


def _statistics(page: UnitPage) -> list[Text]:
    """Statistics over the corpus, and a histogram of the random records' activations."""
    from rich.text import Text

    stats, lines = page.unit.stats, []
    if stats is not None:
        values = f"mean {stats.mean:.4g}, std {stats.std:.4g}, min {stats.min:.4g}, max {stats.max:.4g}"
        share = f"{density(stats.share_positive)} above 0"
        lines = [Text(), Text("statistics", style="bold"), Text(f"  {values}, {share}")]
    lines.append(_histogram_line(page.unit))
    if (dictionary := dictionary_text(page.run, page.unit.id.layer)) is not None:
        lines.append(Text(f"  its dictionary: {dictionary}", style="dim"))
    return lines


def _vocabulary(page: UnitPage) -> list[Text]:
    """The tokens that the unit's write vector promotes and suppresses most, with their logits."""
    from rich.text import Text

    lines = []
    for name, readings in (("promotes", page.unit.promoted), ("suppresses", page.unit.suppressed)):
        if readings:
            tokens = "  ".join(f"{printable(page.tokens[i].label)} {logit:+.2f}" for i, logit in readings)
            lines += [Text(), Text(name, style="bold"), Text("  " + tokens)]
    return lines


def _nearest(page: UnitPage) -> list[Text]:
    """The latents whose decoder directions are most like this one's, with their cosines."""
    from rich.text import Text

    if not page.unit.nearest:
        return []
    layer = page.unit.id.layer
    names = (f"{page.run.label(UnitId(layer, n))} {cosine:.2f}" for n, cosine in page.unit.nearest)
    title = Text("nearest latents (cosine of decoder directions)", style="bold")
    return [Text(), title, Text("  " + "  ".join(names))]


def record_line(page: UnitPage, record: Exemplar, strongest: float, width: int = 80) -> Text:
    """A record around its peak, which is in brackets; colours show activations on a log scale."""
    from rich.text import Text

    places, peak = _places_around_peak(page, record, width)
    texts = page.texts(record)
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"  {record.activation:8.3g}  ", style="dim")
    for place in places:
        text = printable(texts[place])
        style = activation_style(float(record.activations[place]), strongest)
        style += " italic" if page.tokens[int(record.token_ids[place])].special else ""
        line.append(f"[{text}]" if place == peak else text, style=style)
    return line


def _places_around_peak(page: UnitPage, record: Exemplar, width: int) -> tuple[range, int]:
    """(the record's tokens that fit into `width` columns beside its activation, the peak's place)."""
    cells = [cell_width(text) for text in page.texts(record)]
    peak = record.peak_index
    room = width - MARGIN - len("[]") - cells[peak]
    first, before = peak, 0
    while first > 0 and before + cells[first - 1] <= max(BEFORE_PEAK * room, room - sum(cells[peak + 1 :])):
        first -= 1
        before += cells[first]
    end, room = peak + 1, room - before
    while end < len(cells) and cells[end] <= room:
        room -= cells[end]
        end += 1
    return range(first, end), peak


def demo_text(highlights: Highlights, db: str, picture: str, width: int) -> Group:
    """The demo's best explanations, how explanations compare with controls, and what to type next."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(), *best_lines(highlights, width), Text()]
    lines.append(Text("How often a neuron's own explanation scores above another neuron's", style="bold"))
    for name, comparison in highlights.controls:
        means = f"mean score {number(comparison.mean)}, another's {number(comparison.mean_control)}"
        lines.append(Text(f"  {name}: {comparison.n_won} of {comparison.n}; {means}"))
    unit = highlights.best[0][0].unit if highlights.best else "0:0"
    return Group(
        *lines,
        Text(),
        Text("These words are a 135M model's: a demonstration. For a better explainer:", style="bold"),
        Text(f"  neuroexplain explain --db {db} --units 3:0-99 --local MODEL"),
        Text("  (a hub name, a folder or a .gguf file; --server URL for a vLLM server)"),
        Text("Look around:", style="bold"),
        Text(f"  {picture}"),
        Text(f"  neuroexplain query --db {db}"),
        Text(f"  neuroexplain show {unit} --db {db}"),
        Text(f"  neuroexplain serve --db {db}"),
    )


def best_lines(highlights: Highlights, width: int) -> list[Text]:
    """The demo's best explanations, each with its neuron's two strongest records."""
    from rich.text import Text

    best = highlights.best
    headline = f" ({headline_name(best[0][1].run.headline)})" if best else ""
    lines = [Text(f"The best explanations, scored on text that no explainer saw{headline}", style="bold")]
    for row, page in best:
        strongest = max(abs(x.activation) for x in page.unit.exemplars)
        alone = "" if row.rule_score is None else f", rule alone {number(row.rule_score)}"
        score = f"  {number(row.score)} ({interval(row.ci_low, row.ci_high)}){alone}  "
        explanation = (rule_first(row.explanation, row.rule, row.examples), "bold cyan")
        lines.append(
            Text.assemble((row.label, "bold"), score, explanation, no_wrap=True, overflow="ellipsis")
        )
        lines += [record_line(page, record, strongest, width) for record in page.unit.exemplars[:2]]
    return lines


def text_line(page: UnitPage, tokens: Sequence[str], activations: Sequence[float]) -> Group:
    """A person's text: tokens coloured relative to the unit's strongest record, and a table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    strongest = max((abs(x.activation) for x in page.unit.exemplars), default=0.0)
    line, table = Text(), Table(box=None, pad_edge=False, show_header=False)
    for token, value in zip(tokens, activations, strict=True):
        style = activation_style(value, strongest)
        line.append(printable(token), style=style)
        table.add_row(Text(f"{value:.4g}", justify="right"), Text(printable(token), style=style))
    title = f"unit {page.run.label(page.unit.id)}, its strongest activation is {strongest:.4g}"
    return Group(Text(title, style="bold"), Text(), line, Text(), table)


def activation_style(value: float, strongest: float) -> str:
    """A background by the value's strength: green for positive values, red for negative ones."""
    share = strength(value, strongest)
    if share < FAINTEST:
        return ""
    shade = int(40 + 130 * share)
    return f"white on rgb(0,{shade},60)" if value > 0 else f"white on rgb({shade},30,30)"


def _levels_to_draw(page: UnitPage) -> Prediction | None:
    """The first prediction that holds levels: it is drawn under the records."""
    return next((p for p in page.predictions if p.codec == "levels" and p.records), None)


def _prediction_title(page: UnitPage, prediction: Prediction) -> Text:
    """Which scorer predicted the levels under the records, and from which explanation."""
    from rich.text import Text

    texts = (e.text or "" for e in page.explanations if e.id == prediction.explanation_id)
    by = f"{prediction.scorer}, {short_name(prediction.provenance.model)}"
    title = f"predicted by {by}, from: {next(texts, '')}"
    return Text(printable(title), style="dim", no_wrap=True, overflow="ellipsis")


def _level_scale(records: Sequence[PredictedRecord]) -> tuple[float, float]:
    """The least and the greatest predicted level; (0, 0) without any."""
    levels = [float(level) for r in records for level in r.values if not math.isnan(level)]
    return (min(levels), max(levels)) if levels else (0.0, 0.0)


def _levels_line(
    page: UnitPage, record: Exemplar, predicted: PredictedRecord, scale: tuple[float, float], width: int
) -> Text:
    """Predicted levels under a record: a bar under each token of the scored crop, ? without a prediction."""
    from rich.text import Text

    places, peak = _places_around_peak(page, record, width)
    texts = page.texts(record)
    crop = range(predicted.first, predicted.first + len(predicted.values))
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("simulated".ljust(MARGIN), style="dim")
    if not _is_in_sight(page, record, predicted, width):
        return line.append("(on tokens that do not fit here)", style="dim")
    for place in places:
        cells = cell_width(texts[place])
        cells += len("[]") if place == peak else 0
        level = float(predicted.values[place - crop.start]) if place in crop else None
        line.append(_bar(level, scale) * cells, style="cyan")
    return line


def _is_in_sight(page: UnitPage, record: Exemplar, predicted: PredictedRecord, width: int) -> bool:
    """Whether one of the predicted tokens fits into the line."""
    places, _ = _places_around_peak(page, record, width)
    return places.start < predicted.first + len(predicted.values) and predicted.first < places.stop


def _bar(level: float | None, scale: tuple[float, float]) -> str:
    """A level's bar, at least the lowest; ? for NaN, blank for a token that was not scored."""
    low, high = scale
    if level is None or high <= low:
        return " "
    return "?" if math.isnan(level) else BARS[max(1, round((level - low) / (high - low) * 8))]


def _histogram_line(unit: Unit) -> Text:
    import numpy as np
    from rich.text import Text

    counts, middles, of_what = activation_histogram(unit, bins=32)
    if not counts:
        return Text()
    heights = np.ceil(8 * np.log1p(counts) / np.log1p(max(counts))).astype(int)
    bars = "".join(BARS[height] for height in heights)
    return Text(f"  {middles[0]:.3g} {bars} {middles[-1]:.3g}  ({of_what}, log counts)")
