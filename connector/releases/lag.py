"""How far a release is behind its embedding sets."""

from datetime import datetime
from typing import NamedTuple


class Lag(NamedTuple):
    """Rows of embedding sets that a release does not hold, refused ones among them, and since when at the earliest."""

    rows: int
    since: datetime | None
