"""A fit of an encoder pair in its shared space, and what a whole collection finds there under a metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.comparison.captions import ByWay
from alignment.comparison.encoder_pairs import PairData
from alignment.comparison.paired_bootstrap import Floats
from alignment.comparison.whole_collection import WholeCollection, whole_collection
from alignment.fitting.methods import Projections
from alignment.fitting.seen_offsets import GapSample
from alignment.metrics import Metric
from alignment.metrics.seen_offset import carries, is_squared
from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval.grouped import GroupedEmbeddings

# Numbers that a metric may hold, in all, to score a whole collection: some ten seconds.
CHEAP = 1 << 34


@dataclass(frozen=True, slots=True)
class FittedPair:
    """A fit in its shared space.

    Attributes:
        aligned: test groups.
        whole: `data.whole` in the shared space.
        sample: from which the offsets follow; None: there are none.
    """

    data: PairData
    projections: Projections
    aligned: GroupedEmbeddings
    whole: GroupedEmbeddings
    sample: GapSample | None

    def is_cheap(self, metric: Metric) -> bool:
        """Whether to score the whole collection under a metric takes seconds, not minutes."""
        asked, items = self.data.test, self.whole
        sides = ((asked.text, items.image), (asked.image, items.text))
        pairs = sum(2 * len(queries.groups) * len(gallery.groups) for queries, gallery in sides)
        return pairs * metric.floats_per_pair(self.projections[0].out_dim) <= CHEAP

    def collection(self, bound: Mapping[Modality, Metric], *, seed: int, with_curves: bool) -> WholeCollection:
        """Measure the whole collection under a metric, by the modality of the items, without and with the offset."""
        metrics = [bound[target] for _, target in DIRECTIONS.values()]
        offsets = self._offsets(metrics)
        scored = self.data.whole.scores(self.projections, self.whole, metrics, seed=seed)
        test = self.data.test.groups
        known = np.setdiff1d(self.whole.groups, test)
        return whole_collection(scored, offsets, known, test, seed=seed, with_curves=with_curves)

    def by_way(self, bound: Mapping[Modality, Metric], *, seed: int) -> ByWay | None:
        """Find items by image, by aligned caption and by both, as production does; None: too few queries."""
        image, text, captions = self.whole.image, self.whole.text, self.data.captions
        offset = self._offsets([bound[target] for _, target in DIRECTIONS.values()]).get("image", 0.0)
        taken_off = offset * ~np.isin(image.groups, self.data.test.groups)
        aligned = self.projections[1].unchecked(captions.asked.vectors)

        def by_image(part: slice) -> Floats:
            scores: Floats = bound["image"].score(aligned[part], image.vectors).astype(np.float64)
            squared = is_squared(bound["image"], image.vectors.shape[1])
            return (scores * np.abs(scores) if squared else scores) - taken_off

        def by_caption(part: slice) -> Floats:
            scores: Floats = bound["text"].score(aligned[part], text.vectors).astype(np.float64)
            return scores

        return captions.by_way(by_image, by_caption, image.groups, seed)

    def _offsets(self, metrics: Sequence[Metric]) -> Mapping[Modality, float]:
        return self.sample.offsets(metrics) if self.sample is not None and all(map(carries, metrics)) else {}
