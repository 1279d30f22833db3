"""Where an offset for seen items has no effect: no item of the collection took part in the fit."""

from collections.abc import Iterator

from alignment.modality import MODALITIES
from connector.releases.points import FITTED
from connector.releases.release import Release
from connector.stores.contract import Store


def offset_without_effect(release: Release, store: Store) -> Iterator[str]:
    """Say of which modalities a release holds items, none of which the offset of its alignment ranks lower."""
    from qdrant_client.models import FieldCondition, Filter, HasVectorCondition, MatchValue  # takes a second to import

    offsets = release.alignment.card.seen_offsets.get(str(release.metric), {})
    seen = FieldCondition(key="split", match=MatchValue(value=FITTED))
    for modality in MODALITIES:
        if not offsets.get(modality):
            continue
        has_vector = HasVectorCondition(has_vector=modality)
        items, seen_items = (
            next(store.scroll(release.name, filter=condition, page=1), None)
            for condition in (Filter(must=[has_vector]), Filter(must=[has_vector, seen]))
        )
        if items and not seen_items:
            yield (
                f"release {release.name}: its alignment saw none of its {modality} items, so the offset of "
                f"{offsets[modality]:.4g} for seen items has no effect until items of the fit are "
                "pushed too"
            )
