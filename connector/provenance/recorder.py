"""The recorder: what was encoded, fitted, written and audited, with what, by which run, and how it ended."""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, cast

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import and_, case, delete, func, select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.orm.attributes import set_committed_value

from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import NotMigratedError, ProvenanceError, RequirementError
from connector.provenance.database import _engine, _sqlite_path, _translated, alembic_config
from connector.provenance.ledger import OUTDATED, _forget
from connector.provenance.runs import LONGEST_DETAIL, WRITING, Run, mark_killed
from connector.provenance.tables import (
    AlignmentRow,
    AuditRow,
    BatchRow,
    ClaimRow,
    DeletionRow,
    EmbeddingSetRow,
    EncoderRow,
    MeasureRow,
    PerQueryRow,
    PromotionRow,
    RejectRow,
    ReleaseRow,
    RunRow,
    now,
)
from connector.safe_text import redacted, without_secrets


class Provenance:
    """The provenance database. Use as a context manager.

    Paths under `home` are stored relative to it, so that a home can be moved, copied and restored.
    """

    def __init__(self, url: str, home: Path | None = None):
        self.url = url
        self.home = home.absolute() if home else None
        self._engine = _engine(url)

    @classmethod
    def open(cls, url: str, *, home: Path | None = None) -> Self:
        """Open the database at the SQLAlchemy URL `url` for the artifacts under `home`.

        Raises:
            ProvenanceError: it cannot be reached.
            NotMigratedError: its tables are missing or older than this modalign.
        """
        opened = cls(url, home)
        with _translated(url):
            if (path := _sqlite_path(url)) and not path.exists():
                current: tuple[str, ...] = ()
            else:
                with opened._engine.connect() as connection:
                    current = MigrationContext.configure(connection).get_current_heads()
        expected = tuple(ScriptDirectory.from_config(alembic_config(url)).get_heads())
        if current != expected:
            opened.close()
            raise NotMigratedError(
                f"database {redacted(url)}: expected the tables of migration {', '.join(expected)}, found "
                f"{', '.join(current) or 'none'}; run `modalign db upgrade`"
            )
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    def stored(self, place: Path | str) -> str:
        """Return how a path or an `edge:` URL stands in SQL."""
        scheme, path = ("edge:", str(place)[5:]) if str(place).startswith("edge:") else ("", str(place))
        if self.home and (scheme or isinstance(place, Path)) and Path(path).absolute().is_relative_to(self.home):
            return scheme + Path(path).absolute().relative_to(self.home).as_posix()
        return str(place)

    def located(self, stored: str) -> Path:
        """Return the path that stands in SQL as `stored`."""
        return self.home / stored if self.home else Path(stored)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open a transaction that commits when the block ends and rolls back when it raises."""
        with _translated(self.url), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def run(self, command: str, parameters: Mapping[str, Any]) -> Iterator[Run]:
        """Record one execution of `command`: its parameters, its counts and how it ended, also when it raises."""
        host, pid = platform.node(), os.getpid()
        with self.session() as session:
            mark_killed(session)
            row = RunRow(
                command=command,
                parameters=json.loads(json.dumps(parameters, default=str)),
                outcome="running",
                counts={},
                host=host,
                pid=pid,
                version=version("modalign"),
                started_at=now(),
            )
            session.add(row)
        run = Run(row.id, _provenance=self)
        try:
            yield run
        except BaseException as error:
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            with suppress(ProvenanceError):  # where SQL is what failed, the next run on this host says killed
                self._finish(run, "interrupted" if stopped else "failed", f"{type(error).__name__}: {error}")
            raise
        self._finish(run, "done", None)

    def _finish(self, run: Run, outcome: str, error: str | None) -> None:
        run.flush()
        values = {"outcome": outcome, "counts": dict(run.counts), "finished_at": now()}
        values["error"] = without_secrets(error)[:LONGEST_DETAIL] if error else None
        with self.session() as session:
            session.execute(update(RunRow).where(RunRow.id == run.id).values(**values))

    def record_set(self, embedding_set: EmbeddingSet) -> int:
        """Record an embedding set as it stands now; return its row."""
        card, path = embedding_set.card, self.stored(embedding_set.path.absolute())
        with self.session() as session:
            encoders = {m: _encoder_id(session, m, c) for m, c in card.encoders.items()}
            row = session.scalars(select(EmbeddingSetRow).where(EmbeddingSetRow.path == path)).one_or_none()
            row = row or EmbeddingSetRow(path=path)
            if row.fingerprint != card.fingerprint:
                row.updated_at = now()
            row.name, row.corpus, row.fingerprint = card.name, card.corpus, card.fingerprint
            row.image_encoder_id, row.text_encoder_id = encoders.get("image"), encoders.get("text")
            row.image_count, row.text_count = card.counts.get("image", 0), card.counts.get("text", 0)
            session.add(row)
        return row.id

    def record_alignment(self, name: str, path: Path, alignment: Alignment) -> int:
        """Record an alignment; return its row."""
        with self.session() as session:
            encoders = {m: _encoder_id(session, m, c) for m, c in alignment.card.encoders.items()}
            row = session.scalars(
                select(AlignmentRow).where(AlignmentRow.fingerprint == alignment.fingerprint)
            ).one_or_none()
            row = row or AlignmentRow(fingerprint=alignment.fingerprint, created_at=now())
            row.name, row.path = name, self.stored(path.absolute())
            row.method, row.dim = alignment.card.method, alignment.dim
            row.image_encoder_id, row.text_encoder_id = encoders["image"], encoders["text"]
            row.card = asdict(alignment.card)
            session.add(row)
        return row.id

    def alignment(self, alignment_id: int) -> AlignmentRow:
        """Return the row of an alignment."""
        with self.session() as session:
            return session.get_one(AlignmentRow, alignment_id)

    def encoders(self, alignment: AlignmentRow) -> dict[Modality, EncoderRow]:
        """Return the encoders that an alignment was recorded with."""
        with self.session() as session:
            return {
                "image": session.get_one(EncoderRow, alignment.image_encoder_id),
                "text": session.get_one(EncoderRow, alignment.text_encoder_id),
            }

    def set_encoders(self, embedding_set: EmbeddingSetRow) -> dict[Modality, EncoderRow]:
        """Return the encoders that an embedding set was recorded with."""
        ids: dict[Modality, int | None] = {
            "image": embedding_set.image_encoder_id,
            "text": embedding_set.text_encoder_id,
        }
        with self.session() as session:
            return {m: session.get_one(EncoderRow, number) for m, number in ids.items() if number is not None}

    def releases(self, **where: Any) -> list[ReleaseRow]:
        """Return the releases whose columns have these values, newest last."""
        with self.session() as session:
            return list(session.scalars(select(ReleaseRow).filter_by(**where).order_by(ReleaseRow.id)))

    def save(self, row: ReleaseRow) -> ReleaseRow:
        """Insert a release, or write all of it."""
        row.updated_at = now()
        with self.session() as session:
            return session.merge(row)

    def change(self, row: ReleaseRow, **values: Any) -> None:
        """Change these columns of a release, and none that another process may have changed; read all into `row`."""
        with self.session() as session:
            session.execute(update(ReleaseRow).where(ReleaseRow.id == row.id).values(**values, updated_at=now()))
        self.refresh(row)

    def refresh(self, row: ReleaseRow) -> None:
        """Read a release again, as it is now."""
        with self.session() as session:
            present = session.get_one(ReleaseRow, row.id)
        for column in ReleaseRow.__table__.columns:
            set_committed_value(row, column.key, getattr(present, column.key))

    def ledger(self, release_id: int, set_id: int) -> dict[tuple[str, int], tuple[str, int]]:
        """Return what is written: `{(shard, start): (digest, points)}`."""
        query = select(BatchRow.shard, BatchRow.start, BatchRow.digest, BatchRow.points)
        query = query.where(BatchRow.release_id == release_id, BatchRow.embedding_set_id == set_id)
        with self.session() as session:
            return {(shard, start): (digest, points) for shard, start, digest, points in session.execute(query)}

    def ledger_points(self, release_id: int) -> int:
        """Return how many points the ledger says a release holds, over all embedding sets."""
        query = select(func.coalesce(func.sum(BatchRow.points), 0)).where(BatchRow.release_id == release_id)
        with self.session() as session:
            return int(session.scalar(query) or 0)

    def write_ledger(
        self, release_id: int, set_id: int, run_id: int, batches: Mapping[tuple[str, int], tuple[str, int]]
    ) -> None:
        """Record batches that are durable in the store, replacing what stood at their places."""
        places = list(batches)
        with self.session() as session:
            _forget(session, release_id, set_id, places)
            session.add_all(
                BatchRow(
                    release_id=release_id,
                    embedding_set_id=set_id,
                    run_id=run_id,
                    shard=shard,
                    start=start,
                    points=points,
                    digest=digest,
                    written_at=now(),
                )
                for (shard, start), (digest, points) in batches.items()
            )

    def add_tombstones(
        self,
        set_id: int,
        modality: Modality,
        shard: str,
        keys: Iterable[str],
        also: Iterable[int] = (),
        *,
        retired: bool = True,
    ) -> None:
        """Note that rows leave a shard: releases have to delete their points and to write the rest of it anew.

        Those are all that the set was written into, and the releases `also`. The ledger lines of the shard stay, and
        say that nothing is written.

        Args:
            set_id: the embedding set.
            modality: of the shard.
            shard: its name.
            keys: of the items whose rows leave it.
            also: releases that the ledger may not know yet.
            retired: whether retired releases are written to now. Where not, their ledger lines stay as they are, so
                that a rollback finds what it expects, until they are written to again.
        """
        of_set = BatchRow.embedding_set_id == set_id
        with self.session() as session:
            releases = {*session.scalars(select(BatchRow.release_id).where(of_set).distinct()), *also}
            outdated = update(BatchRow).where(of_set, BatchRow.shard == shard)
            if not retired:
                at_rest = select(ReleaseRow.id).where(ReleaseRow.state == "retired")
                outdated = outdated.where(BatchRow.release_id.not_in(at_rest))
            session.execute(outdated.values(points=0, digest=OUTDATED))
            session.add_all(
                DeletionRow(release_id=release_id, embedding_set_id=set_id, modality=modality, key=key)
                for key in keys
                for release_id in sorted(releases)
            )

    def deletions(self, release_id: int, set_id: int, limit: int) -> dict[int, tuple[Modality, str]]:
        """Return points that a release has yet to delete: `{number: (modality, key)}`, at most `limit` of them."""
        query = select(DeletionRow).where(DeletionRow.release_id == release_id, DeletionRow.embedding_set_id == set_id)
        with self.session() as session:
            rows = session.scalars(query.order_by(DeletionRow.id).limit(limit))
            return {row.id: (cast(Modality, row.modality), row.key) for row in rows}

    def remove_tombstones(self, numbers: Iterable[int]) -> None:
        """Remove deletions that are durable in the store."""
        with self.session() as session:
            session.execute(delete(DeletionRow).where(DeletionRow.id.in_(list(numbers))))

    def sets_in(self, release_ids: Iterable[int]) -> list[EmbeddingSetRow]:
        """Return the embedding sets that the ledgers of any of these releases name, oldest first."""
        inside = select(BatchRow.embedding_set_id).where(BatchRow.release_id.in_(list(release_ids)))
        with self.session() as session:
            query = select(EmbeddingSetRow).where(EmbeddingSetRow.id.in_(inside)).order_by(EmbeddingSetRow.id)
            return list(session.scalars(query))

    def releases_of(self, set_id: int) -> list[ReleaseRow]:
        """Return the releases that an embedding set was written into."""
        inside = select(BatchRow.release_id).where(BatchRow.embedding_set_id == set_id)
        with self.session() as session:
            return list(session.scalars(select(ReleaseRow).where(ReleaseRow.id.in_(inside)).order_by(ReleaseRow.id)))

    def forget_batches(self, release_id: int, set_id: int, places: Iterable[tuple[str, int]]) -> None:
        """Remove ledger lines of rows that are no longer in the embedding set."""
        with self.session() as session:
            _forget(session, release_id, set_id, list(places))

    def forget_ledger(self, release_id: int) -> None:
        """Empty the ledger of a release whose collection is new, so that everything is written again."""
        with self.session() as session:
            session.execute(delete(DeletionRow).where(DeletionRow.release_id == release_id))
            session.execute(delete(BatchRow).where(BatchRow.release_id == release_id))

    def ledger_without(self, release_id: int, set_id: int, other_id: int) -> int:
        """Count the points of a set that one release holds, by its ledger, and the release `other_id` does not."""
        theirs = aliased(BatchRow)
        same = and_(
            theirs.release_id == other_id,
            theirs.embedding_set_id == set_id,
            theirs.shard == BatchRow.shard,
            theirs.start == BatchRow.start,
            theirs.digest == BatchRow.digest,
        )
        query = select(func.coalesce(func.sum(BatchRow.points), 0)).outerjoin(theirs, same)
        query = query.where(BatchRow.release_id == release_id, BatchRow.embedding_set_id == set_id, theirs.id.is_(None))
        with self.session() as session:
            return int(session.scalar(query) or 0)

    def last_write(self, release_id: int) -> datetime | None:
        """Return when the ledger of a release got its newest line."""
        with self.session() as session:
            return session.scalar(select(func.max(BatchRow.written_at)).where(BatchRow.release_id == release_id))

    def forget_release(self, release_id: int) -> None:
        """Remove a release that was never audited, with its ledger."""
        with self.session() as session:
            session.execute(delete(DeletionRow).where(DeletionRow.release_id == release_id))
            session.execute(delete(BatchRow).where(BatchRow.release_id == release_id))
            session.execute(delete(ReleaseRow).where(ReleaseRow.id == release_id))

    def record_audit(
        self,
        *,
        run_id: int,
        release_id: int,
        set_id: int,
        verdict: str,
        settings: dict[str, Any],
        measures: Sequence[MeasureRow],
        per_query: Mapping[str, bytes],
    ) -> int:
        """Record an audit with its measures and what it has of each query, by direction; return its row."""
        audit = AuditRow(
            run_id=run_id,
            release_id=release_id,
            embedding_set_id=set_id,
            verdict=verdict,
            settings=settings,
            created_at=now(),
        )
        with self.session() as session:
            session.add(audit)
            session.flush()
            for measure in measures:
                measure.audit_id = audit.id
            session.add_all(measures)
            session.add_all(
                PerQueryRow(audit_id=audit.id, direction=direction, data=data) for direction, data in per_query.items()
            )
        return audit.id

    def audit(self, number: int) -> AuditRow:
        """Return an audit.

        Raises:
            RequirementError: there is none of this number.
        """
        with self.session() as session:
            row = session.get(AuditRow, number)
        if row is None:
            raise RequirementError(f"there is no audit {number}; `modalign audit COLLECTION --history` lists them")
        return row

    def audits(self, release_ids: Sequence[int]) -> list[AuditRow]:
        """Return the audits of releases, oldest first."""
        with self.session() as session:
            query = select(AuditRow).where(AuditRow.release_id.in_(release_ids)).order_by(AuditRow.id)
            return list(session.scalars(query))

    def measures(self, audit_ids: Sequence[int]) -> dict[int, list[MeasureRow]]:
        """Return the measures of audits, by audit."""
        found: dict[int, list[MeasureRow]] = {}
        with self.session() as session:
            query = select(MeasureRow).where(MeasureRow.audit_id.in_(audit_ids)).order_by(MeasureRow.id)
            for measure in session.scalars(query):
                found.setdefault(measure.audit_id, []).append(measure)
        return found

    def per_query(self, audit_id: int) -> dict[str, bytes]:
        """Return what an audit has of each query, by direction."""
        with self.session() as session:
            rows = session.scalars(select(PerQueryRow).where(PerQueryRow.audit_id == audit_id))
            return {row.direction: row.data for row in rows}

    def writers(self, collection: str) -> list[RunRow]:
        """Return the runs that are writing into releases of `collection` now, as far as their hosts tell."""
        with self.session() as session:
            mark_killed(session)
            query = select(RunRow).where(RunRow.outcome == "running", RunRow.command.in_(WRITING))
            running = list(session.scalars(query.order_by(RunRow.id)))
        written = {row.id: row.parameters.get("into", row.parameters.get("collection")) for row in running}
        # What is deleted from an embedding set leaves all collections that it was pushed into.
        return [row for row in running if row.command == "delete" or written[row.id] in (None, collection)]

    def last_audit(self, release_id: int) -> tuple[AuditRow, RunRow] | None:
        """Return the newest audit of a release, with its run."""
        query = select(AuditRow, RunRow).join(RunRow, AuditRow.run_id == RunRow.id)
        query = query.where(AuditRow.release_id == release_id).order_by(AuditRow.id.desc()).limit(1)
        with self.session() as session:
            found = session.execute(query).one_or_none()
        return (found[0], found[1]) if found else None

    def promotions(self, **where: Any) -> list[PromotionRow]:
        """Return the promotions whose columns have these values, newest last."""
        with self.session() as session:
            return list(session.scalars(select(PromotionRow).filter_by(**where).order_by(PromotionRow.id)))

    def unfinished_promotions(self, **where: Any) -> list[PromotionRow]:
        """Return those of the promotions that were begun and not finished."""
        return self.promotions(finished_at=None, **where)

    def begin_promotions(self, promotions: Sequence[PromotionRow]) -> None:
        """Record what is going to be live, before any alias names it."""
        with self.session() as session:
            session.add_all(promotions)

    def finish_promotions(self, promotions: Sequence[PromotionRow], run_id: int) -> None:
        """Record that the aliases name the new releases, and by which run: these are live, what was live is retired."""
        with self.session() as session:
            for promotion in promotions:
                place = {name: getattr(promotion, name) for name in ("store_url", "collection", "metric")}
                live = session.scalars(select(ReleaseRow).filter_by(**place, state="live"))
                for row in (*live, session.get_one(ReleaseRow, promotion.release_id)):
                    row.state = "live" if row.id == promotion.release_id else "retired"
                    row.updated_at = now()
                merged = session.merge(promotion)
                merged.finished_at, merged.run_id = now(), run_id

    def begin_drop(self, release_id: int) -> None:
        """Record that a release is going to be dropped, before its collection is: it is retired from now on."""
        values = {"state": "retired", "drop_begun_at": now(), "updated_at": now()}
        with self.session() as session:
            session.execute(update(ReleaseRow).where(ReleaseRow.id == release_id).values(**values))

    def finish_drop(self, release_id: int) -> None:
        """Record that the collection of a release is gone, and forget what it held."""
        promoted = (PromotionRow.release_id == release_id, PromotionRow.finished_at.is_(None))
        with self.session() as session:
            session.execute(delete(DeletionRow).where(DeletionRow.release_id == release_id))
            session.execute(delete(BatchRow).where(BatchRow.release_id == release_id))
            session.execute(delete(PromotionRow).where(*promoted))  # begun, and never had an effect
            values = {"points": 0, "dropped_at": now(), "updated_at": now()}
            session.execute(update(ReleaseRow).where(ReleaseRow.id == release_id).values(**values))

    def runs(self, limit: int) -> list[RunRow]:
        """Return the newest runs, newest first."""
        with self.session() as session:
            return list(session.scalars(select(RunRow).order_by(RunRow.id.desc()).limit(limit)))

    def ingests_in_parts(self) -> list[dict[str, int]]:
        """Return of every ingest in parts that is not finished how many steps are done, claimed and open."""
        done = func.sum(case((ClaimRow.done, 1), else_=0))
        claimed = func.sum(case((ClaimRow.run_id.is_not(None), 1), else_=0))
        with self.session() as session:
            query = select(func.count(), done, claimed).where(ClaimRow.step >= 0)
            rows = session.execute(query.group_by(ClaimRow.work).order_by(ClaimRow.work))
            return [{"steps": n, "done": d, "claimed": c, "open": n - d - c} for n, d, c in rows]

    def recorded_run(self, run_id: int) -> RunRow:
        """Return a run.

        Raises:
            ProvenanceError: there is no such run.
        """
        with self.session() as session:
            row = session.get(RunRow, run_id)
        if row is None:
            raise ProvenanceError(f"there is no run {run_id}; `modalign status` lists the runs")
        return row

    def rejects(self, run_id: int) -> list[RejectRow]:
        """Return the items that a run refused, in the order in which it met them.

        Raises:
            ProvenanceError: there is no such run.
        """
        self.recorded_run(run_id)
        with self.session() as session:
            return list(session.scalars(select(RejectRow).where(RejectRow.run_id == run_id).order_by(RejectRow.id)))

    def last_run_with_rejects(self) -> int | None:
        """Return the newest run that refused an item."""
        with self.session() as session:
            return session.scalar(select(func.max(RejectRow.run_id)))


def _encoder_id(session: Session, modality: Modality, card: EncoderCard) -> int:
    identity = {"modality": modality, "fingerprint": card.fingerprint, "spec": card.spec}
    row = session.scalars(select(EncoderRow).filter_by(**identity)).one_or_none()
    if row is None:
        row = EncoderRow(**identity, dim=card.dim)
        session.add(row)
        session.flush()
    return row.id
