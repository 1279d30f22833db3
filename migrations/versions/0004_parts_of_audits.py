"""Measures of a part of an audit, and what audits keep of each query for later ones to compare with.

Revision: 0004
Follows: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("measure") as batch_op:
        batch_op.add_column(sa.Column("part", sa.Text(), nullable=False, server_default=""))
        batch_op.drop_constraint("uq_measure_audit_id_direction_name", type_="unique")
        batch_op.create_unique_constraint(
            "uq_measure_audit_id_direction_part_name", ["audit_id", "direction", "part", "name"]
        )
    with op.batch_alter_table("measure") as batch_op:
        batch_op.alter_column("part", server_default=None)
    op.create_table(
        "per_query",
        sa.Column("audit_id", sa.Integer(), nullable=False),
        sa.Column("direction", sa.String(length=16), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_per_query_audit_id_audit"),
        sa.PrimaryKeyConstraint("audit_id", "direction", name="pk_per_query"),
    )


def downgrade() -> None:
    op.drop_table("per_query")
    op.execute("DELETE FROM measure WHERE part <> ''")
    with op.batch_alter_table("measure") as batch_op:
        batch_op.drop_constraint("uq_measure_audit_id_direction_part_name", type_="unique")
        batch_op.drop_column("part")
        batch_op.create_unique_constraint("uq_measure_audit_id_direction_name", ["audit_id", "direction", "name"])
