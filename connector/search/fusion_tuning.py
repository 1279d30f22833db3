"""Tune the fusion of a release: by what its scores are standardised, and how much captions count.

Means and deviations are those of scores between a sample of captions and a sample of the release. The weight is the
one that finds most by captions that the fit never saw, whose items have other captions: a caption never finds itself.
Where there are too few of them the weight is `CAPTION_WEIGHT`.
"""

from collections.abc import Sequence
from uuid import UUID

import numpy as np

from alignment.modality import MODALITIES, Modality
from alignment.retrieval.caption_weight import FEWEST_QUERIES, MOST_QUERIES, WEIGHTS, best_weight
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.vectors import invalid_rows
from connector.releases.fusion import Fusion, Standard
from connector.releases.release import Release
from connector.search.candidates import CandidateSearch
from connector.search.item_search import ItemSearch
from connector.search.other_captions import CaptionScores, ask
from connector.stores.contract import Store
from connector.stores.points import engine_id

# Queries and items whose scores are standardised by.
QUERIES, ITEMS = 32, 128
# Captions that held-out ones are looked for among, at most.
LOOKED_AT = 4096


def tune_fusion(release: Release, store: Store, embedding_set: EmbeddingSet) -> Fusion | None:
    """Return how scores of images and captions make one; the present one where it cannot be measured.

    Args:
        release: an open release, as it is found.
        store: where it is.
        embedding_set: whose captions are the queries.
    """
    known = release.fusion
    if not embedding_set.card.counts.get("text"):
        return known
    fraction = max(release.alignment.card.hold_out.fraction, MOST_QUERIES / LOOKED_AT)
    rows = _valid(embedding_set.sample("text", round(MOST_QUERIES / fraction)), release)
    search = CandidateSearch(release, store)
    standards = {m: _standard(search, m, rows.take(range(min(QUERIES, len(rows))))) for m in MODALITIES}
    measured = {m: standard for m, standard in standards.items() if standard is not None}
    if len(measured) < len(MODALITIES):
        return known
    fusion = Fusion(measured, *((known.weight, known.queries) if known else ()))
    held_out = np.flatnonzero(release.alignment.card.hold_out.held_out(rows.groups))[:MOST_QUERIES]
    if len(held_out) < FEWEST_QUERIES:
        return fusion
    weighted = [Fusion(measured, weight) for weight in WEIGHTS]
    answers = [ask(search, weighted, rows.take([row])) for row in held_out]
    answers = [answer for answer in answers if answer.own.keys() == set(MODALITIES)]
    if len(answers) < FEWEST_QUERIES:
        return fusion
    return Fusion(measured, _best_weight(fusion, answers), len(answers))


def _valid(rows: Rows, release: Release) -> Rows:
    """Return the rows that can be aligned."""
    valid = np.delete(np.arange(len(rows)), list(invalid_rows(rows.vectors)))
    aligned = release.alignment.projections[rows.modality].unchecked(rows.vectors[valid])
    return rows.take(np.delete(valid, list(invalid_rows(aligned))).tolist())


def _standard(search: CandidateSearch, modality: Modality, queries: Rows) -> Standard | None:
    """Return mean and deviation of scores of captions against items of other groups; None: there are no two."""
    from qdrant_client.models import Filter, HasIdCondition, HasVectorCondition  # takes a second to import

    there = Filter(must=[HasVectorCondition(has_vector=modality)])
    page = next(search.store.scroll(search.release.name, filter=there, page=ITEMS), [])
    ids: list[int | str | UUID] = [engine_id(record.id) for record in page]
    if not ids or not len(queries):
        return None
    aligned = search.release.alignment.project(queries.modality, queries.vectors)
    within = Filter(must=[HasIdCondition(has_id=ids)])
    ranked = search.search(modality, aligned, len(ids), filter=within, with_payload=["group", "split"])
    items = ItemSearch(search)
    scores = np.array(
        [
            hit.score + (items.taken_off(modality, hit) if modality == "text" else 0)
            for group, result in zip(queries.groups, ranked, strict=True)
            for hit in result.hits
            if hit.payload["group"] != group
        ]
    )
    deviation = float(scores.std()) if len(scores) else 0.0
    return Standard(float(scores.mean()), deviation) if deviation > 0 else None


def _best_weight(fusion: Fusion, answers: Sequence[CaptionScores]) -> float:
    """Return the weight of captions with the best mean reciprocal rank."""

    def ranks_at(weight: float) -> list[float]:
        weighted = Fusion(fusion.standards, weight)
        return [answer.rank(weighted, *MODALITIES) for answer in answers]

    return best_weight(ranks_at)
