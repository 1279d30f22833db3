"""Reconcile a release: SQL's ledger, the collection, and the embedding sets that were pushed into it.

What a release should hold follows from its embedding sets and its alignment, so it is computed again, batch by batch,
and compared with what the collection holds. Memory does not grow with the release: ids wait in a temporary file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignment.metrics import Distance
from alignment.modality import MODALITIES
from alignment.sets.cards import SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.shards import read_shard
from alignment.vectors import FloatArray
from connector.errors import MismatchError
from connector.progress import Advance
from connector.provenance.ledger import BATCH_POINTS, BatchKey, LedgerEntry
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import EmbeddingSetRow
from connector.releases.aligned_payload import ALIGNED, unpacked
from connector.releases.point_id_set import PointIds
from connector.releases.points import lowered, point_id, project
from connector.releases.release import Release
from connector.stores.contract import Payload, Points, Record, Store

# Keys that are shown of each kind of difference.
EXAMPLES = 5
# Vectors that are compared in a reconciliation, about: their payloads are compared all.
VECTORS = 2048
# What a verification reads of each modality of a set: some rows of each batch of a few shards.
SHARDS, ROWS = 16, 64
# How far apart vectors may lie that were computed from the same numbers, relative to their length. A float32 matrix
# product rounds by how many rows it has. Collections of a smaller datatype round what they store.
TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "uint8": 1e-1}


@dataclass(slots=True)
class Difference:
    """Points that differ in one way: how many, and the items of a few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, names: Sequence[str]) -> None:
        """Count points, by the names of their items."""
        self.count += len(names)
        self.examples += names[: EXAMPLES - len(self.examples)]


@dataclass(slots=True)
class ReconcileReport:
    """What a reconciliation found.

    Attributes:
        name: physical collection.
        points: points in the collection.
        recorded: points that the ledger says it holds.
        held: points that the embedding sets say it should hold.
        vectors: how many vectors were compared; payloads are compared all.
        missing, differing: points that the collection lacks, or holds with another vector or payload.
        orphans: points of no row of any embedding set.
        unrecorded: batches of rows that the ledger does not know, or knows otherwise, and its lines of batches that are
            no more.
        broken: why nothing could be compared, where its parts are gone or do not belong together.
    """

    name: str
    points: int = 0
    recorded: int = 0
    held: int = 0
    vectors: int = 0
    missing: Difference = field(default_factory=Difference)
    differing: Difference = field(default_factory=Difference)
    orphans: Difference = field(default_factory=Difference)
    unrecorded: Difference = field(default_factory=Difference)
    broken: str | None = None

    @property
    def sound(self) -> bool:
        """Whether SQL, collection and embedding sets agree."""
        if self.broken is not None:
            return False
        found = (self.missing, self.differing, self.orphans, self.unrecorded)
        return not any(difference.count for difference in found) and self.points == self.recorded == self.held


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification compared, all of it alike, and what it could not compare.

    Attributes:
        points: how many were read back.
        outdated: by embedding set, how many of the batches that were looked at are not what was pushed, and how many
            were looked at; without the sets that have none.
        unfinished: embedding sets that are being encoded, or whose encode was interrupted.
    """

    points: int
    outdated: Mapping[str, tuple[int, int]]
    unfinished: Sequence[str] = ()

    @property
    def in_words(self) -> list[str]:
        """What could not be compared, a sentence for each set."""
        unfinished = [
            f"Embedding set {name} is being encoded, or its encode was interrupted: its points were not compared."
            for name in self.unfinished
        ]
        return unfinished + [
            f"Embedding set {name} has changed since it was pushed, in {outdated:,} of the {looked_at:,} batches that "
            "were looked at: points of rows that changed were not compared, and queries of these ask for what the "
            "collection does not hold; push the set again."
            for name, (outdated, looked_at) in self.outdated.items()
        ]


def verify(release: Release, store: Store, provenance: Provenance, *, seed: int, counts: bool = True) -> VerifyReport:
    """Check that a release is complete and holds what it should.

    Its exact count is the ledger's (with `counts`: they differ for moments while something writes), and of a sample
    drawn with `seed` vectors and payloads equal what follows from the embedding sets now. What changed in a set since
    it was pushed says nothing of the release, and is counted: rows that the collection holds otherwise, or not yet, in
    batches that the ledger does not know as they are.

    Raises:
        MismatchError: something differs.
        EmbeddingSetError: a set that was pushed into it is not there.
    """
    recorded, found = provenance.ledger.points(release.row.id), store.count(release.name)
    if counts and found != recorded:
        raise MismatchError(
            f"collection {release.name} holds {found} points, the ledger says {recorded}; run `modalign status "
            f"{release.row.collection} --verify`"
        )
    rng = np.random.default_rng(seed)
    compared, outdated, unfinished = 0, {}, []
    for row in provenance.ledger.sets_in([release.row.id]):
        path = provenance.database.located(row.path)
        if not SetCard.read(path).complete:
            unfinished.append(row.name)
            continue
        ledger, embedding_set = provenance.ledger.entries(release.row.id, row.id), EmbeddingSet.open(path)
        changed, looked_at = 0, 0
        for rows, is_known in _drawn(embedding_set, ledger, rng):
            looked_at += 1
            changed += not is_known
            if rows is None:
                continue
            batch = _compare(release, store, rows, np.ones(len(rows), bool))
            gone = {*batch.missing, *batch.unlike} if not is_known else set()
            for what, its in (("lacks", batch.missing), ("holds something else than", batch.differing)):
                if numbers := [number for number in its if number not in gone]:
                    raise MismatchError(
                        f"collection {release.name} {what} {', '.join(batch.names(numbers)[:EXAMPLES])} of embedding "
                        f"set {embedding_set.path}; run `modalign status {release.row.collection} --verify --repair`"
                    )
            compared += len(batch.points.ids) - len(gone)
        if changed:
            outdated[row.name] = (changed, looked_at)
    return VerifyReport(compared, outdated, unfinished)


def reconcile(
    release: Release,
    store: Store,
    provenance: Provenance,
    *,
    seed: int = 0,
    mend: Run | None = None,
    delete_orphans: bool = False,
    advance: Advance = lambda count: None,
) -> ReconcileReport:
    """Compare everything that a release should hold with what it holds, and what SQL says.

    Args:
        release: what to reconcile.
        store: where it is.
        provenance: where its ledger is.
        seed: of the vectors that are compared.
        mend: the run in which missing and differing points are written again from the embedding sets, and the ledger
            after them. It counts `mended` and `deleted`. What is returned is what was found before.
        delete_orphans: delete points of no row of any embedding set, when mending.
        advance: called with the number of rows compared since.

    Raises:
        EmbeddingSetError: a set that was pushed into the release is not there: what it held would be taken for orphans.
    """
    found = ReconcileReport(release.name, points=store.count(release.name))
    found.recorded = provenance.ledger.points(release.row.id)
    rng = np.random.default_rng(seed)
    with PointIds() as held:
        for row in provenance.ledger.sets_in([release.row.id]):
            pass_ = _Pass(release, store, provenance, row, found, held, rng, mend)
            pass_.over(_opened(row, provenance), advance)
        for page in store.scroll(release.name):
            strays = set(held.missing([record.id for record in page]))
            found.orphans.add([_of_payload(record) for record in page if record.id in strays])
            if mend and delete_orphans and strays:
                store.delete(release.name, sorted(strays))
                mend.counts["deleted"] += len(strays)
    if mend:
        store.flush(release.name)
        store.ready(release.name)
        provenance.releases.change(release.row, points=provenance.ledger.points(release.row.id))
    return found


@dataclass(frozen=True, slots=True)
class _Pass:
    """One embedding set against the release that it was pushed into."""

    release: Release
    store: Store
    provenance: Provenance
    row: EmbeddingSetRow
    found: ReconcileReport
    held: PointIds
    rng: np.random.Generator
    mend: Run | None

    def over(self, embedding_set: EmbeddingSet, advance: Advance) -> None:
        """Compare every batch, and write again what is not as it should be."""
        ledger = self.provenance.ledger.entries(self.release.row.id, self.row.id)
        share = min(1.0, VECTORS / max(1, sum(embedding_set.card.counts.values())))
        met: set[BatchKey] = set()
        for modality in MODALITIES:
            for shard, start, rows in embedding_set.batches(modality, BATCH_POINTS):
                place, digest = (shard, start), rows.digest()
                met.add(place)
                batch = _compare(self.release, self.store, rows, self.rng.random(len(rows)) < share)
                written = len(batch.points.ids) - len(batch.missing)
                if ledger.get(place) == (digest, written):
                    batch.missing.clear()  # Qdrant would not have these: they are rejects of the push that tried
                due = (digest, written + len(batch.missing))
                self._note(batch, due[1])
                if ledger.get(place) != due:
                    self.found.unrecorded.add([f"{shard}:{start}"])
                if self.mend:
                    self._mend(self.mend, batch, place, due, ledger.get(place))
                advance(len(rows))
        gone = ledger.keys() - met
        self.found.unrecorded.add([f"{shard}:{start}" for shard, start in sorted(gone)])
        if self.mend and gone:
            self.provenance.ledger.remove(self.release.row.id, self.row.id, gone)

    def _note(self, batch: "_Batch", held: int) -> None:
        self.held.add(batch.points.ids)
        self.found.held += held
        self.found.vectors += batch.vectors
        self.found.missing.add(batch.names(batch.missing))
        self.found.differing.add(batch.names(batch.differing))

    def _mend(self, run: Run, batch: "_Batch", place: BatchKey, due: LedgerEntry, recorded: LedgerEntry | None) -> None:
        """Write points first, and make them durable; then the line of the ledger."""
        if wrong := batch.missing + batch.differing:
            points = batch.points
            ids, payloads = [points.ids[row] for row in wrong], [points.payloads[row] for row in wrong]
            self.store.upsert(self.release.name, Points(points.vector_name, ids, points.vectors[wrong], payloads))
            run.counts["mended"] += len(wrong)
        if due != recorded:
            self.store.flush(self.release.name)
            self.provenance.ledger.write(self.release.row.id, self.row.id, run.id, {place: due})


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some rows, as points, and the numbers of those that the collection lacks or holds otherwise.

    Attributes:
        keys: of the points' items.
        unlike: those of the differing whose payload is another one: their content, group or fields have changed.
        vectors: how many vectors were compared.
    """

    points: Points
    keys: Sequence[str]
    missing: list[int]
    differing: list[int]
    unlike: list[int]
    vectors: int

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Name items: `image:1F436`."""
        return [f"{self.points.vector_name}:{self.keys[number]}" for number in numbers]


def _compare(release: Release, store: Store, rows: Rows, drawn: npt.NDArray[np.bool_]) -> _Batch:
    """Compare rows with their points: all payloads, and the vectors of the rows that were drawn (n,)."""
    projected = project(release.alignment, rows, release.row.settings.get("payload_indexes", {}))
    points = lowered(release, projected)
    chosen = {key for key, is_drawn in zip(rows.keys, drawn, strict=True) if is_drawn}
    with_vector = {id_ for id_, key in zip(points.ids, projected.rows.keys, strict=True) if key in chosen}
    others = [id_ for id_ in points.ids if id_ not in with_vector]
    stored: dict[str, Record] = {}
    if others:
        stored |= {record.id: record for record in store.retrieve(release.name, others)}
    if with_vector:
        found = store.retrieve(release.name, sorted(with_vector), vector_name=rows.modality)
        stored |= {record.id: record for record in found}
    tolerance = TOLERANCE[store.datatype(release.name)]
    cosine = release.lowerings[rows.modality].distance is Distance.COSINE
    missing: list[int] = []
    differing: list[int] = []
    unlike: list[int] = []
    for number, id_ in enumerate(points.ids):
        record, expected = stored.get(id_), points.payloads[number]
        if record is None:
            missing.append(number)
        elif _described(expected) != _described(record.payload):
            differing.append(number)
            unlike.append(number)
        elif not _same_aligned(expected, record.payload) or (
            id_ in with_vector and not _close(points.vectors[number], record.vector, cosine, tolerance)
        ):
            differing.append(number)
    return _Batch(points, projected.rows.keys, missing, differing, unlike, len(with_vector))


def _described(payload: Payload) -> Payload:
    """What a payload says of its item."""
    return {name: value for name, value in payload.items() if name != ALIGNED}


def _same_aligned(expected: Payload, stored: Payload) -> bool:
    if expected.get(ALIGNED) == stored.get(ALIGNED):
        return True
    if ALIGNED not in expected or not isinstance(stored.get(ALIGNED), str):
        return False
    try:
        ours, found = unpacked([expected[ALIGNED]])[0], unpacked([stored[ALIGNED]])[0]
    except ValueError:  # what stands there is no vector
        return False
    return _close(ours, found, False, TOLERANCE["float32"])


def _close(expected: FloatArray, stored: FloatArray | None, cosine: bool, tolerance: float) -> bool:
    """Compare vectors (d,); under cosine Qdrant keeps the direction alone."""
    if stored is None or stored.shape != expected.shape:
        return False
    length = np.linalg.norm(expected)
    if cosine:
        expected, length = expected / length, np.float32(1)
    return bool(np.linalg.norm(expected - stored) <= tolerance * max(float(length), 1e-12))


def _drawn(
    embedding_set: EmbeddingSet, ledger: Mapping[BatchKey, LedgerEntry], rng: np.random.Generator
) -> Iterator[tuple[Rows | None, bool]]:
    """Draw some rows of each batch of a few shards, None of one that is no more; say whether the ledger knows them."""
    names: set[str] = set()
    met: set[BatchKey] = set()
    for modality in MODALITIES:
        shards = embedding_set.shards(modality)
        names.update(shard.name for shard in shards)
        for number in rng.permutation(len(shards))[:SHARDS]:
            rows = read_shard(shards[number], modality)
            for start in range(0, len(rows), BATCH_POINTS):
                batch = rows.take(range(start, min(start + BATCH_POINTS, len(rows))))
                met.add(place := (shards[number].name, start))
                is_known = place in ledger and ledger[place][0] == batch.digest()
                yield batch.take(np.sort(rng.permutation(len(batch))[:ROWS]).tolist()), is_known
    read = {shard for shard, _ in met}
    for place in ledger:
        if place not in met and (place[0] in read or place[0] not in names):
            yield None, False


def _opened(row: EmbeddingSetRow, provenance: Provenance) -> EmbeddingSet:
    return EmbeddingSet.open(provenance.database.located(row.path))


def _of_payload(record: Record) -> str:
    """Name a stored point by its item, or by its id where its payload does not say."""
    modality, key = record.payload.get("modality"), record.payload.get("key")
    known = isinstance(key, str) and modality in MODALITIES and point_id(modality, key) == record.id
    return f"{modality}:{key}" if known else record.id
