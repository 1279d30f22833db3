"""The distances of Qdrant. This module imports nothing: a status reads of collections and needs no metrics."""

from enum import StrEnum


class Distance(StrEnum):
    """The comparisons that Qdrant indexes natively, by Qdrant's own names."""

    COSINE = "Cosine"
    DOT = "Dot"
    EUCLID = "Euclid"
    MANHATTAN = "Manhattan"

    @property
    def higher_is_better(self) -> bool:
        """Whether Qdrant returns a similarity under this distance; Euclid and Manhattan return distances."""
        return self in (Distance.COSINE, Distance.DOT)
