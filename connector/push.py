"""Push an embedding set through an alignment into releases: one per metric, in one projection pass.

The order of things makes every crash harmless: rows are validated, written, made durable in the store, and only then
entered in the ledger. What the ledger holds is not written again; what it does not hold is, under the same ids.

A push that is refused, because its vectors cannot be lowered say, takes back the releases that it made and wrote
nothing into. One that is killed, or loses a database, leaves them as `building`, and the next push goes on with them.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid5

from alignment.artifact import Alignment
from alignment.embeddings import MODALITIES, EmbeddingSet, Modality, Rows
from alignment.errors import ModalignError
from alignment.metrics import Guarantee, Lowering, Metric
from alignment.vectors import FloatArray, faults
from connector.candidates import ALIGNED, packed, require_finite
from connector.errors import MismatchError, PointsRefusedError, ProvenanceError, Refusal, StoreError
from connector.items import Reject
from connector.layout import Layout, PayloadKind, checked_layout
from connector.models import ReleaseRow, now
from connector.progress import Advance
from connector.provenance import Provenance, Run
from connector.release import (
    METADATA,
    Release,
    chain,
    lower,
    make_live,
    physical_name,
    require_chain,
    require_encoder,
)
from connector.store import CollectionConfig, Points, Store, VectorConfig
from connector.tuning import sample, tune

NAMESPACE = UUID("6f1d3f0e-6c86-5a49-9d0c-0f3d8a7c1b52")
BATCH_POINTS = 512
FLUSH_POINTS = 16_384
OWN_INDEXES: Mapping[str, PayloadKind] = {"key": "keyword", "group": "keyword", "split": "keyword"}
HELD_OUT: Literal["held-out"] = "held-out"
FITTED = "fitted"
UNTUNED = "untuned"
TUNED = ("hnsw_ef", "hnsw_recall", UNTUNED)


class _WrongKindError(ValueError):
    """A payload text that cannot be read as the kind that its field is indexed as."""

    def __init__(self, field: str, text: str, kind: PayloadKind):
        super().__init__(f"{field} is indexed as {kind}, got the text {text!r}")
        self.kind = kind


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


PAYLOAD = json.JSONDecoder(parse_constant=_refuse_constant)

Place = tuple[str, int]
Written = tuple[str, int]


@dataclass(slots=True)
class _Target:
    """A release while it is being written.

    Attributes:
        new: whether this push made both its row and its collection.
    """

    release: Release
    new: bool
    ledger: dict[Place, Written] = field(default_factory=dict)
    pending: dict[Place, Written] = field(default_factory=dict)
    met: set[Place] = field(default_factory=set)
    changed: bool = False


def point_id(modality: Modality, key: str) -> str:
    """Return the id of an item's point: a UUIDv5 of modality and key, so that a rerun overwrites, never duplicates.

    >>> point_id("image", "1F436") == point_id("image", "1F436") != point_id("text", "1F436")
    True
    """
    return str(uuid5(NAMESPACE, f"{modality}\0{key}"))


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
    """Write `embedding_set` into one release per metric, verify them and make them live.

    Counts `written`, `unchanged` and `rejected` in `run`, over all releases. Running it again writes nothing but the
    batches of which Qdrant refused points.

    `layout` are fields of `connector.layout.Layout`: of new collections, and required of those that exist.

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
        require_encoder(alignment, modality, card, f"embedding set {embedding_set.path}")
    asked = {"payload_indexes": {}, **checked_layout(layout)}
    store.require_layout(Layout(**asked))
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
        for target in targets:
            target.ledger = _ledger(target.release, set_id, store, provenance)
        indexes = {field: kind for r in releases for field, kind in r.row.settings.get("payload_indexes", {}).items()}
        _Writer(embedding_set, alignment, set_id, store, provenance, run, indexes).write(targets, advance)
        for target in targets:
            _verify(target, embedding_set, set_id, store, provenance)
    except (StoreError, ProvenanceError):
        raise
    except ModalignError:
        _take_back(targets, store, provenance)
        raise
    make_live(provenance, store, releases)
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
    # A release from before there was a setting has what collections had then, which is the default.
    found = {**asdict(Layout()), **layout, "payload_indexes": dict(layout["payload_indexes"])}
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


@dataclass(frozen=True, slots=True)
class _Writer:
    embedding_set: EmbeddingSet
    alignment: Alignment
    set_id: int
    store: Store
    provenance: Provenance
    run: Run
    indexes: Mapping[str, PayloadKind]

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
        sound, vectors, payloads = self._project(place, rows)
        ids = [point_id(rows.modality, key) for key in sound.keys]
        refused = [point_id(rows.modality, key) for key in set(rows.keys) - set(sound.keys)]
        lowered = []
        for target in targets:
            if target.ledger.get(place) == (digest, len(ids)):
                self.run.counts["unchanged"] += len(ids)
            else:
                lowered.append((target, _lowered(target.release, rows.modality, vectors)))
        refusals: dict[int, Refusal] = {}
        written_points = 0
        for target, stored in lowered:  # no release is written to unless all can be
            if refused:  # an older point of a row that can no longer be written would be found for what it was
                self.store.delete(target.release.name, refused)
            kept = len(ids)
            if ids:
                written = payloads
                if target.release.guarantee is not Guarantee.EXACT:  # what rescoring needs
                    written = [{**p, ALIGNED: packed(v)} for p, v in zip(payloads, vectors, strict=True)]
                try:
                    self.store.upsert(target.release.name, Points(rows.modality, ids, stored, written))
                except PointsRefusedError as error:
                    refusals = {**error.refused, **refusals}
                    self.store.delete(target.release.name, [ids[row] for row in error.refused])
                    kept -= len(error.refused)
            if not target.changed:  # known before the ledger knows: whoever goes on after a crash has to tune
                target.changed = True
                target.release.row.settings = {**target.release.row.settings, UNTUNED: True}
                self.provenance.save(target.release.row)
            target.pending[place] = (digest, kept)
            self.run.counts["written"] += kept
            written_points += kept
        positions = {key: place[1] + row + 1 for row, key in enumerate(rows.keys)}
        for row, refusal in sorted(refusals.items()):
            key = sound.keys[row]
            source = str(self.embedding_set.path / place[0])
            self.run.reject(Reject(source, positions[key], "write", *refusal, key, rows.modality))
        return written_points

    def _project(self, place: Place, rows: Rows) -> tuple[Rows, FloatArray, list[dict[str, Any]]]:
        """Return the rows that can be stored, their aligned vectors and their payloads; refuse the others."""
        refused = {row: (reason, "the embedding cannot be aligned") for row, reason in faults(rows.vectors).items()}
        payloads = []
        for row, text in enumerate(rows.payloads):
            try:
                payload = PAYLOAD.decode(text)
                if not isinstance(payload, dict):
                    raise ValueError(f"expected a JSON object, got {type(payload).__name__}")
                payloads.append(_typed(payload, self.indexes))
            except _WrongKindError as error:
                payloads.append({})
                refused[row] = (f"payload-not-{error.kind}", str(error))
            except ValueError as error:
                payloads.append({})
                refused[row] = ("payload-not-json", str(error))
        projection = self.alignment.projections[rows.modality]
        sound = [row for row in range(len(rows)) if row not in refused]
        vectors = projection.unchecked(rows.vectors[sound])
        for row, reason in faults(vectors).items():
            refused[sound[row]] = (reason, "the embedding equals the training mean")
        if refused:
            kept = [row for row in range(len(sound)) if sound[row] not in refused]
            sound, vectors = [sound[row] for row in kept], vectors[kept]
            for row, (reason, detail) in sorted(refused.items()):
                source, position = str(self.embedding_set.path / place[0]), place[1] + row + 1
                self.run.reject(Reject(source, position, "write", reason, detail, rows.keys[row], rows.modality))
        held_out = self.alignment.card.hold_out.held_out([rows.groups[row] for row in sound])
        described = [
            {
                **payloads[row],
                "key": rows.keys[row],
                "group": rows.groups[row],
                "modality": rows.modality,
                "content_sha256": rows.content_sha256[row],
                "split": HELD_OUT if held else FITTED,
            }
            for row, held in zip(sound, held_out, strict=True)
        ]
        return (rows.take(sound) if refused else rows), vectors, described

    def _commit(self, targets: Sequence[_Target]) -> None:
        """Make what was written durable, then say so in SQL."""
        for target in targets:
            if target.pending:
                self.store.flush(target.release.name)
                self.provenance.write_ledger(target.release.row.id, self.set_id, self.run.id, target.pending)
                target.pending = {}


def _lowered(release: Release, modality: Modality, vectors: FloatArray) -> FloatArray:
    """Return what of aligned vectors (n, d) is stored, (n, D)."""
    lowering = release.lowerings[modality]
    stored = lowering.item(vectors)
    require_finite(release.metric, stored)
    require_finite(release.metric, lowering.query(vectors[:1]))  # weights that only queries meet
    return stored


def _typed(payload: dict[str, Any], indexes: Mapping[str, PayloadKind]) -> dict[str, Any]:
    """Read texts as the kind that their field is indexed as: a CSV holds nothing but texts, and no filter finds those.

    Raises:
        _WrongKindError: a text is not of that kind.
    """
    for name, kind in indexes.items():
        if isinstance(text := payload.get(name), str):
            try:
                payload[name] = KINDS[kind](text)
            except (KeyError, ValueError):
                raise _WrongKindError(name, text, kind) from None
    return payload


def _finite(text: str) -> float:
    if "_" in text or not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _whole(text: str) -> int:
    # Qdrant's integers have 64 bits, and Python reads 1_000 as a number where nobody else does.
    if "_" in text or not -(1 << 63) <= (value := int(text)) < 1 << 63:
        raise ValueError
    return value


KINDS: dict[PayloadKind, Callable[[str], Any]] = {
    "keyword": str,
    "integer": _whole,
    "float": _finite,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}


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
