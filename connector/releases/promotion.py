"""The lifecycle of releases after their push: promote, roll back, drop, and what is still to be done.

Promoting and rolling back are the same three steps, in an order in which a crash between any two harms nothing: SQL
says what is going to be live, one request switches the aliases of all metrics, SQL says that it is done. What was
begun and not finished, `pending` names, and the same command finishes it. So is dropping: SQL first says that a release
is going, then its collection goes, then SQL forgets what it held.

One process at a time does any of it to a collection: what it reads stays true until it is done.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from alignment.metrics import parse
from connector.errors import CollectionNotFoundError, GateError, MismatchError, SettingsError
from connector.provenance.leases import Lease, promotion_lock
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AuditRow, PromotionRow, ReleaseRow, now
from connector.releases.aliases import alias_name
from connector.releases.reconcile import verify
from connector.releases.release import LIVE, READY, load_release
from connector.settings import checked_name
from connector.stores.contract import Store

PROMOTE, ROLLBACK = "promote", "rollback"


@dataclass(frozen=True, slots=True)
class PromotionOverride:
    """Who promotes without the audit that it takes, and why."""

    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class AliasSwitch:
    """An alias that names another release now.

    Attributes:
        refused: why the audit did not allow it, where it was forced.
        lacks: what the release has not got of what the one before it holds.
    """

    promotion: PromotionRow
    row: ReleaseRow
    previous: ReleaseRow | None
    refused: str | None
    lacks: list[str]


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The releases of one collection in one store.

    Attributes:
        device: where learned metrics compute.
    """

    provenance: Provenance
    store: Store
    collection: str
    device: str = "auto"

    def rows(self) -> list[ReleaseRow]:
        """Return its releases, newest last, without those that were dropped.

        Raises:
            CollectionNotFoundError: there are none.
        """
        checked_name(self.collection, "collection")
        rows = [row for row in self.provenance.releases.find(**self._place()) if row.dropped_at is None]
        if not rows:
            elsewhere = ", ".join(
                sorted({r.store_url for r in self.provenance.releases.find(collection=self.collection)})
            )
            raise CollectionNotFoundError(
                f"no release of collection {self.collection!r} in the store {self._place()['store_url']}"
                f"{f', SQL has it in {elsewhere}' if elsewhere else ''}; make one with `modalign push`"
            )
        return rows

    def alone(self, run_id: int, *, patience: float | None = None) -> AbstractContextManager[Lease]:
        """Keep others from promoting, rolling back and dropping here meanwhile; see `connector.provenance.leases.promotion_lock`."""
        store_url = self._place()["store_url"]
        return promotion_lock(self.provenance, store_url, self.collection, run_id, patience=patience)

    def promote(
        self,
        run_id: int,
        *,
        metrics: Sequence[str] = (),
        names: Sequence[str] = (),
        forced: PromotionOverride | None = None,
    ) -> list[AliasSwitch]:
        """Make the ready releases of the newest alignment live, all at one moment; the releases before are retired.

        Each is verified first, and its newest audit has to allow it. A promotion that was begun and not finished is
        finished, and nothing else is. Where nothing is ready and something is live, nothing happens.

        Args:
            run_id: the run that promotes.
            metrics: of those releases, only the ones under these metrics.
            names: these releases instead, by their physical collections.
            forced: who promotes whatever the audits say.

        Raises:
            CollectionNotFoundError: no such release, or none that is ready.
            MismatchError: a release is not what it should be, or lacks what the live one holds: nothing is switched.
            GateError: an audit does not allow it, and nobody forces it: nothing is switched.
            ClaimHeldError: another process is promoting, rolling back or dropping here.
        """
        with self.alone(run_id) as held:
            rows = self.rows()
            if begun := self._begun(PROMOTE):
                return self._switch(begun, run_id, held)
            chosen = _ready(rows, metrics, names, self.collection)
            if not chosen:
                return []
            live = {row.metric: row for row in rows if row.state == LIVE}
            for row in chosen:
                self._verify(row, run_id)
                if row.metric in live and (lacking := self._lacking(row, live[row.metric])):
                    raise MismatchError("; ".join(lacking))
            promotions, refused = [], {}
            for row in chosen:
                audit, refusal = self._gate(row)
                if refusal:
                    refused[row.id] = refusal
                promotion = self._promotion(PROMOTE, run_id, row, live.get(row.metric))
                promotion.audit_id = audit.id if audit and not refusal else None
                if refusal and forced:
                    promotion.forced_by, promotion.reason = forced.by, forced.reason
                promotions.append(promotion)
            if refused and not forced:
                raise GateError(
                    f"{'; '.join(refused.values())}; audit with `modalign audit --release ready --require CONDITION`, "
                    "or promote with --force --reason TEXT"
                )
            held.renew()
            self.provenance.releases.begin_promotions(promotions)
            return self._switch(promotions, run_id, held, refused)

    def rollback(self, run_id: int, *, metrics: Sequence[str] = ()) -> list[AliasSwitch]:
        """Undo the last promotion: the releases that were live before it are live again, the promoted ones retired.

        Args:
            run_id: the run that rolls back.
            metrics: under these metrics alone, each to where it was before its own last promotion.

        Raises:
            CollectionNotFoundError: nothing was promoted, or what was live before is dropped.
            MismatchError: it is not what it should be: nothing is switched.
            ClaimHeldError: another process is promoting, rolling back or dropping here.
        """
        # Two that ask for the same at one moment do not mean to go back twice: no waiting for one's turn.
        with self.alone(run_id, patience=0) as held:
            rows = {row.id: row for row in self.rows()}
            if begun := self._begun(ROLLBACK) or self._unreported(metrics):
                return self._switch(begun, run_id, held)
            last = self._last_promotions(rows.values(), metrics)
            back = []
            for promotion in last:
                previous = rows.get(promotion.previous_id or 0)
                if previous is None or previous.drop_begun_at:
                    raise CollectionNotFoundError(
                        f"release {rows[promotion.release_id].physical_name} replaced one that was dropped since; push "
                        "with that alignment again, and promote it"
                    )
                self._verify(previous, run_id)
                back.append(self._promotion(ROLLBACK, run_id, previous, rows[promotion.release_id]))
            held.renew()
            self.provenance.releases.begin_promotions(back)
            return self._switch(back, run_id, held)

    def droppable(self, *, names: Sequence[str] = (), retired: bool = False) -> list[ReleaseRow]:
        """Return the releases with these names, or all that are retired.

        Raises:
            CollectionNotFoundError: there is no release of such a name.
            MismatchError: a release is live, or an alias names it.
            SettingsError: neither was asked for, or both were.
        """
        if bool(names) == retired:
            raise SettingsError("expected releases by name or all that are retired, got neither or both")
        rows = self.rows()
        chosen = [row for row in rows if row.state == "retired"] if retired else _named(rows, names, self.collection)
        aliases: dict[str, str] = {}
        for alias, name in sorted(self.store.aliases().items()):
            aliases.setdefault(name, alias)
        for row in chosen:
            if row.state == LIVE or row.physical_name in aliases:
                alias = aliases.get(row.physical_name, "an alias")
                raise MismatchError(
                    f"release {row.physical_name} is live: {alias} names it; promote another one, or roll it back, and "
                    "drop it then"
                )
        return chosen

    def drop(self, rows: Sequence[ReleaseRow]) -> None:
        """Drop releases with their collections; see `droppable`, and ask it while you are `alone`."""
        for row in rows:
            self.provenance.releases.begin_drop(row.id)
            self.store.drop(row.physical_name)
            self.provenance.releases.finish_drop(row.id)

    def returns_to(self, row: ReleaseRow) -> bool:
        """Say whether a rollback would make this release live."""
        last = self._last_promotions(self.rows(), (), required=False)
        return any(promotion.previous_id == row.id for promotion in last)

    def _place(self) -> dict[str, str]:
        return {"store_url": self.provenance.database.stored(self.store.url), "collection": self.collection}

    def _begun(self, kind: str) -> list[PromotionRow]:
        """Return what was begun of this kind and not finished.

        Raises:
            MismatchError: something of the other kind was.
        """
        begun = self.provenance.releases.unfinished_promotions(**self._place())
        if begun and begun[0].kind != kind:
            raise MismatchError(
                f"a {begun[0].kind} of collection {self.collection} was begun and not finished; run `modalign "
                f"{begun[0].kind} {self.collection}` first"
            )
        return begun

    def _unreported(self, metrics: Sequence[str]) -> list[PromotionRow]:
        """Return the last switch if it was a rollback whose run never ended: repeated, it must not go back further."""
        made = self.provenance.releases.promotions(**self._place())
        last = [promotion for promotion in made if promotion.run_id == made[-1].run_id]
        asked = {str(parse(metric)) for metric in metrics}
        if not last or last[0].kind != ROLLBACK or (asked and asked != {promotion.metric for promotion in last}):
            return []
        return last if self.provenance.runs.get(last[0].run_id).outcome != "done" else []

    def _verify(self, row: ReleaseRow, seed: int) -> None:
        release = load_release(self.provenance, self.store, row, device=self.device)
        self.store.ready(release.name)
        verified = verify(release, self.store, self.provenance, seed=seed)
        if row.points and not verified.points:
            raise MismatchError(
                f"the embedding sets hold nothing of what was pushed into release {release.name} any more, so it "
                "cannot be verified; push them again"
            )

    def _lacking(self, row: ReleaseRow, other: ReleaseRow) -> list[str]:
        """Say what a release lacks that another one holds, of the embedding sets that it could hold."""
        alignment = self.provenance.artifacts.alignment(row.alignment_id)
        expected = {m: encoder.fingerprint for m, encoder in self.provenance.artifacts.encoders(alignment).items()}
        found = []
        for embedding_set in self.provenance.ledger.sets_in([other.id]):
            encoders = self.provenance.artifacts.encoders(embedding_set)
            if any(encoder.fingerprint != expected[modality] for modality, encoder in encoders.items()):
                continue  # of other encoders: no point of it can be in here
            if points := self.provenance.ledger.points_beyond(other.id, embedding_set.id, row.id):
                found.append(
                    f"release {row.physical_name} lacks {points} points of embedding set {embedding_set.name} that "
                    f"{other.physical_name} holds; run `modalign push {embedding_set.name} --into {self.collection} "
                    f"--alignment {alignment.name} --metric '{row.metric}'`"
                )
        return found

    def _gate(self, row: ReleaseRow) -> tuple[AuditRow | None, str | None]:
        """Return the newest audit of a release, and why it does not allow a promotion."""
        found = self.provenance.audits.newest(row.id)
        if found is None:
            return None, f"release {row.physical_name} was never audited"
        audit, run = found
        then, points = audit.settings, self.store.count(row.physical_name)
        undone = self.provenance.releases.promotions(kind=ROLLBACK, previous_id=row.id)
        written, rolled_back = (
            self.provenance.ledger.last_write(row.id),
            undone[-1].begun_at if undone else None,
        )
        refusal = None
        if audit.verdict == "measured":
            refusal = "required nothing"
        elif audit.verdict == "broken":
            refusal = f"found it broken: {then.get('broken')}"
        elif audit.verdict == "failed":
            refusal = f"has failed: {', '.join(then.get('failed_requirements', []))}"
        elif written and written >= run.started_at:
            refusal = f"began {run.started_at:%F %T}, the release was written to {written:%F %T}"
        elif rolled_back and rolled_back >= run.started_at:
            refusal = f"began {run.started_at:%F %T}, the release was rolled back {rolled_back:%F %T}"
        elif then.get("points") != points:
            refusal = f"saw {then.get('points')} points, it holds {points}"
        elif then.get("served_with") != row.settings:
            refusal = f"searched with {then.get('served_with')}, production would with {row.settings}"
        said = f"release {row.physical_name}: its newest audit, of run {run.id}, {refusal}"
        return audit, said if refusal else None

    def _promotion(self, kind: str, run_id: int, row: ReleaseRow, previous: ReleaseRow | None) -> PromotionRow:
        return PromotionRow(
            **self._place(),
            kind=kind,
            metric=row.metric,
            release_id=row.id,
            previous_id=previous.id if previous else None,
            run_id=run_id,
            begun_at=now(),
        )

    def _last_promotions(
        self, rows: Iterable[ReleaseRow], metrics: Sequence[str], *, required: bool = True
    ) -> list[PromotionRow]:
        """Return what made the live releases live: of the newest run that promoted one, or under `metrics`."""
        live = [row for row in rows if row.state == LIVE]
        asked = {str(parse(metric)) for metric in metrics}
        last = [
            promotions[-1]
            for row in live
            if row.metric in asked or not asked
            if (promotions := self.provenance.releases.promotions(kind=PROMOTE, release_id=row.id))
            if promotions[-1].previous_id is not None
        ]
        missing = asked - {promotion.metric for promotion in last}
        if required and (missing or not last):
            under = f" under {', '.join(sorted(missing))}" if missing else ""
            raise CollectionNotFoundError(
                f"no live release of collection {self.collection!r}{under} has replaced another; there is nothing to "
                "roll back to"
            )
        if asked:
            return last
        newest = max((promotion.run_id for promotion in last), default=0)
        return [promotion for promotion in last if promotion.run_id == newest]

    def _switch(
        self, promotions: Sequence[PromotionRow], run_id: int, held: Lease, refused: dict[int, str] | None = None
    ) -> list[AliasSwitch]:
        """Let the aliases name the releases, then say so in SQL. Doing it again does no harm."""
        rows = {row.id: row for row in self.provenance.releases.find(**self._place())}
        wanted = {alias_name(p.collection, parse(p.metric)): rows[p.release_id] for p in promotions}
        current = self.store.aliases()
        changed = {alias: row for alias, row in wanted.items() if current.get(alias) != row.physical_name}
        for row in changed.values():
            if promotions[0].run_id != run_id:  # begun by a run before this one: much may have happened since
                self._verify(row, run_id)
        held.renew()
        if changed:
            self.store.set_aliases({alias: row.physical_name for alias, row in changed.items()})
        self.provenance.releases.finish_promotions(promotions, run_id)
        after = {row.id: row for row in self.provenance.releases.find(**self._place())}
        switched = []
        for promotion in promotions:
            row, previous = after[promotion.release_id], after.get(promotion.previous_id or 0)
            lacks = self._lacking(row, previous) if previous else []
            switched.append(AliasSwitch(promotion, row, previous, (refused or {}).get(row.id), lacks))
        return switched


def pending(provenance: Provenance, row: ReleaseRow) -> str:
    """Say what is still to be done about a release, and the command that does it; empty where nothing is."""
    place = {"store_url": row.store_url, "collection": row.collection, "metric": row.metric}
    for promotion in provenance.releases.unfinished_promotions(**place):
        if promotion.release_id == row.id:
            return (
                f"{promotion.kind} begun by run {promotion.run_id}, not finished: run `modalign {promotion.kind} "
                f"{row.collection}`"
            )
    if row.drop_begun_at:
        return f"drop begun, not finished: run `modalign drop {row.collection} --release {row.physical_name}`"
    if row.state == "building":
        return "not written to the end: push its embedding sets again"
    if row.state == READY:
        return (
            f"a shadow: run `modalign audit {row.collection} --release {row.physical_name}`, then `modalign promote "
            f"{row.collection}`"
        )
    return ""


def _ready(
    rows: Sequence[ReleaseRow], metrics: Sequence[str], names: Sequence[str], collection: str
) -> list[ReleaseRow]:
    """Choose what to promote; nothing where all that was asked for is live already."""
    asked = {str(parse(metric)) for metric in metrics}
    if names:
        chosen = [row for row in _named(rows, names, collection) if not asked or row.metric in asked]
    else:
        ready = [row for row in rows if row.state == READY and (not asked or row.metric in asked)]
        newest = max((row.alignment_id for row in ready), default=0)
        chosen = [row for row in ready if row.alignment_id == newest]
        if not chosen:
            chosen = [row for row in rows if row.state == LIVE and (not asked or row.metric in asked)]
    if len({row.metric for row in chosen}) < max(len(chosen), len(asked), 1):
        raise CollectionNotFoundError(
            f"expected one ready release of collection {collection!r} for each metric, got "
            f"{', '.join(row.physical_name for row in chosen) or 'none'}; `modalign status {collection}` shows all"
        )
    for row in chosen:
        if row.state not in (READY, LIVE):
            raise CollectionNotFoundError(
                f"release {row.physical_name} is {row.state}, expected a ready one; push its embedding sets again"
            )
    return [row for row in chosen if row.state == READY]


def _named(rows: Sequence[ReleaseRow], names: Sequence[str], collection: str) -> list[ReleaseRow]:
    known = {row.physical_name: row for row in rows}
    for name in names:
        if name not in known:
            raise CollectionNotFoundError(
                f"no release {name!r} of collection {collection!r}; it has {', '.join(known)}"
            )
    return [known[name] for name in dict.fromkeys(names)]
