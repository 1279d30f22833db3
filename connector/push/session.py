"""Push an embedding set through an alignment into releases: one per metric, in one projection pass.

How a set is written, and why a crash does no harm, `connector.push.batches` says.

What arrives reaches every release of the collection that is not retired: the set's other metrics, and the shadow of a
new alignment beside the live release of the old one, each through its own alignment and with its own ledger.

A push that is refused, because its vectors cannot be lowered say, takes back the releases that it made and wrote
nothing into. One that is killed, or loses a database, leaves them as `building`, and the next push goes on with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from alignment.errors import ModalignError
from alignment.metrics import Lowering, Metric
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import MismatchError, ProvenanceError, StoreBusyError, StoreError, StoreUnavailableError
from connector.progress import Advance, say
from connector.provenance.leases import promotion_lock
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import ReleaseRow, now
from connector.push.batches import BatchWriter, ReleaseWriter
from connector.releases.aliases import make_live, physical_name, to_go_live
from connector.releases.chain import (
    METADATA,
    NEEDS_TUNING,
    chain,
    check_chain,
    check_encoder,
    check_row,
    check_settings,
    layout_of,
)
from connector.releases.point_id_set import PointIds
from connector.releases.release import READY, Release, load_release, lower
from connector.search.ef_tuning import sample, tune
from connector.stores.contract import CollectionConfig, Store, VectorConfig
from connector.stores.layout import Layout, PayloadKind, checked_layout

OWN_INDEXES: Mapping[str, PayloadKind] = {"key": "keyword", "group": "keyword", "split": "keyword"}


def push(
    embedding_set: EmbeddingSet,
    alignment: Alignment,
    *,
    set_id: int,
    alignment_id: int,
    collection: str,
    metrics: Sequence[Metric],
    store: Store,
    provenance: Provenance,
    run: Run,
    advance: Advance = lambda count: None,
    **layout: Any,
) -> list[Release]:
    """Write `embedding_set` into one release per metric and verify them; return these.

    A release becomes live if nothing else is under its alias; otherwise it is `ready`, a shadow that an audit and
    `connector.releases.promotion.promote` make live. The set is written into the collection's other releases too, unless they
    are retired; one that cannot take it is named on stderr and left as it is.

    Counts `written`, `unchanged` and `rejected` in `run`, over all releases. Running it again writes nothing but the
    batches of which Qdrant refused points.

    `layout` are fields of `connector.stores.layout.Layout`: of new collections, and required of those that exist.

    Raises:
        SettingsError: settings that cannot be meant, or that the store has not.
        MetricError: the alignment holds no parameters for a metric.
        WeightsError: those that it holds are damaged or have diverged.
        VectorError: a metric cannot take the aligned vectors, such as signed ones under `chi2(map=l1)`.
        MismatchError: the set's encoders are not the alignment's, a collection of that name was written with
            something else or with other settings than those that are asked for, or the collection's exact count is
            not what the ledger says.
        StoreError, ProvenanceError: a database refused or failed; run the same command again.
    """
    for modality, card in embedding_set.card.encoders.items():
        check_encoder(alignment, modality, card, f"embedding set {embedding_set.path}")
    with push_session(
        alignment,
        alignment_id=alignment_id,
        encoders=embedding_set.card.encoders,
        collection=collection,
        metrics=metrics,
        store=store,
        provenance=provenance,
        run=run,
        **layout,
    ) as begun:
        embedding_set = begun.write(embedding_set, set_id, advance)
        begun.verify(embedding_set, set_id)
    begun.make_live(embedding_set, set_id)
    return begun.releases


@contextmanager
def push_session(
    alignment: Alignment,
    *,
    alignment_id: int,
    encoders: Mapping[Modality, EncoderCard],
    collection: str,
    metrics: Sequence[Metric],
    store: Store,
    provenance: Provenance,
    run: Run,
    shared: bool = False,
    **layout: Any,
) -> Iterator["PushSession"]:
    """Find or create one release per metric, and take the new ones back if the block is refused before it wrote.

    Args:
        encoders: of the embedding sets that will be written; other releases of the collection take these too, if their
            alignments were fitted for the same.
        shared: other processes may have begun with these releases, so that an empty collection is no leftover.
        layout: fields of `connector.stores.layout.Layout`, of new collections.

    Raises: as `push`.
    """
    asked = {"payload_indexes": {}, **checked_layout(layout)}
    store.check_layout(Layout(**asked))
    lowerings_of = {metric: lower(alignment, metric) for metric in metrics}  # all of them, before anything is written
    targets: list[ReleaseWriter] = []
    try:
        for metric, lowerings in lowerings_of.items():
            target = _begin(
                alignment,
                metric,
                lowerings,
                alignment_id=alignment_id,
                collection=collection,
                asked=asked,
                store=store,
                provenance=provenance,
                shared=shared,
            )
            targets.append(target)
        targets += _others(encoders, collection, targets, store, provenance)
        yield PushSession(targets, store, provenance, run)
    except (StoreError, ProvenanceError):
        raise
    except ModalignError:
        if not shared:
            _take_back(targets, store, provenance)
        raise


@dataclass(frozen=True, slots=True)
class PushSession:
    """Releases that are being written: open an embedding set, write and finish it, maybe another one, then verify."""

    targets: list[ReleaseWriter]
    store: Store
    provenance: Provenance
    run: Run

    @classmethod
    def into(cls, release: Release, store: Store, provenance: Provenance, run: Run) -> Self:
        """Go on writing into a release that exists."""
        return cls([ReleaseWriter(release, new=False)], store, provenance, run)

    @property
    def releases(self) -> list[Release]:
        """What this push is for."""
        return [target.release for target in self.targets if target.named]

    @property
    def reached(self) -> list[Release]:
        """What is being written: the collection's other releases too."""
        return [target.release for target in self.targets]

    def open(self, path: Path, set_id: int, ids: PointIds | None = None) -> BatchWriter:
        """Begin to write the embedding set at `path`, which may still be growing; note written points in `ids`."""
        writer = BatchWriter(path, set_id, self.store, self.provenance, self.run, self.targets, ids)
        writer.begin()
        return writer

    def write(self, embedding_set: EmbeddingSet, set_id: int, advance: Advance) -> EmbeddingSet:
        """Write a set, and once more what another process changes in it meanwhile; return it as it is then.

        The other one writes into the same releases; what it deleted from them this push may have written again.
        """
        with PointIds() as written:
            writer = self.open(embedding_set.path, set_id, written)
            writer.finish(embedding_set, advance=advance)
            changed = False
            while (present := EmbeddingSet.open(embedding_set.path)).card.fingerprint != embedding_set.card.fingerprint:
                embedding_set, changed = present, True
                self.provenance.artifacts.record_set(embedding_set)
                writer.begin()
                writer.finish(embedding_set)
            if changed:
                writer.delete_gone(embedding_set, written)
        return embedding_set

    def verify(self, embedding_set: EmbeddingSet, set_id: int) -> None:
        """Verify the releases after the last set was written, tuning them with items of `embedding_set`."""
        for target in self.targets:
            if target.named:
                _verify(target, embedding_set, set_id, self.store, self.provenance)

    def make_live(self, embedding_set: EmbeddingSet, set_id: int) -> None:
        """Make the releases live whose aliases are free; then verify the collection's other releases."""
        if to_go_live(self.provenance, self.store, self.releases):  # otherwise there is nobody to wait for
            place = self.provenance.database.stored(self.store.url), self.releases[0].row.collection
            with promotion_lock(self.provenance, *place, self.run.id):
                make_live(self.provenance, self.store, self.releases)
        for target in self.targets:
            # What another push builds is whole when that push says so, whatever this one has added.
            if not target.named and target.release.row.state != "building":
                _verify(target, embedding_set, set_id, self.store, self.provenance)


def _begin(
    alignment: Alignment,
    metric: Metric,
    lowerings: Mapping[Modality, Lowering],
    *,
    alignment_id: int,
    collection: str,
    asked: dict[str, Any],
    store: Store,
    provenance: Provenance,
    shared: bool,
) -> ReleaseWriter:
    """Find or create the release: the row in SQL first, then the collection."""
    lowering = lowerings["image"]
    name = physical_name(collection, metric, alignment)
    expected = chain(alignment, metric, lowering)
    store_url = provenance.database.stored(store.url)
    existing = name in store.collections()
    if existing:
        check_chain(store, name, expected)
    rows = provenance.releases.find(store_url=store_url, physical_name=name)
    new = not existing and not rows
    if rows:
        row = rows[0]
        check_row(row, metric, lowering)
        check_settings(row)
        if row.state == "retired":  # or half dropped: it comes back
            provenance.releases.change(row, state="building", drop_begun_at=None, dropped_at=None)
    else:
        row = provenance.releases.save(
            ReleaseRow(
                store_url=store_url,
                collection=collection,
                metric=str(metric),
                physical_name=name,
                alignment_id=alignment_id,
                distance=lowering.distance.value,
                dim=lowering.dim,
                lowering_version=lowering.version,
                settings={},
                state="building",
                points=0,
                created_at=now(),
            )
        )
    if (
        existing
        and row.state == "building"
        and not (shared and layout_of(row))
        and not provenance.ledger.points(row.id)
        and (rows or not store.count(name))
    ):
        # A crash may have left it without its payload indexes. A full one that SQL has lost may be live, and stays.
        store.drop(name)
        existing = False
    if not existing:
        vector = VectorConfig(lowering.dim, lowering.distance)
        settings = {**asked, "payload_indexes": {**OWN_INDEXES, **asked["payload_indexes"]}}
        layout = CollectionConfig(dict.fromkeys(MODALITIES, vector), metadata={METADATA: expected}, **settings)
        provenance.ledger.clear(row.id)
        store.create(name, layout)
        settings = {name: value for name, value in asdict(layout).items() if name not in ("metadata", "vectors")}
        provenance.releases.change(row, settings=settings, state="building")
    elif layout_of(row):
        _check_layout(row, asked)
    return ReleaseWriter(Release(row, alignment, metric, lowerings), new)


def _others(
    encoders: Mapping[Modality, EncoderCard],
    collection: str,
    targets: Sequence[ReleaseWriter],
    store: Store,
    provenance: Provenance,
) -> list[ReleaseWriter]:
    """Open the collection's other releases that are not retired; say which of them cannot take such sets, and why."""
    named = {target.release.name for target in targets}
    found = []
    for row in provenance.releases.find(store_url=provenance.database.stored(store.url), collection=collection):
        if row.state == "retired" or row.physical_name in named:
            continue
        try:
            release = load_release(provenance, store, row)
            for modality, card in encoders.items():
                check_encoder(release.alignment, modality, card, "the embedding set")
        except (StoreUnavailableError, StoreBusyError, ProvenanceError):
            raise
        except ModalignError as error:
            say(f"release {row.physical_name} ({row.state}) does not get this: {error}")
        else:
            found.append(ReleaseWriter(release, new=False, named=False))
    return found


def _take_back(targets: Sequence[ReleaseWriter], store: Store, provenance: Provenance) -> None:
    """Remove the new releases that hold no point: the collection first, then the row in SQL."""
    with suppress(StoreError, ProvenanceError):  # what stays is harmless, and why the push was refused must be heard
        for target in targets:
            if target.new and not store.count(target.release.name):
                store.drop(target.release.name)
                provenance.releases.delete(target.release.row.id)


def _check_layout(row: ReleaseRow, asked: dict[str, Any]) -> None:
    """Refuse settings that an existing collection does not have: it was laid out when it was created."""
    layout = layout_of(row)
    # A release from before there was a setting has what collections had then, which is the default.
    found = {**asdict(Layout()), **layout, "payload_indexes": dict(layout["payload_indexes"])}
    wanted = {**found, **asked, "payload_indexes": {**found["payload_indexes"], **asked["payload_indexes"]}}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise MismatchError(
                f"collection {row.physical_name} was created with {name} {found.get(name)}, asked for {value}; push "
                "into a new collection, or leave that option out"
            )


def _verify(
    target: ReleaseWriter, embedding_set: EmbeddingSet, set_id: int, store: Store, provenance: Provenance
) -> None:
    """Build the index and compare the exact count with the ledger; a release that passes is tuned and ready."""
    release = target.release
    info = store.ready(release.name)
    expected = provenance.ledger.points(release.row.id)
    if info.points != expected:
        raise MismatchError(
            f"collection {release.name} holds {info.points} points, the ledger says {expected}; either another push "
            "or ingest into it is under way or was killed: let it end or run it again, and then this; or sets that "
            "were pushed into it share keys, or points were changed by someone else: `modalign status --verify` says "
            "which"
        )
    untuned = NEEDS_TUNING in release.row.settings or (info.indexed and release.hnsw_ef is None)
    if untuned or release.row.state == "building" or release.row.points != expected:
        found = {}
        if info.indexed:
            # What asks for a part of the release says nothing of the rest: then the walk only grows.
            whole = sum(points for _, points in provenance.ledger.entries(release.row.id, set_id).values()) == expected
            tuned = tune(release, store, sample(embedding_set, release), known=None if whole else release.tuned)
            found = {"hnsw_ef": tuned.hnsw_ef, "hnsw_recall": tuned.recall} if tuned else {}
        provenance.releases.change(release.row, settings={**layout_of(release.row), **found}, points=expected)
        if release.row.state == "building":
            provenance.releases.change(release.row, state=READY)
