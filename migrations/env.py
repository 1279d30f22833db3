"""Alembic's entry: runs the migrations on the engine that the connector hands over."""

from alembic import context

from connector.provenance.tables import Base

engine = context.config.attributes["engine"]
try:
    with engine.connect() as connection:
        # SQLite alters a table by copying it, which Alembic calls batch mode.
        context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
        with context.begin_transaction():
            context.run_migrations()
finally:
    engine.dispose()
