"""Make neurons whose behaviour is known by construction:  python scripts/make_known_neurons.py brown.jsonl.gz

A neuron is a rule that gives every token of a text its activation, with a true explanation and five false
ones: see known_neurons/. The rules are applied to every third document of the Brown corpus, and to passages
of our own, because Brown's files have lost their foreign words. Writes tests/known/neurons.json, which
scripts/eval_simulators.py reads.
"""

import gzip
import json
import random
import sys
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Any

from known_neurons.rules import Rule
from known_neurons.table import NEURONS
from transformers import AutoTokenizer

from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.stable_hash import stable_hash

OUT = Path(__file__).parent.parent / "tests" / "known" / "neurons.json"
PASSAGES = Path(__file__).parent / "known_neurons" / "passages.txt"  # a blank line between two
LENGTH = 64  # tokens of a record
RECORDS = 6  # top records, and as many random ones
EDGE = 8  # tokens at a record's beginning where no peak counts: its context would be missing
PIECE = 0.7  # activation of a later piece of a word, of the first piece's
STRONG = 0.7  # peaks above it are ranked alike, so that no single word makes all top records


def activate(rule: Rule, text: str, offsets: list[tuple[int, int]]) -> list[float]:
    """The activation of every token, by its strongest span. A span that began before it counts PIECE as much.

    offsets: the first character of each token, and one after its last.
    """
    activations = [0.0] * len(offsets)
    ends = [end for _, end in offsets]
    for start, end, value in rule(text):
        i = first = bisect_right(ends, start)
        while i < len(offsets) and offsets[i][0] < end:
            activations[i] = max(activations[i], value if i == first else PIECE * value)
            i += 1
    return activations


def cut(documents: list[tuple[str, str]], tokenizer: Any) -> list[dict[str, Any]]:
    """Records of 64 tokens that do not overlap, from a first token that depends on the document."""
    records = []
    for name, text in documents:
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, offsets = encoded["input_ids"], [tuple(pair) for pair in encoded["offset_mapping"]]
        for start in range(stable_hash(name) % LENGTH, len(ids) - LENGTH, LENGTH):
            tokens = [tokenizer.decode([i]) for i in ids[start : start + LENGTH]]
            records.append(
                {"document": name, "text": text, "offsets": offsets, "start": start, "tokens": tokens}
            )
    return records


def choose(
    name: str, records: list[dict[str, Any]], activations: dict[str, list[float]]
) -> tuple[list[Any], list[Any]]:
    """A neuron's top records, one a document while there are enough, and a random draw from all others.

    activations: of each document's tokens.
    """
    scale = 2 + stable_hash(name) % 60 / 10  # neurons differ in their peaks
    draw = random.Random(stable_hash(name))
    shuffled = draw.sample(records, len(records))  # among equal peaks the order is by chance
    peaks = [max(activations[r["document"]][r["start"] + EDGE : r["start"] + LENGTH - 2]) for r in shuffled]
    order = sorted(range(len(records)), key=lambda i: -min(peaks[i], STRONG))
    n_of_document: Counter[str] = Counter()
    chosen: list[int] = []
    for most in (1, LENGTH):
        for i in order:
            if len(chosen) == RECORDS or peaks[i] == 0:
                break
            if i not in chosen and n_of_document[shuffled[i]["document"]] < most:
                chosen.append(i)
                n_of_document[shuffled[i]["document"]] += 1
    others = draw.sample([i for i in order if i not in chosen], RECORDS)

    def as_json(i: int) -> dict[str, Any]:
        first = shuffled[i]["start"]
        values = activations[shuffled[i]["document"]][first : first + LENGTH]
        return {"tokens": shuffled[i]["tokens"], "activations": [round(scale * a, 2) or 0 for a in values]}

    chosen.sort(key=lambda i: -peaks[i])
    return [as_json(i) for i in chosen], [as_json(i) for i in others]


def main(corpus: str) -> None:
    model = Path(embedded_model())
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    with gzip.open(corpus, "rt", encoding="utf-8") as rows:
        documents = [(row["id"], row["text"]) for row in map(json.loads, rows)][::3]
    passages = PASSAGES.read_text("utf-8").strip().split("\n\n")
    documents.append(("passages", "\n\n".join(passage.replace("\n", " ") for passage in passages)))
    records = cut(documents, tokenizer)
    offsets = {r["document"]: r["offsets"] for r in records}
    neurons = []
    for kind, name, rule, true, false in NEURONS:
        if len(false) != 5:
            raise ValueError(f"{name}: {len(false)} false explanations")
        activations = {d: activate(rule, text, offsets[d]) for d, text in documents if d in offsets}
        top, others = choose(name, records, activations)
        if len(top) < RECORDS:
            print(f"{name}: only {len(top)} top records", file=sys.stderr)
        neurons.append(
            {"name": name, "kind": kind, "true": true, "false": false, "top": top, "random": others}
        )
    lines = (json.dumps(neuron, ensure_ascii=False, separators=(",", ":")) for neuron in neurons)
    OUT.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
    print(f"{len(neurons)} neurons, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
