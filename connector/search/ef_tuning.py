"""Tune `hnsw_ef`: pick the smallest one whose HNSW searches reach 99% of exact search.

How hard a collection is to search by its HNSW graph depends on its vectors: the same `hnsw_ef` finds everything in one
collection and half in another. So after a push a sample of the embedding set is searched both ways, and the release
keeps the smallest `hnsw_ef` that is enough. `Retriever` sends it with every query. What was found is compared by the
scores of the vectors themselves, also where quantized vectors are searched without rescoring.
"""

import logging
from collections.abc import Mapping

import numpy as np

from alignment.modality import OTHER, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.vectors import FloatArray, invalid_rows
from connector.errors import ExactRefusedError
from connector.releases.release import EfTuning, Release
from connector.requests import INDEX_RECALL
from connector.search.candidates import CandidateSearch, found_share
from connector.stores.contract import Store

_log = logging.getLogger(__name__)

# `hnsw_ef` to try, until one finds `INDEX_RECALL` of the exact first K.
EFS = (128, 256, 512, 1024, 2048, 4096)
K = 10
SAMPLE = 64


def sample(embedding_set: EmbeddingSet, release: Release) -> dict[Modality, FloatArray]:
    """Draw aligned queries (n, d), n of at most `SAMPLE`, by the modality that they search.

    Queries are vectors of the other modality. Held-out ones come first: those of the fit lie close to their partners,
    so they are easier to find. In a set of one modality its own vectors are the queries, which are the easiest.
    """
    counts, hold_out = embedding_set.card.counts, release.alignment.card.hold_out
    queries: dict[Modality, FloatArray] = {}
    for target in OTHER:
        if counts.get(target):
            source = OTHER[target] if counts.get(OTHER[target]) else target
            rows = embedding_set.sample(source, round(SAMPLE / hold_out.fraction))
            held_out_first = np.argsort(~hold_out.held_out(rows.groups), kind="stable")
            X = rows.vectors[held_out_first[:SAMPLE]]
            X = release.alignment.projections[source].unchecked(np.delete(X, list(invalid_rows(X)), axis=0))
            queries[target] = np.delete(X, list(invalid_rows(X)), axis=0)
    return {target: X for target, X in queries.items() if len(X)}


def tune(
    release: Release, store: Store, queries: Mapping[Modality, FloatArray], *, known: EfTuning | None = None
) -> EfTuning | None:
    """Return the smallest `hnsw_ef` that is enough for every modality; without queries, `known`.

    If not even the largest is enough, or the largest that the store allows, it is returned, and its recall says what
    it misses. Where a store answers no exact searches, it is said, and the release keeps the tuning that it has.

    Args:
        release: what to search.
        store: where it is.
        queries: aligned vectors (n, d) by the modality to find.
        known: a tuning that holds for a part of the release: the result has no smaller `hnsw_ef` and no higher recall.
    """
    search = CandidateSearch(release, store)
    try:
        best_scores = {
            target: [
                np.array([hit.score for hit in best.hits])
                for best in search.search(target, X, K, exact=True, quantized=False, with_payload=False)
            ]
            for target, X in queries.items()
        }
    except ExactRefusedError as error:
        _log.warning(
            "release %s: hnsw_ef is not tuned, so searches use %s and what the index misses is unknown: %s",
            release.name,
            f"{release.hnsw_ef}, as tuned before," if release.tuned else "Qdrant's default",
            error,
        )
        return release.tuned
    tuned, least = known, known.hnsw_ef if known else 0
    for search.ef in [ef for ef in EFS if ef >= least]:
        recalls = []
        for target, X in queries.items():
            results = zip(search.search(target, X, K, with_payload=False), best_scores[target], strict=True)
            lowering = release.lowerings[target]
            recalls.append(float(np.mean([found_share(lowering, result.hits, best) for result, best in results])))
        if recalls:
            most = store.search_limits(release.name).ef  # known once a search for more was refused
            tuned = EfTuning(search.ef if most is None else min(search.ef, most), min(recalls))
            if known and known.hnsw_ef == tuned.hnsw_ef:
                tuned = min(known, tuned, key=lambda tuning: tuning.recall)
            if tuned.hnsw_ef < search.ef or EfTuning(search.ef, min(recalls)).reaches(INDEX_RECALL):
                break
    return tuned
