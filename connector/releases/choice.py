"""Which releases a promotion or a rollback is about."""

import logging
from collections.abc import Sequence, Set

from alignment.names import names_there
from connector.errors import CollectionNotFoundError, SettingsError
from connector.provenance.releases import PROMOTE, ROLLBACK
from connector.provenance.tables import PromotionRow, ReleaseRow
from connector.states import ReleaseState

_log = logging.getLogger(__name__)


def ready_releases(
    rows: Sequence[ReleaseRow], metrics: Set[str], names: Sequence[str], collection: str
) -> list[ReleaseRow]:
    """Choose the releases to promote; none if all that match are live already.

    Args:
        rows: all releases of the collection that were not dropped.
        metrics: only under these, as SQL has them; empty: all.
        names: these, by their physical collections; `ready`, or empty: those of the newest alignment.
        collection: for messages.

    Raises:
        CollectionNotFoundError: there is no such release, or it is not ready.
    """
    of_these = [row for row in rows if not metrics or row.metric in metrics]
    named = named_releases(rows, [name for name in names if name != ReleaseState.READY], collection)
    chosen = [row for row in named if row in of_these]
    if ReleaseState.READY in names or not names:
        chosen += [row for row in choose_ready(of_these) if row not in chosen]
        chosen = chosen or [row for row in of_these if row.state == ReleaseState.LIVE]
    if len({row.metric for row in chosen}) < max(len(chosen), len(metrics), 1):
        raise CollectionNotFoundError(
            f"expected one ready release of collection {collection!r} for each metric, got "
            f"{', '.join(row.physical_name for row in chosen) or 'none'}; `modalign status {collection}` shows all"
        )
    for row in chosen:
        if row.state not in (ReleaseState.READY, ReleaseState.LIVE):
            raise CollectionNotFoundError(
                f"release {row.physical_name} is {row.state}, expected a ready one; push its embedding sets again "
                "and audit it"
            )
    return [row for row in chosen if row.state == ReleaseState.READY]


def newest_ready(rows: Sequence[ReleaseRow]) -> list[ReleaseRow]:
    """Return the ready releases of the newest alignment that is not older than the live one."""
    # Repeated after it took effect, a promotion must not go on to an older shadow.
    ahead = [row for row in rows if row.state == ReleaseState.READY and not _is_older(row, rows)]
    newest = max((row.alignment_id for row in ahead), default=0)
    return [row for row in ahead if row.alignment_id == newest]


def choose_ready(rows: Sequence[ReleaseRow]) -> list[ReleaseRow]:
    """Return these releases, and say which ready ones are none of them because they are older than what is live."""
    for row in rows:
        if row.state == ReleaseState.READY and _is_older(row, rows):
            _log.info(
                "release %s is ready, of an older alignment than the live one: --release promotes it", row.physical_name
            )
    return newest_ready(rows)


def _is_older(row: ReleaseRow, rows: Sequence[ReleaseRow]) -> bool:
    """Whether a release has an older alignment than the live one of its metric among `rows`."""
    live = {other.metric: other.alignment_id for other in rows if other.state == ReleaseState.LIVE}
    return row.alignment_id < live.get(row.metric, 0)


def named_releases(rows: Sequence[ReleaseRow], names: Sequence[str], collection: str) -> list[ReleaseRow]:
    """Return releases by their physical collections.

    Raises:
        CollectionNotFoundError: there is no such release.
    """
    known = {row.physical_name: row for row in rows}
    for name in names:
        if name not in known:
            raise CollectionNotFoundError(
                f"no release {name!r} of collection {collection!r}; it has {names_there(name, known)}"
            )
    return [known[name] for name in dict.fromkeys(names)]


def replaced_releases(
    rows: Sequence[ReleaseRow], made: Sequence[PromotionRow], metrics: Set[str], collection: str
) -> list[ReleaseRow]:
    """Return what the last promotion replaced, or the last one under each of `metrics`, where it was not undone.

    Args:
        rows: all releases of the collection that were not dropped.
        made: all its promotions, oldest first.
        metrics: only under these, as SQL has them.
        collection: for messages.

    Raises:
        CollectionNotFoundError: nothing was promoted, or a release that was live before is dropped.
    """
    last = {p.metric: p for p in made if p.kind == PROMOTE and p.previous_id is not None}
    if missing := metrics - last.keys() or (set() if last else {"any metric"}):
        raise CollectionNotFoundError(
            f"no release of collection {collection!r} has replaced another under {', '.join(sorted(missing))}; there "
            "is nothing to roll back to"
        )
    newest = max(last.values(), key=lambda promotion: promotion.id).run_id
    chosen = [p for p in last.values() if (p.metric in metrics if metrics else p.run_id == newest)]
    by_id = {row.id: row for row in rows}
    targets = []
    for promotion in chosen:
        if is_undone(promotion, made):
            _log.info(
                "the last promotion under %s is undone already; to go back further, name the release with --to",
                promotion.metric,
            )
            continue
        target = by_id.get(promotion.previous_id or 0)
        if target is None or target.drop_begun_at:
            promoted = by_id.get(promotion.release_id)
            raise CollectionNotFoundError(
                f"release {promoted.physical_name if promoted else promotion.release_id} replaced one that was dropped "
                "since; push with that alignment again, and promote it"
            )
        targets.append(target)
    return targets


def is_undone(promotion: PromotionRow, made: Sequence[PromotionRow]) -> bool:
    """Say whether one of the promotions and rollbacks `made` in a collection has rolled this one back."""
    return any(p.kind == ROLLBACK and p.metric == promotion.metric and p.id > promotion.id for p in made)


def once_live_releases(
    rows: Sequence[ReleaseRow], made: Sequence[PromotionRow], names: Sequence[str], collection: str
) -> list[ReleaseRow]:
    """Return releases by name, all of which were live once.

    Args:
        rows: all releases of the collection that were not dropped.
        made: all its promotions.
        names: physical collections; one for each metric.
        collection: for messages.

    Raises:
        CollectionNotFoundError: one is unknown, dropped, or was never live.
    """
    once_live = {number for promotion in made for number in (promotion.release_id, promotion.previous_id)}
    targets = named_releases(rows, names, collection)
    for row in targets:
        if row.drop_begun_at or (row.state != ReleaseState.LIVE and row.id not in once_live):
            raise CollectionNotFoundError(
                f"release {row.physical_name} {'is being dropped' if row.drop_begun_at else 'was never live'}; "
                "expected one that was live before; `modalign promote` makes a ready one live"
            )
    if len({row.metric for row in targets}) < len(targets):
        raise SettingsError(f"expected one release for each metric, got {', '.join(names)}")
    return targets
