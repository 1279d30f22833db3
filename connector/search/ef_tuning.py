"""Tune `hnsw_ef`: pick the smallest one whose HNSW searches find 99% of the exact first hits, and of the first ten.

How hard a collection is to search by its HNSW graph depends on its vectors: the same `hnsw_ef` finds everything in one
collection and half in another. So after a push a sample of the embedding set is searched both ways, with queries about
new items and with queries about items that the fit saw, and the release keeps the smallest `hnsw_ef` that is enough
for both. `Retriever` sends it with every query. What was found is compared by the scores of the vectors themselves,
also where quantized vectors are searched without rescoring.

The first hits count by themselves. What a graph loses of a query about a seen item is often that item alone, which the
offset has moved away from its neighbours: on emoji under Hellinger, `hnsw_ef` 256 found .977 of the first ten and .910
of the first.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from alignment.modality import OTHER, Modality
from alignment.retrieval.paraphrases import paraphrased
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray, invalid_rows
from connector.errors import ExactRefusedError
from connector.releases.points import FITTED, splits
from connector.releases.release import EfTuning, Release
from connector.requests import INDEX_RECALL
from connector.search.candidates import CandidateSearch, found_share
from connector.stores.contract import Store

_log = logging.getLogger(__name__)

# `hnsw_ef` to try, until one finds `INDEX_RECALL` of the exact first hits, and of the exact first K.
EFS = (128, 256, 512, 1024, 2048, 4096)
K = 10
# Queries of each kind: of so many one first hit may be missed. Of 64 none was, in one push, where one in twenty is.
SAMPLE = 128


def sample(embedding_set: EmbeddingSet, release: Release) -> dict[Modality, list[FloatArray]]:
    """Draw aligned queries by the modality that they search: about items that the fit never saw, and about seen ones.

    Each kind is an array (n, d), n of at most `SAMPLE`. Queries are vectors of the other modality. Held-out ones come
    first, about new items; where there are too few, those of the fit follow, which lie close to their partners, so
    they are easier to find. Queries about seen items are paraphrases of those: an offset and the graph may lose what
    held-out ones never ask for. In a set of one modality its own vectors are the queries, which are the easiest.
    """
    counts, hold_out = embedding_set.card.counts, release.alignment.card.hold_out
    queries: dict[Modality, list[FloatArray]] = {}
    for target in OTHER:
        if counts.get(target):
            source = OTHER[target] if counts.get(OTHER[target]) else target
            rows = _sound(embedding_set.sample(source, round(SAMPLE / hold_out.fraction)))
            held_out_first = np.argsort(~hold_out.held_out(rows.groups), kind="stable")
            of_fit = rows.vectors[[split == FITTED for split in splits(release.alignment, rows)]]
            evenly = np.linspace(0, len(of_fit), min(SAMPLE, len(of_fit)), endpoint=False, dtype=int)
            kinds = rows.vectors[held_out_first[:SAMPLE]], paraphrased(of_fit)[evenly]
            aligned = [release.alignment.projections[source].unchecked(X) for X in kinds if len(X)]
            sound = [np.delete(X, list(invalid_rows(X)), axis=0) for X in aligned]
            queries[target] = [X for X in sound if len(X)]
    return {target: kinds for target, kinds in queries.items() if kinds}


def _sound(rows: Rows) -> Rows:
    """Leave out the rows whose vectors cannot be aligned."""
    return rows.take(np.delete(np.arange(len(rows)), list(invalid_rows(rows.vectors))).tolist())


def tune(
    release: Release, store: Store, queries: Mapping[Modality, Sequence[FloatArray]], *, known: EfTuning | None = None
) -> EfTuning | None:
    """Return the smallest `hnsw_ef` that is enough for every modality and kind of queries; without any, `known`.

    If not even the largest is enough, or the largest that the store allows, it is returned, and its recall says what
    it misses. Where a store answers no exact searches, it is said, and the release keeps the tuning that it has.

    Args:
        release: what to search.
        store: where it is.
        queries: kinds of queries by the modality to find, each as aligned vectors (n, d).
        known: a tuning that holds for a part of the release: the result has no smaller `hnsw_ef` and no higher recall.
    """
    search, kinds = CandidateSearch(release, store), [(target, X) for target, of in queries.items() for X in of]
    try:
        best_scores = [
            [
                np.array([hit.score for hit in best.hits])
                for best in search.search(target, X, K, exact=True, quantized=False, with_payload=False)
            ]
            for target, X in kinds
        ]
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
        for (target, X), best_of_kind in zip(kinds, best_scores, strict=True):
            recalls += _recalls(search, target, X, best_of_kind)
            most = store.search_limits(release.name).ef  # known once a search for more was refused
            last = search.ef == EFS[-1] or (most is not None and most < search.ef)
            if not last and not EfTuning(search.ef, min(recalls)).reaches(INDEX_RECALL):
                break  # a larger one is tried, whatever the other kinds find
        if recalls:
            tuned = EfTuning(search.ef if most is None else min(search.ef, most), min(recalls))
            if known and known.hnsw_ef == tuned.hnsw_ef:
                tuned = min(known, tuned, key=lambda tuning: tuning.recall)
            if tuned.hnsw_ef < search.ef or EfTuning(search.ef, min(recalls)).reaches(INDEX_RECALL):
                break
    return tuned


def _recalls(
    search: CandidateSearch, target: Modality, X: FloatArray, best_scores: Sequence[npt.NDArray[np.floating]]
) -> list[float]:
    """Return the shares of the exact first hits, and of the exact first `K`, that searches with queries `X` find."""
    results, lowering = search.search(target, X, K, with_payload=False), search.release.lowerings[target]
    return [
        float(
            np.mean([found_share(lowering, own.hits, best[:k]) for own, best in zip(results, best_scores, strict=True)])
        )
        for k in (1, K)
    ]
