"""What a scorer stores, there and back through parquet."""

from neuroexplain.explaining.verify import verify_run
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats.parquet import export_parquet
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_predictions, list_scores
from neuroexplain.store.runs import load_run


def through_parquet(db, folder, *scorers):
    """(codecs, scores) of these scorers as they are stored, and as they come back into a new database."""
    with (
        open_store(str(db), read_only=True) as store,
        open_store(str(folder / "y.db"), create=True) as back,
    ):
        list(export_parquet(store, load_run(store), folder / "out"))
        list(import_parquet(back, folder / "out"))
        assert list(verify_run(back, load_run(back))) == []
        return [_stored(database, scorers) for database in (store, back)]


def _stored(database, scorers):
    ids = range(1, 100)
    codecs = {p.codec for p in list_predictions(database, ids) if p.scorer in scorers}
    scores = [stored.score for stored in list_scores(database, ids) if stored.scorer in scorers]
    return codecs, sorted((s.metric, s.split, s.subset, s.status, s.value or 0) for s in scores)
