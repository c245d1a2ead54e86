"""Records on a terminal: the peak is in sight at every width, and bars stand under their tokens."""

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from neuroexplain.cli.tables import Listing, query_table
from neuroexplain.cli.unit_text import MARGIN, record_line, show_text
from neuroexplain.evidence import Exemplar, PredictedRecord, Prediction, Provenance, Unit, VocabularyEntry
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.units import CROP_LENGTH, PEAK_INDEX, UnitId

NEURON = UnitId(0, 1)
WORDS = (" and", "\n", " a", " considerably", "日本", "s", " 🙂", ",")
RUN = Run(
    1,
    "finished",
    "m",
    None,
    "float32",
    "act",
    (0,),
    2,
    1,
    1,
    0,
    0,
    "",
    {},
    1,
    1,
    128,
    "2026-01-01T00:00:00Z",
    None,
)


def make_page(levels: np.ndarray | None = None, first: int = 0) -> UnitPage:
    """One top record of all kinds of tokens, and what was simulated for it."""
    activations = np.zeros(64, np.float32)
    activations[PEAK_INDEX] = 5
    x = Exemplar(NEURON, "top", 0, 0, 32, 0, 0, 5.0, np.arange(64, dtype=np.uint32) % len(WORDS), activations)
    whom = Provenance("none", None, "m", None, None)
    records = () if levels is None else (PredictedRecord("top", 0, first, levels),)
    return UnitPage(
        run=RUN,
        unit=Unit(NEURON, "ok", None, (x,), (), ()),
        splits={},
        tokens={n: VocabularyEntry(n, word, False) for n, word in enumerate(WORDS)},
        explanations=(),
        predictions=(Prediction(1, NEURON, "digits", "ok", records, whom),),
        scores=(),
    )


def drawn(renderable: object, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False, highlight=False)
    with console.capture() as caught:
        console.print(renderable)
    return caught.get().splitlines()


@pytest.mark.parametrize("width", [40, 61, 80, 200])
def test_the_peak_is_in_sight_and_the_line_fits(width):
    page = make_page()
    (line,) = drawn(record_line(page, page.unit.exemplars[0], 5.0, width), width)
    assert f"[{WORDS[PEAK_INDEX % len(WORDS)]}]" in line[MARGIN:]
    assert "…" not in line


def test_a_wide_terminal_shows_the_whole_record():
    page = make_page()
    (line,) = drawn(record_line(page, page.unit.exemplars[0], 5.0, 2000), 2000)
    assert line[MARGIN:].count(" considerably") == 8
    assert line[MARGIN:].count("↵") == 8


def test_bars_stand_under_the_crop_and_no_prediction_is_no_bar():
    """A token without a prediction has `?`: it is not drawn as the lowest level."""
    first = PEAK_INDEX - 3
    levels = np.linspace(4.0, 9.0, CROP_LENGTH, dtype=np.float32)
    levels[1] = np.nan
    lines = drawn(show_text(make_page(levels, first), "x.db", width=2000), 2000)
    at = next(i for i, line in enumerate(lines) if line.startswith("simulated"))
    cells = [
        {"日本": 4, " 🙂": 3, "\n": 1}.get(WORDS[n % len(WORDS)], len(WORDS[n % len(WORDS)]))
        for n in range(64)
    ]
    cells[PEAK_INDEX] += 2  # brackets
    bars, before = lines[at].ljust(2000)[MARGIN:], sum(cells[:first])
    assert bars[:before].isspace()
    assert set(bars[before : before + cells[first]]) == {"▁"}
    assert set(bars[before + cells[first] :][: cells[first + 1]]) == {"?"}
    end = sum(cells[: first + CROP_LENGTH])
    assert bars[end - 1] == "█"
    assert bars[end:].isspace()


def test_all_records_of_a_simulation_are_drawn_on_one_scale():
    page = make_page(np.linspace(0, 8, CROP_LENGTH, dtype=np.float32), PEAK_INDEX - 8)
    (x,), (prediction,) = page.unit.exemplars, page.predictions
    weak = PredictedRecord("top", 1, PEAK_INDEX - 8, np.linspace(0, 2, CROP_LENGTH, dtype=np.float32))
    page = replace(
        page,
        unit=replace(page.unit, exemplars=(x, replace(x, rank=1))),
        predictions=(replace(prediction, records=(*prediction.records, weak)),),
    )
    record, other = (
        line for line in drawn(show_text(page, "x.db", width=2000), 2000) if line.startswith("simulated")
    )
    assert "█" in record
    assert set(other[MARGIN:].strip()) == {"▁", "▂"}


def test_where_the_scored_tokens_are_out_of_sight_it_says_so():
    lines = drawn(show_text(make_page(np.ones(CROP_LENGTH, np.float32), 0), "x.db", width=16), 60)
    assert "simulated   (on tokens that do not fit here)" in lines


def test_only_the_number_before_a_record_is_dim():
    line = record_line(make_page(), make_page().unit.exemplars[0], 5.0, 80)
    assert line.style == ""
    assert [line.plain[span.start : span.end].strip() for span in line.spans if "dim" in str(span.style)] == [
        "5"
    ]


def test_scores_by_several_simulators_are_told_apart():
    row = QueryRow(
        *(NEURON, str(NEURON), "rivers", 1, "pairs", "m", "positive", "mlp", "digits", "some/m"),
        *("correlation", "top_and_random", 0.5, 0.5, 0.4, 0.6, 5.0),
    )
    other = replace(row, scorer="lexical", score=0.7)
    assert "scored by" not in "".join(drawn(query_table([row, row]), 100))
    lines = [" ".join(line.split()) for line in drawn(query_table([row, other]), 100)]
    assert "0:1 0.50 0.40 to 0.60 rivers pairs, m digits, some/m" in lines
    assert "0:1 0.70 0.40 to 0.60 rivers pairs, m lexical, some/m" in lines


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_words_of_tables_are_whole_at_every_width(width):
    names = ("unit", "score", "explanation", "by")
    listing = Listing(names, right=("unit", "score"), caption="score: correlation")
    listing.add(
        ["15:16", "0.37", "considerably longer explanations of neighbouring words", "excerpts, someone"]
    )
    lines = drawn(listing, width)
    words = {word for line in lines for word in line.replace("\u2500", " ").split()}
    for word in ("considerably", "explanations", "neighbouring", "excerpts,", "someone", "15:16", "0.37"):
        assert word in words
    assert ("unit: 15:16" in lines) == (width < 60)  # a block a row where a table would break words
    assert all(len(line) <= width for line in lines)
