"""A score is one metric, a prediction has a codec, an explanation has a side, and the null is called control.

Tables and columns are renamed in place if their rows stay the same. Scores get a row for each metric, so
their table is created again. Its indices are dropped first and their pages are used again, so that the file
hardly grows.
"""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# Columns of a score that every metric of it keeps.
KEPT = "run_id, layer, unit, explanation_id, simulator, simulator_model"
COUNTS = "n_tokens, n_records"
PREDICTIONS = {
    "simulator": "scorer",
    "expected_levels": "predicted",
    "digit_mass": "detail",
    "other_levels": "control",
    "other_explanation_id": "control_explanation_id",
}
SESSIONS = {
    "simulator": "scorer",
    "simulator_model": "scorer_model",
    "simulator_prompt_tokens": "scorer_prompt_tokens",
}


def upgrade() -> None:
    op.add_column(
        "runs",
        sa.Column(
            "rectified", sa.Boolean(create_constraint=False), nullable=False, server_default=sa.false()
        ),
    )
    op.execute("ALTER TABLE simulations RENAME TO predictions")
    for table, renamed in (("predictions", PREDICTIONS), ("sessions", SESSIONS)):
        for old, new in renamed.items():
            op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    op.add_column(
        "predictions", sa.Column("codec", sa.String(length=16), nullable=False, server_default="levels")
    )
    op.add_column(
        "explanations", sa.Column("side", sa.String(length=8), nullable=False, server_default="positive")
    )
    _mark_negative_runs()
    _split_scores()


def _split_scores() -> None:
    for index in ("ix_scores_headline", "ix_scores_headline_layer"):
        op.drop_index(index, "scores")
    op.execute("ALTER TABLE scores RENAME TO old_scores")
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("unit", sa.Integer(), nullable=False),
        sa.Column("explanation_id", sa.Integer(), nullable=False),
        sa.Column("scorer", sa.String(length=32), nullable=False),
        sa.Column("scorer_model", sa.Text(), nullable=False),
        sa.Column("metric", sa.String(length=32), nullable=False),
        sa.Column("split", sa.String(length=8), nullable=False),
        sa.Column("subset", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("ci_low", sa.Float(), nullable=True),
        sa.Column("ci_high", sa.Float(), nullable=True),
        sa.Column("ci_reason", sa.Text(), nullable=True),
        sa.Column("control", sa.Float(), nullable=True),
        sa.Column("control_explanation_id", sa.Integer(), nullable=True),
        sa.Column("control_reason", sa.Text(), nullable=True),
        sa.Column("n_tokens", sa.Integer(), nullable=False),
        sa.Column("n_records", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["explanation_id"], ["explanations.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "explanation_id", "scorer", "scorer_model", "metric", "split", "subset", name="uq_scores"
        ),
    )
    names = "run_id, layer, unit, explanation_id, scorer, scorer_model, split, subset, status, reason"
    names += f", {COUNTS}, metric, value"
    op.execute(
        f"INSERT INTO scores ({names}, ci_low, ci_high, ci_reason, control, control_explanation_id, "
        f"control_reason) SELECT {KEPT}, split, kind, status, reason, {COUNTS}, 'correlation', correlation, "
        "ci_low, ci_high, ci_reason, other_correlation, other_explanation_id, other_reason "
        "FROM old_scores ORDER BY id"
    )
    for metric in ("r_squared", "absolute_deviation_explained"):
        op.execute(
            f"INSERT INTO scores ({names}) "
            f"SELECT {KEPT}, split, kind, 'ok', NULL, {COUNTS}, '{metric}', {metric} "
            f"FROM old_scores WHERE {metric} IS NOT NULL ORDER BY id"
        )
    op.drop_table("old_scores")
    op.create_index("ix_scores_headline", "scores", ["run_id", "metric", "subset", "split", "value"])
    op.create_index(
        "ix_scores_headline_layer", "scores", ["run_id", "layer", "metric", "subset", "split", "value"]
    )


def _mark_negative_runs() -> None:
    """Mark the failed explanations of `--sign negative` runs as of the negative side; adapt their request
    keys.

    The version before could not explain these runs; with the mark, --retry-failed tries them again.
    Explanations that people wrote for these runs were scored as of the positive side, and stay so.
    """
    connection = op.get_bind()
    for run_id, config in connection.execute(sa.text("SELECT id, config FROM runs")).all():
        if (json.loads(config) if isinstance(config, str) else config).get("sign") != "negative":
            continue
        columns = "id, explainer, model, model_revision, prompt_sha256, sampling, candidate, text"
        of_run = "FROM explanations WHERE run_id = :run AND status <> 'ok'"
        rows = connection.execute(sa.text(f"SELECT {columns} {of_run}"), {"run": run_id}).all()
        for row in rows:
            sampling = json.loads(row.sampling) if isinstance(row.sampling, str) else row.sampling
            request = [row.explainer, row.model, row.model_revision, row.prompt_sha256, sampling]
            request += [row.candidate, *([row.text] if row.explainer == "human" else []), "negative"]
            key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
            statement = "UPDATE explanations SET side = 'negative', request_key = :key WHERE id = :id"
            connection.execute(sa.text(statement), {"key": key, "id": row.id})
