"""Find or create the releases that a push writes into: the row in SQL first, then the collection."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from alignment.errors import ModalignError
from alignment.metrics import Lowering, Metric
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.sets.cards import EncoderCard
from connector.errors import MismatchError, ProvenanceError, StoreBusyError, StoreError, StoreUnavailableError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import ReleaseRow, now
from connector.push.batches import ReleaseWriter
from connector.releases.aliases import physical_name
from connector.releases.chain import METADATA, chain, check_chain, check_encoder, check_row, check_settings
from connector.releases.release import Release, load_release
from connector.stores.contract import CollectionConfig, Store, VectorConfig
from connector.stores.layout import Layout, PayloadKind

_log = logging.getLogger(__name__)

OWN_INDEXES: Mapping[str, PayloadKind] = {"key": "keyword", "group": "keyword", "split": "keyword"}


@dataclass(frozen=True, slots=True)
class ReleaseOpener:
    """Finds or creates the releases of one alignment in one collection.

    Attributes:
        layout: settings asked for, with `payload_indexes` always among them.
        shared: other processes push into the same releases, so an empty collection is no leftover of a crash.
    """

    alignment: Alignment
    alignment_id: int
    collection: str
    layout: Mapping[str, Any]
    store: Store
    provenance: Provenance
    shared: bool

    def open(self, metric: Metric, lowerings: Mapping[Modality, Lowering]) -> ReleaseWriter:
        """Find or create the release under `metric`.

        Raises:
            MismatchError: it was written for another chain or with another layout.
        """
        lowering = lowerings["image"]
        name, metadata = physical_name(self.collection, metric, self.alignment), chain(self.alignment, metric, lowering)
        exists = name in self.store.collections()
        if exists:
            check_chain(self.store, name, metadata)
        row, recorded = self._row(name, metric, lowering)
        new = not exists and not recorded
        if exists and self._is_leftover(row, recorded):
            self.store.drop(name)
            exists = False
        if not exists:
            self._create(row, lowering, metadata)
        elif row.settings:
            _check_layout(row, self.layout)
        return ReleaseWriter(Release(row, self.alignment, metric, lowerings), new)

    def _row(self, name: str, metric: Metric, lowering: Lowering) -> tuple[ReleaseRow, bool]:
        """Find or save the row of a release; say whether SQL had it. A retired one returns to `building`."""
        store_url = self.provenance.database.stored(self.store.url)
        rows = self.provenance.releases.find(store_url=store_url, physical_name=name)
        if rows:
            row = rows[0]
            check_row(row, metric, lowering)
            check_settings(row)
            if row.state == "retired":  # or its drop was interrupted
                self.provenance.releases.change(row, state="building", drop_begun_at=None, dropped_at=None)
            return row, True
        row = ReleaseRow(
            store_url=store_url,
            collection=self.collection,
            metric=str(metric),
            physical_name=name,
            alignment_id=self.alignment_id,
            distance=lowering.distance.value,
            dim=lowering.dim,
            lowering_version=lowering.version,
            settings={},
            state="building",
            points=0,
            created_at=now(),
        )
        return self.provenance.releases.save(row), False

    def _is_leftover(self, row: ReleaseRow, recorded: bool) -> bool:
        """Say whether a crash left the collection, perhaps without its payload indexes, before anything was recorded.

        A collection with points that SQL does not know may be live, and stays.
        """
        if row.state != "building" or (self.shared and row.settings) or self.provenance.ledger.points(row.id):
            return False
        return recorded or not self.store.count(row.physical_name)

    def _create(self, row: ReleaseRow, lowering: Lowering, metadata: Mapping[str, Any]) -> None:
        vector = VectorConfig(lowering.dim, lowering.distance)
        settings = {**self.layout, "payload_indexes": {**OWN_INDEXES, **self.layout["payload_indexes"]}}
        config = CollectionConfig(dict.fromkeys(MODALITIES, vector), metadata={METADATA: metadata}, **settings)
        self.provenance.ledger.clear(row.id)
        self.store.create(row.physical_name, config)
        laid_out = {name: value for name, value in asdict(config).items() if name not in ("metadata", "vectors")}
        tuning = {"hnsw_ef": None, "hnsw_recall": None, "needs_tuning": False}
        self.provenance.releases.change(row, settings=laid_out, state="building", **tuning)


def open_others(
    encoders: Mapping[Modality, EncoderCard],
    collection: str,
    writers: Sequence[ReleaseWriter],
    store: Store,
    provenance: Provenance,
) -> list[ReleaseWriter]:
    """Open the collection's other releases that are not retired; print which cannot take sets of these encoders."""
    requested = {writer.release.name for writer in writers}
    others = []
    for row in provenance.releases.find(store_url=provenance.database.stored(store.url), collection=collection):
        if row.state == "retired" or row.physical_name in requested:
            continue
        try:
            release = load_release(provenance, store, row)
            for modality, card in encoders.items():
                check_encoder(release.alignment, modality, card, "the embedding set")
        except (StoreUnavailableError, StoreBusyError, ProvenanceError):
            raise
        except ModalignError as error:
            _log.warning("release %s (%s) does not get this: %s", row.physical_name, row.state, error)
        else:
            others.append(ReleaseWriter(release, new=False, requested=False))
    return others


def take_back(writers: Sequence[ReleaseWriter], store: Store, provenance: Provenance) -> None:
    """Remove the new releases that hold no point: the collection first, then the row in SQL."""
    with suppress(StoreError, ProvenanceError):  # a leftover is harmless; why the push was refused must be raised
        for writer in writers:
            if writer.new and not store.count(writer.release.name):
                store.drop(writer.release.name)
                provenance.releases.delete(writer.release.row.id)


def _check_layout(row: ReleaseRow, settings: Mapping[str, Any]) -> None:
    """Refuse settings that an existing collection was not created with."""
    created = row.settings
    # A release older than a setting has what every collection had then: the default.
    created = {**asdict(Layout()), **created, "payload_indexes": dict(created["payload_indexes"])}
    wanted = {**created, **settings, "payload_indexes": {**created["payload_indexes"], **settings["payload_indexes"]}}
    for name, value in wanted.items():
        if created.get(name) != value:
            raise MismatchError(
                f"collection {row.physical_name} was created with {name} {created.get(name)}, asked for {value}; push "
                "into a new collection, or leave that option out"
            )
