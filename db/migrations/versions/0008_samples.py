"""Splits by passage, sampled records, and what the population score needs. Earlier runs keep their rule."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    for column in (
        sa.Column("split_rule", sa.String(16), nullable=False, server_default="ranks"),
        sa.Column("n_sampled", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("barred_ids", sa.JSON(), nullable=False, server_default="[]"),
        sa.Column("split_segments", sa.JSON(), nullable=False, server_default="{}"),
    ):
        op.add_column("runs", column)
    op.add_column("segments", sa.Column("split", sa.String(8)))
    op.add_column("predictions", sa.Column("n_read", sa.Integer()))
    op.add_column("predictions", sa.Column("with_bills", sa.Boolean()))
    op.add_column("predictions", sa.Column("has_report", sa.Boolean()))
    op.add_column("scores", sa.Column("effective_records", sa.Float()))
    op.create_table(
        "samples",
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("layer", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("unit", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("side", sa.String(8), primary_key=True),
        sa.Column("counts", sa.LargeBinary(), nullable=False),
        sa.Column("sizes", sa.LargeBinary(), nullable=False),
        sa.Column("thresholds", sa.LargeBinary(), nullable=False),
        sa.Column("checksum", sa.String(16), nullable=False),
        sqlite_with_rowid=False,
    )
