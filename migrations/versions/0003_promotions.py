"""Promotions, and when releases were dropped.

Revision: 0003
Follows: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("release", sa.Column("drop_begun_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("release", sa.Column("dropped_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "promotion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("store_url", sa.String(length=512), nullable=False),
        sa.Column("collection", sa.String(length=128), nullable=False),
        sa.Column("metric", sa.String(length=128), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("previous_id", sa.Integer(), nullable=True),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("audit_id", sa.Integer(), nullable=True),
        sa.Column("forced_by", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name="fk_promotion_release_id_release"),
        sa.ForeignKeyConstraint(["previous_id"], ["release.id"], name="fk_promotion_previous_id_release"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_promotion_run_id_run"),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_promotion_audit_id_audit"),
        sa.PrimaryKeyConstraint("id", name="pk_promotion"),
    )
    op.create_index("ix_promotion_collection", "promotion", ["collection"])


def downgrade() -> None:
    op.drop_index("ix_promotion_collection", table_name="promotion")
    op.drop_table("promotion")
    op.drop_column("release", "dropped_at")
    op.drop_column("release", "drop_begun_at")
