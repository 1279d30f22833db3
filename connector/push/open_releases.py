"""Find or create the releases that a push writes into: the row in SQL first, then the collection."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from alignment.errors import ModalignError
from alignment.metrics import Lowering, Metric
from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.plurals import counted
from alignment.sets.cards import EncoderCard
from connector.errors import MismatchError, ProvenanceError, StoreBusyError, StoreError, StoreUnavailableError
from connector.provenance.leases import creation_lock
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import ReleaseRow, now
from connector.push.release_writer import ReleaseWriter
from connector.releases.aliases import goes_live, physical_name
from connector.releases.chain import METADATA, chain, check_chain, check_encoder, check_row, check_settings
from connector.releases.layouts import complete, filters_that_end, inherited, merged, payload_metadata, read_back
from connector.releases.payload_fields import unreadable_in_words
from connector.releases.recorded_settings import collection_config
from connector.releases.release import Release, check_alignment, load_release
from connector.releases.rights import check_may_manage, check_may_write, present, shows
from connector.releases.store_identity import FOREIGN, check_owner, claim_collection, here, owner
from connector.requests import ReleasesRequest
from connector.states import ReleaseState
from connector.stores.contract import Store
from connector.stores.layout import CHANGEABLE_FIELDS, FIELDS, Layout, PayloadKind, checked_layout
from connector.stores.payload_paths import canonical_path

_log = logging.getLogger(__name__)

OWN_INDEXES: Mapping[str, PayloadKind] = {"key": "keyword", "group": "keyword", "split": "keyword"}
NOTHING_CHOSEN: Mapping[str, Any] = {"payload_indexes": {}}


@dataclass(frozen=True, slots=True)
class ReleaseOpener:
    """Finds or creates the releases of one alignment in one collection.

    Attributes:
        request: which collection, and how new releases are laid out.
        run: the run that pushes.

    Raises:
        SettingsError: the layout is invalid, or the store does not support it.
    """

    alignment: Alignment
    alignment_id: int
    request: ReleasesRequest
    store: Store
    provenance: Provenance
    run: Run

    def __post_init__(self) -> None:
        self.store.check_layout(Layout(**self.layout))

    @property
    def layout(self) -> Mapping[str, Any]:
        """Settings that the request chose, with `payload_indexes` always among them."""
        return {**NOTHING_CHOSEN, **checked_layout(self.request.layout)}

    @property
    def collection(self) -> str:
        """The collection that is written."""
        return self.request.into

    def check_rights(self, metrics: Collection[Metric]) -> None:
        """Try what the key of the store has to allow, before anything is recorded, created or written.

        A push writes into the releases of the collection. To create one, or to make one live, takes a key that may
        manage the store; to write into a live one does not.

        Raises:
            AccessDeniedError: the key does not allow it, or does not show a release that SQL records.
        """
        metric_of = {physical_name(self.collection, metric, self.alignment): metric for metric in metrics}
        place = {"store_id": here(self.provenance, self.store), "collection": self.collection}
        rows = {row.physical_name: row for row in self.provenance.releases.find(**place) if row.dropped_at is None}
        written = [row for name, row in rows.items() if row.state != ReleaseState.RETIRED or name in metric_of]
        exist = {row.physical_name for row in present(self.store, written)} & metric_of.keys()
        exist |= {name for name in metric_of.keys() - rows.keys() if shows(self.store, name)}  # SQL has lost them
        check_may_write(self.store, sorted(exist))
        aliases = self.store.aliases()
        purposes = [f"creating collection {name}" for name in metric_of.keys() - exist]
        for name, metric in metric_of.items():
            row = rows.get(name) or ReleaseRow(
                **place, physical_name=name, metric=str(metric), state=ReleaseState.BUILDING
            )
            if name in exist and goes_live(self.provenance, self.store, row, aliases):
                purposes.append(f"making release {name} live")
        if purposes:
            check_may_manage(self.store, " and ".join(sorted(purposes)))

    def check_layouts(self, metrics: Iterable[Metric]) -> None:
        """Refuse what `open` would refuse because releases with points have another layout. Changes nothing.

        Raises:
            MismatchError: a release was created with other settings.
        """
        if not self.request.fresh_layout and self.layout == NOTHING_CHOSEN:
            return
        there = self.store.collections()
        for name in {physical_name(self.collection, metric, self.alignment) for metric in metrics} & set(there):
            for row in self._rows_of(name):
                begun_to_drop = row.drop_begun_at or row.dropped_at
                if row.settings and not begun_to_drop and self.store.count(name):
                    self._check_layout(row, self._added_indexes(row))

    def open(self, metric: Metric, lowerings: Mapping[Modality, Lowering]) -> ReleaseWriter:
        """Find or create the release under `metric`. If that is refused, SQL is as it was before.

        Raises:
            MismatchError: it was written for another chain or with another layout.
        """
        name = physical_name(self.collection, metric, self.alignment)
        with creation_lock(self.provenance.database, here(self.provenance, self.store), name, self.run.id):
            before = self._rows_of(name)
            existed = name in self.store.collections()
            try:
                return self._open(name, metric, lowerings, exists=existed)
            except (StoreUnavailableError, StoreBusyError, ProvenanceError):  # the same command goes on from here
                raise
            except ModalignError as error:
                claimed = None if existed else self._claimed_meanwhile(name)
                self._take_back(name, before, existed=existed or claimed is not None)
                if claimed:
                    raise claimed from error
                raise

    def _claimed_meanwhile(self, name: str) -> MismatchError | None:
        """Say who created the collection that was to be created: a push by another address, which holds other locks."""
        if name not in self.store.collections():
            return None
        try:
            check_owner(self.provenance, self.store, name, here(self.provenance, self.store))
        except MismatchError as error:
            return error
        return None

    def _take_back(self, name: str, before: Sequence[ReleaseRow], *, existed: bool) -> None:
        """Give the row of a release that could not be opened the state of before, or delete it if it is new."""
        for row in self._rows_of(name):
            if before:
                columns = ("state", "settings", "drop_begun_at", "dropped_at")
                changed = {c: getattr(before[0], c) for c in columns if getattr(row, c) != getattr(before[0], c)}
                if changed:  # otherwise a release would be live since now
                    self.provenance.releases.change(row, **changed)
            elif existed or name not in self.store.collections():
                self.provenance.releases.delete(row.id)

    def _open(
        self, name: str, metric: Metric, lowerings: Mapping[Modality, Lowering], *, exists: bool
    ) -> ReleaseWriter:
        lowering = lowerings["image"]
        metadata = chain(self.alignment, metric, lowering)
        if exists:
            check_chain(self.store, name, metadata)
            if not self.request.take_over:
                self._check_owner(name)
        row, recorded = self._row(name, metric, lowering)
        new = not exists and not recorded
        if exists and recorded and self._is_leftover(row):
            self.store.drop(name)
            exists = False
        elif exists:
            claim_collection(self.provenance, self.store, row, take_over=self.request.take_over)
        if not exists:
            if sets := ", ".join(s.name for s in self.provenance.ledger.sets_in([row.id])):
                _log.warning("collection %s was gone and is made anew; push all its embedding sets: %s", name, sets)
            self._create(row, metric, lowering, metadata)
        else:
            if not row.settings:
                self._read_back(row)
            self._adopt_indexes(row)
            self._check_layout(row)
            self._add_indexes(row)
            self._change_payload(row)
        return ReleaseWriter(Release(row, self.alignment, metric, lowerings), new)

    def _check_owner(self, name: str) -> None:
        """Refuse a collection that another database claims, and one with points of which neither side says anything."""
        store_id = here(self.provenance, self.store)
        if check_owner(self.provenance, self.store, name, store_id) or self._rows_of(name):
            return
        if points := self.store.count(name):
            raise MismatchError(
                f"collection {name} at {self.store.url} holds {counted(points, 'point')} that SQL does not know, and "
                "says not whose it is: push into a collection of another name; if the database that wrote it is lost, "
                "take it over: `modalign push --take-over`",
                code=FOREIGN,
            )

    def _rows_of(self, name: str) -> list[ReleaseRow]:
        return self.provenance.releases.find(store_id=here(self.provenance, self.store), physical_name=name)

    def _row(self, name: str, metric: Metric, lowering: Lowering) -> tuple[ReleaseRow, bool]:
        """Find or save the row of a release; say whether SQL had it. A retired one returns to `building`."""
        if rows := self._rows_of(name):
            row = rows[0]
            check_alignment(self.provenance, row, self.alignment)
            check_row(row, metric, lowering)
            check_settings(row)
            if row.state == ReleaseState.RETIRED:  # or its drop was interrupted
                dropped: dict[str, Any] = {"settings": {}} if row.dropped_at or row.drop_begun_at else {}
                self.provenance.releases.change(
                    row, state=ReleaseState.BUILDING, drop_begun_at=None, dropped_at=None, **dropped
                )
            return row, True
        row = ReleaseRow(
            store_id=here(self.provenance, self.store),
            collection=self.collection,
            metric=str(metric),
            physical_name=name,
            alignment_id=self.alignment_id,
            distance=lowering.distance.value,
            dim=lowering.dim,
            lowering_version=lowering.version,
            settings={},
            state=ReleaseState.BUILDING,
            points=0,
            created_at=now(),
        )
        return self.provenance.releases.save(row), False

    def _is_leftover(self, row: ReleaseRow) -> bool:
        """Say whether a crash left the collection, and it is to be created again: it is not whole, or not as asked for.

        A collection with points may be live although SQL does not know them, and stays. An empty one may be about to be
        written by another run. That one has recorded the layout, which ends the creation: the collection is whole.
        """
        if (
            row.state != ReleaseState.BUILDING
            or self.store.count(row.physical_name)
            or self.provenance.ledger.points(row.id)
        ):
            return False
        if not row.settings:
            return True
        try:
            self._check_layout(row)
        except MismatchError:
            return not at_work(self.provenance, self.collection, self.run)
        return False

    def _read_back(self, row: ReleaseRow) -> None:
        """Record the layout of a collection that SQL has lost, as the collection tells it."""
        settings = read_back(self.store, row.physical_name)
        self.provenance.releases.change(row, settings=settings)
        _log.info("collection %s: SQL does not know its layout; read back %s", row.physical_name, _in_words(settings))

    def _adopt_indexes(self, row: ReleaseRow) -> None:
        """Record the payload indexes of a collection that somebody added.

        Raises: as `_added_indexes`.
        """
        if added := self._added_indexes(row):
            _log.warning(
                "collection %s has payload indexes that no push made: %s; values of other kinds are rejected now",
                row.physical_name,
                ", ".join(f"{field}={kind}" for field, kind in added.items()),
            )
            self._record_indexes(row, added)

    def _added_indexes(self, row: ReleaseRow) -> dict[str, str]:
        """Return the payload indexes of a collection that SQL does not have: somebody added them.

        Raises:
            MismatchError: an index is of another kind.
        """
        recorded = _recorded_indexes(row)
        present = self.store.payload_indexes(row.physical_name)
        for field, kind in present.items():
            if recorded.get(field, kind) != kind:
                raise MismatchError(
                    f"collection {row.physical_name} has an index of kind {kind} on payload field {field}, SQL says "
                    f"{recorded[field]}; create the index in Qdrant as it was"
                )
        return {field: kind for field, kind in present.items() if field not in recorded}

    def _check_layout(self, row: ReleaseRow, added: Mapping[str, str] | None = None) -> None:
        """Raise a `MismatchError` if a collection was not created with the settings that were chosen.

        Args:
            row: the release.
            added: payload indexes that it has besides those that SQL has.
        """
        created = complete(row.settings)
        if added:
            created["payload_indexes"] = {**_recorded_indexes(row), **added}
        base = {**asdict(Layout()), "payload_indexes": OWN_INDEXES} if self.request.fresh_layout else created
        for field, kind in self._new_indexes(created).items():
            if unlike := unreadable_in_words(self.store, row.physical_name, field, kind):
                raise MismatchError(f"--payload-index {field}={kind}: {unlike}; name another kind, or another field")
        created = merged(created, {"payload_indexes": self._new_indexes(created)})
        for name, value in merged(base, self.layout).items():
            if created.get(name) != value and name not in CHANGEABLE_FIELDS:
                raise MismatchError(
                    f"collection {row.physical_name} was created with {name} {created.get(name)}, asked for {value}; "
                    "push into a new collection, or leave that option out"
                    f"{at_work(self.provenance, self.collection, self.run)}"
                )

    def _new_indexes(self, settings: Mapping[str, Any]) -> dict[str, PayloadKind]:
        """Return the payload indexes that were chosen, of fields without one in these settings."""
        recorded = {canonical_path(field) for field in settings["payload_indexes"]}
        return {field: kind for field, kind in self.layout["payload_indexes"].items() if field not in recorded}

    def _add_indexes(self, row: ReleaseRow) -> None:
        """Index further payload fields, as chosen."""
        if not (new := self._new_indexes(row.settings)):
            return
        for sentence in filters_that_end(self.store, row.physical_name, new):
            _log.warning("payload index: %s", sentence)
        for field, kind in new.items():
            self.store.add_payload_index(row.physical_name, field, kind)
        self._record_indexes(row, new)
        sets = [pushed.name for pushed in self.provenance.ledger.sets_in([row.id])]
        _log.info(
            "release %s: payload fields are indexed from now on: %s%s",
            row.physical_name,
            ", ".join(f"{field}={kind}" for field, kind in new.items()),
            f"; push each of its sets again, so that their texts are read as that kind: {', '.join(sets)}"
            if len(sets) > 1
            else "",
        )

    def _record_indexes(self, row: ReleaseRow, added: Mapping[str, str]) -> None:
        """Record further payload indexes; payloads have to be compared, whose texts may be of their kinds."""
        self.provenance.ledger.outdate(row.id)
        indexes = {**_recorded_indexes(row), **added}
        self.provenance.releases.change(row, settings={**row.settings, "payload_indexes": indexes})

    def _change_payload(self, row: ReleaseRow) -> None:
        """Record what payloads carry from now on, in the collection first. The ledger then calls for other payloads."""
        chosen = {name: self.layout[name] for name in CHANGEABLE_FIELDS if name in self.layout}
        settings = {**complete(row.settings), **chosen}
        if settings != complete(row.settings):
            self.store.add_metadata(row.physical_name, payload_metadata(settings))
            self.provenance.releases.change(row, settings=settings)

    def _base(self, row: ReleaseRow, metric: Metric) -> dict[str, Any]:
        """Return the layout that a new collection starts from: that of the one that was lost, or the live release's."""
        if self.request.fresh_layout:
            return {}
        if row.settings:
            return complete(row.settings)
        if origin := inherited(self.provenance, self.store, self.collection, metric):
            _log.info(
                "release %s has the layout of %s: %s", row.physical_name, origin.origin, _in_words(origin.settings)
            )
            return origin.settings
        return {}

    def _create(self, row: ReleaseRow, metric: Metric, lowering: Lowering, metadata: Mapping[str, Any]) -> None:
        settings = merged(merged({"payload_indexes": OWN_INDEXES}, self._base(row, metric)), self.layout)
        config = collection_config(settings, lowering, {METADATA: metadata, **owner(self.provenance, row)})
        self.store.create(row.physical_name, config)
        self.provenance.stores.mark_claimed(row.store_id)
        layout = {name: getattr(config, name) for name in FIELDS}
        tuning = {"hnsw_ef": None, "hnsw_recall": None, "needs_tuning": False, "fusion": None}
        self.provenance.releases.restart(row, settings=layout, state=ReleaseState.BUILDING, **tuning)


def open_others(
    encoders: Mapping[Modality, EncoderCard],
    collection: str,
    requested: Collection[str],
    store: Store,
    provenance: Provenance,
) -> list[ReleaseWriter]:
    """Open the collection's other releases that are not retired; print which cannot take sets of these encoders.

    Raises:
        AccessDeniedError: the key may not write into them.
    """
    others = []
    for row in provenance.releases.find(store_id=here(provenance, store), collection=collection):
        if row.state == ReleaseState.RETIRED or row.physical_name in requested:
            continue
        try:
            release = load_release(provenance, store, row)
            claim_collection(provenance, store, row)
            for modality, card in encoders.items():
                check_encoder(release.alignment, modality, card, "the embedding set")
        except (StoreUnavailableError, StoreBusyError, ProvenanceError):
            raise
        except ModalignError as error:
            _log.warning("release %s (%s) does not get this: %s", row.physical_name, row.state, error)
        else:
            others.append(ReleaseWriter(release, new=False, requested=False))
    check_may_write(store, [writer.release.name for writer in others])
    return others


def take_back(writers: Sequence[ReleaseWriter], store: Store, provenance: Provenance, run: Run) -> None:
    """Remove the new releases that hold no point: the collection first, then the row in SQL.

    One that another run may be about to write stays.
    """
    with suppress(StoreError, ProvenanceError):  # a leftover is harmless; why the push was refused must be raised
        for writer in writers:
            row, name = writer.release.row, writer.release.name
            if not writer.new:
                continue
            with creation_lock(provenance.database, row.store_id, name, run.id):
                if not store.count(name) and not at_work(provenance, row.collection, run):
                    store.drop(name)
                    provenance.releases.delete(row.id)


def at_work(provenance: Provenance, collection: str, run: Run) -> str:
    """Name the other runs that are writing into releases of a collection now; empty: there are none."""
    others = [other for other in provenance.runs.writers(collection) if other.id != run.id]
    if not others:
        return ""
    named = ", ".join(f"run {other.id}, `modalign {other.command}` on host {other.host}" for other in others)
    return f". At work on it: {named}"


def _recorded_indexes(row: ReleaseRow) -> dict[str, str]:
    return {canonical_path(field): kind for field, kind in row.settings["payload_indexes"].items()}


def _in_words(settings: Mapping[str, Any]) -> str:
    """Name the settings of a layout that are not the defaults."""
    defaults = {**asdict(Layout()), "payload_indexes": OWN_INDEXES}
    words = [
        f"{name} {value}" for name, value in settings.items() if name != "payload_indexes" and value != defaults[name]
    ]
    words += [
        f"payload index {field}={kind}"
        for field, kind in settings["payload_indexes"].items()
        if OWN_INDEXES.get(field) != kind
    ]
    return ", ".join(words) or "the defaults"
