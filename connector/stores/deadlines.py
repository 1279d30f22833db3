"""Deadlines: until when a command or a search waits for a server.

Its time begins with the first request: what a command does before, such as loading libraries, takes none of it. It
holds for whatever runs inside its `with` block, requests and waits between them. Threads that are started
there have it only if they run in a copy of the context.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Deadline:
    """So many seconds from the first look at how many are left.

    Attributes:
        seconds: how many there are in all.
        outer: a deadline around this one, whose time begins with it at the latest.
    """

    seconds: float
    outer: "Deadline | None" = None
    _at: float | None = None

    @property
    def at(self) -> float:
        """The moment by the monotonic clock; the time begins now, if it has not begun."""
        if self._at is None:
            own = time.monotonic() + self.seconds
            self._at = min(own, self.outer.at) if self.outer else own
        return self._at

    @property
    def left(self) -> float:
        """Seconds that are left; 0 or less: none."""
        return self.at - time.monotonic()

    def most(self) -> float:
        """Return the seconds that are left, or that there are if the time has not begun."""
        return self.seconds if self._at is None else self.left


_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Let requests to a server in this block be answered within so many seconds in all; None: no limit of its own.

    An earlier deadline around it stays the one that holds.
    """
    holds = _deadline.get()
    if seconds is not None and (holds is None or seconds < holds.most()):
        holds = Deadline(seconds, holds)
    token = _deadline.set(holds)
    try:
        yield
    finally:
        _deadline.reset(token)


def deadline() -> Deadline | None:
    """Return the deadline that holds here; None: there is none."""
    return _deadline.get()


def shortened(seconds: float | None) -> float | None:
    """Return a timeout that ends at the deadline at the latest."""
    holds = deadline()
    if holds is None:
        return seconds
    left = max(0.001, holds.left)  # 0 would mean no timeout to some
    return left if seconds is None else min(seconds, left)


def given() -> str:
    """Return in words how long the deadline that holds here was from the beginning on."""
    holds = deadline()
    return f"the {holds.seconds:g} s that were given" if holds else "the time that was given"
