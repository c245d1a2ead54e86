"""Peak tokens in the order of layers: a layer's rows are appended instead of spread over the whole table."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

NAMES = ("run_id", "layer", "token_id", "neuron")


def upgrade() -> None:
    op.execute(
        "CREATE TEMPORARY TABLE kept AS SELECT run_id, layer, token_id, neuron, count FROM peak_tokens"
    )
    op.drop_table("peak_tokens")
    op.create_table(
        "peak_tokens",
        *(sa.Column(name, sa.Integer(), autoincrement=False, nullable=False) for name in NAMES),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint(*NAMES),
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO peak_tokens SELECT * FROM kept ORDER BY run_id, layer, token_id, neuron")
    op.execute("DROP TABLE kept")
