"""Layouts of releases: what a new release inherits, what a collection tells of its own, and how two releases differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from alignment.metrics import METRICS, Metric
from connector.provenance.recorder import Provenance
from connector.provenance.tables import ReleaseRow
from connector.releases.aliases import alias_name
from connector.releases.release import DEFAULT_METRIC
from connector.releases.store_identity import here
from connector.states import ReleaseState
from connector.stores.contract import Store
from connector.stores.layout import CHANGEABLE_FIELDS, FIELDS, SEARCH_FIELDS, Layout, PayloadKind, value_kind
from connector.stores.payload_kinds import unanswered
from connector.stores.payload_paths import field_values, print_path
from connector.stores.points import Payload

SEARCH = "modalign_search"  # in the metadata of a collection: the settings that its engine does not keep
PAYLOAD = "modalign_payload"  # likewise, those that a push may change
SAMPLE = 1024  # points whose types are compared
RETRIEVED = 256  # ids a request


class Inherited(NamedTuple):
    """The layout that a new release inherits, and from which collection."""

    origin: str
    settings: dict[str, Any]


def layout_metadata(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a collection's metadata has to keep of its layout."""
    return {SEARCH: {name: settings[name] for name in SEARCH_FIELDS}, **payload_metadata(settings)}


def payload_metadata(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a collection's metadata has to keep of what payloads carry."""
    return {PAYLOAD: {name: settings[name] for name in CHANGEABLE_FIELDS}}


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of a layout; a release older than a setting has what every collection had then: the default."""
    return {**asdict(Layout()), **settings}


def read_back(store: Store, name: str) -> dict[str, Any]:
    """Return the layout of a collection as the collection itself tells it, kinds of payload included."""
    info = store.describe(name)
    return complete({**info.layout, **info.metadata.get(SEARCH, {}), **info.metadata.get(PAYLOAD, {})})


def inherited(provenance: Provenance, store: Store, collection: str, metric: Metric) -> Inherited | None:
    """Return the layout of the live release, under `metric` or else another; or of one that waits to be live.

    Where SQL has lost them, the aliases of the store name the live ones. None: the collection is new.
    """
    rows = provenance.releases.find(store_id=here(provenance, store), collection=collection)
    rows = [row for row in rows if row.settings and row.state != ReleaseState.RETIRED]
    if rows:
        best = min(
            rows,
            key=lambda r: (r.state != ReleaseState.LIVE, r.metric != str(metric), r.metric != DEFAULT_METRIC, -r.id),
        )
        return Inherited(best.physical_name, complete(best.settings))
    aliases = store.aliases()
    for alias in (alias_name(collection, each) for each in (metric, METRICS[DEFAULT_METRIC], *METRICS.values())):
        if alias in aliases:
            return Inherited(aliases[alias], read_back(store, aliases[alias]))
    return None


def merged(base: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layout `base` with what was chosen in place of its own; payload indexes are added to its own."""
    base = dict(base)
    if chosen.get("quantization", base.get("quantization")) != base.get("quantization"):
        base.pop("compression", None)  # it is of the other quantization
    indexes = {**base.get("payload_indexes", {}), **chosen.get("payload_indexes", {})}
    return {**base, **chosen, "payload_indexes": indexes}


def layout_differences(live: ReleaseRow, other: ReleaseRow) -> list[str]:
    """Say how the layout of a release differs from that of the live one, a sentence for each setting."""
    before, after = complete(live.settings), complete(other.settings)
    sentences = [
        f"{name} is {before[name]} in {live.physical_name} and {after[name]} in {other.physical_name}"
        for name in FIELDS
        if name != "payload_indexes" and before[name] != after[name]
    ]
    return sentences + [
        f"payload field {field} is {_indexed(old)} in {live.physical_name} and {_indexed(new)} in {other.physical_name}"
        for field, old, new in _index_changes(before, after)
    ]


def live_beside(rows: Sequence[ReleaseRow], metric: str) -> ReleaseRow | None:
    """Return the live release whose filters have to work on one under `metric`: of that metric, or else of another."""
    live = [row for row in rows if row.state == ReleaseState.LIVE]
    return min(live, key=lambda row: (row.metric != metric, row.metric != DEFAULT_METRIC, -row.id), default=None)


def broken_filters(store: Store, live: ReleaseRow, other: ReleaseRow) -> list[str]:
    """Say which filters that work on the live release would not on another one: other kinds, types, or new indexes.

    Kinds are compared all, values over a sample of points.
    """
    changes = list(_index_changes(complete(live.settings), complete(other.settings)))
    sample = {record.id: record.payload for record in next(store.scroll(live.physical_name, page=SAMPLE), [])}
    sentences = {
        field: f"payload field {field} is {_indexed(old)} in the live release {live.physical_name} and "
        f"{_indexed(new)} in {other.physical_name}"
        for field, old, new in changes
        if old is not None and (new is None or value_kind(old) != value_kind(new))
    }
    for field, (old, new) in _type_changes(store, sample, other.physical_name).items():
        sentences.setdefault(
            field,
            f"payload field {field} holds {old} in the live release {live.physical_name} and {new} in "
            f"{other.physical_name}",
        )
    added = {field: new for field, old, new in changes if old is None and new is not None}
    for field, kind, test in _no_longer_answered(sample, added):
        sentences.setdefault(
            field,
            f"payload field {field} is not indexed in the live release {live.physical_name}, where filters may compare "
            f"it with {test}, and {_indexed(kind)} in {other.physical_name}, where they may not",
        )
    return list(sentences.values())


def filters_that_end(store: Store, name: str, added: Mapping[str, PayloadKind]) -> list[str]:
    """Say which filters find values in a collection until these fields are indexed, over a sample of points."""
    sample = {record.id: record.payload for record in next(store.scroll(name, page=SAMPLE), [])}
    sentences = (
        f"filters on {name} may compare payload field {field} with {test} until it is {_indexed(kind)}, and not after"
        for field, kind, test in _no_longer_answered(sample, added)
    )
    return list(dict.fromkeys(sentences))


def _index_changes(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[str, PayloadKind | None, PayloadKind | None]]:
    old, new = before["payload_indexes"], after["payload_indexes"]
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            yield field, old.get(field), new.get(field)


def _indexed(kind: str | None) -> str:
    return "not indexed" if kind is None else f"indexed as {kind}"


def _no_longer_answered(
    sample: Mapping[str, Payload], indexes: Mapping[str, PayloadKind]
) -> Iterator[tuple[str, PayloadKind, str]]:
    """Yield fields whose values a filter finds until they are indexed: the field, the kind of index, and the test."""
    for payload in sample.values():
        for path, value in field_values(payload):
            if kind := indexes.get(field := print_path(path)):
                yield from ((field, kind, test) for test in unanswered(value, kind))


def _type_changes(store: Store, sample: Mapping[str, Payload], other: str) -> dict[str, tuple[str, str]]:
    """Return by payload field the types that differ between points of a sample and the same in another collection."""
    ids, changes = list(sample), dict[str, tuple[str, str]]()
    for start in range(0, len(ids), RETRIEVED):
        for record in store.retrieve(other, ids[start : start + RETRIEVED]):
            old, new = _types(sample[record.id]), _types(record.payload)
            changes |= {
                field: (old[field], new[field]) for field in old.keys() & new.keys() if old[field] != new[field]
            }
    return dict(sorted(changes.items()))


def _types(payload: Payload) -> dict[str, str]:
    """Name the types of a payload's values by their paths; null has no type."""
    types: dict[str, str] = {}
    for path, value in field_values(payload):
        if value is not None:
            types.setdefault(print_path(path), _type_name(value))
    return types


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "a text" if isinstance(value, str) else "a number"
