"""The shared space of an audit, from vectors that were read back: the modality gap, and a projection of pairs."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.errors import GapError
from alignment.geometry.geometry import ITEMS, SAMPLE, geometry
from alignment.geometry.modality_gap import one_each
from alignment.metrics import Guarantee, with_seen
from alignment.modality import MODALITIES, Modality
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import group_codes
from alignment.sets.embedding_set import EmbeddingSet
from alignment.vectors import FloatArray, l2_normalize
from connector.audits.galleries import HashDraws, hash_draws
from connector.audits.measures import of_geometry
from connector.audits.result import PcaProjection, SpaceResult
from connector.releases.points import point_id
from connector.releases.release import Release

# Groups whose vectors are kept for the gap, and pairs of the projection.
GAP_GROUPS = SAMPLE // 2
PROJECTED_PAIRS = 250

ALIGNED_SPACE = "aligned vectors"

# Groups by the ids of points, by modality.
Drawn = Mapping[Modality, Mapping[str, str]]


def draw(embedding_set: EmbeddingSet, draws: Mapping[Modality, HashDraws], *, seed: int) -> Drawn:
    """Draw groups of queries that have both modalities; return the ids of their first points, with their groups.

    Args:
        embedding_set: of the queries.
        draws: hash draws of their groups, made with `seed`.
        seed: of the draws.
    """
    chosen = np.intersect1d(draws["image"], draws["text"])[:GAP_GROUPS]  # the lowest
    drawn: dict[Modality, dict[str, str]] = {m: {} for m in MODALITIES}
    for modality, ids in drawn.items():
        times = Counter[str]()
        for keys, groups in embedding_set.labels(modality):
            for row in np.flatnonzero(np.isin(hash_draws(groups, seed), chosen)):
                if times[groups[row]] < ITEMS:
                    times[groups[row]] += 1
                    ids[point_id(modality, keys[row])] = groups[row]
    return drawn


def measure_space(
    release: Release, drawn: Drawn, kept: Mapping[str, FloatArray], probe: FloatArray, *, seed: int
) -> SpaceResult:
    """Measure the shared space on the points that were drawn.

    Args:
        release: of the points.
        drawn: which points.
        kept: vectors (d,) that were read back, by id.
        probe: a few aligned images (n, d); shows what the store holds.
        seed: of everything random.
    """
    ids = {m: [id_ for id_ in drawn[m] if id_ in kept] for m in MODALITIES}
    codes = group_codes(*([drawn[m][id_] for id_ in ids[m]] for m in MODALITIES))
    vectors = [np.stack([kept[i] for i in ids[m]]) if ids[m] else np.empty((0, 1), np.float32) for m in MODALITIES]
    space = _space(release, probe)
    if space == ALIGNED_SPACE:
        vectors = [stored[:, : release.alignment.dim] for stored in vectors]  # further coordinates are a correction
    try:
        if not all(len(stored) for stored in vectors):
            raise GapError("no group of the queries has both an image and a text in the collection")
        grouped = GroupedEmbeddings(*(ModalityEmbeddings(X, own) for X, own in zip(vectors, codes, strict=True)))
        measured = geometry(grouped, seed=seed)
    except GapError as error:
        return SpaceResult(f"not measured: {error}", finding=f"The modality gap was not measured: {error}.")
    names = sorted({group for m in MODALITIES for group in drawn[m].values()})
    return SpaceResult(space, measured, _projection(grouped, names), list(of_geometry(measured)))


def _space(release: Release, probe: FloatArray) -> str:
    """Say what vectors that were read back are: aligned, or as the metric's lowering stores them."""
    if release.guarantee is not Guarantee.EXACT:
        return ALIGNED_SPACE  # payloads carry them
    lowering = release.lowerings["image"]
    items = with_seen(probe, np.zeros(len(probe))) if lowering.marks_seen else probe
    lowered = lowering.item(items)[:, : release.alignment.dim]
    lengths = np.linalg.norm(lowered, axis=1, keepdims=True)  # 0 where the half of a split vector holds nothing
    if lowered.shape == probe.shape and np.allclose(lowered, lengths * l2_normalize(probe), atol=1e-6):
        return ALIGNED_SPACE
    return f"vectors as {release.metric} stores them"


def _projection(grouped: GroupedEmbeddings, names: Sequence[str]) -> PcaProjection:
    """Project a few pairs onto the two principal axes of images and texts together."""
    groups = grouped.groups[:: -(-len(grouped.groups) // PROJECTED_PAIRS)]
    X, Y = (l2_normalize(one_each(side, groups)) for side in (grouped.image, grouped.text))
    both = np.concatenate([X, Y]).astype(np.float64)
    centred = both - both.mean(axis=0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ axes[:2].T
    images, texts = (
        [(float(x), float(y)) for x, y in part] for part in (projected[: len(groups)], projected[len(groups) :])
    )
    first, second = (lengths**2 / (lengths**2).sum())[:2]
    return PcaProjection([names[group] for group in groups], images, texts, (float(first), float(second)))
