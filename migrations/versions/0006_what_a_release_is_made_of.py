"""The embedding sets of a release, revisions of releases, heartbeats of runs, and requests that are told apart.

Revision: 0006
Follows: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# When the newest audit of a release began, by the clock of its client: older versions recorded nothing better.
AUDITED = """
    SELECT max(run.started_at) FROM audit JOIN run ON run.id = audit.run_id WHERE audit.release_id = release.id
"""


def upgrade() -> None:
    op.create_table(
        "release_set",
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("embedding_set_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name="fk_release_set_release_id_release"),
        sa.ForeignKeyConstraint(
            ["embedding_set_id"], ["embedding_set.id"], name="fk_release_set_embedding_set_id_embedding_set"
        ),
        sa.PrimaryKeyConstraint("release_id", "embedding_set_id", name="pk_release_set"),
    )
    op.execute(
        "INSERT INTO release_set (release_id, embedding_set_id) SELECT release_id, embedding_set_id FROM batch "
        "UNION SELECT release_id, embedding_set_id FROM tombstone"
    )
    op.add_column("tombstone", sa.Column("shard", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("tombstone", sa.Column("counted", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("run", sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("promotion", sa.Column("request", sa.Text(), nullable=True))
    op.add_column("release", sa.Column("revision", sa.Integer(), nullable=False, server_default="0"))
    # Audits of older versions saw revision 0. They allow no promotion of what was changed since.
    op.execute(
        f"UPDATE release SET revision = 1 WHERE EXISTS (SELECT 1 FROM batch WHERE batch.release_id = release.id "
        f"AND batch.written_at >= ({AUDITED})) OR EXISTS (SELECT 1 FROM promotion WHERE promotion.kind = 'rollback' "
        f"AND promotion.previous_id = release.id AND promotion.started_at >= ({AUDITED}))"
    )


def downgrade() -> None:
    op.drop_column("release", "revision")
    op.drop_column("promotion", "request")
    op.drop_column("run", "heartbeat_at")
    op.drop_column("tombstone", "counted")
    op.drop_column("tombstone", "shard")
    op.drop_table("release_set")
