"""Warnings about a collection and the queries of an audit: sentences that stand beside the measures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from alignment.modality import Modality
from alignment.plurals import counted
from connector.audits.census import Census
from connector.audits.plan import AuditPlan
from connector.releases.release import Release
from connector.releases.seen_offset import limits_of_offset
from connector.stores.collection import CollectionInfo, SearchLimits, SettingDifference
from connector.stores.payload_kinds import fields_of

if TYPE_CHECKING:
    from qdrant_client.models import Filter

# With fewer groups the bootstrap interval is too narrow.
FEW_GROUPS = 20


def collection_warnings(
    info: CollectionInfo, release: Release, differences: Sequence[SettingDifference], filters: "Mapping[str, Filter]"
) -> Iterator[str]:
    """Yield warnings about the collection: what production does not want, and what differs from SQL.

    Args:
        info: the collection.
        release: in the collection.
        differences: of the collection's settings from what SQL recorded.
        filters: of the audit, by the names of their stages.
    """
    if not info.indexed:
        yield "Not ANN: no vector is in a graph, so every search compares with everything."
    elif info.indexed < info.points:
        yield f"{info.points - info.indexed} of {info.points} vectors are in no graph and are searched exactly."
    if info.status != "green":
        yield f"The collection's status is {info.status}, not green: its index is still being built."
    if info.quantization and not release.quantized_search["rescore"]:
        yield f"Quantization {info.quantization} without rescoring: quantized vectors alone decide what is found."
    for difference in differences:
        yield f"Something else changed the collection: {difference}."
    for stage, condition in filters.items():
        for name in sorted(fields_of(condition) - set(info.payload_indexes)):
            yield f"{stage}: payload field {name} is not indexed, so every filtered search reads payloads."


def limit_warnings(release: Release, limits: SearchLimits) -> Iterator[str]:
    """Yield warnings about searches that the store answers with less than the release asks for."""
    wanted = {"hnsw_ef": release.hnsw_ef}
    if release.row.settings.get("quantization") is not None:
        wanted["oversampling"] = release.quantized_search["oversampling"]
    for (name, value), most in zip(wanted.items(), limits, strict=False):
        if value is not None and most is not None and most < value:
            yield f"The store allows {name} {most} at most, so searches use it instead of {value}."


def few_groups(groups: Mapping[Modality, int]) -> Iterator[str]:
    """Warn about queries of few groups, given the number of groups by modality."""
    for modality, count in groups.items():
        if count < FEW_GROUPS:
            yield (
                f"The {modality} queries are of {counted(count, 'group')}: intervals of so few are too narrow, and "
                "changes seem to be more than chance too easily."
            )


def seen_warnings(release: Release, plan: AuditPlan, census: Mapping[Modality, Census]) -> Iterator[str]:
    """Yield what limits how new and known items are measured apart.

    Args:
        release: in the collection.
        plan: of the audit.
        census: of the collection, by modality.
    """
    if plan.protocol is not None:
        yield f"New and known items were not measured apart: protocol {plan.protocol} fixes queries and gallery."
    elif not release.alignment.seen:
        yield (
            "This alignment does not record what its fit saw, so every item that is not held out counts as known; fit "
            "again to tell new items from them."
        )
    for modality, kinds in census.items():
        has_others = kinds.items > kinds.seen
        for sentence in limits_of_offset(release, modality, has_seen=kinds.seen > 0, has_others=has_others):
            yield f"{sentence[0].upper()}{sentence[1:]}."
