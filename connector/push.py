"""Push an embedding set through an alignment into releases: one per metric, in one projection pass.

The order of things makes every crash harmless: rows are validated, written, made durable in the store, and only then
entered in the ledger. What the ledger holds is not written again; what it does not hold is, under the same ids.

What arrives reaches every release of the collection that is not retired: the set's other metrics, and the shadow of a
new alignment beside the live release of the old one, each through its own alignment and with its own ledger.

A push that is refused, because its vectors cannot be lowered say, takes back the releases that it made and wrote
nothing into. One that is killed, or loses a database, leaves them as `building`, and the next push goes on with them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from alignment.artifact import Alignment
from alignment.embeddings import MODALITIES, EmbeddingSet, Modality, Rows
from alignment.errors import ModalignError
from alignment.metrics import Lowering, Metric
from connector.errors import MismatchError, ProvenanceError, StoreBusyError, StoreError, StoreUnavailableError
from connector.items import Reject
from connector.models import ReleaseRow, now
from connector.point_ids import PointIds
from connector.points import Projected, lowered, point_id, project
from connector.progress import Advance, say
from connector.provenance import Provenance, Run
from connector.release import (
    METADATA,
    Release,
    chain,
    checked,
    lower,
    make_live,
    physical_name,
    require_chain,
    require_encoder,
    require_row,
)
from connector.store import CollectionConfig, PayloadKind, Quantization, Store, VectorConfig
from connector.tuning import sample, tune

BATCH_POINTS = 512
FLUSH_POINTS = 16_384
OWN_INDEXES: Mapping[str, PayloadKind] = {"key": "keyword", "group": "keyword", "split": "keyword"}
UNTUNED = "untuned"
TUNED = ("hnsw_ef", "hnsw_recall", UNTUNED)

Place = tuple[str, int]
Written = tuple[str, int]


@dataclass(slots=True)
class _Target:
    """A release while it is being written.

    Attributes:
        new: whether this push made both its row and its collection.
        named: whether this push is for it; the collection's other releases take what arrives, no more.
    """

    release: Release
    new: bool
    named: bool = True
    ledger: dict[Place, Written] = field(default_factory=dict)
    pending: dict[Place, Written] = field(default_factory=dict)
    met: set[Place] = field(default_factory=set)
    changed: bool = False

    @property
    def indexes(self) -> Mapping[str, PayloadKind]:
        """Its payload fields and the kinds that they are indexed as."""
        indexes: Mapping[str, PayloadKind] = self.release.row.settings.get("payload_indexes", {})
        return indexes


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
    payload_indexes: Mapping[str, PayloadKind] | None = None,
    indexing_threshold: int | None = None,
    quantization: Quantization | None = None,
    advance: Advance = lambda count: None,
) -> list[Release]:
    """Write `embedding_set` into one release per metric and verify them; return these.

    A release becomes live if nothing else is under its alias; otherwise it is `ready`, a shadow that an audit and
    `connector.lifecycle.promote` make live. The set is written into the collection's other releases too, unless they
    are retired; one that cannot take it is named on stderr and left as it is.

    Counts `written`, `unchanged` and `rejected` in `run`, over all releases. Running it again writes nothing.

    Raises:
        MetricError: the alignment holds no parameters for a metric.
        WeightsError: those that it holds are damaged or have diverged.
        VectorError: a metric cannot take the aligned vectors, such as signed ones under `chi2(map=l1)`.
        MismatchError: the set's encoders are not the alignment's, a collection of that name was written with
            something else or with other settings than those that are asked for, or the collection's exact count is
            not what the ledger says.
        StoreError, ProvenanceError: a database refused or failed; run the same command again.
    """
    for modality, card in embedding_set.card.encoders.items():
        require_encoder(alignment, modality, card, f"embedding set {embedding_set.path}")
    asked: dict[str, Any] = {"payload_indexes": dict(payload_indexes or {})}
    if indexing_threshold is not None:
        asked["indexing_threshold"] = indexing_threshold
    if quantization is not None:
        asked["quantization"] = quantization
    lowered = [
        (metric, lower(alignment, metric)) for metric in dict.fromkeys(metrics)
    ]  # all of them, before anything is written
    targets: list[_Target] = []
    try:
        for metric, lowerings in lowered:
            target = _begin(
                alignment,
                metric,
                lowerings,
                alignment_id=alignment_id,
                collection=collection,
                asked=asked,
                store=store,
                provenance=provenance,
            )
            targets.append(target)
        releases = [target.release for target in targets]
        targets += _others(embedding_set, collection, targets, store, provenance)
        embedding_set = _write(embedding_set, set_id, targets, store, provenance, run, advance)
        for target in targets:
            if target.named:
                _verify(target, embedding_set, set_id, store, provenance)
    except (StoreError, ProvenanceError):
        raise
    except ModalignError:
        _take_back(targets, store, provenance)
        raise
    make_live(provenance, store, releases)
    for target in targets:
        # What another push builds is whole when that push says so, whatever this one has added.
        if not target.named and target.release.row.state != "building":
            _verify(target, embedding_set, set_id, store, provenance)
    return releases


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
) -> _Target:
    """Find or create the release: the row in SQL first, then the collection."""
    lowering = lowerings["image"]
    name = physical_name(collection, metric, alignment)
    expected = chain(alignment, metric, lowering)
    store_url = provenance.stored(store.url)
    existing = name in store.collections()
    if existing:
        require_chain(store, name, expected)
    rows = provenance.releases(store_url=store_url, physical_name=name)
    new = not existing and not rows
    if rows:
        row = rows[0]
        require_row(row, metric, lowering)
        if row.state == "retired":  # or half dropped: it comes back
            row.state, row.drop_begun_at, row.dropped_at = "building", None, None
            row = provenance.save(row)
    else:
        row = provenance.save(
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
        and not provenance.ledger_points(row.id)
        and (rows or not store.count(name))
    ):
        # A crash may have left it without its payload indexes. A full one that SQL has lost may be live, and stays.
        store.drop(name)
        existing = False
    if not existing:
        vector = VectorConfig(lowering.dim, lowering.distance)
        settings = {**asked, "payload_indexes": {**OWN_INDEXES, **asked["payload_indexes"]}}
        layout = CollectionConfig(dict.fromkeys(MODALITIES, vector), metadata={METADATA: expected}, **settings)
        provenance.forget_ledger(row.id)
        store.create(name, layout)
        row.settings = {name: value for name, value in asdict(layout).items() if name not in ("metadata", "vectors")}
        row.state = "building"
        row = provenance.save(row)
    elif layout_of(row):
        _require_settings(row, asked)
    return _Target(Release(row, alignment, metric, lowerings), new)


def _others(
    embedding_set: EmbeddingSet, collection: str, targets: Sequence[_Target], store: Store, provenance: Provenance
) -> list[_Target]:
    """Open the collection's other releases that are not retired; say which of them cannot take the set, and why."""
    named = {target.release.name for target in targets}
    found = []
    for row in provenance.releases(store_url=provenance.stored(store.url), collection=collection):
        if row.state == "retired" or row.physical_name in named:
            continue
        try:
            release = checked(provenance, store, row)
            for modality, card in embedding_set.card.encoders.items():
                require_encoder(release.alignment, modality, card, f"embedding set {embedding_set.path}")
        except (StoreUnavailableError, StoreBusyError, ProvenanceError):
            raise
        except ModalignError as error:
            say(f"release {row.physical_name} ({row.state}) does not get this: {error}")
        else:
            found.append(_Target(release, new=False, named=False))
    return found


def _take_back(targets: Sequence[_Target], store: Store, provenance: Provenance) -> None:
    """Remove the new releases that hold no point: the collection first, then the row in SQL."""
    with suppress(StoreError, ProvenanceError):  # what stays is harmless, and why the push was refused must be heard
        for target in targets:
            if target.new and not store.count(target.release.name):
                store.drop(target.release.name)
                provenance.forget_release(target.release.row.id)


def _require_settings(row: ReleaseRow, asked: dict[str, Any]) -> None:
    """Refuse settings that an existing collection does not have: it was laid out when it was created."""
    layout = layout_of(row)
    found = {**layout, "payload_indexes": dict(layout["payload_indexes"])}
    wanted = {**found, **asked, "payload_indexes": {**found["payload_indexes"], **asked["payload_indexes"]}}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise MismatchError(
                f"collection {row.physical_name} was created with {name} {found.get(name)}, asked for {value}; push "
                "into a new collection, or leave that option out"
            )


def layout_of(row: ReleaseRow) -> dict[str, Any]:
    """Return how the collection was laid out, without what was tuned since; empty where SQL has lost it."""
    return {name: value for name, value in row.settings.items() if name not in TUNED}


def _ledger(release: Release, set_id: int, store: Store, provenance: Provenance) -> dict[Place, Written]:
    """Return what of the set is written; nothing, where points have vanished behind the ledger's back."""
    ledger = provenance.ledger(release.row.id, set_id)
    if store.count(release.name) < provenance.ledger_points(release.row.id):
        provenance.forget_batches(release.row.id, set_id, ledger)
        return {}
    return ledger


def _write(
    embedding_set: EmbeddingSet,
    set_id: int,
    targets: Sequence[_Target],
    store: Store,
    provenance: Provenance,
    run: Run,
    advance: Advance,
) -> EmbeddingSet:
    """Write what the ledgers do not hold, and once more what another process changed in the set meanwhile.

    The other one writes into the same releases; what it deleted from them this push may have written again.
    """
    with PointIds() as written:
        changed = False
        while True:
            for target in targets:
                target.ledger, target.met = _ledger(target.release, set_id, store, provenance), set()
            _Writer(embedding_set, set_id, store, provenance, run, written).write(targets, advance)
            present = EmbeddingSet.open(embedding_set.path)
            if present.card.fingerprint == embedding_set.card.fingerprint:
                break
            embedding_set, changed, advance = present, True, lambda count: None
            provenance.record_set(embedding_set)
        if changed:
            _delete_gone(written, embedding_set, targets, store)
    return embedding_set


def _delete_gone(written: PointIds, embedding_set: EmbeddingSet, targets: Sequence[_Target], store: Store) -> None:
    """Delete the points that were written of rows that are in the set no more."""
    with PointIds() as held:
        for modality in MODALITIES:
            for _, _, rows in embedding_set.batches(modality, BATCH_POINTS):
                held.add([point_id(modality, key) for key in rows.keys])
        for batch in written.without(held):
            for target in targets:
                store.delete(target.release.name, batch)
    for target in targets:
        store.flush(target.release.name)


@dataclass(frozen=True, slots=True)
class _Writer:
    embedding_set: EmbeddingSet
    set_id: int
    store: Store
    provenance: Provenance
    run: Run
    written: PointIds

    def write(self, targets: Sequence[_Target], advance: Advance) -> None:
        """Write what the ledgers do not hold."""
        unflushed = 0
        for modality in MODALITIES:
            for shard, start, rows in self.embedding_set.batches(modality, BATCH_POINTS):
                place, written = (shard, start), (rows.digest(), len(rows))
                open_targets = []
                for target in targets:
                    target.met.add(place)
                    # A batch with refused rows is not in the ledger as whole: they are refused again, every time.
                    if target.ledger.get(place) == written:
                        self.run.counts["unchanged"] += len(rows)
                    else:
                        open_targets.append(target)
                if open_targets:
                    unflushed += self._write_batch(open_targets, place, rows, written[0])
                    if unflushed >= FLUSH_POINTS:
                        self._commit(targets)
                        unflushed = 0
                advance(len(rows))
        self._commit(targets)
        for target in targets:
            if gone := target.ledger.keys() - target.met:
                self.provenance.forget_batches(target.release.row.id, self.set_id, gone)

    def _write_batch(self, targets: Sequence[_Target], place: Place, rows: Rows, digest: str) -> int:
        known: list[tuple[_Target, Projected]] = []
        projections = [(target, self._project(target, rows, known)) for target in targets]
        self._reject(place, rows, [projected for _, projected in known])
        batches = []
        for target, projected in projections:
            if target.ledger.get(place) == (digest, len(projected.rows)):
                self.run.counts["unchanged"] += len(projected.rows)
            else:
                batches.append((target, projected, lowered(target.release, projected)))
        for target, projected, points in batches:  # no release is written to unless all can be
            if projected.refused:  # an older point of what can be written no more would be found for what it was
                kept = set(projected.rows.keys)
                gone = [point_id(rows.modality, key) for key in rows.keys if key not in kept]
                self.store.delete(target.release.name, gone)
            if points.ids:
                self.written.add(points.ids)
                self.store.upsert(target.release.name, points)
            if not target.changed:  # known before the ledger knows: whoever goes on after a crash has to tune
                target.changed = True
                target.release.row.settings = {**target.release.row.settings, UNTUNED: True}
                self.provenance.save(target.release.row)
            target.pending[place] = (digest, len(points.ids))
            self.run.counts["written"] += len(points.ids)
        return sum(len(points.ids) for _, _, points in batches)

    def _project(self, target: _Target, rows: Rows, known: list[tuple[_Target, Projected]]) -> Projected:
        """Project rows for a target, once for all targets that share an alignment and the kinds of their indexes."""
        for other, projected in known:
            same = other.release.alignment.fingerprint == target.release.alignment.fingerprint
            if same and other.indexes == target.indexes:
                return projected
        projected = project(target.release.alignment, rows, target.indexes)
        known.append((target, projected))
        return projected

    def _reject(self, place: Place, rows: Rows, projections: Sequence[Projected]) -> None:
        """Record what was refused, once for each reason, however many releases refused it."""
        refused = {(row, *why): None for projected in projections for row, why in projected.refused.items()}
        for row, reason, detail in sorted(refused):
            source, position = str(self.embedding_set.path / place[0]), place[1] + row + 1
            self.run.reject(Reject(source, position, "write", reason, detail, rows.keys[row], rows.modality))

    def _commit(self, targets: Sequence[_Target]) -> None:
        """Make what was written durable, then say so in SQL."""
        for target in targets:
            if target.pending:
                self.store.flush(target.release.name)
                self.provenance.write_ledger(target.release.row.id, self.set_id, self.run.id, target.pending)
                target.pending = {}


def _verify(target: _Target, embedding_set: EmbeddingSet, set_id: int, store: Store, provenance: Provenance) -> None:
    """Build the index and compare the exact count with the ledger; a release that passes is tuned and ready."""
    release = target.release
    info = store.ready(release.name)
    expected = provenance.ledger_points(release.row.id)
    if info.points != expected:
        raise MismatchError(
            f"collection {release.name} holds {info.points} points, the ledger says {expected}; embedding sets that "
            "were pushed into it share keys, or points were changed by someone else: push its other sets again, or "
            "all of them into a new collection"
        )
    untuned = UNTUNED in release.row.settings or (info.indexed and release.hnsw_ef is None)
    if untuned or release.row.state == "building" or release.row.points != expected:
        found = {}
        if info.indexed:
            # What asks for a part of the release says nothing of the rest: then the walk only grows.
            whole = sum(points for _, points in provenance.ledger(release.row.id, set_id).values()) == expected
            tuned = tune(release, store, sample(embedding_set, release), known=None if whole else release.tuned)
            found = {"hnsw_ef": tuned.hnsw_ef, "hnsw_recall": tuned.recall} if tuned else {}
        release.row.settings = {**layout_of(release.row), **found}
        release.row.state = "live" if release.row.state == "live" else "ready"
        release.row.points = expected
        provenance.save(release.row)
