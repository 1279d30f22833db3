"""Names of collections and the aliases of live releases."""

import re
from collections.abc import Mapping, Sequence

from alignment.metrics import Metric
from alignment.model.alignment import Alignment
from connector.provenance.recorder import Provenance
from connector.releases.release import LIVE, Release
from connector.stores.contract import Store


def alias_name(collection: str, metric: Metric) -> str:
    """Return the alias under which the live release is queried.

    >>> from alignment.metrics import parse
    >>> alias_name("emoji", parse("cosine"))
    'emoji.cosine'
    """
    printed = re.sub(r"(?<=\de)\+", "", str(metric))  # 1e+20, which must not end like 1e-20
    return f"{collection}.{re.sub('[^A-Za-z0-9]+', '-', printed).strip('-')}"


def physical_name(collection: str, metric: Metric, alignment: Alignment) -> str:
    """Return the name of the physical collection of a release."""
    return f"{alias_name(collection, metric)}.{alignment.fingerprint[:8]}"


def to_go_live(provenance: Provenance, store: Store, releases: Sequence[Release]) -> dict[str, Release]:
    """Return, by alias, the releases that `make_live` would make live: they are not yet, and no other release is."""
    current = store.aliases()
    wanted = {}
    for release in releases:
        provenance.releases.refresh(release.row)  # a promotion may have come since it was opened
        alias = alias_name(release.row.collection, release.metric)
        is_live = release.row.state == LIVE and current.get(alias) == release.name
        if not is_live and _alias_is_free(provenance, release, current):
            wanted[alias] = release
    return wanted


def make_live(provenance: Provenance, store: Store, releases: Sequence[Release]) -> bool:
    """Point free aliases to these releases, in one atomic switch; return whether an alias changed.

    The alias of a live release is restored. If another release is live under an alias, or a promotion is unfinished,
    the alias stays: `connector.releases.promotion` changes it. After a crash between alias and SQL, call this again.
    """
    wanted, current = to_go_live(provenance, store, releases), store.aliases()
    if changed := {alias: release.name for alias, release in wanted.items() if current.get(alias) != release.name}:
        store.set_aliases(changed)
    for release in wanted.values():
        provenance.releases.change(release.row, state=LIVE)
    return bool(changed)


def _alias_is_free(provenance: Provenance, release: Release, aliases: Mapping[str, str]) -> bool:
    row = release.row
    place = {"store_url": row.store_url, "collection": row.collection}
    if any(p.metric == row.metric for p in provenance.releases.unfinished_promotions(**place)):
        return False
    if row.state == LIVE:
        return True
    named = aliases.get(alias_name(row.collection, release.metric), release.name)
    return named == release.name and not provenance.releases.find(**place, metric=row.metric, state=LIVE)
