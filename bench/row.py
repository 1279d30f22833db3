"""A row of the table: what it compares, and its measurement in alternating turns."""

import cProfile
import io
import pstats
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import quantile_test

TURNS = 5
CONFIDENCE = 0.9  # at least this often the interval holds the median ratio of ever more turns; 5 turns give 0.94

Side = Callable[[], float | None]


class LeftOut(Exception):  # noqa: N818 - no error: a row that cannot be measured here
    """A row cannot be measured on this machine; the message says what it needs."""


class Sides(NamedTuple):
    """Both sides of a row, set up. Each is called once a turn.

    Attributes:
        ours: modalign's; returns what it took, in the row's measure; None: the time of the call is taken.
        theirs: what it is compared with; as `ours`.
        note: settings that are known only now, of both sides.
    """

    ours: Side
    theirs: Side
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is compared, and the goal.

    Attributes:
        what: work of modalign's side; `{size}` stands for the size.
        against: what the other side is.
        asked: what both sides are asked, settings included: sentences.
        unit: `time`, seconds over seconds, at most `goal`; `memory`, MiB over MiB, at most `goal`; `count`, as `memory`
            of another quantity; `rate`, work a second over work a second, at least `goal`.
        goal: the ratio to reach.
        size: of the work, as `sides` takes it.
        small: size in the tests.
        sides: sets both sides up for a size.
    """

    what: str
    against: str
    asked: str
    unit: Literal["time", "rate", "memory", "count"]
    goal: float
    size: int
    small: int
    sides: Callable[[int], AbstractContextManager[Sides]]

    @property
    def title(self) -> str:
        """What is compared, with its size."""
        return self.what.format(size=f"{self.size:,}")

    @property
    def at_least(self) -> bool:
        """Whether a higher ratio is better."""
        return self.unit == "rate"


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of a row.

    Attributes:
        row: the row.
        ours: what our side took in each turn: seconds, MiB or a count; empty: the row was left out.
        theirs: the same of the other side.
        note: settings of both sides, or why the row was left out.
    """

    row: Row
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    note: str

    @property
    def ratios(self) -> list[float]:
        """The ratio of each turn."""
        ratios = [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return [1 / ratio for ratio in ratios] if self.row.at_least else ratios

    @property
    def ratio(self) -> float:
        """The median of the ratios of the turns."""
        return float(np.median(self.ratios))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Two of the ratios, between which the median of ever more turns lies; None: too few turns to tell.

        It is the interval of the sign test, which assumes nothing of how the ratios are distributed.
        """
        low, high = quantile_test(self.ratios, q=self.row.goal, p=0.5).confidence_interval(CONFIDENCE)
        return None if np.isnan(low) else (float(low), float(high))

    @property
    def verdict(self) -> str:
        """`met` or `missed`, where the whole interval lies on one side of the goal; otherwise `unclear`."""
        if not self.ours:
            return "not measured"
        if self.interval is None:
            return "unclear"
        low, high = self.interval
        if self.row.at_least:
            low, high = -high, -low
        goal = -self.row.goal if self.row.at_least else self.row.goal
        return "met" if high <= goal else "missed" if low > goal else "unclear"


def measure(row: Row, *, small: bool = False, turns: int = TURNS) -> Result:
    """Measure both sides in turns; which of them begins alternates."""
    ours: list[float] = []
    theirs: list[float] = []
    try:
        with row.sides(row.small if small else row.size) as sides:
            for turn in range(turns):
                both = [(sides.ours, ours), (sides.theirs, theirs)]
                for side, taken in reversed(both) if turn % 2 else both:
                    taken.append(_taken(side))
    except LeftOut as reason:
        return Result(row, (), (), str(reason))
    return Result(row, tuple(ours), tuple(theirs), sides.note)


def profile(row: Row, lines: int = 15) -> str:
    """Run modalign's side once; say in which functions of this process the time went, without those that they call."""
    printed = io.StringIO()
    try:
        with row.sides(row.size) as sides, cProfile.Profile() as profiler:
            sides.ours()
    except LeftOut as reason:
        return str(reason)
    pstats.Stats(profiler, stream=printed).strip_dirs().sort_stats("tottime").print_stats(lines)
    return printed.getvalue()


def _taken(side: Side) -> float:
    started = time.perf_counter()
    own = side()
    seconds = time.perf_counter() - started
    return seconds if own is None else own
