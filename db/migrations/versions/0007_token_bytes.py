"""The bytes that each token stands for. Earlier vocabularies have none: their texts may lack spaces."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("tokens", sa.Column("data", sa.LargeBinary()))
    op.add_column("tokens", sa.Column("is_byte", sa.Boolean(), nullable=False, server_default=sa.false()))
