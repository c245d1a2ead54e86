"""The latents whose directions are most like a latent's. Runs of the version before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("units", sa.Column("nearest_units", sa.LargeBinary))
    op.add_column("units", sa.Column("nearest_cosines", sa.LargeBinary))
