"""A world of known numbers, small enough to be pushed in milliseconds: what push, search and audit tests start from.

Images and captions are linear in a few latent coordinates, and the alignment is the inverse of both maps, written
down instead of fitted. Encoder cards are those of the fake encoders, so that texts and pictures can be searched with.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import QdrantClient
from sqlalchemy import select

from alignment.metrics import METRICS, LearnedMetric, Lowering, Metric, Nnn, bank_name
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.model.card import AlignmentCard
from alignment.model.projections import Projection
from alignment.model.seen_items import SeenItems
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray, l2_normalize
from connector.audits import auditor
from connector.audits.baseline import Baseline
from connector.audits.measure import Measurement
from connector.audits.plan import AuditPlan
from connector.audits.point_scan import SliceScanner
from connector.audits.requirements import Requirement
from connector.audits.result import Audit
from connector.progress import Advance
from connector.provenance.recorder import Provenance
from connector.provenance.releases import Releases
from connector.provenance.tables import BatchRow, ReleaseRow
from connector.push.session import push
from connector.releases.release import Release, open_release
from connector.requests import PushRequest
from connector.stores.collection import CollectionConfig, CollectionInfo, SettingDifference
from connector.stores.contract import Store
from connector.stores.edge import EdgeStore
from connector.stores.points import Hit
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import Connection
from tests.support.databases import migrated
from tests.support.fakes import IMAGE_DIM, TEXT_DIM, FakeImageEncoder, FakeTextEncoder

LATENT = 6
COLLECTION = "things"
DIMS: dict[Modality, int] = {"image": IMAGE_DIM, "text": TEXT_DIM}
# Every metric that can be pushed, as it prints: also the hubness correction on each that it can stand on.
ALL = [
    *map(str, METRICS.values()),
    *(str(Nnn(metric)) for metric in METRICS.values() if Nnn.applies(metric)),
]
# One of each guarantee, and a correction.
SOME = ["cosine", "chi2", "mol", "mlp", "dot+nnn"]
BANK = 200
# The client's local mode warns that it has no index.
QUIET = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]
# Both keep the contract of a store, which every run shows.
STORES = ["edge", pytest.param("memory", marks=QUIET)]
KINDS = ["edge", pytest.param("memory", marks=[*QUIET, pytest.mark.slow])]
# A server of the session's own, by either protocol.
LIVE = [pytest.param(protocol, marks=pytest.mark.live) for protocol in ("REST", "gRPC")]
# For tests and classes whose fixture `world` gives `request.param` to `opened_world`.
ON_SERVERS = pytest.mark.parametrize("world", ["edge", *LIVE], indirect=True)


def maps() -> dict[Modality, FloatArray]:
    """From latent coordinates into the space of each encoder: (LATENT, d), rows orthonormal."""
    rng = np.random.default_rng(1)
    return {m: np.linalg.qr(rng.standard_normal((d, LATENT)))[0].T.astype(np.float32) for m, d in DIMS.items()}


def cards() -> dict[Modality, EncoderCard]:
    return {"image": FakeImageEncoder().card, "text": FakeTextEncoder().card}


def latent(n: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((n, LATENT))


def embedded(modality: Modality, points: npt.NDArray[np.floating], *, noise: float = 0.0, seed: int = 7) -> FloatArray:
    """Raw embeddings (n, d) of latent `points` (n, LATENT), with noise in every direction of the encoder's space."""
    clean = points @ maps()[modality]
    return (clean + noise * np.random.default_rng(seed).standard_normal(clean.shape)).astype(np.float32)


def rows(
    modality: Modality,
    vectors: npt.NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    payloads: Sequence[Mapping[str, Any] | str] | None = None,
) -> Rows:
    """Rows around `vectors` (n, d): keys and groups `0`, `1`, ..., and the number as payload, where none are given."""
    numbers = [f"{number}" for number in range(len(vectors))]
    names = list(keys or numbers)
    given = payloads or [{"number": number} for number in range(len(vectors))]
    texts = [text if isinstance(text, str) else json.dumps(text) for text in given]
    hashes = [hashlib.sha256(vector.tobytes()).hexdigest() for vector in vectors.astype(np.float32)]
    return Rows(modality, names, list(groups or names), hashes, texts, vectors.astype(np.float32))


def pairs(n: int, *, seed: int = 0, noise: float = 0.0, prefix: str = "") -> list[Rows]:
    """`n` images and `n` captions of the same things, the captions noisy."""
    points, keys = latent(n, seed), [f"{prefix}{number}" for number in range(n)]
    return [
        rows("image", embedded("image", points), keys=keys),
        rows("text", embedded("text", points, noise=noise, seed=seed + 1), keys=keys),
    ]


def several(n: int, *, noise: float = 1.0) -> list[Rows]:
    """`n` images with one to three noisy captions each."""
    image, _ = pairs(n)
    points, captions = latent(n), [number for number in range(n) for _ in range(1 + number % 3)]
    text = rows(
        "text",
        embedded("text", points[captions], noise=noise),
        keys=[f"{number}#{place}" for place, number in enumerate(captions)],
        groups=[str(number) for number in captions],
    )
    return [image, text]


def write_set(
    path: Path, parts: Sequence[Rows], encoders: Mapping[Modality, EncoderCard] | None = None
) -> EmbeddingSet:
    """Write `parts` as the shards of a complete embedding set, in place of the one that stands there."""
    for shard in path.glob("*.parquet"):
        shard.unlink()
    with SetWriter(path, corpus="known numbers", encoders=encoders or cards()) as writer:
        for part in parts:
            writer.append(part)
        writer.finish()
    return EmbeddingSet.open(path)


@cache
def learned() -> dict[str, npt.NDArray[Any]]:
    """Weights for every metric that needs some: each as it starts, and a little beside that."""
    rng, weights = np.random.default_rng(11), {}
    for number, metric in enumerate(METRICS.values()):
        if isinstance(metric, LearnedMetric):
            for name, tensor in metric.start(LATENT, seed=number).weights().items():
                weights[name] = tensor
                if np.issubdtype(tensor.dtype, np.floating):
                    weights[name] = (tensor + 0.1 * rng.standard_normal(tensor.shape)).astype(np.float32)
    for modality in MODALITIES:
        weights[bank_name(modality)] = l2_normalize(rng.standard_normal((BANK, LATENT)) + 0.5)
    return weights


def alignment(
    *,
    turn: int = 0,
    hold_out: HoldOut = HoldOut(),
    mean: float = 0.0,
    weights: Mapping[str, Any] | None = None,
    seen: Sequence[Rows] = (),
    offsets: Mapping[Modality, float] | None = None,
) -> Alignment:
    """The alignment that takes both encoders back to the latent coordinates, with weights for every metric.

    Args:
        turn: another number gives another alignment: the shared space is turned.
        hold_out: which groups count as never seen.
        mean: length of the training mean, which lies along the first latent coordinate.
        weights: other weights of metrics.
        seen: rows that take part in its fit; none: it does not record what did.
        offsets: what every metric takes off the scores of seen items; None: there are no offsets.
    """
    rotation = np.linalg.qr(np.random.default_rng(turn).standard_normal((LATENT, LATENT)))[0]
    projections = {
        m: Projection(d, (mean * maps()[m][0]) if mean else None, (maps()[m].T @ rotation).astype(np.float32))
        for m, d in DIMS.items()
    }
    card = AlignmentCard(
        encoders=cards(),
        method="written",
        hyperparameters={"turn": turn},
        metrics=["cosine"],
        sets=[],
        pairs=0,
        hold_out=hold_out,
        held_out_recall={},
        candidates=[],
        seen_offsets={metric: dict(offsets) for metric in ALL} if offsets else {},
    )
    contents = {part.modality: SeenItems.of(part.content_sha256) for part in seen}
    return Alignment(card, projections, learned() if weights is None else weights, contents)


@dataclass
class Pushed:
    """A push that ended well."""

    releases: list[Release]
    counts: Counter[str]
    run: int


class World:
    """A home with a database beside a store."""

    def __init__(self, home: Path, store: Store):
        self.home = home
        self.store = store
        self.url = f"sqlite:///{home / 'modalign.db'}"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "modalign.db").exists():
            (home / "modalign.db").write_bytes(migrated())
        self.provenance = Provenance.open(self.url, home=home)

    def set(self, name: str, *parts: Rows, encoders: Mapping[Modality, EncoderCard] | None = None) -> EmbeddingSet:
        return write_set(self.home / "sets" / name, parts, encoders)

    def alignment(self, name: str = "a", **options: Any) -> str:
        """Save the alignment that `options` describe; return its name."""
        alignment(**options).save(self.home / "alignments" / name)
        return name

    def push(
        self,
        embedding_set: EmbeddingSet,
        alignment_name: str = "a",
        *,
        metrics: Sequence[str] = ("cosine",),
        collection: str = COLLECTION,
        **given: Any,
    ) -> Pushed:
        """Push as a request says: `given` are fields of it, or else of the layout."""
        options = {name: given.pop(name) for name in [entry.name for entry in fields(PushRequest)] if name in given}
        request = PushRequest(
            set=embedding_set.path.name,
            into=collection,
            alignment=alignment_name,
            metrics=metrics,
            layout=given,
            **options,
        )
        path = self.home / "alignments" / alignment_name
        loaded = Alignment.load(path)
        with self.provenance.runs.start("push", {}) as run:
            releases = push(
                embedding_set,
                loaded,
                request,
                set_id=self.provenance.artifacts.record_set(embedding_set),
                alignment_id=self.provenance.artifacts.record_alignment(alignment_name, path, loaded),
                store=self.store,
                provenance=self.provenance,
                run=run,
            )
        return Pushed(releases, run.counts, run.id)

    def ledger(self) -> dict[tuple[str, str, int], tuple[int, str]]:
        """Every line: `{(physical collection, shard, start): (points, digest)}`."""
        query = select(ReleaseRow.physical_name, BatchRow.shard, BatchRow.start, BatchRow.points, BatchRow.digest)
        with self.provenance.database.session() as session:
            lines = session.execute(query.join(BatchRow, BatchRow.release_id == ReleaseRow.id)).all()
        return {(name, shard, start): (points, digest) for name, shard, start, points, digest in lines}

    def states(self) -> dict[str, tuple[str, int]]:
        """`{physical collection: (state, points)}`."""
        return {row.physical_name: (row.state, row.points) for row in self.provenance.releases.find()}

    def reasons(self, run: int) -> list[tuple[str | None, str | None, str]]:
        """Modality, key and reason of what `run` refused, sorted."""
        return sorted((r.modality, r.key, r.reason) for r in self.provenance.runs.rejects(run))

    def snapshot(self) -> dict[str, Any]:
        """Everything that pushes leave behind, but for the numbers of runs and the times."""
        collections = {
            name: {modality: stored(self.store, name, modality) for modality in MODALITIES}
            for name in self.store.collections()
        }
        return {
            "collections": collections,
            "aliases": self.store.aliases(),
            "ledger": self.ledger(),
            "states": self.states(),
        }


@dataclass(frozen=True, eq=False, slots=True)
class Vector:
    """A stored vector (d,) that compares as a whole.

    Matrix products of batches of other sizes round otherwise, and so does the client's local mode when it normalises a
    vector for the second time.
    """

    values: FloatArray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and np.allclose(self.values, other.values, rtol=0, atol=1e-6)

    def __hash__(self) -> int:
        return len(self.values)


def stored(store: Store, name: str, modality: Modality) -> dict[str, tuple[Vector | None, dict[str, Any]]]:
    """Every point of a collection: `{id: (vector of the modality, payload)}`."""
    return {
        record.id: (None if record.vector is None else Vector(record.vector), record.payload)
        for page in store.scroll(name, vector_name=modality)
        for record in page
    }


def vectors_of(store: Store, name: str, modality: Modality) -> tuple[list[str], list[str], FloatArray]:
    """Keys, groups and vectors (n, d) of one modality, read back from a collection."""
    found = [r for page in store.scroll(name, vector_name=modality) for r in page if r.vector is not None]
    return (
        [r.payload["key"] for r in found],
        [r.payload["group"] for r in found],
        np.stack([r.vector for r in found if r.vector is not None]),
    )


def audit(
    release: Release,
    store: Store,
    embedding_set: EmbeddingSet,
    *,
    requirements: Sequence[Requirement] = (),
    baseline: Baseline | None = None,
    advance: Advance = lambda count: None,
    workers: SliceScanner | None = None,
    **asked: Any,
) -> Audit:
    """Audit a release with the plan that `asked` describes."""
    return auditor.audit(
        release,
        store,
        embedding_set,
        AuditPlan(**asked),
        pairs=embedding_set.path.name,
        requirements=requirements,
        baseline=baseline,
        advance=advance,
        workers=workers,
    )


def opened(world: World, metric: str = "cosine") -> Release:
    """The live release of the collection."""
    return open_release(world.provenance, world.store, COLLECTION, metric)


def the_set(world: World) -> EmbeddingSet:
    """The set `s`."""
    return EmbeddingSet.open(world.home / "sets" / "s")


def steady(found: Audit) -> list[Measurement]:
    """All measures but those of a clock."""
    return [m for m in found.measures if not m.name.startswith("latency")]


def points_of(n: int) -> list[str]:
    """Ids that no push gives."""
    return [str(UUID(int=number + 1)) for number in range(n)]


@contextmanager
def opened_world(kind: str, directory: Path, request: pytest.FixtureRequest | None = None) -> Iterator[World]:
    """A world over Qdrant Edge, the client's local mode, or a server, which it empties.

    Args:
        kind: one of KINDS or LIVE.
        directory: its home.
        request: of a test that may run over LIVE, to start the server with.
    """
    store: Store
    if kind == "edge":
        store = EdgeStore(directory / "qdrant")
    elif kind == "memory":
        store = LocalModeStore(Connection(QdrantClient(":memory:"), "http://memory"), uploads=1)
    else:
        assert request is not None
        store = request.getfixturevalue("own_server").connect(kind)
        for left in store.collections():
            store.drop(left)
    with store:
        world = World(directory, store)
        with world.provenance:
            yield world


def world_over(*kinds: Any) -> Callable[..., Iterator[World]]:
    """A fixture `world` over each of these kinds, or the one that a test gives it, with an alignment `a`."""

    @pytest.fixture(params=kinds or None)
    def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
        with opened_world(getattr(request, "param", "edge"), tmp_path, request) as opened:
            opened.alignment()
            yield opened

    return world


class LocalModeStore(QdrantStore):
    """The client's local mode, which keeps no settings of a collection, and builds no index."""

    def setting_differences(self, name: str, config: CollectionConfig) -> list[SettingDifference]:
        return []

    def ready(self, name: str) -> CollectionInfo:
        return self.describe(name)


class Losing(EdgeStore):
    """A store whose searches lose the `lost` best hits of every `each`-th query, where `loses` says so of how it asks.

    Args:
        path: of the store.
        loses: takes the options of a search.
        lost: how many hits.
        each: of how many queries one.
    """

    def __init__(self, path: Path, loses: Callable[[Mapping[str, Any]], bool], *, lost: int = 1, each: int = 1):
        super().__init__(path)
        self.loses, self.lost, self.each, self.asked = loses, lost, each, 0

    def search(self, name: str, vector_name: str, queries: Any, k: int, **options: Any) -> list[list[Hit]]:
        if not self.loses(options):
            return super().search(name, vector_name, queries, k, **options)
        found = super().search(name, vector_name, queries, k + self.lost, **options)
        for hits in found:
            if self.asked % self.each == 0:
                del hits[: self.lost]
            del hits[k:]
            self.asked += 1
        return found


class Calls:
    """Counts the calls of a method of a store or a database and, where told to, lets one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Store | Releases, method: str):
        self.arguments: list[tuple[Any, ...]] = []
        self.failing: int | None = None
        self.error: BaseException | None = None
        self.after = False
        self._original: Callable[..., Any] = getattr(store, method)
        monkeypatch.setattr(store, method, self._call)

    def fail(self, number: int, error: BaseException, *, after: bool = False) -> None:
        """Let call `number`, from 0, raise `error`; `after` it has taken effect, or instead of it."""
        self.failing, self.error, self.after = number, error, after

    def _call(self, *args: Any, **options: Any) -> Any:
        number = len(self.arguments)
        self.arguments.append(args)
        due = self.error if number == self.failing else None
        if due and not self.after:
            raise due
        result = self._original(*args, **options)
        if due:
            raise due
        return result

    def __len__(self) -> int:
        return len(self.arguments)


def scores(
    metric: Metric, queries: npt.NDArray[np.floating], items: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """The reference in float64: (n, m), higher is better."""
    return np.asarray(metric.score(queries.astype(np.float64), items.astype(np.float64)), np.float64)


def raw_scores(lowering: Lowering, queries: FloatArray, items: FloatArray) -> npt.NDArray[np.float64]:
    """What Qdrant says of lowered vectors, in float64: (n, m); a distance under Euclid and Manhattan."""
    Q, X = lowering.query(queries).astype(np.float64), lowering.item(items).astype(np.float64)
    native = scores(METRICS[lowering.distance.lower()], Q, X)
    return native if lowering.distance.higher_is_better else -native


def only(alignment: Alignment, **changes: Any) -> Alignment:
    """The alignment with another card."""
    return replace(alignment, card=replace(alignment.card, **changes))
