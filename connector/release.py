"""Releases: one alignment under one metric in one physical collection, and the chain that ties them together.

The chain (encoders, alignment, metric, lowering) stands in the collection's metadata and in SQL, and follows from the
alignment on disk. Whoever opens a release compares all three and refuses a difference: querying with another encoder,
alignment or metric is an error, never a bad result.

Names, for a collection `emoji` under `cosine` and an alignment with fingerprint 1a2b3c4d...:

    emoji                    what people say
    emoji.cosine             the alias that production queries; it names the live release
    emoji.cosine.1a2b3c4d    the physical collection
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.artifact import Alignment
from alignment.embeddings import MODALITIES, EncoderCard, Modality
from alignment.metrics import Guarantee, Lowering, Metric, parse
from connector.errors import CollectionNotFoundError, MismatchError, SettingsError
from connector.layout import Layout, checked_layout
from connector.models import ReleaseRow
from connector.provenance import Provenance
from connector.settings import checked_name
from connector.store import Store

METADATA = "modalign"
LIVE, READY = "live", "ready"
DEFAULT_METRIC = "cosine"
UNTUNED = "untuned"  # a setting of a release that was written to since its walk was measured
TUNED = ("hnsw_ef", "hnsw_recall", UNTUNED)
LONGEST_WALK = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tuned:
    """A walk along the graph, and the share of the exact first ten that it finds where it finds least."""

    hnsw_ef: int
    recall: float


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was checked: its row in SQL, its alignment, its metric and how Qdrant computes it.

    Attributes:
        lowerings: by the modality of the items; they differ where a metric learned something of each.
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
        """What is known of the order in which Qdrant finds items."""
        return self.lowerings["image"].guarantee

    @property
    def tuned(self) -> Tuned | None:
        """How far searches walk the graph of this release, as `connector.tuning` found."""
        settings = self.row.settings
        return Tuned(settings["hnsw_ef"], settings["hnsw_recall"]) if "hnsw_ef" in settings else None

    @property
    def hnsw_ef(self) -> int | None:
        """`hnsw_ef` of searches; None: Qdrant's own."""
        return self.tuned.hnsw_ef if self.tuned else None

    @property
    def quantized_search(self) -> dict[str, Any]:
        """How a quantized release is searched: `oversampling` and `rescore`, as it was laid out."""
        return {name: self.row.settings.get(name, getattr(Layout(), name)) for name in ("oversampling", "rescore")}


def lower(alignment: Alignment, metric: Metric, *, device: str = "auto") -> dict[Modality, Lowering]:
    """Lower `metric` with what `alignment` holds for it, by the modality of the items.

    Raises:
        MetricError: the alignment holds no parameters for it.
        WeightsError: those that it holds are damaged.
    """
    return {m: alignment.metric(metric, m, device=device).lower(alignment.dim) for m in MODALITIES}


def alias_name(collection: str, metric: Metric) -> str:
    """Return the alias under which the live release is queried.

    >>> alias_name("emoji", parse("cosine"))
    'emoji.cosine'
    """
    printed = re.sub(r"(?<=\de)\+", "", str(metric))  # 1e+20, which must not end like 1e-20
    return f"{collection}.{re.sub('[^A-Za-z0-9]+', '-', printed).strip('-')}"


def physical_name(collection: str, metric: Metric, alignment: Alignment) -> str:
    """Return the name of the physical collection of a release."""
    return f"{alias_name(collection, metric)}.{alignment.fingerprint[:8]}"


def chain(alignment: Alignment, metric: Metric, lowering: Lowering) -> dict[str, Any]:
    """Return everything that must agree between a collection, SQL and the artifact on disk."""
    return {
        **{
            f"{modality}_encoder": {"spec": card.spec, "fingerprint": card.fingerprint}
            for modality, card in alignment.card.encoders.items()
        },
        "alignment": alignment.fingerprint,
        "metric": str(metric),
        "lowering": {
            "distance": lowering.distance.value,
            "dim": lowering.dim,
            "version": lowering.version,
            "guarantee": lowering.guarantee.value,
        },
    }


def require_chain(store: Store, name: str, expected: dict[str, Any]) -> None:
    """Raise a `MismatchError` that names both sides if the collection `name` was written for another chain."""
    info = store.describe(name)
    found = dict(info.metadata.get(METADATA, {}))
    for link, ours in expected.items():
        if (theirs := found.get(link)) != ours:
            raise MismatchError(
                f"collection {name} was written with {link} {_printed(theirs)}, expected {_printed(ours)}; "
                "push the embedding set into a new collection"
            )
    lowering = expected["lowering"]
    for modality, vector in info.vectors.items():
        if (theirs := (vector.distance.value, vector.dim)) != (ours := (lowering["distance"], lowering["dim"])):
            raise MismatchError(
                f"collection {name} holds {modality} vectors of {theirs}, expected {ours}; "
                "push the embedding set into a new collection"
            )


def require_encoder(alignment: Alignment, modality: Modality, found: EncoderCard, whose: str) -> None:
    """Raise a `MismatchError` that names both sides if embeddings of `found` do not belong into `alignment`."""
    expected = alignment.card.encoders[modality]
    if (found.fingerprint, found.dim) != (expected.fingerprint, expected.dim):
        raise MismatchError(
            f"{whose} has {modality} vectors of {found}, the alignment was fitted for {expected}; use embeddings of "
            "that encoder, or fit an alignment for these"
        )


def require_row(row: ReleaseRow, metric: Metric, lowering: Lowering) -> None:
    """Raise a `MismatchError` that names both sides if SQL recorded a release under another metric or lowering."""
    ours = (str(metric), lowering.distance.value, lowering.dim, lowering.version)
    if (theirs := (row.metric, row.distance, row.dim, row.lowering_version)) != ours:
        raise MismatchError(
            f"SQL recorded release {row.physical_name} with metric and lowering {theirs}, this modalign has {ours}; "
            "push into a new collection"
        )


def layout_of(row: ReleaseRow) -> dict[str, Any]:
    """Return how the collection was laid out, without what was tuned since; empty where SQL has lost it."""
    return {name: value for name, value in row.settings.items() if name not in TUNED}


def require_settings(row: ReleaseRow) -> None:
    """Raise a `MismatchError` if SQL holds settings of a release that cannot be meant: nobody pushed with those."""
    ef, recall = (row.settings.get(name) for name in ("hnsw_ef", "hnsw_recall"))
    wrong = []
    if (ef is None) != (recall is None):
        wrong.append(f"hnsw_ef and hnsw_recall: expected both or neither, got {ef!r} and {recall!r}")
    elif ef is not None and not (type(ef) is int and 1 <= ef <= LONGEST_WALK):
        wrong.append(f"hnsw_ef: expected a whole number from 1 to {LONGEST_WALK}, got {ef!r}")
    elif recall is not None and not (type(recall) in (int, float) and 0 <= recall <= 1):
        wrong.append(f"hnsw_recall: expected a share from 0 to 1, got {recall!r}")
    try:
        checked_layout(layout_of(row), "layout")
    except SettingsError as error:
        wrong.append(str(error))
    if wrong:
        raise MismatchError(
            f"SQL holds settings of release {row.physical_name} that it was not pushed with: {'; '.join(wrong)}; "
            f"restore column `settings` of row {row.id} of table `release`, from a backup or an earlier audit's "
            "`served_with`"
        )


def open_release(
    provenance: Provenance,
    store: Store,
    collection: str,
    metric: str | None = None,
    *,
    which: str = LIVE,
    device: str = "auto",
) -> Release:
    """Open a release of `collection` under `metric` and check its chain.

    Args:
        provenance: where releases are recorded.
        store: where their collections are.
        collection: what people say, `emoji`.
        metric: as printed, or with some of its parameters; where it is left out, the only metric there is, or cosine.
        which: `live`; `ready`, the shadow of the newest alignment; or the name of a physical collection.
        device: where a learned metric computes.

    Raises:
        CollectionNotFoundError: no such release.
        MismatchError: SQL, collection and alignment do not belong together.
    """
    return checked(provenance, store, named(provenance, store, collection, metric, which=which), device=device)


def named(
    provenance: Provenance, store: Store, collection: str, metric: str | None = None, *, which: str = LIVE
) -> ReleaseRow:
    """Return what SQL says of the release that `open_release` would open.

    Raises:
        CollectionNotFoundError: no such release.
    """
    checked_name(collection, "collection")
    store_url = provenance.stored(store.url)
    rows = provenance.releases(store_url=store_url, collection=collection)
    if which in (LIVE, READY):
        rows = newest(row for row in rows if row.state == which)
        what = f"no {which} release of collection {collection!r}"
    else:
        rows = [row for row in rows if row.physical_name == which and row.state != "building" and not row.dropped_at]
        what = f"no finished release {which} of collection {collection!r}"
    metrics = {row.metric: row for row in rows}
    asked = None if metric is None else str(parse(metric))
    chosen = asked or (next(iter(metrics)) if len(metrics) == 1 else DEFAULT_METRIC)
    if chosen not in metrics:
        if metrics:
            raise CollectionNotFoundError(
                f"{what} under {chosen}; it has {', '.join(sorted(metrics))}; name one of these, or make one with "
                "`modalign push`"
            )
        known = sorted({row.collection for row in provenance.releases(store_url=store_url, state="live")})
        elsewhere = sorted({row.store_url for row in provenance.releases(collection=collection, state="live")})
        other = f" (SQL has it in the store {', '.join(elsewhere)})" if elsewhere and which == LIVE else ""
        raise CollectionNotFoundError(
            f"{what}; this store{f', {store_url},' if other else ''} has {', '.join(known) or 'none'}{other}; make one "
            "with `modalign push`"
        )
    return metrics[chosen]


def newest(rows: Iterable[ReleaseRow]) -> list[ReleaseRow]:
    """Return, of releases of one state, those of the newest alignment under each metric, in their order."""
    by_metric: dict[str, ReleaseRow] = {}
    for row in rows:
        if row.metric not in by_metric or by_metric[row.metric].alignment_id <= row.alignment_id:
            by_metric[row.metric] = row
    return list(by_metric.values())


def checked(provenance: Provenance, store: Store, row: ReleaseRow, *, device: str = "auto") -> Release:
    """Load what a release needs and check that it belongs together."""
    recorded = provenance.alignment(row.alignment_id)
    alignment = Alignment.load(provenance.located(recorded.path))
    if alignment.fingerprint != recorded.fingerprint:
        raise MismatchError(
            f"release {row.physical_name} was written with alignment {recorded.name} {recorded.fingerprint[:12]}, its "
            f"directory now holds {alignment.fingerprint[:12]}; restore it, or push with the new one"
        )
    for modality, encoder in provenance.encoders(recorded).items():
        in_sql, in_card = EncoderCard(encoder.spec, encoder.fingerprint, encoder.dim), alignment.card.encoders[modality]
        if in_sql != in_card:
            raise MismatchError(
                f"SQL recorded alignment {recorded.name} with the {modality} encoder {in_sql}, its card names "
                f"{in_card}; restore the one that was changed"
            )
    metric = parse(row.metric)
    lowerings = lower(alignment, metric, device=device)
    lowering = lowerings["image"]
    require_row(row, metric, lowering)
    require_settings(row)
    require_chain(store, row.physical_name, chain(alignment, metric, lowering))
    return Release(row, alignment, metric, lowerings)


def due(provenance: Provenance, store: Store, releases: Sequence[Release]) -> dict[str, Release]:
    """Return, by alias, which of these releases `make_live` would make live: nothing else is, and they are not yet."""
    current = store.aliases()
    found = {}
    for release in releases:
        provenance.refresh(release.row)  # a promotion may have come since it was opened
        alias = alias_name(release.row.collection, release.metric)
        is_live = release.row.state == LIVE and current.get(alias) == release.name
        if not is_live and _is_alone(provenance, release, current):
            found[alias] = release
    return found


def make_live(provenance: Provenance, store: Store, releases: Sequence[Release]) -> bool:
    """Let the aliases that name nothing else name these releases, all at one moment.

    A release that is live has its alias restored. Where another release is live, or a promotion is under way, nothing
    changes: that is what `connector.lifecycle` is for. Returns whether anything did. A crash between alias and SQL is
    mended by calling this again.
    """
    wanted, current = due(provenance, store, releases), store.aliases()
    if changed := {alias: release.name for alias, release in wanted.items() if current.get(alias) != release.name}:
        store.set_aliases(changed)
    for release in wanted.values():
        provenance.change(release.row, state=LIVE)
    return bool(changed)


def _is_alone(provenance: Provenance, release: Release, aliases: Mapping[str, str]) -> bool:
    row = release.row
    place = {"store_url": row.store_url, "collection": row.collection}
    if any(p.metric == row.metric for p in provenance.unfinished_promotions(**place)):
        return False
    if row.state == LIVE:
        return True
    named = aliases.get(alias_name(row.collection, release.metric), release.name)
    return named == release.name and not provenance.releases(**place, metric=row.metric, state=LIVE)


def _printed(value: Any) -> str:
    if isinstance(value, dict) and "fingerprint" in value:
        return f"{value['spec']} ({value['fingerprint'][:12]})"
    return "nothing" if value is None else str(value)
