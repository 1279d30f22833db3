"""What an offset for seen items does not do in a release: sentences for a push and for an audit."""

from collections.abc import Iterator

from alignment.modality import MODALITIES, Modality
from connector.releases.points import FITTED, item_of
from connector.releases.release import Release
from connector.stores.contract import Store

# Quantization that keeps of a coordinate little more than its sign, which an offset changes in few columns.
SIGNS = "binary"
SAMPLE = 256  # points


def offset_warnings(release: Release, store: Store) -> Iterator[str]:
    """Say of each modality that a release holds what the offset of its alignment does not change."""
    modalities = [modality for modality in MODALITIES if release.lowerings[modality].offset_of_seen]
    if not modalities:
        return
    # A few points nearly always show all kinds, in one request.
    sample = next(store.scroll(release.name, page=SAMPLE), [])
    met = {(item[0], record.payload.get("split") == FITTED) for record in sample if (item := item_of(record))}
    for modality in modalities:
        has_seen, has_others = (
            (modality, seen) in met or _holds(release, store, modality, seen=seen) for seen in (True, False)
        )
        yield from limits_of_offset(release, modality, has_seen=has_seen, has_others=has_others)


def _holds(release: Release, store: Store, modality: Modality, *, seen: bool) -> bool:
    """Whether a release holds an item of a modality that the fit saw, or one that it did not see."""
    from qdrant_client.models import FieldCondition, Filter, HasVectorCondition, MatchValue  # takes a second to import

    has_vector = HasVectorCondition(has_vector=modality)
    fitted = FieldCondition(key="split", match=MatchValue(value=FITTED))
    condition = Filter(must=[has_vector, fitted]) if seen else Filter(must=[has_vector], must_not=[fitted])
    return next(store.scroll(release.name, filter=condition, page=1), None) is not None


def limits_of_offset(release: Release, modality: Modality, *, has_seen: bool, has_others: bool) -> Iterator[str]:
    """Say what the offset of the items of a modality does not change; nothing where there is none.

    Args:
        release: that holds them.
        modality: of the items.
        has_seen, has_others: whether the release holds such items that the fit saw, and any others.
    """
    lowering = release.lowerings[modality]
    if not lowering.offset_of_seen or not (has_seen or has_others):
        return
    offset = f"release {release.name}: the offset of {lowering.offset_of_seen:.4g} for seen {modality} items"
    if not has_seen:
        yield f"{offset} has no effect: it holds no {modality} that the fit saw, until items of the fit are pushed too"
    if not has_others:
        yield f"{offset} has no effect: the fit saw every {modality} that it holds, until others are added"
    if lowering.candidates_without_offset:
        yield f"{offset} does not change which candidates are found: metric {release.metric} takes it off in rescoring"
    if release.row.settings.get("quantization") == SIGNS:
        yield (
            f"{offset} hardly changes which candidates are found: {SIGNS} quantization keeps signs alone; rescoring "
            "takes it off, and audits measure what is lost"
        )
