"""Vectors of explanations, by which they are found by meaning."""

import sqlalchemy as sa
from alembic import op

from neuroexplain.store.dialect import vectors_ddl

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "vectors",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("block", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("is_current", sa.Boolean, nullable=False),
        sa.Column("checksum", sa.String(16), nullable=False),
        sa.Column("dimensions", sa.Integer, nullable=False),
        sa.Column("explanation_ids", sa.LargeBinary, nullable=False),
        sa.Column("text_hashes", sa.LargeBinary, nullable=False),
        sa.Column("scales", sa.LargeBinary, nullable=False),
        sa.Column("numbers", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("run_id", "block", "model", name="uq_vectors_run_id_block_model"),
    )
    for statement in vectors_ddl(op.get_bind().dialect.name):
        op.execute(statement)
