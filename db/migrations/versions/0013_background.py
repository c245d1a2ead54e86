"""What sparse units have beside dense ones: a background, histograms, and how well their dictionary fits."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("runs", sa.Column("n_background", sa.Integer, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("health", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("units", sa.Column("histogram", sa.LargeBinary))
    for table in ("predictions", "rule_predictions"):
        for name in ("background", "background_detail", "background_control", "guesses"):
            op.add_column(table, sa.Column(name, sa.LargeBinary))
        op.add_column(table, sa.Column("n_background", sa.Integer))
    op.create_table(
        "backgrounds",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("layer", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("segments", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "background_activations",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("layer", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("unit", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("records", sa.LargeBinary, nullable=False),
        sa.Column("positions", sa.LargeBinary, nullable=False),
        sa.Column("activations", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
