"""The provenance chain of a release, in collection metadata and in SQL."""

from typing import Any

from alignment.metrics import Lowering, Metric
from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.sets.cards import EncoderCard
from connector.errors import MismatchError, SettingsError
from connector.provenance.tables import ReleaseRow
from connector.releases.fusion import Fusion
from connector.stores.contract import Store
from connector.stores.layout import checked_layout

METADATA = "modalign"
MAX_EF = 2**31 - 1


def chain(alignment: Alignment, metric: Metric, lowering: Lowering) -> dict[str, Any]:
    """Return what must be equal in a collection's metadata, in SQL and in the alignment on disk."""
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


def check_chain(store: Store, name: str, expected: dict[str, Any]) -> None:
    """Raise a `MismatchError` that names both sides if the collection `name` was written with another chain."""
    written = dict(store.metadata(name).get(METADATA, {}))  # not by `describe`, which counts the points
    for link, ours in expected.items():
        if (theirs := written.get(link)) != ours:
            raise MismatchError(
                f"collection {name} was written with {link} {_printed(theirs)}, expected {_printed(ours)}; "
                "push the embedding set into a new collection"
            )
    lowering = expected["lowering"]
    for modality, vector in store.vectors(name).items():
        if (theirs := (vector.distance.value, vector.dim)) != (ours := (lowering["distance"], lowering["dim"])):
            raise MismatchError(
                f"collection {name} holds {modality} vectors of {theirs}, expected {ours}; "
                "push the embedding set into a new collection"
            )


def check_encoder(alignment: Alignment, modality: Modality, found: EncoderCard, whose: str) -> None:
    """Raise a `MismatchError` that names both sides if `alignment` was fitted for another encoder than `found`."""
    expected = alignment.card.encoders[modality]
    if (found.fingerprint, found.dim) != (expected.fingerprint, expected.dim):
        raise MismatchError(
            f"{whose} has {modality} vectors of {found}, the alignment was fitted for {expected}; use embeddings of "
            "that encoder, or fit an alignment for these"
        )


def check_row(row: ReleaseRow, metric: Metric, lowering: Lowering) -> None:
    """Raise a `MismatchError` that names both sides if SQL recorded a release under another metric or lowering."""
    ours = (str(metric), lowering.distance.value, lowering.dim, lowering.version)
    if (theirs := (row.metric, row.distance, row.dim, row.lowering_version)) != ours:
        raise MismatchError(
            f"SQL recorded release {row.physical_name} with metric and lowering {theirs}, this modalign has {ours}; "
            "push into a new collection"
        )


def search_settings(row: ReleaseRow) -> dict[str, Any]:
    """Return everything of a release that changes what a search finds: its layout and its tuning."""
    tuning = {"hnsw_ef": row.hnsw_ef, "hnsw_recall": row.hnsw_recall, "needs_tuning": row.needs_tuning or None}
    return {**row.settings, **{name: value for name, value in tuning.items() if value is not None}}


def check_settings(row: ReleaseRow) -> None:
    """Raise a `MismatchError` if the settings that SQL holds of a release are invalid: no push wrote them."""
    ef, recall = row.hnsw_ef, row.hnsw_recall
    wrong = []
    if (ef is None) != (recall is None):
        wrong.append(f"hnsw_ef and hnsw_recall: expected both or neither, got {ef!r} and {recall!r}")
    elif ef is not None and not (type(ef) is int and 1 <= ef <= MAX_EF):
        wrong.append(f"hnsw_ef: expected a whole number from 1 to {MAX_EF}, got {ef!r}")
    elif recall is not None and not (type(recall) in (int, float) and 0 <= recall <= 1):
        wrong.append(f"hnsw_recall: expected a share from 0 to 1, got {recall!r}")
    try:
        if row.fusion is not None:
            Fusion.read(row.fusion)
    except ValueError as error:
        wrong.append(f"fusion: {error}")
    try:
        checked_layout(row.settings, "layout")
    except SettingsError as error:
        wrong.append(str(error))
    if wrong:
        raise MismatchError(
            f"SQL holds settings of release {row.physical_name} that it was not pushed with: {'; '.join(wrong)}; "
            f"restore the columns `settings`, `hnsw_ef`, `hnsw_recall` and `fusion` of row {row.id} of table "
            "`release`, from a backup or an earlier audit's `served_with`"
        )


def _printed(value: Any) -> str:
    if isinstance(value, dict) and "fingerprint" in value:
        return f"{value['spec']} ({value['fingerprint'][:12]})"
    return "nothing" if value is None else str(value)
