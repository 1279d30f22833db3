"""Alembic's entry: runs the migrations on the engine that the connector hands over, all of them or none."""

from alembic import context

from connector.provenance.tables import Base

engine = context.config.attributes["engine"]
try:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # its driver commits each change of a table otherwise
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,  # SQLite alters a table by copying it
            transactional_ddl=True,
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
finally:
    engine.dispose()
