"""Alembic's entry: runs the migrations on the engine that the connector hands over, all of them or none.

Everything happens in one transaction. A second process waits until it ends: on SQLite for the only writer, on
PostgreSQL for a lock of this transaction, which also covers the table of Alembic itself.
"""

from alembic import context

from connector.errors import ProvenanceError
from connector.provenance.database import LOCK_SECONDS
from connector.provenance.tables import Base

ADVISORY_LOCK = int.from_bytes(b"modalign")  # PostgreSQL names such locks by a number of 64 bits

with context.config.attributes["engine"].connect() as connection:
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        connection.detach()  # no later transaction shall be without foreign keys
        # A table is altered by copying it: rows may refer to it while it is gone. No effect inside a transaction.
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite alters a table by copying it
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    if sqlite and (dangling := connection.exec_driver_sql("PRAGMA foreign_key_check").all()):
        raise ProvenanceError(
            f"after the migration, {len(dangling)} rows would refer to rows that do not exist, the first in the table "
            f"{dangling[0][0]}: nothing was changed; something other than modalign changed the database: restore it "
            "from a backup"
        )
    connection.commit()
