"""How well simulators and their models predict neurons whose true explanation is known."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "simulator_checks",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("scorer", sa.String(32), primary_key=True),
        sa.Column("scorer_model", sa.Text, primary_key=True),
        sa.Column("engine_version", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("n_neurons", sa.Integer, nullable=False),
        sa.Column("n_explanations", sa.Integer, nullable=False),
        sa.Column("n_records", sa.Integer, nullable=False),
        sa.Column("n_won", sa.Integer, nullable=False),
        sa.Column("n_undefined", sa.Integer, nullable=False),
        sa.Column("mean_true", sa.Float),
        sa.Column("mean_false", sa.Float),
        sa.Column("mean_margin", sa.Float, nullable=False),
        sa.Column("computed_per_token", sa.Float),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("kinds", sa.JSON, nullable=False),
        sqlite_with_rowid=False,
    )
