"""Units made by the rules of the known neurons: collected from a corpus as real ones are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from known_neurons.table import NEURONS
from make_known_neurons import activate
from numpy.typing import NDArray

from neuroexplain.arrays import CollectedLayer
from neuroexplain.collecting.background import BackgroundRecords
from neuroexplain.collecting.records import RandomRecords, sampled_records, top_records
from neuroexplain.collecting.sample import Sample, SampleOffer, fold_sample, segment_sizes
from neuroexplain.collecting.top_k import Offer, TopK, fold_top_k
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.documents import read_documents
from neuroexplain.corpus.reading import prepare_text
from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.corpus.visiting_order import visiting_order
from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.evidence import SPLITS, VocabularyEntry
from neuroexplain.sampling import RANDOM_SHARES, SAMPLED_SHARES, share_out
from neuroexplain.store.engine import Store
from neuroexplain.store.save_collected import (
    create_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.subject.tokenizer import load_tokenizer, tokenizer_sha256, vocabulary_entries
from neuroexplain.units import SEGMENT_LENGTH, Source

AT_ONCE = 64  # segments
DRAWN = {"top_k": 32, "n_random": 32, "n_sampled": 40}  # records, as collecting draws by default


def rule_activations(config: CollectConfig, tokenizer: Any, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each rule's activation of every token of the visited segments, [segments, 128, rules]."""
    n_tokens = (int(order.max()) + 1) * SEGMENT_LENGTH
    values = np.zeros((n_tokens, len(NEURONS)), np.float32)
    place = 0
    for ids, by_rule in _documents(config, tokenizer):
        end = min(place + len(ids), n_tokens)
        values[place:end] = by_rule[: end - place]
        place = end
        if place == n_tokens:
            break
    return values.reshape(-1, SEGMENT_LENGTH, len(NEURONS))[order]


def _documents(config: CollectConfig, tokenizer: Any) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """The token ids of each document as they stand in the stream, and each rule's activations."""
    for text in read_documents(config.dataset, None, config.split, config.text_column, None):
        encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
        offsets = [tuple(pair) for pair in encoded["offset_mapping"]]
        values = np.array([activate(rule, text, offsets) for _, _, rule, _, _ in NEURONS], np.float32).T
        ids = list(encoded["input_ids"])
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
            values = np.concatenate([values, np.zeros((1, len(NEURONS)), np.float32)])
        yield ids, values


@dataclass(frozen=True)
class RuleUnits:
    """The units of all rules over a corpus that no model reads, only the tokenizer of the embedded one."""

    stream: TokenStream
    order: NDArray[np.int64]  # numbers of the visited segments
    acts: NDArray[np.float32]  # [segments, 128, rules]
    tokenizer: Any
    seed: int = 0

    @classmethod
    def of(cls, corpus: str, n_segments: int) -> RuleUnits:
        model = embedded_model()
        config = CollectConfig(model=model, dataset=(corpus,), segments=n_segments, device="cpu")
        tokenizer = load_tokenizer(model)
        with tempfile.TemporaryDirectory() as folder:
            steps = prepare_text(config, tokenizer, Path(folder) / "corpus.tokens")
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    stream: TokenStream = end.value.whole()
                    break
        order = visiting_order(stream.n_segments, "random", cls.seed, n_segments)
        return cls(stream, order, rule_activations(config, tokenizer, order), tokenizer)

    def store(self, store: Store) -> None:
        """As a run of one layer."""
        drawn = {**DRAWN, "seed": self.seed}
        told = list(vocabulary_entries(self.tokenizer)), tokenizer_sha256(self.tokenizer)
        store_made_units(store, drawn, *told, self.stream, self.order, self.acts)


def store_made_units(
    store: Store,
    drawn: Mapping[str, int],
    vocabulary: Sequence[VocabularyEntry],
    tokenizer_hash: str,
    stream: TokenStream,
    order: NDArray[np.int64],
    acts: NDArray[np.float32],
    n_background: int = 0,
) -> None:
    """Store rules' activations as a run of one layer; with a background, as latents of an SAE.

    drawn: how many records are drawn, and by which seed: see store_run.
    """
    batches = (acts[first : first + AT_ONCE] for first in range(0, len(order), AT_ONCE))
    kind, encoder = ("sae", "made by rule") if n_background else ("mlp", None)
    source = Source(0, kind, None, "output", acts.shape[2], "float32", encoder=encoder)
    fields = {**drawn, "n_background": n_background}
    store_run(store, fields, source, vocabulary, tokenizer_hash, stream, order, batches)


def store_run(
    store: Store,
    fields: Mapping[str, int],
    source: Source,
    vocabulary: Sequence[VocabularyEntry],
    tokenizer_hash: str,
    stream: TokenStream,
    order: NDArray[np.int64],
    batches: Iterable[NDArray[np.float32]],
) -> None:
    """Fold activations [AT_ONCE, 128, width] of segments as collecting does, and store them as a run.

    fields: top_k, n_random, n_sampled, seed, and of sparse units n_background.
    """
    width, seed = source.width, fields["seed"]
    n_background = fields.get("n_background", 0)
    n_random = share_out(fields["n_random"], RANDOM_SHARES)
    top = TopK(width, fields["top_k"], torch.float32, torch.device("cpu"))
    sample = Sample(width, share_out(fields["n_sampled"], SAMPLED_SHARES), torch.float32, torch.device("cpu"))
    random = RandomRecords(n_random, seed, {0: width}, torch.float32)
    background = BackgroundRecords(n_random["report"] + n_background if n_background else 0, seed, [0])
    split_segments = dict.fromkeys(SPLITS, 0)
    for first, acts in zip(range(0, len(order), AT_ONCE), batches, strict=True):
        numbers = order[first : first + AT_ONCE]
        values = torch.from_numpy(acts)
        ids = torch.from_numpy(stream.rows(numbers).astype(np.int64))
        splits = stream.splits(numbers, seed)
        fold_top_k(top, values, Offer.of(ids, torch.from_numpy(numbers), range(64, 97)), lowest=False)
        offer = SampleOffer.of(numbers.tolist(), splits, seed, torch.device("cpu"))
        fold_sample(sample, values, segment_sizes(values, ("positive",), offer)["positive"], offer)
        random.keep(0, slice(0, width), values, random.draw(numbers.tolist(), splits))
        background.keep(0, slice(0, width), values, background.draw(numbers.tolist(), splits))
        for code, split in enumerate(SPLITS):
            split_segments[split] += int((splits == code).sum())
    samples = {
        ("positive", split): arrays
        for split, arrays in sampled_records(sample, "positive", stream.locate).items()
    }
    exemplars = {"top": top_records(top, stream.locate), "random": random.arrays(0, stream.locate)}
    drawn = background.arrays(0, width) if n_background else None
    layer = CollectedLayer(0, exemplars, None, None, samples, drawn)  # type: ignore[arg-type]
    other = {"subject": "rules", "dtype": "float32", "activation": "act", "layers": [0], "n_layers": 1}
    other |= {"sources": [source], "versions": {}, "split_rule": "passages"}
    other |= {"config": {"sign": "positive"}, "tokenizer_sha256": tokenizer_hash}
    run_id = create_run(store, {**fields, **other})
    save_vocabulary(store, run_id, vocabulary)
    save_segments(store, run_id, stream.segments(np.sort(order), seed))
    save_collected_layer(store, run_id, layer)
    finish_run(
        store,
        run_id,
        n_segments=len(order),
        n_documents=stream.n_documents,
        n_tokens=len(order) * SEGMENT_LENGTH,
        split_segments=split_segments,
    )
