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


def downgrade() -> None:
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
