"""One collection of images as arrays: a release without a database, and a store that an index may lose points of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.metrics import Guarantee, LearnedMetric, Metric, parse
from alignment.modality import MODALITIES, Modality
from alignment.vectors import FloatArray
from connector.provenance.tables import ReleaseRow, now
from connector.releases.aligned_payload import ALIGNED, packed
from connector.releases.release import Release
from connector.stores.points import Hit, Points, Record
from tests.support.world import LATENT, alignment, points_of

DIM = LATENT
NAME = "c"


def random(n: int, seed: int) -> npt.NDArray[np.floating]:
    return np.random.default_rng(seed).standard_normal((n, DIM))


def a_release(text: str, *, offsets: Mapping[Modality, float] | None = None, **changes: Any) -> Release:
    """A release of the collection, without a database.

    Args:
        text: its metric.
        offsets: what its alignment takes off seen items; those say in a last coordinate of `points` whether they are.
        changes: to the weights of its metric by `Metric.start`.
    """
    ours, metric = alignment(offsets=offsets), parse(text)
    if changes:
        assert isinstance(metric, LearnedMetric)
        ready: Metric = metric.start(DIM, **changes)
        lowerings = dict.fromkeys(MODALITIES, ready.lower(DIM))
    else:
        lowerings = {m: ours.metric(metric, items=m).lower(DIM) for m in MODALITIES}
    lowering = lowerings["image"]
    row = ReleaseRow(
        store_id=0,
        collection=NAME,
        metric=str(metric),
        physical_name=NAME,
        alignment_id=0,
        distance=lowering.distance.value,
        dim=lowering.dim,
        lowering_version=lowering.version,
        settings={},
        state="live",
        points=0,
        created_at=now(),
    )
    return Release(row, ours, metric, lowerings)


def points(release: Release, X: FloatArray) -> Points:
    """Images as a push writes them, of the vectors that the metric compares."""
    payloads: list[dict[str, Any]] = [{"number": number, "group": f"{number % 7}"} for number in range(len(X))]
    lowering = release.lowerings["image"]
    if lowering.guarantee is not Guarantee.EXACT:
        payloads = [{**payload, ALIGNED: packed(x)} for payload, x in zip(payloads, X, strict=True)]
    return Points("image", points_of(len(X)), lowering.item(X), payloads)


@dataclass
class Brute:
    """A store that holds one collection of images as arrays, and whose index may lose some of them.

    Attributes:
        lost: numbers of the images that no search but an exact one finds.
        graph: it says that it has a graph.
    """

    ids: Sequence[str]
    raw: Callable[[FloatArray], npt.NDArray[np.floating]]
    payloads: Sequence[Mapping[str, Any]]
    higher_is_better: bool
    lost: set[int] = field(default_factory=set)
    graph: bool = False
    pages: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, release: Release, X: FloatArray) -> "Brute":
        lowering, written = release.lowerings["image"], points(release, X)
        metric = parse(lowering.distance.lower())

        def raw(queries: FloatArray) -> npt.NDArray[np.floating]:
            native = metric.score(queries.astype(np.float32), written.vectors.astype(np.float32))
            return native if lowering.distance.higher_is_better else -native

        return cls(written.ids, raw, written.payloads, lowering.distance.higher_is_better)

    def search(
        self, name: str, vector: str, queries: FloatArray, k: int, *, exact: bool, **options: Any
    ) -> list[list[Hit]]:
        self.pages.append((len(queries), k))
        found = []
        for row in self.raw(queries):
            order = np.argsort(-row if self.higher_is_better else row, kind="stable")
            kept = [n for n in order if exact or int(n) not in self.lost]
            found.append([Hit(self.ids[n], float(row[n]), dict(self.payloads[n])) for n in kept[:k]])
        return found

    def has_graph(self, name: str) -> bool:
        return self.graph

    def retrieve(self, name: str, ids: Sequence[str], **options: Any) -> list[Record]:
        number = {id_: n for n, id_ in enumerate(self.ids)}
        return [Record(id_, None, dict(self.payloads[number[id_]])) for id_ in ids]
