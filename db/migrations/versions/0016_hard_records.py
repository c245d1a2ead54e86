"""What units do on the records of their look-alikes. Runs of the version before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "hard_records",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("layer", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("unit", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("side", sa.String(8), primary_key=True),
        *(
            sa.Column(name, sa.LargeBinary, nullable=False)
            for name in ("segments", "starts", "reasons", "others", "activations")
        ),
        sa.Column("checksum", sa.String(16), nullable=False),
        sqlite_with_rowid=False,
    )
    for table in ("predictions", "rule_predictions"):
        op.add_column(table, sa.Column("n_hard", sa.Integer))
