"""How images and texts lie to each other in one space: the modality gap and what else geometry says, beside Recall@K.

None of it is a proxy for Recall@K. Xu and Leiva (arXiv 2506.08774) find that alignment "cannot be fully characterized
by either spatial distances nor by distribution differences", so a `Geometry` cannot be made without recalls.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.errors import GapError
from alignment.geometry.modality_gap import Gap, gap_of, halves_of, one_each
from alignment.geometry.transport import (
    PERMUTATIONS,
    PROJECTIONS,
    GapDistance,
    bures_squared,
    permutation_p,
    sliced_squared,
)
from alignment.metrics import METRICS, Cosine, Dot, LearnedMetric, Metric
from alignment.modality import DIRECTIONS, MODALITIES, Modality
from alignment.retrieval.bootstrap import Estimate, bootstrap_mean
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import chance_recall_at, group_codes, ranks, top_k
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.shards import read_shard
from alignment.vectors import FloatArray, invalid_rows, l2_normalize

Vectors = npt.NDArray[np.floating]

# Groups of a sample: half of them on either side of a transport, which takes a twentieth of a second.
SAMPLE = 2_000
# Items of a group in either modality: as many captions as benchmarks have. Of class labels there may be thousands.
ITEMS = 5
# Neighbours of hubness and of the overlap, and the fewest groups that have so many and more.
NEIGHBOURS = 10
FEWEST_GROUPS = 20
# Points a side of the permutation test, which solves as many transports as there are permutations.
PERMUTED = 250
SIGNIFICANT = 0.05
BLOCK_ROWS = 64
# Every metric with nothing to learn; the dot product of unit vectors is their cosine.
CLASSICAL = tuple(m for m in METRICS.values() if not isinstance(m, LearnedMetric | Dot))


@dataclass(frozen=True, slots=True)
class PairDistance:
    """How far the images and texts of a group are from each other under one metric, and those of different groups.

    Attributes:
        pair: mean distance of pairs: the metric's own, the cosine distance being `1 - cosine`.
        random: mean distance of an image and a text of different groups.
        separation: `(random - pair)` in standard deviations of the random distances; above 0 where pairs are nearer.
    """

    pair: float
    random: float
    separation: float


@dataclass(frozen=True, slots=True)
class Geometry:
    """The geometry of images and texts in one space, with recalls. docs/audits-measures.md explains every number.

    Attributes:
        recall: by direction and by name such as `recall@10`, among the items of the sample.
        chance: recall of a random order, by the same keys.
        gap: the Wasserstein-2 distance with its nulls.
        p: permutation p-value of the gap, in (0, 1].
        sliced, bures: the sliced distance and that of the Gaussians with the same means and shrunk covariances.
        pairs: by metric.
        alignment_loss: mean squared distance of pairs, in [0, 4]; lower is better.
        uniformity_loss: by modality, `log mean exp(-2 |x - y|^2)` in [-8, 0]; lower is more spread out.
        hubness: by direction, skewness of how often an item is among the 10 nearest of the queries; 0 is none.
        mutual_neighbours: share of an image's 10 nearest images that are of the groups of its text's 10 nearest texts.
        chance_neighbours: the same of a random order.
        groups: in the sample; each gives one image and one text to everything but the recalls.
        items: by modality, that are searched by the recalls.
        left_out: items of those groups that could not be aligned.
        dim: of the space.
        seed: of the sample and of everything random.
        settings: what else the numbers depend on.
    """

    recall: dict[str, dict[str, Estimate]]
    chance: dict[str, dict[str, float]]
    gap: Gap
    p: float
    sliced: GapDistance
    bures: GapDistance
    pairs: dict[str, PairDistance]
    alignment_loss: float
    uniformity_loss: dict[Modality, float]
    hubness: dict[str, float]
    mutual_neighbours: float
    chance_neighbours: float
    groups: int
    items: dict[Modality, int]
    left_out: int
    dim: int
    seed: int
    settings: dict[str, Any]

    @property
    def meaning(self) -> str:
        """The gap and the recalls in words."""
        if self.p > SIGNIFICANT:
            gap = f"Images and texts cannot be told apart as clouds (p = {self.p:.3f})."
        else:
            shift = self.gap.debiased - self.gap.centred.debiased
            gap = (
                f"Images and texts lie {self.gap.raw:.3f} apart, samples of one modality {self.gap.null:.3f}: a gap of "
                f"{self.gap.debiased:.3f} (p = {self.p:.3f}), the root of what their squares differ by. Moving one "
                f"cloud onto the other would close {max(0.0, shift):.3f} of it."
            )
        recalls = " and ".join(
            f"{named['recall@10'].value:.3f} {direction}" for direction, named in self.recall.items()
        )
        return (
            f"{gap} Recall@10 by cosine among {self.items['image']} images and {self.items['text']} texts is "
            f"{recalls}: only recall says what is found, whatever the gap is."
        )

    def to_json(self) -> dict[str, Any]:
        """Lay out for JSON."""
        return asdict(self)


def geometry(aligned: GroupedEmbeddings, *, seed: int = 0, metrics: Sequence[Metric] = CLASSICAL) -> Geometry:
    """Measure images and texts of one space, as unit vectors.

    Memory grows with the number of items and not with its square.

    Args:
        aligned: vectors of both modalities; a row that is NaN, infinite or zero is left out and counted.
        seed: of the halves, the projections and the permutations.
        metrics: what pairs are compared under.

    Raises:
        GapError: the modalities have different dimensions, or share fewer than `FEWEST_GROUPS` groups.
    """
    dims = [side.vectors.shape[1] for side in (aligned.image, aligned.text)]
    if dims[0] != dims[1]:
        raise GapError(
            f"expected images and texts of one space, got {dims[0]} and {dims[1]} dimensions; name an alignment that "
            "brings them into one"
        )
    image, text = _normalised(aligned.image), _normalised(aligned.text)
    data = GroupedEmbeddings(image, text)
    data = data.only(data.groups)
    groups = data.groups
    halves = halves_of(data, seed=seed, most=len(groups))
    if halves is None or len(groups) < FEWEST_GROUPS:
        raise GapError(
            f"expected at least {FEWEST_GROUPS} groups that hold both an image and a text, got {len(groups)}; name a "
            "set with more held-out groups"
        )
    X, Y = one_each(data.image, groups), one_each(data.text, groups)
    # Groups are in the order of their names, and names that are near each other often mean the same kind of thing.
    shuffled = np.random.default_rng(seed).permutation(len(groups))

    return Geometry(
        *_recalls(data, seed),
        gap=gap_of(halves, seed=seed),
        p=permutation_p(halves.images[0][:PERMUTED], halves.texts[1][:PERMUTED], seed=seed),
        sliced=GapDistance.of(halves.squares_of(sliced_squared(seed))),
        bures=GapDistance.of(halves.squares_of(bures_squared)),
        pairs={str(metric): pair_distance(X[shuffled], Y[shuffled], metric) for metric in metrics},
        alignment_loss=float(((X - Y) ** 2).sum(axis=1, dtype=np.float64).mean()),
        uniformity_loss={"image": uniformity(X), "text": uniformity(Y)},
        hubness=dict(zip(DIRECTIONS, (hubness(Y, X), hubness(X, Y)), strict=True)),
        mutual_neighbours=mutual_neighbours(X, Y),
        chance_neighbours=NEIGHBOURS / (len(X) - 1),
        groups=len(groups),
        items={"image": len(data.image.vectors), "text": len(data.text.vectors)},
        left_out=len(aligned.image.vectors) + len(aligned.text.vectors) - len(image.vectors) - len(text.vectors),
        dim=dims[0],
        seed=seed,
        settings={
            "order": 2,
            "cost": "squared Euclidean",
            "normalisation": "unit",
            "recall_metric": str(Cosine()),
            "permutations": PERMUTATIONS,
            "permuted": min(PERMUTED, len(halves.images[0])),
            "projections": PROJECTIONS,
            "shrinkage": "Ledoit-Wolf",
            "neighbours": NEIGHBOURS,
        },
    )


def sampled(
    embedding_set: EmbeddingSet, hold_out: HoldOut, *, groups: int = SAMPLE, seed: int = 0
) -> GroupedEmbeddings:
    """Read the raw vectors of some held-out groups, of the first items of each; no more than a shard of the others is
    ever in memory.

    Args:
        embedding_set: to read from.
        hold_out: which groups may be in the sample.
        groups: how many are drawn; all, where there are fewer.
        seed: of the draw, which does not depend on the order of the rows.

    Raises:
        GapError: the set lacks a modality, or no held-out group has both.
    """
    for modality in MODALITIES:
        if modality not in embedding_set.card.encoders:
            raise GapError(f"embedding set {embedding_set.path} holds no {modality} vectors; encode them into it")
    held = [sorted(_held_out(embedding_set, modality, hold_out)) for modality in MODALITIES]
    both = sorted(set(held[0]) & set(held[1]))
    if not both:
        raise GapError(
            f"embedding set {embedding_set.path}: none of its held-out groups holds both an image and a text; add data"
        )
    chosen = {both[place] for place in np.random.default_rng(seed).permutation(len(both))[:groups]}
    vectors, names = zip(*(_rows_of(embedding_set, modality, chosen) for modality in MODALITIES), strict=True)
    codes = group_codes(*names)
    return GroupedEmbeddings(*(ModalityEmbeddings(side, of) for side, of in zip(vectors, codes, strict=True)))


def _held_out(embedding_set: EmbeddingSet, modality: Modality, hold_out: HoldOut) -> set[str]:
    held_out: set[str] = set()
    for _, labels in embedding_set.labels(modality):
        groups = list(set(labels))
        held_out.update(group for group, held in zip(groups, hold_out.held_out(groups), strict=True) if held)
    return held_out


def _rows_of(embedding_set: EmbeddingSet, modality: Modality, wanted: set[str]) -> tuple[FloatArray, list[str]]:
    vectors, groups, times = [], [], Counter[str]()
    for shard in embedding_set.shards(modality):
        rows = read_shard(shard, modality)
        chosen = []
        for row, group in enumerate(rows.groups):
            if group in wanted and times[group] < ITEMS:
                times[group] += 1
                chosen.append(row)
        vectors.append(rows.vectors[chosen])
        groups += [rows.groups[row] for row in chosen]
    return np.concatenate(vectors), groups


def _normalised(side: ModalityEmbeddings) -> ModalityEmbeddings:
    sound = np.ones(len(side.vectors), dtype=bool)
    sound[list(invalid_rows(side.vectors))] = False
    kept = side.where(sound)
    return ModalityEmbeddings(l2_normalize(kept.vectors), kept.groups)


def _recalls(data: GroupedEmbeddings, seed: int) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, float]]]:
    """Recall@K of both directions with intervals, and by chance."""
    recall, chance = {}, {}
    for direction, queries, items in zip(DIRECTIONS, (data.text, data.image), (data.image, data.text), strict=True):
        best_ranks = ranks(queries.vectors, items.vectors, queries.groups, items.groups, metric=Cosine())
        relevant = np.bincount(items.groups)[queries.groups]
        recall[direction] = {
            f"recall@{k}": bootstrap_mean((best_ranks <= k).astype(np.float64), queries.groups, seed=seed) for k in KS
        }
        chance[direction] = {f"recall@{k}": chance_recall_at(k, relevant, len(items.vectors)) for k in KS}
    return recall, chance


def pair_distance(X: Vectors, Y: Vectors, metric: Metric) -> PairDistance:
    """Compare row i of `X` (n, d) with row i of `Y` (n, d), and with the other rows of its block of 64.

    Rows have to be in a random order: those of a block stand for all others.
    """
    pairs, others = [], []
    for start in range(0, len(X), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        distances = -metric.score(X[rows], Y[rows]).astype(np.float64)  # (c, c)
        same = np.eye(len(distances), dtype=bool)
        pairs.append(distances[same])
        others.append(distances[~same])
    pair, random = np.concatenate(pairs), np.concatenate(others)
    from_one = 1.0 if isinstance(metric, Cosine) else 0.0
    spread, between = float(random.std()), float(random.mean() - pair.mean())
    return PairDistance(
        from_one + float(pair.mean()), from_one + float(random.mean()), between / spread if spread else 0.0
    )


def uniformity(X: Vectors, t: float = 2.0) -> float:
    """Log of the mean Gaussian potential of all pairs of unit vectors (n, d): `log mean exp(-t |x - y|^2)`.

    Wang and Isola, Understanding contrastive representation learning through alignment and uniformity (2020). 0 where
    all rows are one point, `-4 t` were all pairs opposite; of points spread evenly in many dimensions, about `-2 t`.

    >>> uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    -8.0
    """
    total = 0.0
    for start in range(0, len(X), BLOCK_ROWS):
        squares = 2 - 2 * X[start : start + BLOCK_ROWS].astype(np.float64) @ X.T  # (c, n)
        potentials = np.exp(-t * squares)
        np.fill_diagonal(potentials[:, start:], 0.0)  # no row is a pair with itself
        total += float(potentials.sum())
    return float(np.log(total / (len(X) * (len(X) - 1))))


def hubness(queries: Vectors, items: Vectors, k: int = NEIGHBOURS) -> float:
    """Skewness of how often each item (m, d) is among the `k` nearest of the queries (n, d), by cosine of unit vectors.

    Radovanović et al., Hubs in space (2010). 0 where every item is found equally often; a random order gives about
    `1 / sqrt(k n / m)`; above 1, few items crowd out the others.
    """
    found, _ = top_k(queries, items, k, metric=Cosine())
    return skewness(np.bincount(found.ravel(), minlength=len(items)))


def skewness(times: npt.NDArray[np.integer]) -> float:
    """Skewness of how often each of m items was found (m,): 0 where all were found equally often, or none is there.

    >>> round(skewness(np.array([0, 0, 0, 4])), 3)
    1.155
    """
    from scipy.stats import skew  # here, because it takes half a second to import

    return float(skew(times)) if len(times) and np.ptp(times) else 0.0


def mutual_neighbours(X: Vectors, Y: Vectors, k: int = NEIGHBOURS) -> float:
    """Mean share of the `k` nearest other rows of a row that `X` (n, d) and `Y` (n, e), unit vectors, have in common.

    Huh et al., The platonic representation hypothesis (2024). 1 where both spaces have the same neighbours and
    `k / (n - 1)` by chance. It needs no common space: it says what encoders agree on before anything is aligned.
    """
    shares = [len(set(near) & set(other)) / k for near, other in zip(_neighbours(X, k), _neighbours(Y, k), strict=True)]
    return float(np.mean(shares))


def _neighbours(X: Vectors, k: int) -> Iterable[list[int]]:
    """The `k` nearest other rows of every row."""
    for row, found in enumerate(top_k(X, X, k + 1, metric=Cosine())[0].tolist()):
        yield [other for other in found if other != row][:k]
