"""Fusion: one score of an item from what a query scores against its images and against its captions.

Scores of the two are of different size and spread, so each is standardised by a mean and a deviation: those of scores
of the release at large, the same for every query. An item that has one of the two alone has its standardised score.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from alignment.modality import MODALITIES, Modality
from alignment.retrieval.caption_weight import CAPTION_WEIGHT
from alignment.retrieval.ways import CAPTION, IMAGE, Way

WAY_OF: Mapping[Modality, Way] = {"image": IMAGE, "text": CAPTION}


@dataclass(frozen=True, slots=True)
class Standard:
    """The mean and the deviation, above 0, of scores of items of one modality."""

    mean: float
    deviation: float

    def of(self, score: float) -> float:
        """Standardise a score."""
        return (score - self.mean) / self.deviation


@dataclass(frozen=True, slots=True)
class Fusion:
    """How scores of images and of captions make one.

    Attributes:
        standards: of each modality that counts.
        weight: of captions, above 0 and below 1; images have the rest.
        queries: how many queries the weight was chosen by; 0: it is `CAPTION_WEIGHT`.
    """

    standards: Mapping[Modality, Standard]
    weight: float = CAPTION_WEIGHT
    queries: int = 0

    def score(self, scores: Mapping[Modality, float]) -> float:
        """Return the score of an item from its scores by modality, at least one of them; higher is better.

        >>> fusion = Fusion({"image": Standard(0.0, 0.1), "text": Standard(0.5, 0.2)}, weight=0.75)
        >>> round(fusion.score({"image": 0.2, "text": 0.9}), 3), round(fusion.score({"image": 0.2}), 3)
        (2.0, 2.0)
        """
        if len(scores) == 1:
            ((modality, score),) = scores.items()
            return self.standards[modality].of(score)
        weights: Mapping[Modality, float] = {"image": 1 - self.weight, "text": self.weight}
        return sum(weights[m] * self.standards[m].of(score) for m, score in scores.items())

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> Self:
        """Return what `recorded` made.

        Raises:
            ValueError: it is none, or a number is out of its range.
        """
        try:
            standards = {m: Standard(float(recorded[m]["mean"]), float(recorded[m]["deviation"])) for m in MODALITIES}
            read = cls(standards, float(recorded["caption_weight"]), int(recorded["queries"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected means and deviations by modality and a weight, got {recorded!r}") from error
        numbers = [number for each in standards.values() for number in (each.mean, each.deviation)]
        positive = all(each.deviation > 0 for each in standards.values())
        if not (all(map(math.isfinite, numbers)) and positive and 0 < read.weight < 1):
            raise ValueError(f"expected finite means, deviations above 0 and a weight between 0 and 1, got {recorded}")
        return read

    def recorded(self) -> dict[str, Any]:
        """Return it as JSON."""
        standards: dict[str, Any] = {
            m: {"mean": each.mean, "deviation": each.deviation} for m, each in self.standards.items()
        }
        return {**standards, "caption_weight": self.weight, "queries": self.queries}
