"""Stores with an id of their own, whose addresses may change.

Revision: 0007
Follows: 0006
"""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "store",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.String(length=32), nullable=False),
        sa.Column("claimed", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("merged_into_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["merged_into_id"], ["store.id"], name="fk_store_merged_into_id_store"),
        sa.PrimaryKeyConstraint("id", name="pk_store"),
        sa.UniqueConstraint("uid", name="uq_store_uid"),
    )
    op.create_table(
        "store_address",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("store_id", sa.Integer(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["store.id"], name="fk_store_address_store_id_store"),
        sa.PrimaryKeyConstraint("id", name="pk_store_address"),
        sa.UniqueConstraint("address", name="uq_store_address_address"),
    )
    _name_stores()
    for table in ("release", "promotion"):
        op.add_column(table, sa.Column("store_id", sa.Integer(), nullable=True))
        op.execute(
            f"UPDATE {table} SET store_id = (SELECT store_id FROM store_address WHERE address = {table}.store_url)"
        )
        with op.batch_alter_table(table) as batch_op:
            if table == "release":
                batch_op.drop_constraint("uq_release_store_url_physical_name", type_="unique")
            batch_op.drop_column("store_url")
            batch_op.alter_column("store_id", existing_type=sa.Integer(), nullable=False)
            batch_op.create_foreign_key(f"fk_{table}_store_id_store", "store", ["store_id"], ["id"])
            if table == "release":
                batch_op.create_unique_constraint("uq_release_store_id_physical_name", ["store_id", "physical_name"])


def downgrade() -> None:
    # Older versions know a store by one address: the newest. One that lost all its addresses is named by its uid.
    newest = "(SELECT address FROM store_address WHERE store_id = {0}.store_id ORDER BY id DESC LIMIT 1)"
    for table in ("promotion", "release"):
        op.add_column(table, sa.Column("store_url", sa.String(length=512), nullable=True))
        uid = f"(SELECT uid FROM store WHERE id = {table}.store_id)"
        op.execute(f"UPDATE {table} SET store_url = substr(coalesce({newest.format(table)}, {uid}), 1, 512)")
        with op.batch_alter_table(table) as batch_op:
            if table == "release":
                batch_op.drop_constraint("uq_release_store_id_physical_name", type_="unique")
            batch_op.drop_constraint(f"fk_{table}_store_id_store", type_="foreignkey")
            batch_op.drop_column("store_id")
            batch_op.alter_column("store_url", existing_type=sa.String(length=512), nullable=False)
            if table == "release":
                batch_op.create_unique_constraint("uq_release_store_url_physical_name", ["store_url", "physical_name"])
    op.drop_table("store_address")
    op.drop_table("store")


def _name_stores() -> None:
    """Make a store of each URL: which of them are one server is seen when it is reached."""
    connection = op.get_bind()
    urls = connection.execute(sa.text("SELECT store_url FROM release UNION SELECT store_url FROM promotion ORDER BY 1"))
    stores = sa.table("store", sa.column("id"), sa.column("uid"))
    addresses = sa.table("store_address", sa.column("store_id"), sa.column("address"))
    for url in urls.scalars().all():
        uid = uuid4().hex
        connection.execute(sa.insert(stores).values(uid=uid))
        store_id = connection.scalar(sa.select(stores.c.id).where(stores.c.uid == uid))
        connection.execute(sa.insert(addresses).values(store_id=store_id, address=url))
