"""Stores with a run of given explanations, and an embedder whose vectors are known."""

from collections.abc import Sequence

import numpy as np
from sqlalchemy import insert

from neuroexplain.evidence import Explanation, Prediction, Provenance, Score
from neuroexplain.runs import Run
from neuroexplain.store import tables as t
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_collected import create_run, finish_run
from neuroexplain.store.save_explained import save_explanations, save_prediction
from neuroexplain.units import UnitId
from tests.fakes import run_fields

BY = Provenance("none", None, "m", None, None)
N_LAYERS = 3


def fill_run(store: Store, texts: Sequence[str | None]) -> Run:
    """A new run whose unit number i, layers in turn, is explained by the text i; None: a failed attempt."""
    n_units = len(texts) // N_LAYERS + 1
    run_id = create_run(store, run_fields(N_LAYERS, n_units))
    units = [{"run_id": run_id, "layer": x, "unit": n} for x in range(N_LAYERS) for n in range(n_units)]
    with store.write() as connection:
        connection.execute(
            insert(t.units), [{**unit, "status": "ok", "max_activation": 1.0} for unit in units]
        )
    save_explanations(store, run_id, [explanation_of(i, text) for i, text in enumerate(texts)])
    finish_run(store, run_id, n_segments=0, n_documents=0, n_tokens=0)
    return load_run(store, run_id)


def explanation_of(i: int, text: str | None, **other: object) -> Explanation:
    status = "ok" if text is not None else "llm_error"
    return Explanation(UnitId(i % N_LAYERS, i // N_LAYERS), "pairs", status, text, BY, **other)


def score(store: Store, run: Run, id_: int, unit: UnitId, value: float, scorer: str = "digits") -> None:
    headline = run.headline
    scored = Score("report", headline.subsets[0], headline.metric, "ok", value, 320, 10)
    save_prediction(store, run.id, Prediction(id_, unit, scorer, "ok", (), BY), [scored])


class LetterEmbedder:
    """A text's vector holds how often it has each letter. It remembers what it embedded."""

    revision = "0" * 64

    def __init__(self, model: str = "letters") -> None:
        self.model = model
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += texts
        counts = [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts]
        return np.array(counts, np.float32).reshape(len(texts), 26)
