"""What SQL recorded of a collection beside its points, compared with the collection: its settings and its alias."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.metrics import Lowering
from alignment.modality import MODALITIES
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.releases.aliases import alias_fault
from connector.releases.chain import METADATA, chain
from connector.releases.layouts import complete, layout_metadata
from connector.releases.release import Release
from connector.releases.rights import check_may_manage
from connector.stores.collection import CollectionConfig, SettingDifference, VectorConfig
from connector.stores.contract import Store
from connector.stores.layout import checked_layout


def collection_config(settings: Mapping[str, Any], lowering: Lowering, metadata: Mapping[str, Any]) -> CollectionConfig:
    """Return how the collection of a release is created.

    Args:
        settings: of its layout; defaults for those that are not given.
        lowering: of its metric.
        metadata: of the release; those of its layout are added.
    """
    layout = complete(checked_layout(settings))
    return CollectionConfig(
        vectors=dict.fromkeys(MODALITIES, VectorConfig(lowering.dim, lowering.distance)),
        metadata={**metadata, **layout_metadata(layout)},
        **layout,
    )


def setting_differences(release: Release, store: Store) -> list[SettingDifference]:
    """Compare the settings of a release's collection with those that SQL recorded; nothing if SQL has lost them."""
    config = _recorded(release)
    return [] if config is None else store.setting_differences(release.name, config)


def differences_in_words(release: Release, store: Store) -> list[str]:
    """Say how a release's collection differs from what SQL recorded, and of what cannot be restored what to do."""
    return [_in_words(difference, release) for difference in setting_differences(release, store)]


def faults_in_words(release: Release, store: Store, provenance: Provenance) -> list[str]:
    """Say how the collection of a release, and the alias of a live one, differ from what SQL recorded."""
    fault = alias_fault(provenance, store, release.row)
    return [*([fault] if fault else []), *differences_in_words(release, store)]


def restore_settings(release: Release, store: Store, provenance: Provenance, run: Run) -> None:
    """Restore the settings of a release's collection, as far as the engine can; count them as `restored`."""
    config = _recorded(release)
    before = _restorable(setting_differences(release, store))
    if config is not None and before:
        check_may_manage(store, f"restoring settings of {release.name}")
        provenance.releases.bump_revision(release.row)  # an audit of before has measured other settings
        store.restore_settings(release.name, config)
        run.counts["restored"] += len(before) - len(_restorable(setting_differences(release, store)))


def _recorded(release: Release) -> CollectionConfig | None:
    if not release.row.settings:
        return None
    lowering = release.lowerings["image"]
    metadata = {METADATA: chain(release.alignment, release.metric, lowering)}
    return collection_config(release.row.settings, lowering, metadata)


def _restorable(differences: Sequence[SettingDifference]) -> list[SettingDifference]:
    return [difference for difference in differences if difference.restorable]


def _in_words(difference: SettingDifference, release: Release) -> str:
    if difference.restorable:
        return f"{difference}; run `modalign repair {release.row.collection}`"
    if difference.expected is None:
        return f"{difference}: no push made it; push again to record it, or delete it in Qdrant"
    return f"{difference}, and cannot be changed back; drop {release.name} and push its embedding sets again"
