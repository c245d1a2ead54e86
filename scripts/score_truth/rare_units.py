"""Latents that fire in one segment of 100, 1,000 and 10,000, and explanations that fire elsewhere as well.

Text, latents and explanations are made by rule, so what is true of them is known: an explanation fires
wherever its latent does, with values of its own, and in a chosen share of the other segments. The latents are
collected and stored as those of a dictionary are, and scored from the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.evidence import PredictedRecord, Prediction, Provenance, Score, Status, VocabularyEntry
from neuroexplain.scorers.base import SCORERS, compute_scores, trials_read
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.population import weighted_correlation
from neuroexplain.scoring.side_evidence import SideEvidence, background_draw_of
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.units import CROP_LENGTH, RANDOM_START, RECORD_LENGTH, SEGMENT_LENGTH, Source, UnitId
from score_truth.corpus import REPORT
from score_truth.made_units import AT_ONCE, store_run
from score_truth.summary import Estimate, summary

RARITIES = (100, 1_000, 10_000)  # the latent fires in one segment of so many
FALSE_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # shares of the other segments in which an explanation fires
GUESSES = {
    "good": (0.9, 0.02),
    "poor": (0.3, 0.1),
}  # the share of segments that a guess marks, rightly and wrongly
N_BACKGROUND, VOCABULARY = 1_024, 4_096
LEAST_RATE = 0.01  # from which on the error is bounded: 1,024 records see one segment of a thousand


@dataclass(frozen=True)
class Fires:
    """Where a latent or an explanation fires, and how strongly: one run of tokens in each of its segments."""

    segments: NDArray[np.int64]  # ascending
    starts: NDArray[np.int64]  # in tokens 64..127
    lengths: NDArray[np.int64]
    values: NDArray[np.float32]

    def fill(self, acts: NDArray[np.float32], first: int) -> None:
        """Write the values into the activations, [n, 64], of the segments from `first` on."""
        begin, end = np.searchsorted(self.segments, [first, first + len(acts)])
        for place in range(begin, end):
            start, length = self.starts[place], self.lengths[place]
            acts[self.segments[place] - first, start : start + length] = self.values[place]

    def of_segment(self, segment: int) -> NDArray[np.float32]:
        """The values at tokens 64..127 of a segment."""
        acts = np.zeros((1, RECORD_LENGTH), np.float32)
        self.fill(acts, segment)
        return acts[0]


def fires_in(segments: NDArray[np.int64], draw: np.random.Generator) -> Fires:
    """One run of one to three tokens in each of these segments, with values of their own."""
    n = len(segments)
    lengths = draw.integers(1, 4, n)
    starts = draw.integers(0, RECORD_LENGTH - 3, n)
    return Fires(segments, starts, lengths, draw.lognormal(0.0, 0.5, n).astype(np.float32))


def explanation_of(
    latent: Fires, false_rate: float, n_segments: int, is_even: bool, draw: np.random.Generator
) -> Fires:
    """Fires wherever the latent does, in the same tokens, and in a share of the other segments.

    is_even: with the same value everywhere; else with values that vary like a latent's, apart from its own.
    """
    others = np.setdiff1d(np.flatnonzero(draw.random(n_segments) < false_rate), latent.segments)
    false = fires_in(others, draw)
    values = draw.lognormal(0.0, 0.5, len(latent.segments)).astype(np.float32)
    joined = [
        np.concatenate(pair)
        for pair in (
            (latent.segments, false.segments),
            (latent.starts, false.starts),
            (latent.lengths, false.lengths),
            (values, false.values),
        )
    ]
    order = joined[0].argsort()
    fires = Fires(*(array[order] for array in joined))
    return replace(fires, values=np.ones_like(fires.values)) if is_even else fires


def evaluate_rare(n_segments: int, n_units: int, seed: int, folder: Path) -> dict[str, Any]:
    """Bias, error and coverage by rarity, false-alarm rate and what is read."""
    draw = np.random.default_rng(seed)
    stream = make_stream(n_segments, draw)
    latents = [
        fires_in(np.flatnonzero(draw.random(n_segments) < 1 / rarity), draw)
        for rarity in RARITIES
        for _ in range(-(-n_units // len(RARITIES)))
    ]
    rarities = np.repeat(RARITIES, len(latents) // len(RARITIES)).tolist()
    estimates: dict[str, dict[str, list[Estimate]]] = {}
    undefined: dict[str, int] = {}
    with open_store(str(folder / "rare.db"), create=True) as store:
        fields = {"top_k": 8, "n_random": 32, "n_sampled": 40, "n_background": N_BACKGROUND, "seed": seed}
        source = Source(0, "sae", None, "output", len(latents), "float32", encoder="made by rule")
        vocabulary = [VocabularyEntry(n, f" w{n}", False) for n in range(VOCABULARY)]
        order = np.arange(n_segments)
        store_run(store, fields, source, vocabulary, "0" * 64, stream, order, batches_of(latents, n_segments))
        run = load_run(store)
        is_report = stream.splits(order, seed) == REPORT
        for number, (latent, rarity) in enumerate(zip(latents, rarities, strict=True)):
            unit, _ = load_unit_to_score(store, run, UnitId(0, number))
            evidence = SideEvidence.of(run, unit, "positive")
            for rate in FALSE_RATES:
                is_even = number % 2 == 0
                explanation = explanation_of(latent, rate, n_segments, is_even, draw)
                truth = true_score(latent, explanation, is_report)
                if truth is None:
                    continue
                group = f"one in {rarity:,}, {rate:.1%} false"
                for reading, score in read_each(evidence, explanation, n_segments, draw):
                    if score.value is None:
                        undefined[reading] = undefined.get(reading, 0) + 1
                        continue
                    own = Estimate(group, score.value, score.ci_low, score.ci_high, truth, True)
                    by_group = estimates.setdefault(reading, {})
                    for name in groups_of(group, rate, is_even):
                        by_group.setdefault(name, []).append(own)
    return {
        "segments": n_segments,
        "units": len(latents),
        "undefined": undefined,
        "readings": {reading: summaries_of(own) for reading, own in estimates.items()},
    }


def groups_of(group: str, rate: float, is_even: bool) -> Iterator[str]:
    """The groups that an explanation counts in."""
    yield "all"
    if rate >= LEAST_RATE:
        yield f"{LEAST_RATE:.0%} false and more"
        yield f"{LEAST_RATE:.0%} false and more, {'equal' if is_even else 'varying'} values"
    yield group


def summaries_of(by_group: Mapping[str, list[Estimate]]) -> dict[str, Any]:
    """Of each group bias, error and coverage, the mean of the true scores, and the share with an interval."""
    return {
        group: summary(own)
        | {
            "mean_truth": float(np.mean([e.truth for e in own])),
            "with_interval": float(np.mean([e.low is not None for e in own])),
        }
        for group, own in by_group.items()
    }


def make_stream(n_segments: int, draw: np.random.Generator) -> TokenStream:
    """Documents of 30 to 3,000 random tokens."""
    ids = draw.integers(0, VOCABULARY, n_segments * SEGMENT_LENGTH, dtype=np.uint32)
    lengths = np.exp(draw.uniform(np.log(30), np.log(3_000), len(ids) // 30)).astype(np.int64)
    ends = np.cumsum(lengths)
    return TokenStream.of(np.split(ids, ends[ends < len(ids)]))


def batches_of(latents: list[Fires], n_segments: int) -> Iterator[NDArray[np.float32]]:
    """The latents' activations, [AT_ONCE, 128, width] at a time."""
    for first in range(0, n_segments, AT_ONCE):
        n = min(AT_ONCE, n_segments - first)
        acts = np.zeros((len(latents), n, SEGMENT_LENGTH), np.float32)
        for own, latent in zip(acts, latents, strict=True):
            latent.fill(own[:, RANDOM_START:], first)
        yield np.ascontiguousarray(acts.transpose(1, 2, 0))


def true_score(latent: Fires, explanation: Fires, is_report: NDArray[np.bool_]) -> float | None:
    """The correlation over all tokens 64..127 of `report`; None if the latent is silent there.

    Tokens where neither fires are counted, not made.
    """
    segments = explanation.segments[is_report[explanation.segments]]
    if not is_report[latent.segments].any():
        return None
    pairs = np.array([(explanation.of_segment(s), latent.of_segment(s)) for s in segments.tolist()])
    predicted = pairs[:, 0].reshape(-1).astype(np.float16).astype(np.float64)
    n_silent = int(is_report.sum() - len(segments)) * RECORD_LENGTH
    weights = np.append(np.ones(len(predicted)), n_silent)
    truth = pairs[:, 1].reshape(-1).astype(np.float64)
    return weighted_correlation(np.append(predicted, 0.0), np.append(truth, 0.0), weights)


def read_each(
    evidence: SideEvidence, explanation: Fires, n_segments: int, draw: np.random.Generator
) -> Iterator[tuple[str, Score]]:
    """The population score by each way to read: all of the background, drawn from it by guesses, none."""
    n = len(evidence.background_frame())
    yield f"all: 16 + {n:,}", score_of(evidence, explanation, 16, n, None)
    for name, (right, wrong) in GUESSES.items():
        fires = np.isin(np.arange(n_segments), explanation.segments)
        marked = draw.random(n_segments) < np.where(fires, right, wrong)
        guesses = tuple(float(marked[x.segment]) for x in evidence.guessed_records())
        yield f"drawn by a {name} guess: 8 + 24", score_of(evidence, explanation, 8, 24, guesses)
    yield "no background: 16 + 16", score_of(evidence, explanation, 16, None, None)


def score_of(
    evidence: SideEvidence,
    explanation: Fires,
    n_read: int,
    n_background: int | None,
    guesses: tuple[float, ...] | None,
) -> Score:
    """The score as it is stored."""
    scorer, unit = SCORERS.load("lexical"), evidence.unit.id
    provenance = Provenance("none", None, "rule", None, None)
    prediction = Prediction(
        *(0, unit, "lexical", Status.OK, (), provenance),
        n_read=n_read,
        with_bills=False,
        n_background=n_background,
        guesses=guesses,
    )
    trials = trials_read(scorer, evidence, n_read, False, background_draw_of(prediction))
    records = []
    for trial in (t for t in trials if t.split == "report"):
        values = explanation.of_segment(evidence.by_key[trial.key].segment)
        part = values[trial.first : trial.first + CROP_LENGTH]
        records.append(PredictedRecord(trial.kind, trial.rank, trial.first, part))
    stored = as_stored(replace(prediction, records=tuple(records)))
    return next(s for s in compute_scores(evidence, stored) if s.metric == "correlation")


def as_text(results: Mapping[str, Any]) -> str:
    """The results as a table."""
    lines = [f"{results['segments']:,} segments, {results['units']} latents"]
    for reading, groups in results["readings"].items():
        lines.append(
            f"\n{reading:52} {'truth':>6} {'bias':>7} {'rmse':>6} {'cover':>6} {'has one':>7} {'n':>5}"
        )
        for group, own in groups.items():
            coverage = "-" if own["coverage"] is None else f"{own['coverage']:.3f}"
            figures = f"{own['mean_truth']:6.3f} {own['bias']:+7.3f} {own['rmse']:6.3f} {coverage:>6}"
            lines.append(f"  {group:50} {figures} {own['with_interval']:7.2f} {own['n']:5}")
        if n := results["undefined"].get(reading):
            lines.append(f"  undefined: {n}")
    return "\n".join(lines)
