"""The lifecycle of releases after their push: promote, roll back, and the next step of each.

Promotion and rollback are the same three steps. A crash between any two does no harm:

    1  SQL records which releases are going to be live
    2  one request switches the aliases of all metrics; a store that is killed may have switched some of them
    3  SQL records that it is done

A command that is run again does not go further than it did: a promotion never goes back to an older alignment unless
the release is named, and a rollback undoes the last promotion once. Where even that is too much, because somebody else
may act in between, a caller names its request: what is recorded under that name is finished, and nothing else is done.

`connector.releases.status` names whatever was begun and not finished, and the same command finishes it.

One process at a time does any of this to a collection, under `Lifecycle.exclusive`.
"""

import getpass
import os
import platform
from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from alignment.metrics import parse
from alignment.plurals import counted
from connector.errors import (
    GateError,
    MismatchError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from connector.provenance.leases import Lease, promotion_lock
from connector.provenance.recorder import Provenance
from connector.provenance.releases import PROMOTE, ROLLBACK
from connector.provenance.tables import PromotionRow, ReleaseRow, now
from connector.releases.aliases import alias_fault, alias_name
from connector.releases.choice import once_live_releases, ready_releases, replaced_releases
from connector.releases.gate import newest_audit
from connector.releases.layouts import broken_filters, layout_differences, live_beside
from connector.releases.next_audit import how_to_pass
from connector.releases.recorded_settings import differences_in_words
from connector.releases.release import carries_captions, load_release
from connector.releases.rights import check_may_manage
from connector.releases.store_identity import (
    FOREIGN,
    check_owner,
    claim_collection,
    here,
    no_release,
    record_store,
)
from connector.releases.verify import verify
from connector.settings import checked_name
from connector.states import ReleaseState
from connector.stores.contract import Store


@dataclass(frozen=True, slots=True)
class PromotionOverride:
    """Who promotes a release that its audit does not allow, and why."""

    by: str
    reason: str


def this_person() -> str:
    """Return user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user number of a container may have no name
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


@dataclass(frozen=True, slots=True)
class AliasSwitch:
    """An alias that points to another release now.

    Attributes:
        refused: why the audit did not allow it; None unless it was forced.
        lacks: what the previous release holds and this one does not, a sentence for each embedding set.
        differences: how its layout differs from that of the previous release, a sentence for each setting.
        worse: recalls that its newest audit found significantly below those of the live release, a sentence for each;
            none of a rollback.
    """

    promotion: PromotionRow
    row: ReleaseRow
    previous: ReleaseRow | None
    refused: str | None
    lacks: list[str]
    differences: list[str]
    worse: list[str]


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
        """Return its releases that were not dropped, newest last.

        Raises:
            CollectionNotFoundError: there are none.
        """
        checked_name(self.collection, "collection")
        rows = [row for row in self.provenance.releases.find(**self.place()) if row.dropped_at is None]
        if not rows:
            raise no_release(self.provenance, self.store, self.collection)
        return rows

    def exclusive(self, run_id: int, *, timeout: float | None = None) -> AbstractContextManager[Lease]:
        """Keep other processes from promoting, rolling back and dropping here; see `promotion_lock`."""
        store_id = record_store(self.provenance, self.store)
        return promotion_lock(self.provenance.database, store_id, self.collection, run_id, timeout=timeout)

    def promote(
        self,
        run_id: int,
        *,
        metrics: Sequence[str] = (),
        names: Sequence[str] = (),
        forced: PromotionOverride | None = None,
        request: str | None = None,
    ) -> list[AliasSwitch]:
        """Make the ready releases of the newest alignment live, and retire the ones that were live.

        Each is verified first, and its newest audit has to allow it. An unfinished promotion is finished first; nothing
        else happens then, unless releases are named. If nothing is ready and something is live, nothing happens.
        Releases of an older alignment than the live one have to be named.

        Args:
            run_id: the run that promotes.
            metrics: only releases under these metrics.
            names: these releases instead, by their physical collections; `ready`: those of the newest alignment.
            forced: promote whatever the audits say.
            request: names the request; see `_finished`.

        Raises:
            CollectionNotFoundError: there is no such release, or it is not ready.
            MismatchError: verification of a release failed, or it lacks what the live one holds; the alias of a live
                release that stays leads elsewhere. Nothing is switched.
            GateError: an audit does not allow it, or filters that work on the live release would not work on it, and
                `forced` is None. Nothing is switched.
            LeaseHeldError: another process is promoting, rolling back or dropping here.
        """
        of_metrics = {str(parse(metric)) for metric in metrics}
        with self.exclusive(run_id) as lease:
            rows = self.rows()
            finished = self._finished(PROMOTE, run_id, lease, request, named=bool({*names} - {ReleaseState.READY}))
            if finished is not None:
                if not finished:
                    self._check_aliases(of_metrics)
                return finished
            rows = self.rows()
            chosen = ready_releases(rows, of_metrics, names, self.collection)
            self._check_aliases(of_metrics, {row.metric for row in chosen})
            if not chosen:
                return []
            self._check_targets(chosen)
            check_may_manage(self.store, f"promoting releases of {self.collection}")
            live = {row.metric: row for row in rows if row.state == ReleaseState.LIVE}
            self._check_complete(chosen, live, run_id)
            promotions, refused = self._allowed(rows, chosen, run_id, forced)
            return self._begin_and_switch(promotions, run_id, lease, request, refused)

    def _check_aliases(self, metrics: Set[str], switched: Collection[str] = ()) -> None:
        """Check that production reaches the live releases, of these metrics or all, by their aliases.

        Args:
            metrics: of the command, as SQL has them; empty: all.
            switched: metrics whose aliases are about to be switched.

        Raises:
            MismatchError: the alias of another live release is gone or leads elsewhere.
        """
        for row in self.rows():
            if row.metric in switched or (metrics and row.metric not in metrics):
                continue
            if fault := alias_fault(self.provenance, self.store, row):
                raise MismatchError(fault)

    def _check_targets(self, chosen: Sequence[ReleaseRow]) -> None:
        """Refuse to switch an alias that leads to a collection of another database, whose production it is.

        Raises:
            MismatchError: it does. Nothing is switched.
        """
        aliases = self.store.aliases()
        for row in chosen:
            target = aliases.get(alias := alias_name(row.collection, row.metric))
            if target is None or target not in self.store.collections():
                continue
            try:
                check_owner(self.provenance, self.store, target, row.store_id)
            except MismatchError as error:
                if error.code != FOREIGN:
                    raise
                raise MismatchError(
                    f"alias {alias} leads to collection {target} of another modalign database, which serves it. Push "
                    "into a collection of another name; if that database is lost, delete the alias in Qdrant first",
                    code=FOREIGN,
                ) from error

    def _check_complete(self, chosen: Sequence[ReleaseRow], live: Mapping[str, ReleaseRow], run_id: int) -> None:
        """Verify releases, and refuse one that lacks points of the live release that it would replace."""
        for row in chosen:
            self._verify(row, run_id, settings=True)
            if row.metric in live and (lacking := self._lacking(row, live[row.metric])):
                raise MismatchError("; ".join(lacking))

    def _allowed(
        self,
        rows: Sequence[ReleaseRow],
        chosen: Sequence[ReleaseRow],
        run_id: int,
        forced: PromotionOverride | None,
    ) -> tuple[list[PromotionRow], dict[int, str]]:
        """Return the promotions of `chosen`, and by release why it may not go live though it is forced."""
        promotions, refused = [], {}
        live = {row.metric: row for row in rows if row.state == ReleaseState.LIVE}
        for row in chosen:
            audit, refusal = newest_audit(self.provenance, self.store, row)
            refusals = [f"{refusal}; {how_to_pass(self.provenance, row)}"] if refusal else []
            beside = live_beside(list(live.values()), row.metric)
            if beside and (broken := broken_filters(self.store, beside, row)):
                refusals.append(
                    f"filters would not find the same: {'; '.join(broken)}; drop {row.physical_name} and push again "
                    "without these options, so that it inherits the layout of the live release"
                )
            promotion = self._promotion(PROMOTE, run_id, row, live.get(row.metric))
            if audit and not refusal:
                promotion.audit_id = audit.id
            if refusals:
                refused[row.id] = "; ".join(refusals)
                if forced:
                    promotion.forced_by, promotion.reason = forced.by, forced.reason
            promotions.append(promotion)
        if refused and not forced:
            raise GateError(f"{'; '.join(refused.values())}; or promote with --force --reason TEXT")
        return promotions, refused

    def rollback(
        self, run_id: int, *, metrics: Sequence[str] = (), to: Sequence[str] = (), request: str | None = None
    ) -> list[AliasSwitch]:
        """Undo the last promotion: make the releases live again that it replaced, and retire the promoted ones.

        Run again, it changes nothing: a promotion is undone once. To go back further, name the releases.

        Args:
            run_id: the run that rolls back.
            metrics: only under these metrics, each to before its own last promotion.
            to: return to these releases instead, which were live once, by their physical collections.
            request: names the request; see `_finished`.

        Raises:
            CollectionNotFoundError: nothing was promoted, a release that was live before is dropped, or one that was
                named was never live.
            MismatchError: verification of a release failed. Nothing is switched.
            LeaseHeldError: another process is promoting, rolling back or dropping here.
        """
        of_metrics = {str(parse(metric)) for metric in metrics}
        # Which promotion is the last one must not change while the command waits: it fails instead.
        with self.exclusive(run_id, timeout=0) as lease:
            finished = self._finished(ROLLBACK, run_id, lease, request, named=bool(to))
            if finished is not None:
                if not finished:
                    self._check_aliases(of_metrics)
                return finished
            rows = self.rows()
            made = self.provenance.releases.promotions(**self.place())
            if to:
                targets = once_live_releases(rows, made, to, self.collection)
            else:
                targets = replaced_releases(rows, made, of_metrics, self.collection)
            of_targets = {target.metric for target in targets}
            targets = [target for target in targets if target.state != ReleaseState.LIVE]
            self._check_aliases(of_targets, {target.metric for target in targets})
            if not targets:
                return []
            self._check_targets(targets)
            check_may_manage(self.store, f"rolling back releases of {self.collection}")
            live = {row.metric: row for row in rows if row.state == ReleaseState.LIVE}
            for target in targets:
                self._verify(target, run_id)
            back = [self._promotion(ROLLBACK, run_id, target, live.get(target.metric)) for target in targets]
            return self._begin_and_switch(back, run_id, lease, request)

    def place(self) -> dict[str, Any]:
        """Return the columns that the collection's releases and promotions have in common in SQL."""
        return {"store_id": here(self.provenance, self.store), "collection": self.collection}

    def _unfinished(self, kind: str) -> list[PromotionRow]:
        """Return promotions of this kind that were begun and not finished.

        Raises:
            MismatchError: some of the other kind were.
        """
        unfinished = self.provenance.releases.unfinished_promotions(**self.place())
        if unfinished and unfinished[0].kind != kind:
            raise MismatchError(
                f"a {unfinished[0].kind} of collection {self.collection} was begun and not finished; run `modalign "
                f"{unfinished[0].kind} {self.collection}` first"
            )
        return unfinished

    def _finished(
        self, kind: str, run_id: int, lease: Lease, request: str | None, *, named: bool
    ) -> list[AliasSwitch] | None:
        """Finish what was begun; return what was switched if that is all that is to be done, else None.

        Args:
            kind: promote or rollback.
            run_id: the run that finishes it.
            lease: of the promotion lock.
            request: names the request; one that is recorded is finished, and never done twice.
            named: the command names releases: it goes on after it has finished something else.
        """
        unfinished = self._unfinished(kind)
        switched = self._switch(unfinished, run_id, lease) if unfinished else []
        if request is not None:
            recorded = self.provenance.releases.promotions(request=request, **self.place())
            if recorded and recorded[0].kind != kind:
                raise SettingsError(f"request {request!r} is of a {recorded[0].kind}; give a {kind} another name")
            return switched if recorded else None
        return switched if unfinished and not named else None

    def _begin_and_switch(
        self,
        promotions: Sequence[PromotionRow],
        run_id: int,
        lease: Lease,
        request: str | None,
        refused: Mapping[int, str] | None = None,
    ) -> list[AliasSwitch]:
        """Record what is going to be live, then switch."""
        for promotion in promotions:
            promotion.request = request
        lease.heartbeat()
        self.provenance.releases.begin_promotions(promotions)
        return self._switch(promotions, run_id, lease, refused)

    def _verify(self, row: ReleaseRow, seed: int, *, settings: bool = False) -> None:
        release = load_release(self.provenance, self.store, row, device=self.device)
        if settings and (differences := differences_in_words(release, self.store)):
            raise MismatchError(f"release {release.name}: {'; '.join(differences)}")
        self.store.ready(release.name)
        verified = verify(release, self.store, self.provenance, seed=seed)
        if row.points and not verified.points:
            raise MismatchError(
                f"the embedding sets hold nothing of what was pushed into release {release.name} any more, so it "
                "cannot be verified; push them again"
            )

    def _lacking(self, row: ReleaseRow, other: ReleaseRow) -> list[str]:
        """Say which points of the other release this one lacks, of embedding sets that its encoders made."""
        alignment = self.provenance.artifacts.alignment(row.alignment_id)
        expected = {m: encoder.fingerprint for m, encoder in self.provenance.artifacts.encoders(alignment).items()}
        lacking = []
        for embedding_set in self.provenance.ledger.sets_in([other.id]):
            encoders = self.provenance.artifacts.encoders(embedding_set)
            if any(encoder.fingerprint != expected[modality] for modality, encoder in encoders.items()):
                continue
            points = self.provenance.ledger.points_beyond(
                other.id, embedding_set.id, row.id, same_payload=carries_captions(row) == carries_captions(other)
            )
            if points:
                lacking.append(
                    f"release {row.physical_name} lacks {counted(points, 'point')} of embedding set "
                    f"{embedding_set.name} that {other.physical_name} holds; run `modalign push {embedding_set.name} "
                    f"--into {self.collection} "
                    f"--alignment {alignment.name} --metric '{row.metric}'`"
                )
        return lacking

    def _promotion(self, kind: str, run_id: int, row: ReleaseRow, previous: ReleaseRow | None) -> PromotionRow:
        return PromotionRow(
            **self.place(),
            kind=kind,
            metric=row.metric,
            release_id=row.id,
            previous_id=previous.id if previous else None,
            run_id=run_id,
            started_at=now(),
        )

    def _switch(
        self, promotions: Sequence[PromotionRow], run_id: int, lease: Lease, refused: Mapping[int, str] | None = None
    ) -> list[AliasSwitch]:
        """Point the aliases to the releases, then record it in SQL. Doing it twice does no harm."""
        rows = {row.id: row for row in self.provenance.releases.find(**self.place())}
        wanted = {alias_name(p.collection, p.metric): rows[p.release_id] for p in promotions}
        current = self.store.aliases()
        changed = {alias: row for alias, row in wanted.items() if current.get(alias) != row.physical_name}
        if changed and promotions[0].run_id != run_id:  # begun by an earlier run: the releases may have changed since
            check_may_manage(self.store, f"finishing a {promotions[0].kind} of {self.collection}")
            for row in changed.values():
                self._verify(row, run_id)
        lease.heartbeat()
        for row in wanted.values():
            claim_collection(self.provenance, self.store, row)
        if changed:
            self._set_aliases(promotions, {alias: row.physical_name for alias, row in changed.items()})
        self.provenance.releases.finish_promotions(promotions, run_id)
        after = {row.id: row for row in self.provenance.releases.find(**self.place())}
        switched = []
        for promotion in promotions:
            row, previous = after[promotion.release_id], after.get(promotion.previous_id or 0)
            lacks = self._lacking(row, previous) if previous else []
            differences = layout_differences(previous, row) if previous else []
            refusal, worse = (refused or {}).get(row.id), self._worse(promotion)
            switched.append(AliasSwitch(promotion, row, previous, refusal, lacks, differences, worse))
        return switched

    def _worse(self, promotion: PromotionRow) -> list[str]:
        newest = self.provenance.audits.newest(promotion.release_id) if promotion.kind == PROMOTE else None
        return list(newest[0].settings.get("worse_than_live", [])) if newest else []

    def _set_aliases(self, promotions: Sequence[PromotionRow], aliases: Mapping[str, str]) -> None:
        """Point aliases to collections. If the store refuses all of them, nothing was begun, and SQL says so."""
        try:
            self.store.set_aliases(aliases)
        except StoreUnavailableError:  # they may be switched all the same
            raise
        except StoreError:
            present = self.store.aliases()
            if not any(present.get(alias) == target for alias, target in aliases.items()):
                self.provenance.releases.forget_promotions(promotions)
            raise
