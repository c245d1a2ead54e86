"""Find what was saved, as types.py objects, never rows. `find_x` may return None; `load_x` raises NotInStore.

numpy is imported where arrays are read: `query` reads none, and starts a tenth of a second earlier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, select

from neuroexplain.errors import NotInStore
from neuroexplain.store import tables as t
from neuroexplain.store.dialect import explanations_match, matching_ids, search_words
from neuroexplain.store.engine import Store
from neuroexplain.types import (
    CROP_LENGTH,
    KINDS,
    RECORD_LENGTH,
    CollectedLayer,
    Exemplar,
    ExemplarArrays,
    Explanation,
    Failure,
    Kind,
    Neuron,
    NeuronId,
    Provenance,
    QueryRow,
    Run,
    Score,
    Segment,
    Session,
    SimulatedRecord,
    Simulation,
    Stats,
    StatsArrays,
    StoredScore,
    VocabularyArrays,
    VocabularyEntry,
)

IDS_AT_ONCE = 10_000  # values in one IN (...): SQLite takes 32,766
FEW = 4_000  # explanations that are fetched by their ids and sorted, rather than taken in the order of an index


def list_runs(store: Store) -> list[Run]:
    """All runs, oldest first, unfinished ones too."""
    with store.read() as connection:
        return [_run(row) for row in connection.execute(select(t.runs).order_by(t.runs.c.id))]


def load_run(store: Store, run_id: int | None = None) -> Run:
    """A finished run; without an id, the latest."""
    runs = list_runs(store)
    finished = [run for run in runs if run.status == "finished"]
    if run_id is None:
        if not finished:
            unfinished = f" ({len(runs)} unfinished)" if runs else ""
            raise NotInStore(
                f"{store.name} holds no finished run{unfinished}.\nCollect one:  neuroexplain collect --db {store.name} ..."
            )
        return finished[-1]
    found = next((run for run in finished if run.id == run_id), None)
    if found is None:
        ids = ", ".join(str(run.id) for run in finished) or "none"
        raise NotInStore(
            f"There is no finished run {run_id} in {store.name}: it holds {ids}.\n"
            f"See them:  neuroexplain runs --db {store.name}"
        )
    return found


def list_neuron_ids(
    store: Store, run_id: int, layers: Collection[int] | None = None, status: str | None = None
) -> list[NeuronId]:
    """The run's neurons in ascending order."""
    query = select(t.neurons.c.layer, t.neurons.c.neuron).where(t.neurons.c.run_id == run_id)
    if layers is not None:
        query = query.where(t.neurons.c.layer.in_(list(layers)))
    if status is not None:
        query = query.where(t.neurons.c.status == status)
    with store.read() as connection:
        return [NeuronId(*row) for row in connection.execute(query.order_by(t.neurons.c.layer, t.neurons.c.neuron))]


def list_explained_ids(store: Store, run_id: int, layers: Collection[int] | None = None) -> list[NeuronId]:
    """The run's neurons that have an explanation, in ascending order."""
    e = t.explanations.c
    query = select(e.layer, e.neuron).where(e.run_id == run_id, e.status == "ok").distinct()
    if layers is not None:
        query = query.where(e.layer.in_(list(layers)))
    with store.read() as connection:
        return [NeuronId(*row) for row in connection.execute(query.order_by(e.layer, e.neuron))]


def load_neuron(store: Store, run: Run, neuron: NeuronId) -> Neuron:
    """One neuron with its exemplars and vocabulary reading. Raises NotInStore, saying what the run holds."""
    with store.read() as connection:
        where = _whose(t.neurons, run.id, neuron)
        row = connection.execute(select(t.neurons).where(*where)).one_or_none()
        if row is None:
            layers = f"layers {_ranges(run.layers)} of {run.n_layers} with {run.d_mlp:,} neurons each"
            raise NotInStore(
                f"No neuron {neuron} in run {run.id}: {store.name} holds {layers}, both counted from 0.\n"
                f"Ask for one of those, like  neuroexplain show {run.layers[0]}:0 --db {store.name}"
            )
        packed = connection.execute(select(t.exemplars).where(*_whose(t.exemplars, run.id, neuron))).all()
        wanted = {int(segment) for one in packed for segment in one.segments}
        ids = read_segment_ids(connection, run.id, wanted)
        reading = connection.execute(
            select(t.vocabulary_readings).where(*_whose(t.vocabulary_readings, run.id, neuron))
        ).one_or_none()
    by_kind = {one.kind: one for one in packed}
    exemplars = [x for kind in KINDS if kind in by_kind for x in _unpack(by_kind[kind], neuron, run, ids)]
    return Neuron(
        id=neuron,
        status=row.status,
        stats=None if row.mean is None else Stats(row.mean, row.std, row.min, row.max, row.share_positive),
        exemplars=tuple(exemplars),
        promoted=_pairs(reading.promoted_ids, reading.promoted_logits) if reading else (),
        suppressed=_pairs(reading.suppressed_ids, reading.suppressed_logits) if reading else (),
    )


def tokens_of(vocabulary: Mapping[int, VocabularyEntry], token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """How the given tokens are shown; an id that the vocabulary does not have gets U+FFFD."""
    return {token_id: vocabulary.get(token_id) or VocabularyEntry(token_id, "\ufffd", True) for token_id in token_ids}


def load_tokens(store: Store, run_id: int, token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """How the given tokens of the subject's vocabulary are shown; an id that its tokenizer does not know gets U+FFFD."""
    found: dict[int, VocabularyEntry] = {}
    wanted = sorted(set(token_ids))
    with store.read() as connection:
        for some in _chunks(wanted):
            v = t.tokens.c
            query = select(v.token_id, v.text, v.special).where(v.run_id == run_id, v.token_id.in_(some))
            for token_id, text, special in connection.execute(query):
                found[token_id] = VocabularyEntry(token_id, text, special)
    return tokens_of(found, wanted)


def find_token_ids(store: Store, run_id: int, text: str) -> list[int]:
    """The tokens whose text is `text`, with or without a space before it."""
    query = select(t.tokens.c.token_id).where(t.tokens.c.run_id == run_id, t.tokens.c.text.in_([text, " " + text]))
    with store.read() as connection:
        return list(connection.execute(query.order_by(t.tokens.c.token_id)).scalars())


def load_vocabulary(store: Store, run_id: int) -> list[VocabularyEntry]:
    """The subject's whole vocabulary, by token id."""
    query = select(t.tokens).where(t.tokens.c.run_id == run_id).order_by(t.tokens.c.token_id)
    with store.read() as connection:
        return [VocabularyEntry(row.token_id, row.text, row.special) for row in connection.execute(query)]


def list_segments(store: Store, run_id: int, at_once: int = 5_000) -> Iterator[list[Segment]]:
    """The stored segments in ascending order, some at a time; their documents stand with the exemplars."""
    from neuroexplain.store.packing import unpack_token_ids

    last = -1
    query = select(t.segments.c.segment, t.segments.c.token_ids).where(t.segments.c.run_id == run_id)
    while True:
        with store.read() as connection:
            some = query.where(t.segments.c.segment > last).order_by(t.segments.c.segment).limit(at_once)
            found = [Segment(number, unpack_token_ids(blob)) for number, blob in connection.execute(some)]
        if not found:
            return
        yield found
        last = found[-1].segment


def load_segment_ids(store: Store, run_id: int, segments: set[int]) -> dict[int, Any]:
    """The token ids [128] of the given segments."""
    with store.read() as connection:
        return read_segment_ids(connection, run_id, segments)


def load_collected_layer(store: Store, run: Run, layer: int) -> CollectedLayer:
    """A whole layer as it was saved: the inverse of save_collected_layer. Raises NotInStore where the run lacks it."""
    import numpy as np

    where = (t.neurons.c.run_id == run.id, t.neurons.c.layer == layer)
    with store.read() as connection:
        rows = connection.execute(select(t.neurons).where(*where).order_by(t.neurons.c.neuron)).all()
        if len(rows) != run.d_mlp:
            raise NotInStore(f"Run {run.id} of {store.name} holds {len(rows):,} of {run.d_mlp:,} neurons of layer {layer}.")
        e, v = t.exemplars.c, t.vocabulary_readings.c
        exemplars = {
            kind: _exemplar_arrays(connection.execute(select(t.exemplars).where(*_of_kind(run.id, layer, kind))), run)
            for kind in connection.execute(select(e.kind).where(e.run_id == run.id, e.layer == layer).distinct()).scalars()
        }
        readings = connection.execute(
            select(t.vocabulary_readings).where(v.run_id == run.id, v.layer == layer).order_by(v.neuron)
        ).all()
    names = ("promoted_ids", "promoted_logits", "suppressed_ids", "suppressed_logits")
    return CollectedLayer(
        layer=layer,
        exemplars={kind: exemplars[kind] for kind in KINDS if kind in exemplars},
        stats=None
        if rows[0].mean is None
        else StatsArrays(*(np.array([getattr(row, name) for row in rows]) for name in Stats.__dataclass_fields__)),
        vocabulary=VocabularyArrays(*(np.stack([getattr(row, name) for row in readings]) for name in names))
        if readings
        else None,
    )


def list_explanations(
    store: Store,
    run_id: int,
    neuron: NeuronId | None = None,
    *,
    layer: int | None = None,
    explainer: str | None = None,
    model: str | None = None,
    status: str | None = None,
) -> list[Explanation]:
    """A run's or a neuron's explanations and failed attempts, in the order of neurons, then of asking."""
    e = t.explanations.c
    query = select(t.explanations).where(e.run_id == run_id)
    if neuron is not None:
        query = query.where(e.layer == neuron.layer, e.neuron == neuron.neuron)
    for column, value in ((e.layer, layer), (e.explainer, explainer), (e.model, model), (e.status, status)):
        if value is not None:
            query = query.where(column == value)
    with store.read() as connection:
        return [_explanation(row) for row in connection.execute(query.order_by(e.layer, e.neuron, e.id))]


def list_simulations(store: Store, explanation_ids: Iterable[int]) -> list[Simulation]:
    """All simulations of the explanations, by explanation, simulator and model."""
    s, e = t.simulations.c, t.explanations.c
    found = []
    with store.read() as connection:
        for some in _chunks(sorted(set(explanation_ids))):
            query = select(t.simulations, e.layer, e.neuron).join(t.explanations, e.id == s.explanation_id)
            query = query.where(s.explanation_id.in_(some)).order_by(s.explanation_id, s.simulator, s.model)
            found += [_simulation(row) for row in connection.execute(query)]
    return found


def list_scores(store: Store, explanation_ids: Iterable[int]) -> list[StoredScore]:
    """All scores of the explanations, by explanation, simulator, model, split and kind."""
    s = t.scores.c
    found = []
    with store.read() as connection:
        for some in _chunks(sorted(set(explanation_ids))):
            query = select(t.scores).where(s.explanation_id.in_(some))
            query = query.order_by(s.explanation_id, s.simulator, s.simulator_model, s.split, s.kind)
            found += [_score(row) for row in connection.execute(query)]
    return found


def query_explanations(
    store: Store,
    run_id: int,
    *,
    text: str | None = None,
    layers: Collection[int] | None = None,
    min_score: float | None = None,
    max_score: float | None = None,
    sort: str = "score",
    peak_token_ids: Sequence[int] | None = None,
    simulator: str | None = None,
    chosen_only: bool = True,
    limit: int = 20,
    offset: int = 0,
) -> list[QueryRow]:
    """Explanations with their headline score (`report`, `top_and_random`), one row per explanation, simulator and model.

    With bounds of the score, or a simulator, those without such a score are left out. Sorted by `score` (highest first,
    unscored last), `activation` (highest first) or `neuron`; ties in the order of neurons.
    """
    e, s, n = t.explanations.c, t.scores.c, t.neurons.c
    words = None if text is None else search_words(text)
    limit += offset
    scored_only = min_score is not None or max_score is not None or simulator is not None
    conditions: list[Any] = [e.status == "ok"]
    if layers is not None:
        conditions.append(e.layer.in_(list(layers)))
    if chosen_only:
        conditions.append(e.chosen)
    by_neuron = (e.layer, e.neuron, e.id, s.simulator, s.simulator_model)
    columns = (e.id, e.layer, e.neuron, e.text, e.explainer, e.model, s.simulator, s.simulator_model)
    chosen: Select[Any] = select(*columns, s.correlation, s.ci_low, s.ci_high, n.max_activation)
    of_neuron = and_(n.run_id == e.run_id, n.layer == e.layer, n.neuron == e.neuron)
    headline = and_(s.explanation_id == e.id, s.split == "report", s.kind == "top_and_random")
    with store.read() as connection:
        ids = _find_few(connection, store.dialect, run_id, words, peak_token_ids)
        if ids is not None:  # few: fetched by id, and sorted
            conditions.append(e.id.in_(ids))
        else:  # many: taken in the order of an index until there are enough
            if words is not None:
                conditions.append(explanations_match(store.dialect, words))
            if peak_token_ids is not None:
                conditions.append(_peaks_on(run_id, peak_token_ids))
        rows: list[Row[Any]] = []
        if (ids is None and sort == "score") or scored_only:
            scored = and_(s.run_id == run_id, s.split == "report", s.kind == "top_and_random", s.correlation.is_not(None))
            query = chosen.select_from(t.scores.join(t.explanations, e.id == s.explanation_id).join(t.neurons, of_neuron))
            query = query.where(scored, *conditions)
            if layers is not None:
                query = query.where(s.layer.in_(list(layers)))
            if simulator is not None:
                query = query.where(s.simulator == simulator)
            if min_score is not None:
                query = query.where(s.correlation >= min_score)
            if max_score is not None:
                query = query.where(s.correlation <= max_score)
            rows += connection.execute(query.order_by(*_order(sort, by_neuron)).limit(limit)).all()
            if len(rows) == limit or scored_only:
                return _query_rows(rows)[offset:]
            conditions.append(s.correlation.is_(None))  # the rest has no score
            sort, limit = "neuron", limit - len(rows)
        if ids is None and sort == "activation":  # first the neurons in the order of their index, then their explanations
            has_one = select(e.id).where(of_neuron, *conditions).correlate(t.neurons).exists()
            strongest = select(n.layer, n.neuron).where(n.run_id == run_id, has_one)
            ids = []
            for place in connection.execute(strongest.order_by(n.max_activation.desc().nulls_last()).limit(limit)).all():
                here = (e.run_id == run_id, e.layer == place.layer, e.neuron == place.neuron)
                ids += connection.execute(select(e.id).where(*here)).scalars().all()
            conditions.append(e.id.in_(ids))
        # With ids at hand, `+ 0` keeps the planner from the index of the whole run.
        conditions.append(e.run_id == run_id if ids is None else e.run_id + 0 == run_id)
        found = t.explanations.join(t.neurons, of_neuron)
        query = chosen.select_from(found.join(t.scores, headline, isouter=True)).where(*conditions)
        rows += connection.execute(query.order_by(*_order(sort, by_neuron)).limit(limit)).all()
    return _query_rows(rows)[offset:]


def list_headline_scores(store: Store, run_id: int) -> list[tuple[int, str, str, float]]:
    """(layer, explainer, simulator, correlation) of every headline score there is, chosen explanations only."""
    e, s = t.explanations.c, t.scores.c
    query = select(s.layer, e.explainer, s.simulator, s.correlation).join(t.explanations, e.id == s.explanation_id)
    query = query.where(
        s.run_id == run_id, s.split == "report", s.kind == "top_and_random", s.correlation.is_not(None), e.chosen
    )
    with store.read() as connection:
        return [(row[0], row[1], row[2], row[3]) for row in connection.execute(query)]


def list_best(store: Store, run_id: int, neurons: Sequence[NeuronId]) -> dict[NeuronId, QueryRow]:
    """Each given neuron's chosen explanation with its highest headline score; those without an explanation are left out."""
    e, s, n = t.explanations.c, t.scores.c, t.neurons.c
    columns = (e.id, e.layer, e.neuron, e.text, e.explainer, e.model, s.simulator, s.simulator_model)
    query: Select[Any] = select(*columns, s.correlation, s.ci_low, s.ci_high, n.max_activation)
    headline = and_(s.explanation_id == e.id, s.split == "report", s.kind == "top_and_random")
    joined = t.explanations.join(t.neurons, and_(n.run_id == e.run_id, n.layer == e.layer, n.neuron == e.neuron))
    query = query.select_from(joined.join(t.scores, headline, isouter=True)).where(
        e.run_id == run_id, e.status == "ok", e.chosen
    )
    found: dict[NeuronId, QueryRow] = {}
    with store.read() as connection:
        for one in dict.fromkeys(neurons):
            here = (
                query.where(e.layer == one.layer, e.neuron == one.neuron).order_by(s.correlation.desc().nulls_last()).limit(1)
            )
            for row in _query_rows(connection.execute(here)):
                found[one] = row
    return found


def _find_few(
    connection: Connection, dialect_name: str, run_id: int, words: Sequence[str] | None, peak_token_ids: Sequence[int] | None
) -> list[int] | None:
    """The ids of explanations that hold the words and whose neurons peak on the tokens; None where FEW do not hold them."""
    e, p = t.explanations.c, t.peak_tokens.c
    found: set[int] | None = None
    if words is not None:
        ids = list(connection.execute(matching_ids(dialect_name, words, FEW + 1)).scalars())
        found = set(ids) if len(ids) <= FEW else None
    if found is None and peak_token_ids is not None:
        layers = connection.execute(select(t.runs.c.layers).where(t.runs.c.id == run_id)).scalar_one()  # first in p's order
        peaks = (p.run_id == run_id, p.layer.in_(layers), p.token_id.in_(list(peak_token_ids)))
        query = select(e.id).join(t.peak_tokens, and_(p.layer == e.layer, p.neuron == e.neuron))
        query = query.where(e.run_id == run_id, *peaks).limit(FEW + 1)
        ids = list(connection.execute(query).scalars())
        found = set(ids) if len(ids) <= FEW else None
        if found is not None and words is not None:  # the words are many, the tokens few
            query = select(e.id).where(e.id.in_(found), explanations_match(dialect_name, words))
            found = set(connection.execute(query).scalars())
    elif found is not None and peak_token_ids is not None:
        query = select(e.id).where(e.id.in_(found), _peaks_on(run_id, peak_token_ids))
        found = set(connection.execute(query).scalars())
    return None if found is None else sorted(found)


def _peaks_on(run_id: int, token_ids: Sequence[int]) -> Any:
    e, p = t.explanations.c, t.peak_tokens.c
    same = (p.run_id == run_id, p.token_id.in_(list(token_ids)), p.layer == e.layer, p.neuron == e.neuron)
    return select(p.layer).where(*same).correlate(t.explanations).exists()


def _order(sort: str, by_neuron: Sequence[Any]) -> tuple[Any, ...]:
    first = {
        "score": (t.scores.c.correlation.desc().nulls_last(),),
        "activation": (t.neurons.c.max_activation.desc().nulls_last(),),
        "neuron": (),
    }
    return (*first[sort], *by_neuron)


def _query_rows(rows: Iterable[Row[Any]]) -> list[QueryRow]:
    return [
        QueryRow(
            neuron=NeuronId(row.layer, row.neuron),
            explanation=row.text,
            explanation_id=row.id,
            explainer=row.explainer,
            model=row.model,
            simulator=row.simulator,
            simulator_model=row.simulator_model,
            correlation=row.correlation,
            ci_low=row.ci_low,
            ci_high=row.ci_high,
            max_activation=row.max_activation,
        )
        for row in rows
    ]


def list_failures(store: Store, run_id: int, layers: Collection[int] | None, limit: int) -> list[Failure]:
    """Explanations and simulations whose status is neither ok nor dead, in the order of neurons."""
    e, s = t.explanations.c, t.simulations.c
    bad = select(e.layer, e.neuron, e.explainer.label("what"), e.status, e.reason, e.reply)
    bad = bad.where(e.run_id == run_id, e.status.not_in(("ok", "dead")))
    unsimulated = select(e.layer, e.neuron, s.simulator.label("what"), s.status, s.reason, s.reply)
    unsimulated = unsimulated.join(t.explanations, e.id == s.explanation_id).where(s.run_id == run_id, s.status != "ok")
    if layers is not None:
        bad, unsimulated = (one.where(e.layer.in_(list(layers))) for one in (bad, unsimulated))
    both = bad.union_all(unsimulated).order_by("layer", "neuron").limit(limit)
    with store.read() as connection:
        rows = connection.execute(both).all()
    return [Failure(NeuronId(row.layer, row.neuron), row.what, row.status, row.reason, row.reply) for row in rows]


def count_neurons(store: Store, run_id: int) -> Mapping[str, int]:
    """Neurons of the run by status."""
    query = select(t.neurons.c.status, func.count()).where(t.neurons.c.run_id == run_id).group_by(t.neurons.c.status)
    with store.read() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def load_max_activations(store: Store, run_id: int) -> dict[tuple[int, int], float | None]:
    """Every neuron's greatest stored activation, by (layer, neuron)."""
    n = t.neurons.c
    with store.read() as connection:
        rows = connection.execute(select(n.layer, n.neuron, n.max_activation).where(n.run_id == run_id))
        return {(row[0], row[1]): row[2] for row in rows}


def count_layer_neurons(store: Store, run_id: int, layer: int) -> int:
    """Neurons of one layer that are stored."""
    query = select(func.count()).select_from(t.neurons).where(t.neurons.c.run_id == run_id, t.neurons.c.layer == layer)
    with store.read() as connection:
        return int(connection.execute(query).scalar_one())


def count_explanations(store: Store, run_id: int) -> list[tuple[str, str, str, int]]:
    """(explainer, model, status, how many), in that order."""
    e = t.explanations.c
    what = (e.explainer, e.model, e.status)
    query = select(*what, func.count()).where(e.run_id == run_id).group_by(*what).order_by(*what)
    with store.read() as connection:
        return [(row[0], row[1], row[2], row[3]) for row in connection.execute(query)]


def list_sessions(store: Store, run_id: int) -> list[Session]:
    """What the commands that explained and scored this run did, oldest first."""
    query = select(t.sessions).where(t.sessions.c.run_id == run_id).order_by(t.sessions.c.id)
    names = Session.__dataclass_fields__
    with store.read() as connection:
        return [
            Session(**{name: value for name, value in row._mapping.items() if name in names})
            for row in connection.execute(query)
        ]


def count_orphans(store: Store) -> int:
    """Simulations and scores whose explanation is gone, and exemplars whose neuron is: there should be none."""
    orphans = 0
    with store.read() as connection:
        for table in (t.simulations, t.scores):
            lost = table.c.explanation_id.not_in(select(t.explanations.c.id))
            orphans += connection.execute(select(func.count()).select_from(table).where(lost)).scalar_one()
        same = and_(
            t.neurons.c.run_id == t.exemplars.c.run_id,
            t.neurons.c.layer == t.exemplars.c.layer,
            t.neurons.c.neuron == t.exemplars.c.neuron,
        )
        has_neuron = select(t.neurons.c.layer).where(same).exists()
        orphans += connection.execute(select(func.count()).select_from(t.exemplars).where(~has_neuron)).scalar_one()
    return orphans


def load_prompt(store: Store, sha256: str) -> tuple[str, str]:
    """Name and text of a stored prompt file."""
    with store.read() as connection:
        row = connection.execute(select(t.prompts).where(t.prompts.c.sha256 == sha256)).one_or_none()
    if row is None:
        raise NotInStore(f"No prompt with the hash {sha256} in {store.name}.")
    return row.name, row.text


def _whose(table: Any, run_id: int, neuron: NeuronId) -> tuple[Any, ...]:
    return table.c.run_id == run_id, table.c.layer == neuron.layer, table.c.neuron == neuron.neuron


def read_segment_ids(connection: Connection, run_id: int, wanted: set[int]) -> dict[int, Any]:
    """The token ids of the given segments, within a transaction of the caller's."""
    from neuroexplain.store.packing import unpack_token_ids

    found = {}
    for some in _chunks(sorted(wanted)):
        query = select(t.segments.c.segment, t.segments.c.token_ids)
        for segment, blob in connection.execute(query.where(t.segments.c.run_id == run_id, t.segments.c.segment.in_(some))):
            found[segment] = unpack_token_ids(blob)
    return found


def _of_kind(run_id: int, layer: int, kind: str) -> tuple[Any, ...]:
    e = t.exemplars.c
    return e.run_id == run_id, e.layer == layer, e.kind == kind


def _exemplar_arrays(rows: Iterable[Row[Any]], run: Run) -> ExemplarArrays:
    import numpy as np

    from neuroexplain.store.packing import unpack_activations

    found = {row.neuron: row for row in rows}
    k = max(len(row.segments) for row in found.values())
    counts = np.array([len(found[n].segments) if n in found else 0 for n in range(run.d_mlp)])
    arrays = {
        name: np.full((run.d_mlp, k), fill, dtype)
        for name, fill, dtype in (
            ("segments", 0, np.uint32),
            ("starts", 0, np.uint8),
            ("documents", -1, np.int32),
            ("token_offsets", 0, np.int32),
            ("peaks", 0, np.float32),
        )
    }
    activations = np.zeros((run.d_mlp, k, RECORD_LENGTH), np.float32)
    for n, row in found.items():
        for name in ("segments", "starts", "documents", "token_offsets"):
            arrays[name][n, : counts[n]] = getattr(row, name)
        arrays["peaks"][n, : counts[n]] = unpack_activations(row.peaks, run.dtype)
        activations[n, : counts[n]] = unpack_activations(row.activations, run.dtype).reshape(-1, RECORD_LENGTH)
    return ExemplarArrays(counts, **arrays, activations=activations)


def _unpack(row: Row[Any], neuron: NeuronId, run: Run, ids: Mapping[int, Any]) -> Iterable[Exemplar]:
    from neuroexplain.store.packing import unpack_activations

    peaks = unpack_activations(row.peaks, run.dtype)
    activations = unpack_activations(row.activations, run.dtype).reshape(-1, RECORD_LENGTH)
    for rank, (segment, start) in enumerate(zip(row.segments.tolist(), row.starts.tolist(), strict=True)):
        document = int(row.documents[rank])
        yield Exemplar(
            neuron=neuron,
            kind=row.kind,
            rank=rank,
            segment=segment,
            start=start,
            document=document if document >= 0 else None,
            token_offset=int(row.token_offsets[rank]) if document >= 0 else None,
            activation=float(peaks[rank]),
            token_ids=ids[segment][start : start + RECORD_LENGTH],
            activations=activations[rank],
            stride=run.segment_stride,
        )


def _run(row: Row[Any]) -> Run:
    return Run(**{**row._mapping, "layers": tuple(row.layers)})


def _explanation(row: Row[Any]) -> Explanation:
    return Explanation(
        neuron=NeuronId(row.layer, row.neuron),
        explainer=row.explainer,
        status=row.status,
        text=row.text,
        provenance=_provenance(row),
        candidate=row.candidate,
        chosen=row.chosen,
        reason=row.reason,
        reply=row.reply,
        covers=None if row.covers is None else tuple(row.covers),
        parts=None if row.parts is None else tuple(row.parts),
        id=row.id,
    )


def _provenance(row: Row[Any]) -> Provenance:
    names = Provenance.__dataclass_fields__
    return Provenance(**{name: value for name, value in row._mapping.items() if name in names})


def _simulation(row: Row[Any]) -> Simulation:
    import numpy as np

    from neuroexplain.store.packing import unpack_mass

    levels = row.expected_levels.astype(np.float32).reshape(-1, CROP_LENGTH)
    mass = None if row.digit_mass is None else unpack_mass(row.digit_mass).reshape(-1, CROP_LENGTH)
    other = None if row.other_levels is None else row.other_levels.astype(np.float32).reshape(-1, CROP_LENGTH)
    records = tuple(
        SimulatedRecord(
            kind=_kind(kind),
            rank=rank,
            first=first,
            expected_levels=levels[i],
            digit_mass=None if mass is None else mass[i],
            other_levels=None if other is None else other[i],
        )
        for i, (kind, rank, first) in enumerate(zip(row.kinds.tolist(), row.ranks.tolist(), row.firsts.tolist(), strict=True))
    )
    return Simulation(
        explanation_id=row.explanation_id,
        neuron=NeuronId(row.layer, row.neuron),
        simulator=row.simulator,
        status=row.status,
        records=records,
        provenance=_provenance(row),
        reason=row.reason,
        reply=row.reply,
        other_explanation_id=row.other_explanation_id,
        id=row.id,
    )


def _kind(place: int) -> Kind:
    return KINDS[place]


def _score(row: Row[Any]) -> StoredScore:
    names = Score.__dataclass_fields__
    score = Score(**{name: value for name, value in row._mapping.items() if name in names})
    return StoredScore(NeuronId(row.layer, row.neuron), row.explanation_id, row.simulator, row.simulator_model, score)


def _pairs(ids: Any, logits: Any) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids.tolist(), logits.tolist(), strict=True))


def _chunks(values: list[int]) -> Iterable[list[int]]:
    waiting = iter(values)
    while some := list(islice(waiting, IDS_AT_ONCE)):
        yield some


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 -> 0-2,5"""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(str(n) for n in part) for part in parts)
