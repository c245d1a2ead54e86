"""The rule and the examples of explanations, and what is predicted and scored from rules alone."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def _of_explanation() -> list[sa.Column]:
    return [
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column(
            "explanation_id", sa.Integer, sa.ForeignKey("explanations.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("scorer", sa.String(32), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text),
    ]


def upgrade() -> None:
    op.add_column("explanations", sa.Column("rule", sa.Text))
    op.add_column("explanations", sa.Column("examples", sa.JSON))
    op.create_table(
        "rule_predictions",
        sa.Column("id", sa.Integer, primary_key=True),
        *_of_explanation(),
        sa.Column("reply", sa.Text),
        sa.Column("kinds", sa.LargeBinary, nullable=False),
        sa.Column("ranks", sa.LargeBinary, nullable=False),
        sa.Column("firsts", sa.LargeBinary, nullable=False),
        sa.Column("predicted", sa.LargeBinary, nullable=False),
        sa.Column("detail", sa.LargeBinary),
        sa.Column("control", sa.LargeBinary),
        sa.Column("control_explanation_id", sa.Integer),
        sa.Column("engine", sa.String(16), nullable=False),
        sa.Column("engine_version", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("model_revision", sa.Text),
        sa.Column("prompt_sha256", sa.String(64), sa.ForeignKey("prompts.sha256")),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("codec", sa.String(16), nullable=False, server_default="levels"),
        sa.Column("n_read", sa.Integer),
        sa.Column("with_bills", sa.Boolean(create_constraint=False)),
        sa.Column("has_report", sa.Boolean(create_constraint=False)),
        sa.UniqueConstraint("explanation_id", "scorer", "model", name="uq_rule_predictions"),
    )
    op.create_table(
        "rule_scores",
        sa.Column("id", sa.Integer, primary_key=True),
        *_of_explanation(),
        sa.Column("layer", sa.Integer, nullable=False),
        sa.Column("unit", sa.Integer, nullable=False),
        sa.Column("scorer_model", sa.Text, nullable=False),
        sa.Column("metric", sa.String(32), nullable=False),
        sa.Column("split", sa.String(8), nullable=False),
        sa.Column("subset", sa.String(32), nullable=False),
        sa.Column("value", sa.Float),
        sa.Column("ci_low", sa.Float),
        sa.Column("ci_high", sa.Float),
        sa.Column("ci_reason", sa.Text),
        sa.Column("control", sa.Float),
        sa.Column("control_explanation_id", sa.Integer),
        sa.Column("control_reason", sa.Text),
        sa.Column("n_tokens", sa.Integer, nullable=False),
        sa.Column("n_records", sa.Integer, nullable=False),
        sa.Column("effective_records", sa.Float),
        sa.UniqueConstraint(
            *("explanation_id", "scorer", "scorer_model", "metric", "split", "subset"), name="uq_rule_scores"
        ),
    )
