"""Records on a terminal: the peak is in sight at every width, and bars stand under their tokens."""

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from neuroexplain.cli.tables import Listing, query_table, session_lines, summaries_table
from neuroexplain.cli.unit_text import MARGIN, record_line, show_text
from neuroexplain.evidence import (
    Exemplar,
    Explanation,
    PredictedRecord,
    Prediction,
    Provenance,
    Score,
    StoredScore,
    Unit,
    VocabularyEntry,
)
from neuroexplain.formatting import group_by_strength
from neuroexplain.runs import QueryRow, Run, Session, UnitPage
from neuroexplain.store.score_summaries import ScoreSummary
from neuroexplain.units import CROP_LENGTH, PEAK_INDEX, UnitId

NEURON = UnitId(0, 1)
WORDS = (" and", "\n", " a", " considerably", "日本", "s", " 🙂", ",")
RUN = Run(
    **{"id": 1, "status": "finished", "subject": "m", "subject_revision": None, "dtype": "float32"},
    **{"activation": "act", "layers": (0,), "n_layers": 2, "top_k": 1, "n_random": 1, "seed": 0},
    **{"tokenizer_sha256": "", "config": {}, "n_segments": 1, "n_documents": 1, "n_tokens": 128},
    **{"started_at": "2026-01-01T00:00:00Z", "finished_at": None},
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


def sampled_record(rank: int, peak: float, side: str = "positive") -> Exemplar:
    activations = np.zeros(64, np.float32)
    activations[7] = peak
    token_ids = np.arange(64, dtype=np.uint32) % len(WORDS)
    return Exemplar(
        *(NEURON, "sampled", rank, rank, 64, 0, 0, peak, token_ids, activations),
        **{"split": "report", "side": side, "size": peak**2},
    )


@pytest.mark.parametrize("n", [1, 2, 5, 10, 40])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_groups_go_from_the_strongest_tenth_to_the_lowest_quarter(n, side):
    sign = -1 if side == "negative" else 1
    order = np.random.default_rng(n).permutation(n)
    records = [sampled_record(rank, sign * float(peak + 1), side) for rank, peak in enumerate(order.tolist())]
    groups = group_by_strength(records)
    strengths = [abs(x.activation) for group in groups for x in group.records]
    assert strengths == [float(n - place) for place in range(n)]
    place = 0
    for group in groups:  # a record's group by its share of stronger records, the other way round
        first, last = place / n, (place + len(group.records) - 1) / n
        low, high = {
            "strongest tenth": (0, 0.1),
            "rest of top quarter": (0.1, 0.25),
            "second quarter": (0.25, 0.5),
            "third quarter": (0.5, 0.75),
            "lowest quarter": (0.75, 1),
        }[group.name]
        assert low <= first <= last < high
        weakest, strongest = sign * strengths[place + len(group.records) - 1], sign * strengths[place]
        ends = f"peaks of {weakest:g} to {strongest:g}" if weakest != strongest else f"peak of {strongest:g}"
        assert group.title == f"{group.name}: {ends}"
        place += len(group.records)


def test_equal_peaks_are_in_one_group():
    records = [
        sampled_record(rank, peak) for rank, peak in enumerate([5.0, 5.0, 5.0, 4.0, 3.0, 3.0, 3.0, 3.0])
    ]
    groups = [
        (group.name, group.title.split(": ")[1], len(group.records)) for group in group_by_strength(records)
    ]
    assert groups == [
        ("strongest tenth", "peak of 5", 3),
        ("second quarter", "peak of 4", 1),
        ("third quarter", "peak of 3", 4),
    ]
    assert [
        len(group.records) for group in group_by_strength([sampled_record(n, 1.0) for n in range(9)])
    ] == [9]


def test_sampled_records_stand_in_groups_with_what_they_stand_for():
    records = [sampled_record(rank, 20.0 - rank) for rank in range(20)]
    page = make_page()
    page = replace(
        page,
        unit=replace(page.unit, exemplars=(*page.unit.exemplars, *records)),
        run=replace(RUN, n_sampled=20, split_rule="passages"),
        probabilities={(x.key, "positive"): 1 / (x.rank + 1) for x in records},
    )
    lines = drawn(show_text(page, "x.db", top=8, width=80), 80)
    at = lines.index("sampled records, the first of each group")
    assert lines[at + 1] == "  strongest tenth: peaks of 19 to 20; each stands for 1 to 2 segments"
    assert [line.split()[0] for line in lines[at + 2 : at + 4]] == ["20", "19"]
    assert lines[at + 4] == "  rest of top quarter: peaks of 16 to 18; each stands for 3 to 5 segments"
    assert "  lowest quarter: peaks of 1 to 5; each stands for 16 to 20 segments" in lines


def test_the_headline_stands_first_then_beyond_its_words_then_bills():
    def stored(metric, subset, value, **other):
        score = Score("report", subset, metric, "ok", value, 100, 10, **other)
        return StoredScore(NEURON, 1, "lexical", "m", score)

    scores = [
        stored("auprc", "population", 0.1),
        stored("correlation", "top", 0.9),
        stored("correlation", "top_and_random", 0.8),
        stored("correlation_beyond_words", "population", 0.2, ci_low=0.1, ci_high=0.3),
        stored("correlation", "population", 0.3, ci_low=-0.06, ci_high=-0.05, control=-0.01),
    ]
    explanation = Explanation(
        NEURON, "pairs", "ok", "rivers", Provenance("none", None, "m", None, None), id=1
    )
    page = replace(
        make_page(), explanations=(explanation,), scores=tuple(scores), run=replace(RUN, n_sampled=40)
    )
    lines = drawn(show_text(page, "x.db", width=80), 80)
    at = lines.index("  score  95% interval    control  records")
    assert lines[at + 1 : at + 6] == [
        "   0.30  -0.06 to -0.05    -0.01       10  population score",
        "   0.20  0.10 to 0.30                  10  beyond its words",
        "   0.80                                10  Bills' score",
        "   0.10                                10  AUPRC",
        "   0.90                                10  correlation, top",
    ]


def test_the_column_of_the_score_beyond_the_words_is_there_where_a_row_has_one():
    row = QueryRow(
        *(NEURON, str(NEURON), "rivers", 1, "pairs", "m", "positive", "mlp", "digits", "some/m"),
        *("correlation", "population", 0.5, None, 0.4, 0.6, 5.0),
    )
    assert "beyond" not in "".join(drawn(query_table([row]), 100))
    lines = [
        " ".join(line.split()) for line in drawn(query_table([row, replace(row, beyond_words=0.3)]), 100)
    ]
    assert "0:1 0.50 0.40 to 0.60 - rivers pairs, m" in lines
    assert "0:1 0.50 0.40 to 0.60 0.30 rivers pairs, m" in lines
    assert any(line.startswith("score: population score; beyond:") for line in lines)


def test_a_run_in_numbers_fits_a_terminal_of_80_columns():
    summary = ScoreSummary(
        **{"layer": 31, "explainer": "excerpts", "model": "excerpts", "side": "positive"},
        **{"scorer": "lexical", "scorer_model": "some/m", "metric": "correlation", "n_scored": 14_000},
        **{"undefined": {"few_records": 300, "llm_error": 20, "dead": 3, "parse_error": 1}},
        **{"mean": 0.123, "ci_low": 0.1, "ci_high": 0.146, "n_compared": 14_000, "n_above_control": 12_000},
    )
    lines = drawn(summaries_table(replace(RUN, n_sampled=40), [summary]), 80)
    assert max(map(len, lines)) <= 80
    words = " ".join(" ".join(lines).split())
    for part in (
        "324: 300",
        "requests",
        "14,000",
        "0.12",
        "86%",
        "run 1: population score by lexical, some/m",
    ):
        assert part in words, words
    assert "answer" not in words  # three reasons at most


def test_a_session_is_told_by_names_without_folders_and_file_endings():
    costs = dict.fromkeys(("prompt_tokens", "completion_tokens", "scorer_prompt_tokens", "scored_tokens"), 0)
    about = {"started_at": "", "seconds": 60.0, "n_neurons": 3, "n_failed": 0, "cached_tokens": None} | costs
    by_file = {"model": "/x/m-Q4_1.gguf", "scorer": "lexical", "scorer_model": "/x/s"}
    sessions = [
        Session(explainer="pairs", **by_file, **about),
        Session(explainer="tokens", model=None, scorer="lexical", scorer_model="s", **about),
        Session(explainer=None, model=None, scorer="digits", scorer_model="s", **about),
        Session(explainer="pairs", model="m", scorer=None, scorer_model=None, **about),
    ]
    assert [line.split(":")[0] for line in session_lines(RUN, sessions)] == [
        "run 1, explained by pairs, m, scored by lexical, s",
        "run 1, explained by tokens, scored by lexical, s",
        "run 1, scored by digits, s",
        "run 1, explained by pairs, m",
    ]
