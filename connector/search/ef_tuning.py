"""How far searches walk the graph: the shortest walk that finds what exact search finds.

How hard a collection is to search along a graph shows only in its own vectors: the same walk that finds everything in
one finds half in another. So after a push a sample of the set asks both ways, and the release keeps the smallest
`hnsw_ef` that does. Production passes it with its queries, as `Retriever` does.
"""

from collections.abc import Mapping

import numpy as np

from alignment.modality import OTHER, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.vectors import FloatArray, invalid_rows
from connector.releases.release import EfTuning, Release
from connector.search.candidates import CandidateSearch, found_share
from connector.stores.contract import Store

# Lengths of walks that are tried, and the share of the exact first K that has to be found. Audits and production ask
# other queries than the sample, so it is asked for a little more than the 0.98 that they may rely on.
WIDTHS = (128, 256, 512, 1024, 2048, 4096)
ENOUGH = 0.99
K = 10
SAMPLE = 64


def sample(embedding_set: EmbeddingSet, release: Release) -> dict[Modality, FloatArray]:
    """Draw aligned queries (n, d) for each modality that can be searched: vectors of the other one.

    Those that the fit never saw come first: the others lie close to their partners, which makes them easy to find. Of
    a set with one modality they are its own vectors, which are the easiest queries.
    """
    counts, hold_out = embedding_set.card.counts, release.alignment.card.hold_out
    drawn: dict[Modality, FloatArray] = {}
    for target in OTHER:
        if counts.get(target):
            asking = OTHER[target] if counts.get(OTHER[target]) else target
            rows = embedding_set.sample(asking, round(SAMPLE / hold_out.fraction))
            unseen_first = np.argsort(~hold_out.held_out(rows.groups), kind="stable")
            X = rows.vectors[unseen_first[:SAMPLE]]
            X = release.alignment.projections[asking].unchecked(np.delete(X, list(invalid_rows(X)), axis=0))
            drawn[target] = np.delete(X, list(invalid_rows(X)), axis=0)
    return {target: queries for target, queries in drawn.items() if len(queries)}


def tune(
    release: Release, store: Store, queries: Mapping[Modality, FloatArray], *, known: EfTuning | None = None
) -> EfTuning | None:
    """Find the shortest walk that is enough for every modality; without queries, what is known.

    Where not even the longest is, that is the answer, and its recall says what it misses.

    Args:
        release: what to search.
        store: where it is.
        queries: aligned vectors (n, d) by the modality to find.
        known: a walk that is needed already; the answer is no shorter and claims no more.
    """
    finder = CandidateSearch(release, store)
    bars = {
        target: [
            np.array([hit.score for hit in best.hits])
            for best in finder.find(target, asked, K, exact=True, with_payload=False)
        ]
        for target, asked in queries.items()
    }
    tuned, least = known, known.hnsw_ef if known else 0
    for finder.ef in [width for width in WIDTHS if width >= least]:
        shares = []
        for target, asked in queries.items():
            found = finder.find(target, asked, K, with_payload=False)
            pairs = zip(found, bars[target], strict=True)
            shares.append(float(np.mean([found_share(release.lowerings[target], got.hits, bar) for got, bar in pairs])))
        if shares:
            tuned = EfTuning(finder.ef, min(shares))
            if known and known.hnsw_ef == tuned.hnsw_ef:
                tuned = min(known, tuned, key=lambda each: each.recall)
            if min(shares) >= ENOUGH:
                break
    return tuned
