"""The tables, the same for SQLite and PostgreSQL. db/migrations creates them; a test compares the two.

Rows have their natural key (run, layer, unit), so that a filter by layer or score needs no join. Arrays are
packed, one blob for each array in rank order: a row for each record took 176 bytes and 105,000 were written a
second; packed, a record takes 146 bytes and 645,000 are written.

How the store speaks to the database (docs/decisions.md): it reads by SQL as text, since importing SQLAlchemy
doubles the start of `query`. It writes by SQLAlchemy Core, which knows these tables and both dialects. The
many rows of a collected layer go straight to the driver, three times as fast (statements.insert_tuples).
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

from neuroexplain.evidence import TextPart
from neuroexplain.store.columns import SafeText, key_of_layer, key_of_unit, of_provenance, of_run, packed

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("status", String(16), nullable=False),
    Column("subject", SafeText, nullable=False),
    Column("subject_revision", SafeText),
    Column("dtype", String(16), nullable=False),
    Column("activation", String(32), nullable=False, server_default="act"),
    Column("layers", JSON, nullable=False),
    Column("n_layers", Integer, nullable=False),
    Column("top_k", Integer, nullable=False),
    Column("n_random", Integer, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("tokenizer_sha256", String(64), nullable=False),
    Column("config", JSON, nullable=False),
    Column("n_segments", Integer, nullable=False, default=0),
    Column("n_documents", Integer, nullable=False, default=0),
    Column("n_tokens", Integer, nullable=False, default=0),
    Column("started_at", String(32), nullable=False),
    Column("finished_at", String(32)),
    Column("versions", JSON, nullable=False),
    Column("rectified", Boolean(create_constraint=False), nullable=False, server_default=false()),
    Column("split_rule", String(16), nullable=False, server_default="ranks"),
    Column("n_sampled", Integer, nullable=False, server_default="0"),
    Column("barred_ids", JSON, nullable=False, server_default="[]"),
    Column("split_segments", JSON, nullable=False, server_default="{}"),
    Column("n_background", Integer, nullable=False, server_default="0"),
    Column("health", JSON, nullable=False, server_default="{}"),  # of each layer's dictionary
)

sources = Table(
    "sources",
    metadata,
    *key_of_layer(),
    Column("kind", String(64), nullable=False),
    Column("module", String(200)),
    Column("side", String(8), nullable=False),
    Column("width", Integer, nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("group_size", Integer),
    Column("encoder", SafeText),
    sqlite_with_rowid=False,
)

tokens = Table(
    "tokens",
    metadata,
    Column("run_id", Integer, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("token_id", Integer, primary_key=True, autoincrement=False),
    Column("text", SafeText, nullable=False),
    Column("special", Boolean(create_constraint=False), nullable=False),
    Column("data", LargeBinary),
    Column("is_byte", Boolean(create_constraint=False), nullable=False, server_default=false()),
    Index("ix_tokens_run_id_text", "run_id", "text"),
    sqlite_with_rowid=False,
)

units = Table(
    "units",
    metadata,
    *key_of_unit(),
    Column("status", String(8), nullable=False),
    Column("mean", Float),
    Column("std", Float),
    Column("min", Float),
    Column("max", Float),
    Column("share_positive", Float),
    Column("max_activation", Float),
    Column("histogram", LargeBinary),  # of the activations above 0, of sparse units
    *(Column(name, LargeBinary) for name in ("nearest_units", "nearest_cosines")),  # of latents
    Index("ix_units_run_id_max_activation", "run_id", "max_activation"),
    sqlite_with_rowid=False,
)

segments = Table(
    "segments",
    metadata,
    Column("run_id", Integer, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("segment", Integer, primary_key=True, autoincrement=False),
    Column("token_ids", LargeBinary, nullable=False),  # 3 bytes for each id
    Column("split", String(8)),
    sqlite_with_rowid=False,
)

exemplars = Table(
    "exemplars",
    metadata,
    Column("id", Integer, primary_key=True),
    of_run(),
    Column("layer", Integer, nullable=False),
    Column("unit", Integer, nullable=False),
    Column("kind", String(8), nullable=False),
    packed("segments"),
    packed("starts"),
    packed("documents"),
    packed("token_offsets"),
    Column("peaks", LargeBinary, nullable=False),  # in the run's dtype
    Column("activations", LargeBinary, nullable=False),  # in the same dtype, 64 for each record
    UniqueConstraint("run_id", "layer", "unit", "kind", name="uq_exemplars_run_id_layer_neuron_kind"),
)

samples = Table(  # of the exemplars of the kind `sampled`, which follow each other by side, then split
    "samples",
    metadata,
    *key_of_unit(),
    Column("side", String(8), primary_key=True),
    packed("counts"),  # records of each split
    packed("sizes"),  # of each record
    packed("thresholds"),  # of each split
    Column("checksum", String(16), nullable=False),  # of the thresholds, which no other row tells
    sqlite_with_rowid=False,
)

backgrounds = Table(  # the segments of a run's background, by hash: the same for every layer
    "backgrounds",
    metadata,
    *key_of_layer(),
    packed("segments"),
    sqlite_with_rowid=False,
)

background_activations = Table(  # those that are not 0; a unit that is silent there has no row
    "background_activations",
    metadata,
    *key_of_unit(),
    packed("records"),  # places in the background
    packed("positions"),  # tokens of the record
    Column("activations", LargeBinary, nullable=False),  # in the run's dtype
    sqlite_with_rowid=False,
)

hard_records = Table(  # of text that looks as if a unit's side fired there: see collecting/measure_hard.py
    "hard_records",
    metadata,
    *key_of_unit(),
    Column("side", String(8), primary_key=True),
    *map(packed, ("segments", "starts", "reasons", "others")),  # of each record
    Column("activations", LargeBinary, nullable=False),  # of the unit, in the run's dtype, 64 for each record
    Column("checksum", String(16), nullable=False),  # of the five above, which no other row tells
    sqlite_with_rowid=False,
)

peak_tokens = Table(
    "peak_tokens",
    metadata,
    *key_of_layer(),
    Column("token_id", Integer, primary_key=True, autoincrement=False),
    Column("unit", Integer, primary_key=True, autoincrement=False),
    Column("count", Integer, nullable=False),  # of the unit's top records that peak on this token
    sqlite_with_rowid=False,
)

vocabulary_readings = Table(
    "vocabulary_readings",
    metadata,
    *key_of_unit(),
    *map(packed, ("promoted_ids", "promoted_logits", "suppressed_ids", "suppressed_logits")),
    sqlite_with_rowid=False,
)

prompts = Table(
    "prompts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("text", SafeText, nullable=False),
)


explanations = Table(
    "explanations",
    metadata,
    Column("id", Integer, primary_key=True),
    of_run(),
    Column("layer", Integer, nullable=False),
    Column("unit", Integer, nullable=False),
    Column("explainer", String(32), nullable=False),
    Column("candidate", Integer, nullable=False),
    Column("request_key", String(64), nullable=False),  # Explanation.request_key
    Column("chosen", Boolean(create_constraint=False), nullable=False),
    Column("status", String(32), nullable=False),
    Column("text", SafeText),
    Column("reason", SafeText),
    Column("reply", SafeText),
    *of_provenance(),
    Column("covers", JSON(none_as_null=True)),
    Column("parts", JSON(none_as_null=True)),
    Column("side", String(8), nullable=False, server_default="positive"),
    Column("rule", SafeText),
    Column("examples", JSON(none_as_null=True)),
    UniqueConstraint(
        "run_id", "layer", "unit", "request_key", name="uq_explanations_run_id_layer_neuron_request_key"
    ),
)


BACKGROUND_COLUMNS = ("background", "background_detail", "background_control")


def _predictions(name: str, unique_name: str) -> Table:
    """A table of what is predicted from explanations, or from their rules."""
    return Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True),
        of_run(),
        Column("explanation_id", Integer, ForeignKey("explanations.id", ondelete="CASCADE"), nullable=False),
        Column("scorer", String(32), nullable=False),
        Column("status", String(32), nullable=False),
        Column("reason", SafeText),
        Column("reply", SafeText),
        packed("kinds"),
        packed("ranks"),
        packed("firsts"),
        Column("predicted", LargeBinary, nullable=False),  # as many values for each record as the codec says
        Column("detail", LargeBinary),
        Column("control", LargeBinary),
        Column("control_explanation_id", Integer),
        *of_provenance(),
        Column("codec", String(16), nullable=False, server_default="levels"),
        Column("n_read", Integer),
        Column("with_bills", Boolean(create_constraint=False)),
        Column("has_report", Boolean(create_constraint=False)),
        # Of the background's records: see packing.pack_background.
        *(Column(name, LargeBinary) for name in BACKGROUND_COLUMNS),
        Column("guesses", LargeBinary),
        Column("n_background", Integer),
        Column("n_hard", Integer),
        UniqueConstraint("explanation_id", "scorer", "model", name=unique_name),
    )


predictions = _predictions("predictions", "uq_simulations_explanation_id_simulator_model")
rule_predictions = _predictions("rule_predictions", "uq_rule_predictions")
PREDICTIONS: Mapping[TextPart, Table] = {"whole": predictions, "rule": rule_predictions}

HAS_INTERVAL = "split = 'report' AND ci_low IS NOT NULL"  # the scores that ix_scores_lower holds


def _scores(name: str, *indexes: Index) -> Table:
    """A table of the scores of explanations, or of their rules."""
    return Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True),
        of_run(),
        Column("layer", Integer, nullable=False),
        Column("unit", Integer, nullable=False),
        Column("explanation_id", Integer, ForeignKey("explanations.id", ondelete="CASCADE"), nullable=False),
        Column("scorer", String(32), nullable=False),
        Column("scorer_model", SafeText, nullable=False),
        Column("metric", String(32), nullable=False),
        Column("split", String(8), nullable=False),
        Column("subset", String(32), nullable=False),
        Column("status", String(32), nullable=False),
        Column("reason", SafeText),
        Column("value", Float),
        Column("ci_low", Float),
        Column("ci_high", Float),
        Column("ci_reason", SafeText),
        Column("control", Float),
        Column("control_explanation_id", Integer),
        Column("control_reason", SafeText),
        Column("n_tokens", Integer, nullable=False),
        Column("n_records", Integer, nullable=False),
        Column("effective_records", Float),
        UniqueConstraint(
            *("explanation_id", "scorer", "scorer_model", "metric", "split", "subset"), name=f"uq_{name}"
        ),
        *indexes,
    )


scores = _scores(
    "scores",
    Index("ix_scores_headline", "run_id", "metric", "subset", "split", "value"),
    Index("ix_scores_headline_layer", "run_id", "layer", "metric", "subset", "split", "value"),
    Index(
        "ix_scores_lower",
        *("run_id", "metric", "subset", "ci_low", "layer", "value"),
        sqlite_where=text(HAS_INTERVAL),
        postgresql_where=text(HAS_INTERVAL),
    ),
)
rule_scores = _scores("rule_scores")
SCORES: Mapping[TextPart, Table] = {"whole": scores, "rule": rule_scores}

simulator_checks = Table(
    "simulator_checks",
    metadata,
    Column("run_id", Integer, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("scorer", String(32), primary_key=True),
    Column("scorer_model", SafeText, primary_key=True),
    Column("engine_version", SafeText, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("n_neurons", Integer, nullable=False),
    Column("n_explanations", Integer, nullable=False),
    Column("n_records", Integer, nullable=False),
    Column("n_won", Integer, nullable=False),
    Column("n_undefined", Integer, nullable=False),
    Column("mean_true", Float),
    Column("mean_false", Float),
    Column("mean_margin", Float, nullable=False),
    Column("computed_per_token", Float),
    Column("seconds", Float, nullable=False),
    Column("kinds", JSON, nullable=False),
    sqlite_with_rowid=False,
)

vectors = Table(  # of the texts of explanations, by blocks of their ids: see store/vectors.py
    "vectors",
    metadata,
    Column("id", Integer, primary_key=True),
    of_run(),
    Column("block", Integer, nullable=False),
    Column("model", SafeText, nullable=False),
    Column("is_current", Boolean(create_constraint=False), nullable=False),
    Column("checksum", String(16), nullable=False),
    Column("dimensions", Integer, nullable=False),  # numbers of each explanation
    *map(packed, ("explanation_ids", "text_hashes", "scales", "numbers")),
    UniqueConstraint("run_id", "block", "model", name="uq_vectors_run_id_block_model"),
)

leases = Table(  # on sides of units that a process explains: see store/leases.py
    "leases",
    metadata,
    *key_of_unit(),
    Column("side", String(8), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Index("ix_leases_holder", "holder"),
    sqlite_with_rowid=False,
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Integer, primary_key=True),
    of_run(),
    Column("started_at", String(32), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("explainer", String(32)),
    Column("model", SafeText),
    Column("scorer", String(32)),
    Column("scorer_model", SafeText),
    Column("n_neurons", Integer, nullable=False),
    Column("n_failed", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("scorer_prompt_tokens", BigInteger, nullable=False),
    Column("scored_tokens", BigInteger, nullable=False),
)
