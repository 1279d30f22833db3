"""Deadlines: until when a command or a search waits for a server.

A deadline holds for whatever runs inside its `with` block, requests and waits between them. Threads that are started
there have it only if they run in a copy of the context.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Deadline(NamedTuple):
    """A moment by the monotonic clock, and how many seconds there were from the beginning on."""

    at: float
    seconds: float

    @property
    def left(self) -> float:
        """Seconds that are left; 0 or less: none."""
        return self.at - time.monotonic()


_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Let requests to a server in this block be answered within so many seconds in all; None: no limit of its own.

    An earlier deadline around it stays the one that holds.
    """
    outer = _deadline.get()
    inner = None if seconds is None else Deadline(time.monotonic() + seconds, seconds)
    both = [deadline for deadline in (outer, inner) if deadline]
    token = _deadline.set(min(both, default=None))
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
