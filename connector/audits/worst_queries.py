"""The queries that production answers worst."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignment.modality import DIRECTIONS
from connector.audits.reference import Truth
from connector.audits.result import StoredItem, WorstQuery
from connector.audits.stages import StageResults
from connector.audits.subject import AuditSubject
from connector.releases.points import point_id

WORST_QUERIES, WORST_HITS, WORST_EXPECTED = 6, 5, 3


def worst_queries(subject: AuditSubject, direction: str, results: StageResults, truth: Truth) -> list[WorstQuery]:
    """Return the queries whose best relevant item ranks last, of those that have one and miss it at rank 1.

    Args:
        subject: of the audit.
        direction: of the queries.
        results: of production's search among all points.
        truth: of exact search; breaks ties.
    """
    modality, target = DIRECTIONS[direction]
    rows, ranks = subject.queries[modality].rows, results.ranks.best
    order = np.lexsort((-truth.whole.best, -ranks))
    chosen = [row for row in order if truth.whole.counts[row] and ranks[row] > 1][:WORST_QUERIES]
    if not chosen:
        return []
    queries = subject.align(rows.take(chosen))
    subject.limiter(len(chosen))
    lists = subject.candidates.search(
        target, queries, WORST_HITS, quantized=subject.stages[-1].quantized, consistent=subject.consistent
    )
    relevant: dict[str, list[str]] = {rows.groups[row]: [] for row in chosen}
    for keys, groups in subject.pairs.labels(target):
        for key, group in zip(keys, groups, strict=True):
            if group in relevant:
                relevant[group].append(point_id(target, key))
    worst = []
    for row, ranked in zip(chosen, lists, strict=True):
        group = rows.groups[row]
        hits = [_point(hit.payload, group, hit.score) for hit in ranked.hits]
        shown = relevant[group][:WORST_EXPECTED]
        records = subject.store.retrieve(subject.release.name, shown, consistent=subject.consistent)
        expected = [_point(record.payload, group) for record in records]
        payload = {**json.loads(rows.payloads[row]), "group": group, "content_sha256": rows.content_sha256[row]}
        query = StoredItem(rows.keys[row], payload)
        worst.append(WorstQuery(direction, query, float(truth.whole.best[row]), hits, expected))
    return worst


def _point(payload: Mapping[str, Any], group: str, score: float | None = None) -> StoredItem:
    return StoredItem(str(payload.get("key")), dict(payload), payload.get("group") == group, score)
