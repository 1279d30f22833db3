"""What a command gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended: its number in SQL, its counts, and what it made."""

    run: int
    counts: Mapping[str, int]
    made: Any = None
