"""The tables: encoders, sets, alignments, stores, releases, promotions, runs, the ledger, leases, audits, measures.

Only the migrations create these tables; a test proves that models and migrations are equal.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    ForeignKey,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from connector.errors import ProvenanceError
from connector.safe_text import printable


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, always in UTC. SQLite stores no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store as UTC."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read as UTC."""
        if value is None or value.tzinfo:
            return value and value.astimezone(UTC)  # PostgreSQL answers in the time zone of its session
        return value.replace(tzinfo=UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        """Read, or name a value that is no point in time."""
        read = super().result_processor(dialect, coltype)
        if read is None:
            return None

        def checked(value: Any) -> datetime | None:
            try:
                return read(value)
            except (ValueError, TypeError, OverflowError) as error:
                raise ProvenanceError(
                    f"a column of times holds {value!r:.80}: something other than modalign changed it; restore it from "
                    "a backup"
                ) from error

        return checked


class AnyText(TypeDecorator[str]):
    """A text. Escapes what databases refuse: NUL, and bytes of a path that are not UTF-8."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Store with escapes."""
        return printable(value) if value else value


class JsonObject(TypeDecorator[dict[str, Any]]):
    """A JSON object."""

    impl = JSON
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Any]:
        """Check that it is an object."""
        if not isinstance(value, dict):
            raise ProvenanceError(
                f"a column of JSON objects holds {value!r:.80}: something other than modalign changed it; restore it "
                "from a backup"
            )
        return value


class OptionalJsonObject(TypeDecorator[dict[str, Any]]):
    """A JSON object, or NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Any] | None:
        """Check that it is an object, where it is anything."""
        return None if value is None else JsonObject().process_result_value(value, dialect)


def now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of all tables. Constraint names are fixed, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JsonObject}  # noqa: RUF012  SQLAlchemy's own form


class EncoderRow(Base):
    """A frozen model as it was used for one modality."""

    __tablename__ = "encoder"
    __table_args__ = (UniqueConstraint("modality", "fingerprint", "spec"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    modality: Mapped[str] = mapped_column(String(8))
    spec: Mapped[str] = mapped_column(AnyText)
    fingerprint: Mapped[str] = mapped_column(String(64))
    dim: Mapped[int]


class EmbeddingSetRow(Base):
    """An embedding set as its last complete encode left it."""

    __tablename__ = "embedding_set"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    path: Mapped[str] = mapped_column(AnyText, unique=True)
    corpus: Mapped[str] = mapped_column(AnyText)
    fingerprint: Mapped[str] = mapped_column(String(64))
    image_encoder_id: Mapped[int | None] = mapped_column(ForeignKey("encoder.id"))
    text_encoder_id: Mapped[int | None] = mapped_column(ForeignKey("encoder.id"))
    image_count: Mapped[int]
    text_count: Mapped[int]
    updated_at: Mapped[datetime]


class AlignmentRow(Base):
    """A fitted alignment. The fingerprint identifies it, the name is what people call it."""

    __tablename__ = "alignment"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(AnyText)
    method: Mapped[str] = mapped_column(String(64))
    dim: Mapped[int]
    image_encoder_id: Mapped[int] = mapped_column(ForeignKey("encoder.id"))
    text_encoder_id: Mapped[int] = mapped_column(ForeignKey("encoder.id"))
    card: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class StoreRow(Base):
    """A store of collections: a Qdrant server, a cluster, or a directory of Qdrant Edge.

    Attributes:
        uid: a random text, in the metadata of its collections: whatever address reaches them, they are of this store.
        claimed: a collection has it there. Those of older versions get it when they are written again.
        merged_into_id: the store that has its releases now, because both are one server.
    """

    __tablename__ = "store"

    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(String(32), unique=True)
    claimed: Mapped[bool] = mapped_column(default=False, server_default=false())
    merged_into_id: Mapped[int | None] = mapped_column(ForeignKey("store.id"))


class StoreAddressRow(Base):
    """A URL by which a store was reached, without secrets; the newest has the greatest id."""

    __tablename__ = "store_address"

    id: Mapped[int] = mapped_column(primary_key=True)
    store_id: Mapped[int] = mapped_column(ForeignKey("store.id"))
    address: Mapped[str] = mapped_column(AnyText, unique=True)


class ReleaseRow(Base):
    """One alignment under one metric in one physical collection of one store.

    A dropped release is retired. Its row stays, because audits and promotions refer to it.

    Attributes:
        settings: the layout of the collection.
        hnsw_ef: width of an HNSW search that reaches `hnsw_recall` of exact search; None: not tuned.
        hnsw_recall: the share that it finds of the exact first hits, or of the first ten if that is lower, 0 to 1.
        needs_tuning: whether points were written since `hnsw_ef` was chosen.
        fusion: how scores of images and captions make one, see `connector.releases.fusion`; None: not measured.
        revision: grows with every change of its points, and with a rollback from it: an audit remembers which it saw.
        state: a `connector.states.ReleaseState`.
        drop_begun_at: since when the collection may be gone.
        dropped_at: since when it is gone.
    """

    __tablename__ = "release"
    __table_args__ = (UniqueConstraint("store_id", "physical_name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    store_id: Mapped[int] = mapped_column(ForeignKey("store.id"))
    collection: Mapped[str] = mapped_column(String(128), index=True)
    metric: Mapped[str] = mapped_column(String(128))
    physical_name: Mapped[str] = mapped_column(String(255))
    alignment_id: Mapped[int] = mapped_column(ForeignKey("alignment.id"))
    distance: Mapped[str] = mapped_column(String(16))
    dim: Mapped[int]
    lowering_version: Mapped[int]
    settings: Mapped[dict[str, Any]]
    hnsw_ef: Mapped[int | None]
    hnsw_recall: Mapped[float | None]
    needs_tuning: Mapped[bool] = mapped_column(default=False, server_default=false())
    fusion: Mapped[dict[str, Any] | None] = mapped_column(OptionalJsonObject)
    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    state: Mapped[str] = mapped_column(String(16))
    points: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    drop_begun_at: Mapped[datetime | None]
    dropped_at: Mapped[datetime | None]


class ReleaseSetRow(Base):
    """An embedding set that was pushed into a release, recorded before its first point is written."""

    __tablename__ = "release_set"

    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"), primary_key=True)
    embedding_set_id: Mapped[int] = mapped_column(ForeignKey("embedding_set.id"), primary_key=True)


class RunRow(Base):
    """One execution of a command.

    Attributes:
        outcome: a `connector.states.RunOutcome`.
        heartbeat_at: when its process last reported, by the database's clock.
    """

    __tablename__ = "run"

    id: Mapped[int] = mapped_column(primary_key=True)
    command: Mapped[str] = mapped_column(String(32))
    parameters: Mapped[dict[str, Any]]
    outcome: Mapped[str] = mapped_column(String(16))
    counts: Mapped[dict[str, Any]]
    error: Mapped[str | None] = mapped_column(AnyText)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    version: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class BatchRow(Base):
    """An entry of the ledger: rows of a shard that are durable in a release, and the digest of what was written."""

    __tablename__ = "batch"
    __table_args__ = (UniqueConstraint("release_id", "embedding_set_id", "shard", "start"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    embedding_set_id: Mapped[int] = mapped_column(ForeignKey("embedding_set.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    shard: Mapped[str] = mapped_column(String(64))
    start: Mapped[int]
    points: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    written_at: Mapped[datetime]


class TombstoneRow(Base):
    """A row that is to leave an embedding set, and whose point a release has yet to delete.

    Attributes:
        shard: from which it leaves; empty: unknown, in a tombstone of an older version.
        counted: the ledger does not count its point any more, which is about to be deleted.
    """

    __tablename__ = "tombstone"

    id: Mapped[int] = mapped_column(primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"), index=True)
    embedding_set_id: Mapped[int] = mapped_column(ForeignKey("embedding_set.id"))
    modality: Mapped[str] = mapped_column(String(8))
    shard: Mapped[str] = mapped_column(String(64), default="", server_default="")
    counted: Mapped[bool] = mapped_column(default=False, server_default=false())
    key: Mapped[str] = mapped_column(AnyText)


LOCK_STEP = -1  # of a lock


class LeaseRow(Base):
    """A lock, and the run that holds it. Versions that ingested in parts left steps of their jobs.

    A lease ends with its run, or when it had no heartbeat for `connector.provenance.heartbeat.LEASE_SECONDS`.

    Attributes:
        job: SHA-256 of what identifies the lock.
        step: `LOCK_STEP`; from 0, where an ingest in parts left it.
    """

    __tablename__ = "lease"
    __table_args__ = (UniqueConstraint("job", "step"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(String(64))
    step: Mapped[int]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    done: Mapped[bool]
    heartbeat_at: Mapped[datetime | None]


class RejectRow(Base):
    """An item that a run refused, and why."""

    __tablename__ = "reject"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), index=True)
    source: Mapped[str] = mapped_column(AnyText)
    position: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(AnyText)
    key: Mapped[str | None] = mapped_column(AnyText)
    modality: Mapped[str | None] = mapped_column(String(8))


class AuditRow(Base):
    """An audit of a release, with a `connector.states.AuditVerdict`."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"), index=True)
    embedding_set_id: Mapped[int] = mapped_column(ForeignKey("embedding_set.id"))
    verdict: Mapped[str] = mapped_column(String(16))
    settings: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class MeasureRow(Base):
    """One number of an audit, with its 95% interval where it has one.

    Attributes:
        stage: of the search, such as `index`; empty: not of one stage.
        stratum: of the queries, such as `language=de` or `seen`; empty: of all queries.
    """

    __tablename__ = "measure"
    __table_args__ = (UniqueConstraint("audit_id", "direction", "stage", "stratum", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    audit_id: Mapped[int] = mapped_column(ForeignKey("audit.id"))
    direction: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(AnyText, default="")
    stratum: Mapped[str] = mapped_column(AnyText, default="")
    name: Mapped[str] = mapped_column(String(64))
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    queries: Mapped[int]

    @property
    def part(self) -> str:
        """The part of the audit that a requirement names: a stage, a stratum or both; empty: the whole."""
        return " ".join(filter(None, (self.stratum, self.stage)))


class PerQueryRow(Base):
    """The values of each query of one direction of an audit, as Parquet, for comparison with later audits."""

    __tablename__ = "per_query"

    audit_id: Mapped[int] = mapped_column(ForeignKey("audit.id"), primary_key=True)
    direction: Mapped[str] = mapped_column(String(16), primary_key=True)
    data: Mapped[bytes]


class PromotionRow(Base):
    """A switch of an alias from one release to another. Written before the switch, finished after it.

    Attributes:
        kind: `promote`, or `rollback`, which undoes one.
        release_id: what the alias names from then on.
        previous_id: what it named before; none for the first.
        audit_id: the audit that allowed a promotion; none for a rollback, and where it was forced.
        forced_by: user@host who promoted without one, for `reason`.
        request: what the caller names the request by, so that a repeat finishes the same one; None: not named.
    """

    __tablename__ = "promotion"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    store_id: Mapped[int] = mapped_column(ForeignKey("store.id"))
    collection: Mapped[str] = mapped_column(String(128), index=True)
    metric: Mapped[str] = mapped_column(String(128))
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("release.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    audit_id: Mapped[int | None] = mapped_column(ForeignKey("audit.id"))
    forced_by: Mapped[str | None] = mapped_column(AnyText)
    reason: Mapped[str | None] = mapped_column(AnyText)
    request: Mapped[str | None] = mapped_column(AnyText)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
