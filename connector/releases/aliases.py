"""Names of collections and the aliases of live releases."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from connector.provenance.recorder import Provenance
from connector.provenance.tables import ReleaseRow
from connector.releases.rights import is_hidden
from connector.states import ReleaseState

if TYPE_CHECKING:  # a status names aliases: it must not load metrics, alignments and stores
    from alignment.metrics import Metric
    from alignment.model.alignment import Alignment
    from connector.releases.release import Release
    from connector.stores.contract import Store


def alias_name(collection: str, metric: "Metric | str") -> str:
    """Return the alias under which the live release is queried; SQL's text of a metric serves as well.

    >>> alias_name("emoji", "chi2(map=split)")
    'emoji.chi2-map-split'
    """
    printed = re.sub(r"(?<=\de)\+", "", str(metric))  # 1e+20, which must not end like 1e-20
    return f"{collection}.{re.sub('[^A-Za-z0-9]+', '-', printed).strip('-')}"


def physical_name(collection: str, metric: "Metric", alignment: "Alignment") -> str:
    """Return the name of the physical collection of a release."""
    return f"{alias_name(collection, metric)}.{alignment.fingerprint[:8]}"


def alias_fault(provenance: Provenance, store: "Store", row: ReleaseRow) -> str | None:
    """Say why production does not reach a live release by its alias, and what to do.

    None: it does, or the release is not live, or the key does not show the alias, which `alias_unseen` says.
    """
    if row.state != ReleaseState.LIVE:
        return None
    alias = alias_name(row.collection, row.metric)
    target = store.aliases().get(alias)
    if target == row.physical_name or (target is None and is_hidden(store, alias)):
        return None
    leads = f"alias {alias} {'is gone' if target is None else f'leads to {target}'}"
    place = {"store_id": row.store_id, "collection": row.collection, "metric": row.metric}
    for promotion in provenance.releases.unfinished_promotions(**place):
        return (
            f"{leads}, and a {promotion.kind} that run {promotion.run_id} began is not finished; run `modalign "
            f"{promotion.kind} {row.collection}`"
        )
    if alias in store.collections():
        return (
            f"{leads}, and a collection of that name is in its place; rename that collection, then run `modalign "
            f"repair {row.collection}`"
        )
    return f"{leads}, SQL says that {row.physical_name} is live; run `modalign repair {row.collection}`"


def alias_unseen(store: "Store", row: ReleaseRow) -> str | None:
    """Say that it is not known where the alias of a live release leads, because the key does not show it."""
    alias = alias_name(row.collection, row.metric)
    if row.state != ReleaseState.LIVE or alias in store.aliases() or not is_hidden(store, alias):
        return None
    return f"alias {alias} was not compared: the key for {store.url} does not show it; `r` on the alias shows it"


def to_go_live(provenance: Provenance, store: "Store", releases: "Sequence[Release]") -> "dict[str, Release]":
    """Return, by alias, the releases that `make_live` would make live: they are not yet, and no other release is."""
    current = store.aliases()
    wanted = {}
    for release in releases:
        provenance.releases.refresh(release.row)  # a promotion may have come since it was opened
        if goes_live(provenance, store, release.row, current):
            wanted[alias_name(release.row.collection, release.metric)] = release
    return wanted


def goes_live(provenance: Provenance, store: "Store", row: ReleaseRow, aliases: Mapping[str, str]) -> bool:
    """Say whether `make_live` would make a release live, given the aliases that the store shows.

    If the key does not show the alias of a live release, SQL is taken at its word: whoever may only write into a
    release does not switch aliases.
    """
    alias = alias_name(row.collection, row.metric)
    if row.state == ReleaseState.LIVE and (
        is_hidden(store, alias) if alias not in aliases else aliases[alias] == row.physical_name
    ):
        return False
    return _alias_is_free(provenance, row, aliases)


def make_live(provenance: Provenance, store: "Store", releases: "Sequence[Release]") -> bool:
    """Point free aliases to these releases, in one request; return whether an alias changed.

    The alias of a live release is restored. If another release is live under an alias, or a promotion is unfinished,
    the alias stays: `connector.releases.promotion` changes it. After a crash between alias and SQL, call this again.
    """
    wanted, current = to_go_live(provenance, store, releases), store.aliases()
    if changed := {alias: release.name for alias, release in wanted.items() if current.get(alias) != release.name}:
        store.set_aliases(changed)
    for release in wanted.values():
        provenance.releases.change(release.row, state=ReleaseState.LIVE)
    return bool(changed)


def _alias_is_free(provenance: Provenance, row: ReleaseRow, aliases: Mapping[str, str]) -> bool:
    place = {"store_id": row.store_id, "collection": row.collection}
    if any(p.metric == row.metric for p in provenance.releases.unfinished_promotions(**place)):
        return False
    if row.state == ReleaseState.LIVE:
        return True
    target = aliases.get(alias_name(row.collection, row.metric), row.physical_name)
    return target == row.physical_name and not provenance.releases.find(
        **place, metric=row.metric, state=ReleaseState.LIVE
    )
