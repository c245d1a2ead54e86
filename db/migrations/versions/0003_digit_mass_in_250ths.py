"""Digit masses as 250ths, rounded down, in a byte each instead of float16.

A page of SQLite then holds two simulations instead of one.
"""

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
AT_ONCE = 5_000

simulations = sa.table("simulations", sa.column("id", sa.Integer), sa.column("digit_mass", sa.LargeBinary))


def upgrade() -> None:
    connection, last = op.get_bind(), 0
    query = (
        sa.select(simulations)
        .where(simulations.c.digit_mass.is_not(None))
        .order_by(simulations.c.id)
        .limit(AT_ONCE)
    )
    change = (
        sa.update(simulations)
        .where(simulations.c.id == sa.bindparam("b_id"))
        .values(digit_mass=sa.bindparam("b_mass"))
    )
    while rows := connection.execute(query.where(simulations.c.id > last)).all():
        connection.execute(change, [{"b_id": row.id, "b_mass": in_250ths(row.digit_mass)} for row in rows])
        last = rows[-1].id


def in_250ths(float16s: bytes) -> bytes:
    mass = np.clip(np.frombuffer(float16s, "<f2").astype(np.float64), 0, 1)
    return np.floor(mass * 250 + 1e-4).astype(np.uint8).tobytes()
