"""What verify finds in the records of a layer: nothing in those drawn by the definitions, and each change.

The records are those of tests/collecting/draws.py, on a text of a few documents.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, SampleArrays
from neuroexplain.evidence import Segment
from neuroexplain.runs import Run
from neuroexplain.scoring import record_faults
from neuroexplain.scoring.record_faults import (
    OF_RANDOM,
    OF_SAMPLED,
    _share,
    exact_uniform,
    find_record_faults,
    find_segment_faults,
)
from neuroexplain.stable_hash import stable_hash
from tests.collecting.draws import (
    RANDOM_SHARES,
    SAMPLED_SHARES,
    SPLITS,
    counts,
    draw,
    drawn_at_random,
    size,
    split_of,
    splits_of_documents,
)

LENGTHS = (1700, 40, 300, 5, 1100, *[90] * 20, 128, 900, 1300, 2000)  # tokens
BEGINS = np.cumsum((0, *LENGTHS[:-1]))  # number 0 is the last document
N = sum(LENGTHS) // 128
SILENT, WEAK, D = 2, 3, 5  # units; the weak one fires little, and in two segments of each split at most
LAYER, N_RANDOM, N_SAMPLED, TOP_K, BARRED = 7, 9, 16, 6, 5


def document_of(token):
    """(number, first token) of a token's document."""
    place = int(np.searchsorted(BEGINS, token, "right")) - 1
    return len(BEGINS) - 1 - place, int(BEGINS[place])


def run_of(seed, splits=(), barred=()):
    return Run(
        1, "finished", "s", None, "float32", "act", (LAYER,), 8, TOP_K, N_RANDOM, seed, "0" * 64,
        {"sign": "both"}, N, len(LENGTHS), sum(LENGTHS), "", None, split_rule="passages",
        n_sampled=N_SAMPLED, barred_ids=barred, split_segments={x: splits.count(x) for x in SPLITS},
    )  # fmt: skip


class Collected:
    """A text with the records of its units, as the definitions have them."""

    def __init__(self, seed, *, barred=False, is_known=True):
        generator = np.random.default_rng(seed)
        self.seed, self.is_known = seed, is_known
        self.ids = generator.integers(0, 20, (N, 128)).astype(np.uint32)
        acts = generator.normal(size=(N, 128, D)).astype(np.float32) * generator.pareto(1.5, (N, 1, D))
        acts[:, :, SILENT] = 0.0
        self.splits = splits_of_documents(LENGTHS, seed)
        if not is_known:
            self.splits = [split_of(128 * n // 1024, seed) for n in range(N)]
        weak = [n for split in SPLITS for n in [n for n in range(N) if self.splits[n] == split][:2]]
        acts[:, :, WEAK] *= 0.0
        acts[weak, 64:, WEAK] = generator.choice([-0.01, 0.01], (len(weak), 64))
        self.acts = acts.astype(np.float32)
        self.counting = self.ids[:, 64:] != BARRED if barred else np.ones((N, 64), bool)
        self.segments = {n: Segment(n, self.ids[n], self.splits[n]) for n in range(N)}
        self.run = run_of(seed, self.splits, (BARRED, 1000) if barred else ())
        self.layer = CollectedLayer(LAYER, self.exemplars(), None, None, self.samples())

    @cache  # noqa: B019  (a test's few)
    def sizes(self, side, unit):
        sign = 1 if side == "positive" else -1
        return {
            n: float(size(self.acts[n, 64:, unit], self.counting[n], n, sign, self.seed)) for n in range(N)
        }

    def sample(self, side, split):
        n = counts(N_SAMPLED, SAMPLED_SHARES)[split]
        return [
            draw(self.sizes(side, unit), dict(enumerate(self.splits)), split, n, self.seed)
            for unit in range(D)
        ]

    def samples(self):
        samples = {}
        for side in ("positive", "negative"):
            for split, n in counts(N_SAMPLED, SAMPLED_SHARES).items():
                drawn = self.sample(side, split)
                places = [[(segment, 64, None) for segment, _ in own] for own, _ in drawn]
                sizes = np.zeros((D, n), np.float32)
                for unit, (own, _) in enumerate(drawn):
                    sizes[unit, : len(own)] = [value for _, value in own]
                records = self.records(places, n, side)
                samples[side, split] = SampleArrays(records, sizes, np.array([t for _, t in drawn]))
        return samples

    def exemplars(self):
        random = drawn_at_random(range(N), self.splits, N_RANDOM, self.seed)
        tops, bottoms = [], []
        for unit in range(D):
            for sign, places in ((1, tops), (-1, bottoms)):
                at = 32 + np.argmax(sign * self.acts[:, 32:97, unit], axis=1)
                strengths = sign * self.acts[np.arange(N), at, unit]
                order = np.argsort(-strengths, kind="stable")[:TOP_K].tolist()
                places.append([(n, int(at[n]) - 32, 32) for n in order])
        return {
            "top": self.records(tops, TOP_K, "positive"),
            "bottom": self.records(bottoms, TOP_K, "negative"),
            "random": self.records([[(n, 64, None) for n in random]] * D, N_RANDOM, "positive"),
        }

    def records(self, places, k, side):
        """Arrays of the records (segment, start, place of the peak or None) of each unit; k at most."""
        integers = np.zeros((4, D, k), np.int64)
        integers[2] = -1
        peaks, windows = np.zeros((D, k), np.float32), np.zeros((D, k, 64), np.float32)
        for unit, own in enumerate(places):
            for rank, (segment, start, peak) in enumerate(own):
                window = self.acts[segment, start : start + 64, unit]
                place = peak if peak is not None else (window if side == "positive" else -window).argmax()
                begin = 128 * segment + start
                document, first = document_of(begin + int(place))
                integers[:, unit, rank] = segment, start, document, begin - first
                if not self.is_known:
                    integers[2:, unit, rank] = -1, 0
                peaks[unit, rank], windows[unit, rank] = window[place], window
        return ExemplarArrays(
            np.array([len(own) for own in places]), integers[0].astype(np.uint32),
            integers[1].astype(np.uint8), integers[2].astype(np.int32), integers[3].astype(np.int32),
            peaks, windows,
        )  # fmt: skip

    def faults(self, text="", layer=None, segments=None):
        """The lines in which the text stands."""
        lines = find_record_faults(self.run, layer or self.layer, segments or self.segments)
        return [line for line in lines if text in line]

    def with_kind(self, kind, arrays):
        return replace(self.layer, exemplars=dict(self.layer.exemplars) | {kind: arrays})

    def with_sample(self, group, sample):
        return replace(self.layer, samples=dict(self.layer.samples) | {group: sample})


def changed(arrays, name, places, values):
    """A copy whose array of this name has other values at these places."""
    array = getattr(arrays, name).copy()
    array[places] = values
    return replace(arrays, **{name: array})


@pytest.fixture(scope="module")
def collected():
    return Collected(0)


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("options", [{}, {"barred": True}, {"is_known": False}], ids=str)
def test_records_as_they_should_be_drawn_have_no_fault(seed, options):
    made = Collected(seed, **options)
    assert made.faults() == []
    n_segments = {n: split for n, split in enumerate(made.splits) if split is not None}
    random = drawn_at_random(range(N), made.splits, N_RANDOM, seed)
    assert list(find_segment_faults(made.run, n_segments, set(random))) == []


def test_the_records_have_what_the_rules_tell_apart(collected):
    """So that the test above says something."""
    assert set(collected.splits) == {*SPLITS, None}
    samples = collected.layer.samples.values()
    assert any((s.thresholds > 0).any() and (s.thresholds == 0).any() for s in samples)
    assert all(s.records.counts[SILENT] == 0 and s.records.counts[WEAK] <= 2 for s in samples)
    tops = collected.layer.exemplars["top"]
    assert None in {collected.splits[n] for n in tops.segments.ravel().tolist()}
    assert 0 in tops.documents
    assert any((s.records.token_offsets < 0).any() for s in samples)


def test_a_layer_without_random_records_or_without_any_has_no_fault(collected):
    tops = {"top": collected.layer.exemplars["top"]}
    assert collected.faults(layer=replace(collected.layer, exemplars=tops)) == []
    assert collected.faults(layer=replace(collected.layer, exemplars={}, samples={})) == []


def with_size(collected, group, unit, rank, factor):
    sample = collected.layer.samples[group]
    sizes = sample.sizes.copy()
    sizes[unit, rank] *= np.float32(factor)
    return collected.with_sample(group, replace(sample, sizes=sizes))


@pytest.mark.parametrize("unit", [0, 4])
def test_a_size_that_the_activations_do_not_give_is_a_fault(collected, unit):
    group = ("negative", "report")
    true_size = collected.layer.samples[group].sizes[unit, 1]
    layer = with_size(collected, group, unit, 1, 1.001)
    stored = layer.samples[group].sizes[unit, 1]
    assert collected.faults("size ", layer) == [
        f"7:{unit}: size 1 of its sampled records of report, negative is {stored}, "
        f"and its activations give {true_size}"
    ]


@pytest.mark.parametrize("unit", [0, WEAK])
def test_sampled_records_in_another_order_are_a_fault(collected, unit):
    """Also where all ratios are far below 1."""
    group = next(key for key, own in collected.layer.samples.items() if own.records.counts[unit] >= 2)
    sample = collected.layer.samples[group]
    records, swapped = sample.records, [1, 0]
    for name in ("segments", "documents", "token_offsets", "peaks", "activations"):
        records = changed(records, name, (unit, [0, 1]), getattr(records, name)[unit, swapped])
    sample = changed(replace(sample, records=records), "sizes", (unit, [0, 1]), sample.sizes[unit, swapped])
    assert collected.faults(layer=collected.with_sample(group, sample)) == [
        f"7:{unit}: its sampled records of {group[1]}, {group[0]} are not in the order of size / uniform"
    ]


def ratios_of(collected, group, unit):
    sample = collected.layer.samples[group]
    n = sample.records.counts[unit]
    numbers = sample.records.segments[unit, :n].tolist()
    hashes = np.array([(stable_hash(collected.seed, "sampled", s) + 1) / 2**64 for s in numbers])
    return sample.sizes[unit, :n] / hashes


def test_a_threshold_is_at_most_the_last_ratio(collected):
    """It may equal it, since segments of equal ratios are told apart by number."""
    group = ("positive", "report")
    last = ratios_of(collected, group, 1)[-1]
    sample = collected.layer.samples[group]
    for threshold, expected in (
        (last, []),
        (last * (1 + 1e-12), [f"7:1: the threshold {last * (1 + 1e-12)}"]),
    ):
        layer = collected.with_sample(group, changed(sample, "thresholds", 1, threshold))
        lines = collected.faults(layer=layer)
        assert [line.split(" of its sampled records of report, positive")[0] for line in lines] == expected
        assert all(line.endswith(f"is above {last}") for line in lines)


def test_a_sample_with_a_threshold_is_full(collected):
    group = ("positive", "select")
    sample = changed(collected.layer.samples[group], "thresholds", SILENT, 1e-6)
    n = counts(N_SAMPLED, SAMPLED_SHARES)["select"]
    assert collected.faults(layer=collected.with_sample(group, sample)) == [
        f"7:{SILENT}: its sampled records of select, positive are 0, not {n}, in spite of a threshold"
    ]


def test_a_sample_has_no_more_records_than_are_drawn_and_three_lines_say_it(collected):
    run = replace(collected.run, n_sampled=5)  # one of `explain`
    lines = list(find_record_faults(run, collected.layer, collected.segments))
    over = [line for line in lines if "more than" in line and "explain, positive" in line]
    sizes = collected.layer.samples["positive", "explain"].records.counts
    assert (sizes > 2).sum() > 2
    assert (
        over
        == [
            f"7:{unit}: its sampled records of explain, positive are {sizes[unit]}, more than 2"
            for unit in range(D)
            if sizes[unit] > 2
        ][:3]
    )


def test_sampled_records_of_another_split_are_a_fault(collected):
    group = ("positive", "report")
    records = collected.layer.samples[group].records
    segment = int(records.segments[4, 0])
    units = [unit for unit in range(D) if segment in records.segments[unit, : records.counts[unit]]]
    segments = collected.segments | {segment: replace(collected.segments[segment], split="select")}
    assert collected.faults("another split", segments=segments) == [
        line
        for side in ("positive", "negative")
        for line in [
            f"7:{unit}: its sampled records of report, {side} are of a segment of another split"
            for unit in range(D)
            for own in [collected.layer.samples[side, "report"].records]
            if segment in own.segments[unit, : own.counts[unit]]
        ][:3]
    ]
    assert units


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_random_record_above_the_threshold_must_be_in_the_sample(collected, side, share):
    """Against a loop: thresholds are lowered, so that random records outside are above them."""
    lowered = {
        (own, split): replace(sample, thresholds=sample.thresholds * (share if own == side else 1.0))
        for (own, split), sample in collected.layer.samples.items()
    }
    expected = []
    for split in SPLITS:
        sample, lines = lowered[side, split], []
        random = drawn_at_random(range(N), collected.splits, N_RANDOM, collected.seed)
        for unit in range(D):
            sizes = collected.sizes(side, unit)
            inside = sample.records.segments[unit, : sample.records.counts[unit]]
            for segment in (n for n in random if collected.splits[n] == split and n not in inside):
                u = (stable_hash(collected.seed, "sampled", segment) + 1) / 2**64
                if sizes[segment] / u > sample.thresholds[unit]:
                    lines.append(
                        f"7:{unit}: segment {segment} is random and above the threshold of the sampled "
                        f"records of {split}, {side}, and is none of them"
                    )
        expected += lines[:3]
    assert collected.faults(layer=replace(collected.layer, samples=lowered)) == expected
    assert bool(expected) == (share < 1)


def test_random_records_are_of_the_same_segments_in_every_unit(collected):
    random = collected.layer.exemplars["random"]
    other = changed(random, "segments", (1, [0, 1]), random.segments[1, [1, 0]])
    for unit in (1, 2, 3, 4):
        layer = collected.with_kind("random", other)
        lines = [
            f"7:{n}: its random records are of other segments than those of 7:0" for n in range(1, unit + 1)
        ]
        assert collected.faults("random records are", layer) == lines[:3]
        if unit < 4:
            places = (unit + 1, [0, 1])
            other = changed(other, "segments", places, random.segments[0, [1, 0]])


def test_random_records_are_in_the_order_of_splits_and_hashes(collected):
    """In every unit, so that no unit differs from another; the first unit tells how many there are."""
    random = collected.layer.exemplars["random"]
    n = int(random.counts[0])
    for places in ([0, 1], [n - 2, n - 1], [0, n - 1]):
        other = changed(random, "segments", (slice(None), places), random.segments[:, places[::-1]])
        other = replace(other, counts=np.array([n, 1, n, n, n]))
        assert collected.faults("order", collected.with_kind("random", other)) == [
            "layer 7: random records are not in the order of splits and hashes"
        ]


def test_a_random_record_of_a_segment_without_a_split_is_a_fault(collected):
    segment = int(collected.layer.exemplars["random"].segments[0, 3])
    segments = collected.segments | {segment: replace(collected.segments[segment], split=None)}
    assert collected.faults("layer 7", segments=segments) == [
        "layer 7: random record 3 is of a segment without a split"
    ]


def test_a_document_that_begins_elsewhere_by_one_record_is_a_fault(collected):
    """By most records it begins where it does; number 0 is a document like others."""
    tops = collected.layer.exemplars["top"]
    for document in (0, int(np.unique(tops.documents)[-2])):
        unit, rank = np.argwhere(tops.documents == document)[-1].tolist()
        layer = collected.with_kind(
            "top", changed(tops, "token_offsets", (unit, rank), tops.token_offsets[unit, rank] - 3)
        )
        begin = int(BEGINS[::-1][document])
        assert collected.faults("begins at", layer) == [
            f"7:{unit}, top record {rank}: document {document} begins at {begin + 3} by it, "
            f"and at {begin} by others"
        ]


def test_of_torn_documents_three_are_named_with_three_records_each(collected):
    tops, lines = collected.layer.exemplars["top"], {}
    offsets = tops.token_offsets.copy()
    for number, (unit, rank) in enumerate(np.ndindex(*tops.segments.shape), 1):
        offsets[unit, rank] -= number  # each another beginning
        document, first = int(tops.documents[unit, rank]), 128 * int(tops.segments[unit, rank])
        begin = first + int(tops.starts[unit, rank]) - int(offsets[unit, rank])
        lines.setdefault(document, []).append((begin, f"7:{unit}, top record {rank}: document {document}"))
    layer = collected.with_kind("top", replace(tops, token_offsets=offsets))
    heads = [line.split(" begins")[0] for line in collected.faults("begins at", layer)]
    assert len(lines) > 3
    assert max(map(len, lines.values())) > 3
    assert heads == [head for document in sorted(lines)[:3] for _, head in sorted(lines[document])[:3]]


# One random record of a segment, in a document of two pieces: they begin at 100 and at 8,292.
SEED = next(n for n in range(99) if split_of(0, n) == "explain" and split_of(8, n) == "report")


def faults_of_record(split, begin, peak, kind="random", document=0):
    """Of a record that begins at this token, in a segment of this split."""
    window = np.zeros(64, np.float32)
    window[peak] = 2.0
    segment = begin // 128
    one = ExemplarArrays(
        np.array([1]), np.array([[segment]], np.uint32), np.array([[begin % 128]], np.uint8),
        np.array([[document]], np.int32), np.array([[begin - 100]], np.int32), np.array([[2.0]], np.float32),
        window[None, None],
    )  # fmt: skip
    run = run_of(SEED)
    segments = {segment: Segment(segment, np.zeros(128, np.uint32), split)}
    lines = find_record_faults(run, CollectedLayer(LAYER, {kind: one}, None, None), segments)
    return [line for line in lines if "passage" in line]


@pytest.mark.parametrize(("kind", "peak"), [("top", 32), ("bottom", 32), ("random", 5), ("random", 63)])
def test_a_record_s_tokens_up_to_its_peak_must_be_of_its_segment_s_split(kind, peak):
    """Beyond its peak another document may begin, of which its offset says nothing."""
    assert faults_of_record("explain", 8291 - peak, peak, kind) == []
    where, both = f"7:0, {kind} record 0: its segment", "and its passage explain and report"
    begin = 8292 - peak
    assert faults_of_record("explain", begin, peak, kind) == [f"{where} {begin // 128} is explain, {both}"]
    assert faults_of_record("report", 8291, peak, kind) == [f"{where} 64 is report, {both}"]
    assert faults_of_record("report", 8292, peak, kind) == []
    assert faults_of_record("explain", 8292, peak, kind) == [f"{where} 64 is explain, and its passage report"]
    assert faults_of_record(None, 8292, peak, kind) == []


def test_tokens_before_a_record_s_document_are_not_those_of_its_passage():
    assert faults_of_record("explain", 90, 12) == []  # ten tokens of the document before
    unknown = faults_of_record(split_of(8192 // 1024, SEED), 8191, 32, document=-1)
    assert len(unknown) == (split_of(7, SEED) != split_of(8, SEED))


def test_random_records_are_the_smallest_hashes_among_the_stored_segments(collected):
    splits = {n: split for n, split in enumerate(collected.splits) if split is not None}
    random = drawn_at_random(range(N), collected.splits, N_RANDOM, collected.seed)

    def faults(splits=splits, drawn=random, run=collected.run):
        return list(find_segment_faults(run, splits, set(drawn)))

    report = [n for n in random if splits[n] == "report"]
    n_report = collected.splits.count("report")
    few = f"report has 4 random records of {n_report} segments, not 5"
    assert faults(drawn=[n for n in random if n != report[-1]]) == [few]
    first = f"segment {report[0]} (report) has a smaller hash than a random record, and is none"
    assert faults(drawn=[n for n in random if n != report[0]]) == [few, first]
    assert faults(drawn=[n for n in random if n not in report]) == [few.replace("4", "0", 1)]
    others = [n for n in splits if splits[n] == "report" and n not in report]
    by_hash = sorted(others, key=lambda n: stable_hash(collected.seed, "random", n))
    lines = faults(drawn=[n for n in random if n not in report] + by_hash[-5:])
    missed = [n for n in splits if n in {*report, *by_hash[:-5]}]
    assert lines == [
        f"segment {n} (report) has a smaller hash than a random record, and is none" for n in missed[:3]
    ]
    visited = dict(collected.run.split_segments)
    run = replace(collected.run, split_segments=visited | {"report": n_report - 1})
    assert faults(run=run) == [
        f"{n_report} segments are report, more than the {n_report - 1} that were visited"
    ]
    only = {n: split for n, split in splits.items() if split != "select"}
    run = replace(collected.run, split_segments={k: n for k, n in visited.items() if k != "select"})
    assert faults(only, [n for n in random if n in only], run) == []


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 7, 9, 10, 32, 40, 64])
def test_verify_shares_records_out_by_the_same_rule(n):
    for shares, expected in ((OF_RANDOM, RANDOM_SHARES), (OF_SAMPLED, SAMPLED_SHARES)):
        assert {split: _share(n, shares, split) for split in SPLITS} == counts(n, expected)


def test_verify_has_the_same_uniforms_to_the_last_bit(monkeypatch):
    """Among small hashes each step shows."""
    for value in (0, 1, 2, 1 << 40, (1 << 64) - 1):
        monkeypatch.setattr(record_faults, "stable_hash", lambda *parts, value=value: value)
        assert exact_uniform(0, 5) == (value + 1) / 2**64
