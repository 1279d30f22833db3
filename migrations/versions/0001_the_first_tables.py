"""The first tables.

Revision: 0001
Follows: none
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "encoder",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("modality", sa.String(length=8), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_encoder"),
        sa.UniqueConstraint("modality", "fingerprint", "spec", name="uq_encoder_modality_fingerprint_spec"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("command", sa.String(length=32), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
    )
    op.create_table(
        "alignment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("image_encoder_id", sa.Integer(), nullable=False),
        sa.Column("text_encoder_id", sa.Integer(), nullable=False),
        sa.Column("card", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["image_encoder_id"], ["encoder.id"], name="fk_alignment_image_encoder_id_encoder"),
        sa.ForeignKeyConstraint(["text_encoder_id"], ["encoder.id"], name="fk_alignment_text_encoder_id_encoder"),
        sa.PrimaryKeyConstraint("id", name="pk_alignment"),
        sa.UniqueConstraint("fingerprint", name="uq_alignment_fingerprint"),
    )
    op.create_table(
        "embedding_set",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("corpus", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("image_encoder_id", sa.Integer(), nullable=True),
        sa.Column("text_encoder_id", sa.Integer(), nullable=True),
        sa.Column("image_count", sa.Integer(), nullable=False),
        sa.Column("text_count", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["image_encoder_id"], ["encoder.id"], name="fk_embedding_set_image_encoder_id_encoder"),
        sa.ForeignKeyConstraint(["text_encoder_id"], ["encoder.id"], name="fk_embedding_set_text_encoder_id_encoder"),
        sa.PrimaryKeyConstraint("id", name="pk_embedding_set"),
        sa.UniqueConstraint("path", name="uq_embedding_set_path"),
    )
    op.create_table(
        "reject",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("modality", sa.String(length=8), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_reject_run_id_run"),
        sa.PrimaryKeyConstraint("id", name="pk_reject"),
    )
    with op.batch_alter_table("reject", schema=None) as batch_op:
        batch_op.create_index("ix_reject_run_id", ["run_id"], unique=False)

    op.create_table(
        "release",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("store_url", sa.String(length=512), nullable=False),
        sa.Column("collection", sa.String(length=128), nullable=False),
        sa.Column("metric", sa.String(length=128), nullable=False),
        sa.Column("physical_name", sa.String(length=255), nullable=False),
        sa.Column("alignment_id", sa.Integer(), nullable=False),
        sa.Column("distance", sa.String(length=16), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("lowering_version", sa.Integer(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["alignment_id"], ["alignment.id"], name="fk_release_alignment_id_alignment"),
        sa.PrimaryKeyConstraint("id", name="pk_release"),
        sa.UniqueConstraint("store_url", "physical_name", name="uq_release_store_url_physical_name"),
    )
    with op.batch_alter_table("release", schema=None) as batch_op:
        batch_op.create_index("ix_release_collection", ["collection"], unique=False)

    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("embedding_set_id", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["embedding_set_id"], ["embedding_set.id"], name="fk_audit_embedding_set_id_embedding_set"
        ),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name="fk_audit_release_id_release"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_audit_run_id_run"),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index("ix_audit_release_id", ["release_id"], unique=False)

    op.create_table(
        "batch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("embedding_set_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("shard", sa.String(length=64), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["embedding_set_id"], ["embedding_set.id"], name="fk_batch_embedding_set_id_embedding_set"
        ),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name="fk_batch_release_id_release"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_batch_run_id_run"),
        sa.PrimaryKeyConstraint("id", name="pk_batch"),
        sa.UniqueConstraint(
            "release_id", "embedding_set_id", "shard", "start", name="uq_batch_release_id_embedding_set_id_shard_start"
        ),
    )
    op.create_table(
        "measure",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("audit_id", sa.Integer(), nullable=False),
        sa.Column("direction", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("queries", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_measure_audit_id_audit"),
        sa.PrimaryKeyConstraint("id", name="pk_measure"),
        sa.UniqueConstraint("audit_id", "direction", "name", name="uq_measure_audit_id_direction_name"),
    )


def downgrade() -> None:
    op.drop_table("measure")
    op.drop_table("batch")
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.drop_index("ix_audit_release_id")

    op.drop_table("audit")
    with op.batch_alter_table("release", schema=None) as batch_op:
        batch_op.drop_index("ix_release_collection")

    op.drop_table("release")
    with op.batch_alter_table("reject", schema=None) as batch_op:
        batch_op.drop_index("ix_reject_run_id")

    op.drop_table("reject")
    op.drop_table("embedding_set")
    op.drop_table("alignment")
    op.drop_table("run")
    op.drop_table("encoder")
