"""Rejects: rows that a run refused, with the reason."""

from dataclasses import dataclass

from alignment.modality import Modality


@dataclass(frozen=True, slots=True)
class Reject:
    """An item or row that was refused, and why.

    Attributes:
        stage: `read`, `decode`, `encode` or `write`.
        reason: a short name that can be counted.
        detail: what exactly was wrong, for people.
    """

    source: str
    position: int
    stage: str
    reason: str
    detail: str
    key: str | None = None
    modality: Modality | None = None
