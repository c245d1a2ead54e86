"""The whole of collecting against brute force: every activation kept, sorted in plain Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuroexplain.collecting.run import find_finished_run, run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.store.units import load_unit
from neuroexplain.units import UnitId
from tests.collecting.draws import (
    SAMPLED_SHARES,
    SPLITS,
    counts,
    draw,
    drawn_at_random,
    size,
    splits_of_documents,
)
from tests.fakes import tiny_subject, words

K, N_SAMPLED, SEED = 4, 10, 19  # the seed: the text has all splits


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Some 20 segments; two documents repeat, so records with the same 64 tokens are common."""
    file = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    texts = (
        [words(n, seed=n) for n in (3, 150, 400, 90, 700)]
        + [words(300, seed=9)] * 3
        + ["", words(40, seed=2)]
    )
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def collect(db: Path, folder: Path, corpus: Path, **options):
    store = open_store(str(db), create=True)
    config = CollectConfig(
        **{"model": str(folder), "dataset": (str(corpus),), "top_k": K, "random_records": 6} | options
    )
    list(run_collect(store, config))
    return store, config


def all_activations(folder: Path, corpus: Path, activation: str, dtype: str):
    """Every segment's ids, its tokens' (document, offset), and every layer's activations, the obvious way."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    stream = []
    for document, line in enumerate(corpus.read_text().splitlines()):
        ids = [*tokenizer(json.loads(line)["text"]).input_ids, tokenizer.eos_token_id]
        stream += [(token, document, offset) for offset, token in enumerate(ids)]
    cells = [stream[i : i + 128] for i in range(0, len(stream) - 127, 128)]
    ids = torch.tensor([[token for token, _, _ in cell] for cell in cells])
    acts: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for layer in acts:
        if model.config.model_type == "llama":
            mlp = model.model.layers[layer].mlp
            site, down = mlp.act_fn, mlp.down_proj
        else:
            mlp = model.transformer.h[layer].mlp
            site, down = mlp.act, mlp.c_proj
        keep = acts[layer].append
        if activation == "act":
            site.register_forward_hook(lambda m, a, out, keep=keep: keep(out.detach()))
        else:
            down.register_forward_hook(lambda m, a, out, keep=keep: keep(a[0].detach()))
    for segment in ids.split(1):
        model(segment)
    return cells, {layer: torch.cat(parts).float().numpy() for layer, parts in acts.items()}


def brute_force(cells, acts, positions, sign=1, barred=()):
    """(value, segment, start) of one neuron's top K in order, from its activations [segments, 128]."""
    candidates = []
    for segment, row in enumerate(acts):
        allowed = [p for p in range(*positions) if cells[segment][p][0] not in barred]
        if allowed:
            best = max(allowed, key=lambda p: (sign * row[p], -p))
            candidates.append((sign * row[best], segment, best - 32))
    kept, seen = [], set()
    for value, segment, start in sorted(candidates, key=lambda c: (-c[0], c[1])):
        ids = tuple(token for token, _, _ in cells[segment][start : start + 64])
        if ids not in seen:
            seen.add(ids)
            kept.append((sign * value, segment, start))
    return kept[:K]


def assert_samples(unit, acts, cells, barred):
    """Both sides' sampled records of a unit, stored, are those of all its activations [segments, 128]."""
    documents = [document for cell in cells for _, document, _ in cell]
    ends = [documents.count(document) for document in range(documents[-1] + 1)]
    splits = splits_of_documents(ends, seed=SEED)
    records = iter([x for x in unit.exemplars if x.kind == "sampled"])
    rank = 0
    for side, sign in (("positive", 1), ("negative", -1)):
        sizes = {}
        for segment, cell in enumerate(cells):
            counting = [token not in barred for token, _, _ in cell[64:]]
            sizes[segment] = size(acts[segment, 64:], counting, segment, sign, SEED)
        for split, n in counts(N_SAMPLED, SAMPLED_SHARES).items():
            expected, threshold = draw(sizes, splits, split, n, SEED)
            assert unit.thresholds[side, split] == threshold
            for segment, own in expected:
                x = next(records)
                assert (x.rank, x.side, x.split, x.segment, x.size) == (rank, side, split, segment, own)
                assert (x.start, x.token_ids.tolist()) == (64, [token for token, _, _ in cells[segment][64:]])
                np.testing.assert_array_equal(x.activations, acts[segment, 64:])
                assert x.peak_index == (sign * acts[segment, 64:]).argmax()
                assert x.activation == acts[segment, 64 + x.peak_index]
                _, document, offset = cells[segment][64 + x.peak_index]
                assert (x.document, x.token_offset) == (document, offset - x.peak_index)
                rank += 1
    assert next(records, None) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # in bfloat16 ties are common
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("activation", ["act", "post"])
@pytest.mark.parametrize(
    ("positions", "bos", "specials"),
    [((64, 97), True, True), ((32, 97), False, True), ((96, 97), True, False)],
)
def test_exemplars_equal_brute_force(tmp_path, corpus, family, activation, positions, bos, specials, dtype):
    folder = tiny_subject(tmp_path / "model", family, bos=bos)
    store, _ = collect(
        tmp_path / "x.db",
        folder,
        corpus,
        activation=activation,
        sign="both",
        positions=positions,
        special_peaks=specials,
        batch_size=1,
        dtype=dtype,
        sampled_records=N_SAMPLED,
        seed=SEED,
    )
    run = load_run(store)
    cells, acts = all_activations(folder, corpus, activation, dtype)
    barred = () if specials else set(AutoTokenizer.from_pretrained(folder).all_special_ids)
    assert run.n_segments == len(cells)
    for layer in (0, 1):
        for n in range(24):
            neuron = load_unit(store, run, UnitId(layer, n))
            for kind, sign in (("top", 1), ("bottom", -1)):
                expected = brute_force(cells, acts[layer][:, :, n], positions, sign, barred)
                records = [x for x in neuron.exemplars if x.kind == kind]
                assert [(x.activation, x.segment, x.start) for x in records] == expected
                for x in records:
                    cell = cells[x.segment]
                    assert x.token_ids.tolist() == [token for token, _, _ in cell[x.start : x.start + 64]]
                    np.testing.assert_array_equal(
                        x.activations, acts[layer][x.segment, x.start : x.start + 64, n]
                    )
                    _, document, offset = cell[x.start + 32]
                    assert (x.document, x.token_offset) == (document, offset - 32)
            assert_samples(neuron, acts[layer][:, :, n], cells, barred)
            tail = acts[layer][:, 64:, n].astype(np.float64)
            s = neuron.stats
            np.testing.assert_allclose(
                [s.mean, s.std, s.share_positive], [tail.mean(), tail.std(), (tail > 0).mean()], rtol=1e-5
            )
            assert (s.min, s.max) == (tail.min(), tail.max())


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_batch_size_and_order_of_visit_do_not_change_the_content(tmp_path, corpus, batch_size):
    folder = tiny_subject(tmp_path / "model")
    sequential, _ = collect(
        tmp_path / "1.db", folder, corpus, batch_size=3, sampling="sequential", dtype="float32"
    )
    shuffled, _ = collect(tmp_path / "2.db", folder, corpus, batch_size=batch_size, dtype="float32")
    for layer in (0, 1):
        for n in range(24):
            a, b = (load_unit(s, load_run(s), UnitId(layer, n)) for s in (sequential, shuffled))
            for x, y in zip(a.exemplars, b.exemplars, strict=True):
                assert (x.kind, x.rank, x.segment, x.start, x.document) == (
                    y.kind,
                    y.rank,
                    y.segment,
                    y.start,
                    y.document,
                )
                np.testing.assert_allclose(x.activations, y.activations, rtol=1e-4, atol=1e-5)


def test_random_records_are_each_split_s_segments_with_the_smallest_hashes(tmp_path, corpus):
    folder = tiny_subject(tmp_path / "model")
    store, config = collect(tmp_path / "x.db", folder, corpus, segments=12, seed=SEED)
    run = load_run(store)
    records = [x for x in load_unit(store, run, UnitId(1, 5)).exemplars if x.kind == "random"]
    lengths = document_lengths(store, corpus)
    splits = splits_of_documents(lengths, SEED)
    visited = np.random.default_rng(SEED).permutation(sum(lengths) // 128)[:12].tolist()
    assert [x.segment for x in records] == drawn_at_random(visited, splits, 6, SEED)
    assert [x.split for x in records] == [splits[x.segment] for x in records]
    assert run.split_segments == {split: [splits[s] for s in visited].count(split) for split in SPLITS}
    assert min(run.split_segments.values()) > 0
    assert find_finished_run(store, config) is not None


def document_lengths(store, corpus):
    tokenizer = AutoTokenizer.from_pretrained(load_run(store).subject)
    lines = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    return [len(tokenizer(text).input_ids) + 1 for text in lines]


def test_asking_for_more_segments_than_there_are_takes_all_and_says_so(tmp_path, corpus):
    store = open_store(str(tmp_path / "x.db"), create=True)
    config = CollectConfig(model=str(tiny_subject(tmp_path / "m")), dataset=(str(corpus),), segments=10_000)
    notes = [event.note for event in run_collect(store, config) if event.note]
    assert any("not 10,000: all are read" in note for note in notes)


def test_a_layer_that_is_not_there_leaves_nothing_behind(tmp_path, corpus):
    with pytest.raises(NeuroexplainError, match="it has 2 layers"):
        collect(tmp_path / "x.db", tiny_subject(tmp_path / "m"), corpus, layers=(7,))
    assert list_runs(open_store(str(tmp_path / "x.db"))) == []
