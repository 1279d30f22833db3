"""Releases: one alignment under one metric in one physical collection, and the chain that ties them together.

The chain (encoders, alignment, metric, lowering) is in the collection's metadata, in SQL, and follows from the
alignment on disk. Opening a release compares all three and refuses a difference: querying with another encoder,
alignment or metric is an error, never a bad result.

Names, for a collection `emoji` under `cosine` and an alignment with fingerprint 1a2b3c4d...:

    emoji                    the name that users give
    emoji.cosine             the alias that production queries; it points to the live release
    emoji.cosine.1a2b3c4d    the physical collection
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment.metrics import Guarantee, Lowering, Metric, parse
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.names import names_there
from alignment.retrieval.thresholds import holds
from connector.errors import AccessDeniedError, CollectionNotFoundError, MismatchError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import ReleaseRow
from connector.releases.chain import chain, check_chain, check_row, check_settings
from connector.releases.fusion import Fusion
from connector.releases.store_identity import check_owner, here, lost_collection, no_release
from connector.settings import checked_name
from connector.states import ReleaseState
from connector.stores.contract import Store
from connector.stores.layout import Layout, PayloadKind

DEFAULT_METRIC = "cosine"


@dataclass(frozen=True, slots=True)
class EfTuning:
    """HNSW search with `hnsw_ef`, and its recall in [0, 1]: what it finds of the exact first hits, or of the first ten.

    It is the lower of both shares, of the modality and the kind of queries, about new or about seen items, in which it
    is lowest.
    """

    hnsw_ef: int
    recall: float

    def reaches(self, recall: float) -> bool:
        """Say whether the index finds at least this share."""
        return holds(self.recall, ">=", recall)


@dataclass(frozen=True, slots=True)
class Release:
    """A release whose chain was checked: its row in SQL, its alignment, its metric and how Qdrant computes it.

    Attributes:
        lowerings: by the modality of the items; they differ if a metric learned something of each modality.
    """

    row: ReleaseRow
    alignment: Alignment
    metric: Metric
    lowerings: Mapping[Modality, Lowering]

    @property
    def name(self) -> str:
        """The physical collection."""
        return self.row.physical_name

    @property
    def guarantee(self) -> Guarantee:
        """How Qdrant's order relates to the metric's own."""
        return self.lowerings["image"].guarantee

    @property
    def indexes(self) -> Mapping[str, PayloadKind]:
        """Indexed payload fields, each with the kind of its values."""
        indexes: Mapping[str, PayloadKind] = self.row.settings.get("payload_indexes", {})
        return indexes

    @property
    def caption_payload(self) -> bool:
        """Whether images carry the first caption of their item as payload."""
        return carries_captions(self.row)

    @property
    def tuned(self) -> EfTuning | None:
        """The `hnsw_ef` of this release as `connector.search.ef_tuning` measured it; None: not measured."""
        ef, recall = self.row.hnsw_ef, self.row.hnsw_recall
        return EfTuning(ef, recall) if ef is not None and recall is not None else None

    @property
    def hnsw_ef(self) -> int | None:
        """`hnsw_ef` of searches; None: Qdrant's default."""
        return self.tuned.hnsw_ef if self.tuned else None

    @property
    def fusion(self) -> Fusion | None:
        """How scores of images and captions make one, as `connector.search.fusion_tuning` measured it; None: not."""
        return None if self.row.fusion is None else Fusion.read(self.row.fusion)

    @property
    def quantized_search(self) -> dict[str, Any]:
        """How a quantized release is searched: `oversampling` and `rescore`, as it was laid out."""
        return {name: self.row.settings.get(name, getattr(Layout(), name)) for name in ("oversampling", "rescore")}


def carries_captions(row: ReleaseRow) -> bool:
    """Return whether the images of a release carry the first caption of their item as payload."""
    captions: bool = row.settings.get("caption_payload", Layout().caption_payload)
    return captions


def lower(alignment: Alignment, metric: Metric, *, device: str = "auto") -> dict[Modality, Lowering]:
    """Lower `metric` with the parameters that `alignment` holds for it, by the modality of the items.

    Raises:
        MetricError: the alignment holds no parameters for it.
        WeightsError: those that it holds are damaged.
    """
    return {m: alignment.metric(metric, m, device=device).lower(alignment.dim) for m in MODALITIES}


def open_release(
    provenance: Provenance,
    store: Store,
    collection: str,
    metric: str | None = None,
    *,
    which: str = ReleaseState.LIVE,
    device: str = "auto",
) -> Release:
    """Open a release of `collection` under `metric` and check its chain.

    Args:
        provenance: where releases are recorded.
        store: where their collections are.
        collection: the name that users give, `emoji`.
        metric: as printed, or with some of its parameters; None: the only metric there is, or cosine.
        which: `live`; `ready`, the shadow of the newest alignment; or the name of a physical collection.
        device: where a learned metric computes.

    Raises:
        CollectionNotFoundError: no such release.
        MismatchError: the chains of SQL, collection and alignment differ.
    """
    return load_release(
        provenance, store, find_release_row(provenance, store, collection, metric, which=which), device=device
    )


def find_release_row(
    provenance: Provenance, store: Store, collection: str, metric: str | None = None, *, which: str = ReleaseState.LIVE
) -> ReleaseRow:
    """Return the row of the release that `open_release` would open.

    Raises:
        CollectionNotFoundError: no such release.
    """
    checked_name(collection, "collection")
    store_id = here(provenance, store)
    rows = provenance.releases.find(store_id=store_id, collection=collection)
    if which in (ReleaseState.LIVE, ReleaseState.READY):
        rows = newest(row for row in rows if row.state == which)
    else:
        known = [row for row in rows if row.state != ReleaseState.BUILDING and not row.dropped_at]
        if known and which not in (names := [row.physical_name for row in known]):
            raise CollectionNotFoundError(
                f"no finished release {which!r} of collection {collection!r}; it has {names_there(which, names)}"
            )
        rows = [row for row in known if row.physical_name == which]
    metrics = {row.metric: row for row in rows}
    asked = None if metric is None else str(parse(metric))
    chosen = asked or (next(iter(metrics)) if len(metrics) == 1 else DEFAULT_METRIC)
    if chosen not in metrics:
        if metrics:
            raise CollectionNotFoundError(
                f"no {which} release of collection {collection!r} under {chosen}; it has {', '.join(sorted(metrics))}; "
                "name one of these, or make one with `modalign push`"
            )
        raise no_release(provenance, store, collection, what=f"{which} release")
    return metrics[chosen]


def newest(rows: Iterable[ReleaseRow]) -> list[ReleaseRow]:
    """Keep, of releases in one state, the one of the newest alignment under each metric; their order stays."""
    by_metric: dict[str, ReleaseRow] = {}
    for row in rows:
        if row.metric not in by_metric or by_metric[row.metric].alignment_id <= row.alignment_id:
            by_metric[row.metric] = row
    return list(by_metric.values())


def load_release(provenance: Provenance, store: Store, row: ReleaseRow, *, device: str = "auto") -> Release:
    """Load the alignment of a release and check its chain against SQL and the collection.

    Raises:
        CollectionNotFoundError: the store does not have the collection; the message says what makes it anew.
        AccessDeniedError: the key may not read it; the message says which right that takes.
        MismatchError: two of them differ; the message names both sides.
    """
    recorded = provenance.artifacts.alignment(row.alignment_id)
    alignment = Alignment.load(provenance.database.located(recorded.path))
    check_alignment(provenance, row, alignment)
    metric = parse(row.metric)
    lowerings = lower(alignment, metric, device=device)
    lowering = lowerings["image"]
    check_row(row, metric, lowering)
    check_settings(row)
    try:
        check_chain(store, row.physical_name, chain(alignment, metric, lowering))
    except CollectionNotFoundError as error:
        raise CollectionNotFoundError(f"{lost_collection(provenance, row)} ({error})") from error
    except AccessDeniedError as error:
        raise AccessDeniedError(
            f"to read release {row.physical_name} takes the right `r` on its collection, or more: {error}"
        ) from error
    check_owner(provenance, store, row.physical_name, row.store_id)
    return Release(row, alignment, metric, lowerings)


def check_alignment(provenance: Provenance, row: ReleaseRow, alignment: Alignment) -> None:
    """Raise a `MismatchError` that names both sides if SQL links a release to another alignment or other encoders."""
    recorded = provenance.artifacts.alignment(row.alignment_id)
    if alignment.fingerprint != recorded.fingerprint:
        raise MismatchError(
            f"release {row.physical_name} was written with alignment {recorded.name} {recorded.fingerprint[:12]}, the "
            f"directory of the alignment holds {alignment.fingerprint[:12]}; restore the directory or SQL, or push "
            "with the other alignment into a new collection"
        )
    provenance.artifacts.check_encoders(recorded, alignment)
