"""The status of a home: its releases, what is to be done about them, and the last runs."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment.modality import Modality
from alignment.plurals import counted
from connector.errors import AccessDeniedError, CollectionNotFoundError, MismatchError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AlignmentRow, EncoderRow, PromotionRow, ReleaseRow, RunRow
from connector.releases.aliases import alias_fault, alias_name, alias_unseen
from connector.releases.inventory import alignment_fault
from connector.releases.lag import Lag, lag_of
from connector.releases.next_audit import audit_command, failed_audit, how_to_pass
from connector.releases.store_identity import check_owner, lost_collection, no_release
from connector.states import ReleaseState

if TYPE_CHECKING:
    from connector.stores.contract import Store
    from connector.stores.replicas import Replicas


@dataclass(frozen=True, slots=True)
class ReleaseStatus:
    """A release that was not dropped.

    Attributes:
        alignment: what it was written with.
        encoders: of the alignment.
        store: the newest address of its store.
        lag: behind its embedding sets; None of a retired release, which nothing is pushed into.
        pending: what is still to be done about it, with the command; empty where nothing is.
        faults: why its embedding sets or its alignment are not on this disk, or cannot be read, a sentence each; none
            of a retired release.
    """

    row: ReleaseRow
    alignment: AlignmentRow
    encoders: Mapping[Modality, EncoderRow]
    store: str
    lag: Lag | None
    pending: str
    faults: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class StoredRelease:
    """What a store says of a release, which may have changed behind SQL's back.

    Attributes:
        points: exact number, in a cluster those of the smallest replica of each shard; None: the store does not tell.
        faults: how this differs from what SQL recorded, a sentence each with what to do.
        not_compared: what the key does not show, a sentence each.
    """

    points: int | None
    faults: Sequence[str]
    not_compared: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """What SQL says of a home.

    Attributes:
        releases: oldest first.
        runs: newest first.
    """

    releases: Sequence[ReleaseStatus]
    runs: Sequence[RunRow]


def read_status(provenance: Provenance, collection: str | None = None, *, runs: int = 10) -> Status:
    """Read the status from SQL: of the releases and the last `runs` runs of `collection`, or of all.

    Raises:
        CollectionNotFoundError: there never was a release of `collection`.
    """
    ever = provenance.releases.find(**({} if collection is None else {"collection": collection}))
    if not ever and collection is not None:
        raise no_release(provenance, None, collection)
    rows = [row for row in ever if row.dropped_at is None]
    alignments = {number: provenance.artifacts.alignment(number) for number in {row.alignment_id for row in rows}}
    encoders = {number: provenance.artifacts.encoders(alignment) for number, alignment in alignments.items()}
    gone = {number: alignment_fault(provenance, alignment) for number, alignment in alignments.items()}
    releases = []
    for row in rows:
        lag = None if row.state == ReleaseState.RETIRED else lag_of(provenance, row)
        alignment = alignments[row.alignment_id]
        fault = gone[row.alignment_id]
        faults = [] if lag is None else [*lag.unread, *([f"alignment {alignment.name}: {fault}"] if fault else [])]
        address = provenance.stores.address(row.store_id)
        releases.append(
            ReleaseStatus(row, alignment, encoders[row.alignment_id], address, lag, pending(provenance, row), faults)
        )
    return Status(releases, provenance.runs.newest(runs, collection))


def read_stored(provenance: Provenance, store: "Store", rows: Iterable[ReleaseRow]) -> dict[int, StoredRelease]:
    """Count the points of releases exactly, and look where the aliases of live ones lead; by id of the release.

    Args:
        rows: releases of this store; two stores may have collections of one name.
    """
    stored = {}
    for row in rows:
        points: int | None = None
        hidden: list[str] = []
        try:
            points = store.count(row.physical_name, consistent=True)
        except AccessDeniedError:
            hidden.append(f"points were not counted: the key for {store.url} does not show the collection")
        except CollectionNotFoundError:
            stored[row.id] = StoredRelease(0, [lost_collection(provenance, row)])
            continue
        alias = alias_fault(provenance, store, row)
        faults = [*_owner_faults(provenance, store, row), *_count_faults(provenance, row, points)]
        faults += [alias] if alias else []
        hidden += [unseen] if (unseen := alias_unseen(store, row)) else []
        stored[row.id] = StoredRelease(points, faults, tuple(hidden))
    return stored


def read_closed(
    provenance: Provenance, points: Mapping[str, int], rows: Iterable[ReleaseRow]
) -> dict[int, StoredRelease]:
    """Compare with SQL how many points releases held when their collections were closed; by id of the release."""
    return {
        row.id: StoredRelease(held, _count_faults(provenance, row, held))
        for row in rows
        if (held := points.get(row.physical_name)) is not None
    }


def _owner_faults(provenance: Provenance, store: "Store", row: ReleaseRow) -> list[str]:
    """Say that another database claims the collection of a release: then no command of this one uses it."""
    try:
        check_owner(provenance, store, row.physical_name, row.store_id)
    except AccessDeniedError:
        return []
    except MismatchError as error:
        return [str(error)]
    return []


def _count_faults(provenance: Provenance, row: ReleaseRow, points: int | None) -> list[str]:
    """Say that a live or ready release holds more or fewer points than SQL says; not while another process writes."""
    if (
        points is None
        or row.state not in (ReleaseState.LIVE, ReleaseState.READY)
        or not (more := points - provenance.ledger.points(row.id))
    ):
        return []
    if provenance.runs.writers(row.collection):
        return []
    differ = f"{abs(more):,} {'more' if more > 0 else 'fewer'} than SQL says"
    return [f"holds {counted(points, 'point')}, {differ}; run `modalign verify {row.collection}`"]


def read_replicas(store: "Store", rows: Iterable[ReleaseRow]) -> "dict[str, Replicas]":
    """Return by release where its replicas are; without releases that are in one place, or that the store has lost."""
    replicas = {}
    for row in rows:
        with suppress(CollectionNotFoundError):
            if of_release := store.replicas(row.physical_name):
                replicas[row.physical_name] = of_release
    return replicas


def pending(provenance: Provenance, row: ReleaseRow) -> str:
    """Return the next step for a release with the command for it; empty if there is none."""
    place = {"store_id": row.store_id, "collection": row.collection, "metric": row.metric}
    for promotion in provenance.releases.unfinished_promotions(**place):
        if promotion.release_id == row.id:
            return _half_switched(provenance, promotion, row)
    if row.drop_begun_at:
        return f"drop begun, not finished: run `modalign drop {row.collection} --release {row.physical_name}`"
    if row.state == ReleaseState.BUILDING:
        return "not written to the end: push its embedding sets again"
    if row.state == ReleaseState.READY:
        live = provenance.releases.find(**place, state=ReleaseState.LIVE)
        named = (
            f" --release {row.physical_name}" if any(row.alignment_id < other.alignment_id for other in live) else ""
        )
        if failed := failed_audit(provenance, row):
            unmet = ", ".join(failed.settings.get("failed_requirements", []))
            return f"a shadow that has not met {unmet} in run {failed.run_id}: {how_to_pass(provenance, row)}"
        return f"a shadow: run `{audit_command(provenance, row)}`, then `modalign promote {row.collection}{named}`"
    return ""


def _half_switched(provenance: Provenance, promotion: PromotionRow, row: ReleaseRow) -> str:
    """Say where the alias of an unfinished promotion may lead, and what finishes it."""
    previous = provenance.releases.find(id=promotion.previous_id) if promotion.previous_id else []
    before = previous[0].physical_name if previous else "nothing"
    alias = alias_name(row.collection, row.metric)
    return (
        f"{promotion.kind} begun by run {promotion.run_id}: alias {alias} leads to this release, or to {before} "
        f"still; not finished: run `modalign {promotion.kind} {row.collection}`"
    )
