"""Units in place of neurons, and a source for each layer in place of one width for a run.

Tables and columns are renamed in place; only the rows of runs are written again. Constraints keep their old
names, since SQLite cannot rename a constraint without writing its table again. An earlier run does not tell
which module it read, so the module of its sources is unknown.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

OF_UNITS = ("neurons", "exemplars", "peak_tokens", "vocabulary_readings", "explanations", "scores")


def upgrade() -> None:
    for table in OF_UNITS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN neuron TO unit")
    op.execute("ALTER TABLE neurons RENAME TO units")
    op.drop_index("ix_neurons_run_id_max_activation", "units")
    op.create_index("ix_units_run_id_max_activation", "units", ["run_id", "max_activation"])
    op.create_table(
        "sources",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("layer", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("module", sa.String(length=200), nullable=True),
        sa.Column("side", sa.String(length=8), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("dtype", sa.String(length=16), nullable=False),
        sa.Column("group_size", sa.Integer(), nullable=True),
        sa.Column("encoder", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "layer"),
        sqlite_with_rowid=False,
    )
    connection = op.get_bind()
    runs = connection.execute(
        sa.text("SELECT id, layers, d_mlp, dtype, activation, config FROM runs ORDER BY id")
    ).all()
    for run in runs:
        side = "output" if run.activation == "act" else "input"
        for layer in _json(run.layers):
            connection.execute(
                sa.text(
                    "INSERT INTO sources "
                    "VALUES (:run, :layer, 'mlp', NULL, :side, :width, :dtype, NULL, NULL)"
                ),
                {"run": run.id, "layer": layer, "side": side, "width": run.d_mlp, "dtype": run.dtype},
            )
        config = _json(run.config)
        if "model" in config:  # collected, not imported: the same command then finds its run
            statement = sa.text("UPDATE runs SET config = :config WHERE id = :run").bindparams(
                sa.bindparam("config", type_=sa.JSON)
            )
            connection.execute(statement, {"config": {**config, "source": "mlp"}, "run": run.id})
    op.drop_column("runs", "d_mlp")
    # A wider column for longer names: SQLite cannot change the type of a column in place.
    op.add_column("runs", sa.Column("read", sa.String(length=32), nullable=False, server_default="act"))
    op.execute("UPDATE runs SET read = activation")
    op.drop_column("runs", "activation")
    op.execute("ALTER TABLE runs RENAME COLUMN read TO activation")


def _json(value):
    return json.loads(value) if isinstance(value, str) else value
