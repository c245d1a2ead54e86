"""An index of scores by the lower end of their interval, for `query --sort lower`."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    where = sa.text("split = 'report' AND ci_low IS NOT NULL")
    op.create_index(
        "ix_scores_lower",
        "scores",
        ["run_id", "metric", "subset", "ci_low", "layer", "value"],
        sqlite_where=where,
        postgresql_where=where,
    )
