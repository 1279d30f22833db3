"""The simulation of a job against closed forms, and the sizing against Qdrant's rule."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.job_simulation import HOUR, Failures, Job, simulate
from bench.sizing import GIB, Layout, Rates, size

JOB = Job(units=240, items=1000, workers=8, encoded_per_second=10.0, taken_per_second=1e9)
UNIT_SECONDS = JOB.items / JOB.encoded_per_second
RATES = Rates(taken_per_second=2e4, pushed_per_second=2e4, passed_per_second=1e5, payload_bytes=300)


@pytest.mark.parametrize("workers", [1, 7, 8, 500])
def test_without_failures_a_job_takes_its_work_over_its_workers(workers: int) -> None:
    outcome = simulate(replace(JOB, workers=workers), Failures(), seed=0)
    ideal = JOB.units * UNIT_SECONDS / workers
    assert ideal <= outcome.seconds <= ideal + UNIT_SECONDS + 1
    assert (outcome.attempts, outcome.repeated, outcome.worker_deaths) == (JOB.units, 0, 0)


@pytest.mark.parametrize("taken_per_second", [5.0, 40.0])
def test_a_driver_that_is_slower_than_its_workers_decides(taken_per_second: float) -> None:
    outcome = simulate(replace(JOB, taken_per_second=taken_per_second), Failures(), seed=0)
    assert outcome.seconds == pytest.approx(UNIT_SECONDS + JOB.units * JOB.items / taken_per_second)
    assert outcome.waiting <= JOB.ahead * JOB.workers + 1


@pytest.mark.parametrize("per_hour", [1.0, 20.0])
def test_attempts_follow_the_geometric_law_and_lost_work_the_exponential_one(per_hour: float) -> None:
    """An attempt ends with probability exp(-rt), so a unit takes exp(rt) of them, and (exp(rt) - 1) / r of work."""
    job = replace(JOB, units=20_000)
    outcome = simulate(job, Failures(worker_per_hour=per_hour), seed=1)
    rate = per_hour / HOUR
    attempts = math.exp(rate * UNIT_SECONDS)
    deviation = math.sqrt(job.units * (attempts - 1) * attempts)
    assert outcome.attempts == job.units + outcome.worker_deaths
    assert abs(outcome.attempts - job.units * attempts) < 4 * deviation
    work = outcome.repeated + job.units * UNIT_SECONDS
    assert work == pytest.approx(job.units * (attempts - 1) / rate, rel=0.02)
    assert outcome.seconds == pytest.approx(work / job.workers, rel=0.01)


def test_a_driver_that_dies_keeps_what_waits_and_loses_what_workers_are_at() -> None:
    failures = Failures(driver_per_hour=2.0, driver_start=60.0)
    job = replace(JOB, units=4000, passed_per_second=1e5)
    outcome = simulate(job, failures, seed=3)
    assert outcome.driver_deaths > 10
    lost = outcome.attempts - job.units
    assert 0 < lost <= outcome.driver_deaths * job.workers
    assert outcome.repeated <= lost * UNIT_SECONDS
    begun = outcome.seconds - outcome.driver_deaths * failures.driver_start
    assert begun >= job.units * UNIT_SECONDS / job.workers + outcome.repeated / job.workers


def test_the_same_seed_gives_the_same_job_and_another_one_another() -> None:
    failures = Failures(worker_per_hour=5.0, driver_per_hour=0.5, noticed=15, worker_start=60, driver_start=60)
    first, again, other = (simulate(JOB, failures, seed=seed) for seed in (4, 4, 5))
    assert first == again
    assert first != other


def test_a_death_is_noticed_late_and_another_worker_starts_later_still() -> None:
    """One worker: every death costs the work that is lost, the time until it is noticed, and that of a start."""
    failures = Failures(worker_per_hour=10.0, noticed=15, worker_start=60)
    job = replace(JOB, workers=1, units=200)
    outcome = simulate(job, failures, seed=6)
    waits = outcome.worker_deaths * (failures.noticed + failures.worker_start)
    assert outcome.worker_deaths > 20
    assert outcome.seconds == pytest.approx(job.units * UNIT_SECONDS + outcome.repeated + waits)


@pytest.mark.parametrize("items", [1_000_000, 1_000_000_000])
def test_memory_follows_qdrants_rule_and_grows_with_the_items(items: int) -> None:
    plain = size(items, RATES, Layout(dim=512, replicas=1, quantized=False))
    assert plain.memory_bytes == items * 512 * 4 * 1.5
    assert size(items, RATES, Layout(dim=512, replicas=2, quantized=False)).memory_bytes == 2 * plain.memory_bytes
    assert size(items, RATES, Layout(dim=512, replicas=1)).memory_bytes == plain.memory_bytes / 4
    assert plain.nodes == max(1, math.ceil(plain.memory_bytes / (48 * GIB)))


def test_a_driver_that_takes_and_pushes_one_after_the_other_decides_how_many_gpus_are_of_use() -> None:
    assert RATES.driver_per_second == pytest.approx(1e4)
    found = size(36_000_000, RATES, Layout())
    assert found.gpus == 10
    assert np.isclose(found.hours, 1.0)
    assert np.isclose(size(360_000_000, RATES, Layout()).hours, 10.0)
