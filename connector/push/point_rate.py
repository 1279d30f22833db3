"""How many points a push writes a second, so that a server that answers searches is not kept busy by it."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class PointRate:
    """Limits the points of one run, over all releases, to `per_second`; None: no limit."""

    per_second: float | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _next: float = 0.0

    def wait(self, points: int) -> None:
        """Block until `points` more may be written."""
        if self.per_second is None:
            return
        if (early := self._next - self.clock()) > 0:
            self.sleep(early)
        self._next = max(self._next, self.clock()) + points / self.per_second

    def at_once(self, most: int) -> int:
        """Return how many of at most `most` points one write should have: those of a second."""
        return most if self.per_second is None else max(1, min(most, int(self.per_second)))
