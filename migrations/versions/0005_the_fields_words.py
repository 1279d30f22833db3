"""Leases, tombstones, stages and strata by their names, and the tuning of a release in columns of its own.

Revision: 0005
Follows: 0004
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MAX_EF = 2**31 - 1
STAGES = "part IN ('reference', 'lowering', 'rescoring', 'index', 'quantization') OR substr(part, 1, 7) = 'filter:'"


def upgrade() -> None:
    _create_lease("lease", "job", "heartbeat_at")
    _move("claim", "lease", {"work": "job", "heard_at": "heartbeat_at"}, ["id", "step", "run_id", "done"])
    _create_tombstone("tombstone")
    _move("deletion", "tombstone", {}, ["id", "release_id", "embedding_set_id", "modality", "key"])
    op.alter_column("promotion", "begun_at", new_column_name="started_at")

    with op.batch_alter_table("measure") as batch_op:
        batch_op.add_column(sa.Column("stage", sa.Text(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("stratum", sa.Text(), nullable=False, server_default=""))
    op.execute(f"UPDATE measure SET stage = part WHERE {STAGES}")
    op.execute("UPDATE measure SET stratum = part WHERE stage = ''")
    with op.batch_alter_table("measure") as batch_op:
        batch_op.drop_constraint("uq_measure_audit_id_direction_part_name", type_="unique")
        batch_op.drop_column("part")
        batch_op.alter_column("stage", server_default=None)
        batch_op.alter_column("stratum", server_default=None)
        batch_op.create_unique_constraint(
            "uq_measure_audit_id_direction_stage_stratum_name", ["audit_id", "direction", "stage", "stratum", "name"]
        )

    op.add_column("release", sa.Column("hnsw_ef", sa.Integer(), nullable=True))
    op.add_column("release", sa.Column("hnsw_recall", sa.Double(), nullable=True))
    op.add_column("release", sa.Column("needs_tuning", sa.Boolean(), nullable=False, server_default=sa.false()))
    for number, settings in _settings():
        ef, recall = settings.get("hnsw_ef"), settings.get("hnsw_recall")
        values: dict[str, Any] = {"needs_tuning": bool(settings.pop("untuned", False))}
        # Invalid values stay where they are: modalign names them when it opens the release.
        if type(ef) is int and 1 <= ef <= MAX_EF and type(recall) in (int, float):
            values |= {"hnsw_ef": settings.pop("hnsw_ef"), "hnsw_recall": settings.pop("hnsw_recall")}
        _change_release(number, settings=settings, **values)


def downgrade() -> None:
    releases = sa.table("release", *map(sa.column, ("id", "hnsw_ef", "hnsw_recall", "needs_tuning")))
    tuning = {row.id: row for row in op.get_bind().execute(sa.select(releases))}
    for number, settings in _settings():
        row = tuning[number]
        if row.hnsw_ef is not None:
            settings |= {"hnsw_ef": row.hnsw_ef, "hnsw_recall": row.hnsw_recall}
        if row.needs_tuning:
            settings["untuned"] = True
        _change_release(number, settings=settings)
    for name in ("needs_tuning", "hnsw_recall", "hnsw_ef"):
        op.drop_column("release", name)

    with op.batch_alter_table("measure") as batch_op:
        batch_op.add_column(sa.Column("part", sa.Text(), nullable=False, server_default=""))
    op.execute("UPDATE measure SET part = stage || stratum")
    with op.batch_alter_table("measure") as batch_op:
        batch_op.drop_constraint("uq_measure_audit_id_direction_stage_stratum_name", type_="unique")
        batch_op.drop_column("stage")
        batch_op.drop_column("stratum")
        batch_op.alter_column("part", server_default=None)
        batch_op.create_unique_constraint(
            "uq_measure_audit_id_direction_part_name", ["audit_id", "direction", "part", "name"]
        )

    op.alter_column("promotion", "started_at", new_column_name="begun_at")
    _create_tombstone("deletion")
    _move("tombstone", "deletion", {}, ["id", "release_id", "embedding_set_id", "modality", "key"])
    _create_lease("claim", "work", "heard_at")
    _move("lease", "claim", {"job": "work", "heartbeat_at": "heard_at"}, ["id", "step", "run_id", "done"])


def _create_lease(table: str, job: str, heartbeat_at: str) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column(job, sa.String(length=64), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.Column(heartbeat_at, sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=f"fk_{table}_run_id_run"),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.UniqueConstraint(job, "step", name=f"uq_{table}_{job}_step"),
    )


def _create_tombstone(table: str) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("embedding_set_id", sa.Integer(), nullable=False),
        sa.Column("modality", sa.String(length=8), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=f"fk_{table}_release_id_release"),
        sa.ForeignKeyConstraint(
            ["embedding_set_id"], ["embedding_set.id"], name=f"fk_{table}_embedding_set_id_embedding_set"
        ),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
    )
    op.create_index(f"ix_{table}_release_id", table, ["release_id"])


def _move(old: str, new: str, renamed: dict[str, str], same: list[str]) -> None:
    """Copy all rows of one table into another with their ids, then drop the first."""
    source, target = ", ".join([*renamed, *same]), ", ".join([*renamed.values(), *same])
    op.execute(f"INSERT INTO {new} ({target}) SELECT {source} FROM {old}")
    if op.get_bind().dialect.name == "postgresql":  # the ids to come must follow those that were copied
        last = f"(SELECT coalesce(max(id), 0) + 1 FROM {new})"
        op.execute(f"SELECT setval(pg_get_serial_sequence('{new}', 'id'), {last}, false)")
    op.drop_table(old)


def _settings() -> list[tuple[int, dict[str, Any]]]:
    releases = sa.table("release", sa.column("id"), sa.column("settings", sa.JSON()))
    rows = op.get_bind().execute(sa.select(releases).order_by(releases.c.id))
    return [(row.id, row.settings) for row in rows if isinstance(row.settings, dict)]


def _change_release(number: int, **values: Any) -> None:
    releases = sa.table(
        "release",
        sa.column("id"),
        sa.column("settings", sa.JSON()),
        sa.column("hnsw_ef", sa.Integer()),
        sa.column("hnsw_recall", sa.Double()),
        sa.column("needs_tuning", sa.Boolean()),
    )
    op.execute(sa.update(releases).where(releases.c.id == number).values(**values))
