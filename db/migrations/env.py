"""The script that Alembic runs: it applies the migrations on the connection of neuroexplain.store.engine."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
