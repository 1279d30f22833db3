"""A job over many units, event by event: workers encode units, some die, and a driver takes the results in order.

The model is the one of docs/scale.md. A worker that dies loses the unit that it is at, which another one begins anew.
Results that are done wait in storage until the driver comes to them. A driver that dies takes its workers with it; the
next one reads what the set holds, and goes on with what waits.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is done, and how quickly.

    Attributes:
        units: number of units.
        items: of a unit.
        workers: number of them.
        encoded_per_second: items that a worker reads and encodes.
        taken_per_second: items that the driver takes into the set and writes into the collection.
        passed_per_second: items in the set that a driver, when it begins, has read again and passes over.
        ahead: how many units, beyond the one that the driver is at, may be begun, for each worker.
    """

    units: int
    items: int
    workers: int
    encoded_per_second: float
    taken_per_second: float
    passed_per_second: float = float("inf")
    ahead: float = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often processes die, and how long it takes until another one works.

    Attributes:
        worker_per_hour, driver_per_hour: rate of the exponential time to the death of one at work.
        noticed: seconds until a worker's death is noticed.
        worker_start, driver_start: seconds until a new one works.
    """

    worker_per_hour: float = 0.0
    driver_per_hour: float = 0.0
    noticed: float = 0.0
    worker_start: float = 0.0
    driver_start: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What a job took.

    Attributes:
        seconds: from its begin to its end.
        attempts: begun units.
        repeated: seconds of workers for attempts that did not end.
        worker_deaths, driver_deaths: number of them; workers that end with their driver are not counted.
        waiting: the most results that waited for the driver.
    """

    seconds: float = 0.0
    attempts: int = 0
    repeated: float = 0.0
    worker_deaths: int = 0
    driver_deaths: int = 0
    waiting: int = 0


def simulate(job: Job, failures: Failures, seed: int) -> Outcome:
    """Run a job to its end; the same seed gives the same outcome."""
    return _Simulation(job, failures, np.random.default_rng(seed)).run()


@dataclass(slots=True)
class _Simulation:
    """The state of a job.

    Attributes:
        epoch: number of the driver; events of an earlier one do not happen.
        taken: units that the driver has taken; it takes the next one while `busy`.
        again: units to begin anew; `fresh` is the first that was never begun.
        done: units whose results wait.
        idle: workers that wait for a unit.
        begun: when each unit that is worked on was begun.
    """

    job: Job
    failures: Failures
    rng: np.random.Generator
    outcome: Outcome = field(default_factory=Outcome)
    now: float = 0.0
    epoch: int = 0
    taken: int = 0
    busy: bool = False
    fresh: int = 0
    idle: int = 0
    again: list[int] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    begun: dict[int, float] = field(default_factory=dict)
    events: list[tuple[float, int, int, Callable[[int], None], int]] = field(default_factory=list)
    count: int = 0

    def run(self) -> Outcome:
        self._begin_driver(0)
        while self.taken < self.job.units:
            self.now, _, epoch, happen, unit = heapq.heappop(self.events)
            if epoch == self.epoch:
                happen(unit)
        self.outcome.seconds = self.now
        return self.outcome

    def _after(self, seconds: float, happen: Callable[[int], None], unit: int = 0) -> None:
        self.count += 1  # events of one moment happen in the order in which they were made
        heapq.heappush(self.events, (self.now + seconds, self.count, self.epoch, happen, unit))

    def _until_death(self, per_hour: float) -> float:
        return float(self.rng.exponential(HOUR / per_hour)) if per_hour else float("inf")

    def _begin_driver(self, _: int) -> None:
        self.idle = self.job.workers
        self._after(self._until_death(self.failures.driver_per_hour), self._kill_driver)
        self._go_on()

    def _kill_driver(self, _: int) -> None:
        self.epoch += 1
        self.outcome.driver_deaths += 1
        for unit, begun in self.begun.items():
            self.outcome.repeated += self.now - begun
            heapq.heappush(self.again, unit)
        self.begun.clear()
        self.busy = False
        passing = self.taken * self.job.items / self.job.passed_per_second
        self._after(self.failures.driver_start + passing, self._begin_driver)

    def _go_on(self) -> None:
        """Give units to workers that wait, and a result to a driver that waits."""
        while self.idle and (unit := self._next()) is not None:
            self.idle -= 1
            self.begun[unit] = self.now
            self.outcome.attempts += 1
            needed = self.job.items / self.job.encoded_per_second
            dies = self._until_death(self.failures.worker_per_hour)
            self._after(min(needed, dies), self._end_unit if needed <= dies else self._kill_worker, unit)
        if not self.busy and self.taken in self.done:
            self.busy = True
            self._after(self.job.items / self.job.taken_per_second, self._take)

    def _next(self) -> int | None:
        """Return the first unit to begin; None: there is none, or it is too far ahead of the driver."""
        unit = self.again[0] if self.again else self.fresh
        if unit >= min(self.job.units, self.taken + 1 + self.job.ahead * self.job.workers):
            return None
        if self.again:
            return heapq.heappop(self.again)
        self.fresh += 1
        return unit

    def _end_unit(self, unit: int) -> None:
        del self.begun[unit]
        self.done.add(unit)
        self.outcome.waiting = max(self.outcome.waiting, len(self.done))
        self.idle += 1
        self._go_on()

    def _kill_worker(self, unit: int) -> None:
        self.outcome.worker_deaths += 1
        self.outcome.repeated += self.now - self.begun.pop(unit)
        self._after(self.failures.noticed, self._give_back, unit)
        self._after(self.failures.noticed + self.failures.worker_start, self._replace_worker)

    def _give_back(self, unit: int) -> None:
        heapq.heappush(self.again, unit)
        self._go_on()

    def _replace_worker(self, _: int) -> None:
        self.idle += 1
        self._go_on()

    def _take(self, _: int) -> None:
        self.done.remove(self.taken)
        self.taken += 1
        self.busy = False
        self._go_on()
