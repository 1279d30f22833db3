"""The shared space of an audit, from vectors that were read back: the modality gap, and pairs in a plane."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.errors import GapError
from alignment.geometry.geometry import ITEMS, SAMPLE, geometry
from alignment.geometry.modality_gap import one_each
from alignment.metrics import Guarantee
from alignment.modality import MODALITIES, Modality
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import group_codes
from alignment.sets.embedding_set import EmbeddingSet
from alignment.vectors import FloatArray, l2_normalize
from connector.audits.galleries import Lots, hash_draws
from connector.audits.plan import BOTH, Measure
from connector.audits.result import Audit, PcaProjection
from connector.releases.points import point_id
from connector.releases.release import Release

# Groups whose vectors are kept for the gap, and pairs that are drawn in the plane.
GAP_GROUPS = SAMPLE // 2
PLANE_PAIRS = 250
GAP_MEASURES = (
    "gap",
    "gap.raw",
    "gap.p",
    "gap.centroid",
    "gap.centred",
    "sliced",
    "bures",
    "mutual_neighbours",
)

ALIGNED_SPACE = "aligned vectors"

# Groups by the ids of points, by modality.
Drawn = Mapping[Modality, Mapping[str, str]]


def draw(embedding_set: EmbeddingSet, groups: Mapping[Modality, Lots], *, seed: int) -> Drawn:
    """Draw groups of all queries that have both modalities; return ids of their first points, with their groups.

    Args:
        embedding_set: that they are of.
        groups: their lots, which were drawn with `seed`.
        seed: of the lots.
    """
    chosen = np.intersect1d(groups["image"], groups["text"])[:GAP_GROUPS]  # the lowest
    drawn: dict[Modality, dict[str, str]] = {m: {} for m in MODALITIES}
    for modality, ids in drawn.items():
        times = Counter[str]()
        for keys, its in embedding_set.labels(modality):
            for row in np.flatnonzero(np.isin(hash_draws(its, seed), chosen)):
                if times[its[row]] < ITEMS:
                    times[its[row]] += 1
                    ids[point_id(modality, keys[row])] = its[row]
    return drawn


def measure_space(
    result: Audit, release: Release, drawn: Drawn, kept: Mapping[str, FloatArray], probe: FloatArray
) -> None:
    """Write into `result` what there is to measure of the points that were drawn.

    Args:
        result: of the audit.
        release: that the points are of.
        drawn: which they are.
        kept: vectors (d,) that were read back, by id.
        probe: a few aligned images (n, d), which tell what the store holds.
    """
    ids = {m: [id_ for id_ in drawn[m] if id_ in kept] for m in MODALITIES}
    codes = group_codes(*([drawn[m][id_] for id_ in ids[m]] for m in MODALITIES))
    vectors = [np.stack([kept[i] for i in ids[m]]) if ids[m] else np.empty((0, 1), np.float32) for m in MODALITIES]
    result.geometry_of = _space(release, probe)
    if result.geometry_of == ALIGNED_SPACE:
        vectors = [each[:, : release.alignment.dim] for each in vectors]  # what follows is a correction
    try:
        if not all(len(each) for each in vectors):
            raise GapError("no group of the queries has both an image and a text in the collection")
        labelled = GroupedEmbeddings(*(ModalityEmbeddings(each, of) for each, of in zip(vectors, codes, strict=True)))
        found = geometry(labelled, seed=result.plan.seed)
    except GapError as error:
        result.geometry_of = f"not measured: {error}"
        result.findings.append(f"The modality gap was not measured: {error}.")
        return
    result.geometry = found
    gap = found.gap
    values = (
        gap.debiased,
        gap.raw,
        found.p,
        gap.centroid,
        gap.centred.debiased,
        found.sliced.debiased,
        found.bures.debiased,
        found.mutual_neighbours,
    )
    result.measures += [
        Measure(BOTH, name, value, queries=found.groups) for name, value in zip(GAP_MEASURES, values, strict=True)
    ]
    result.plane = _plane(labelled, sorted({group for m in MODALITIES for group in drawn[m].values()}))


def _space(release: Release, probe: FloatArray) -> str:
    """What vectors that were read back are: aligned, or as the metric's lowering stores them."""
    if release.guarantee is not Guarantee.EXACT:
        return ALIGNED_SPACE  # payloads carry them
    lowered = release.lowerings["image"].item(probe)[:, : release.alignment.dim]
    if lowered.shape == probe.shape and np.allclose(l2_normalize(lowered), l2_normalize(probe), atol=1e-6):
        return ALIGNED_SPACE
    return f"vectors as {release.metric} stores them"


def _plane(labelled: GroupedEmbeddings, names: Sequence[str]) -> PcaProjection:
    """Lay a few pairs on the two axes along which images and texts together vary most."""
    groups = labelled.groups[:: -(-len(labelled.groups) // PLANE_PAIRS)]
    X, Y = (l2_normalize(one_each(side, groups)) for side in (labelled.image, labelled.text))
    both = np.concatenate([X, Y]).astype(np.float64)
    centred = both - both.mean(axis=0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    placed = centred @ axes[:2].T
    shares = lengths**2 / (lengths**2).sum()
    images, texts = ([(float(x), float(y)) for x, y in part] for part in (placed[: len(groups)], placed[len(groups) :]))
    return PcaProjection([names[group] for group in groups], images, texts, (float(shares[0]), float(shares[1])))
