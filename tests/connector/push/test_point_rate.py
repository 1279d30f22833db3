"""Points a second: the limit holds over a whole run, and time that passes otherwise counts."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from connector.push.point_rate import PointRate
from tests.support.world import opened_world, pairs


@dataclass
class Clock:
    """Time that passes when somebody sleeps, or is told."""

    now: float = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("per_second", [0.5, 50.0, 3000.0])
def test_writes_wait_for_their_turn(per_second: float) -> None:
    clock = Clock()
    rate = PointRate(per_second, lambda: clock.now, clock.sleep)
    written = 0
    for points in (256, 1, 256, 40, 256):
        rate.wait(points)
        assert written <= (clock.now - 100.0) * per_second + 1e-6
        written += points
    assert clock.now - 100.0 == pytest.approx((written - 256) / per_second)


def test_a_slow_store_is_not_slowed_down_further() -> None:
    clock = Clock()
    rate = PointRate(100, lambda: clock.now, clock.sleep)
    for _ in range(5):
        rate.wait(100)
        clock.now += 2.0
    assert clock.now == pytest.approx(110.0)


def test_without_a_limit_nobody_waits_and_writes_are_large() -> None:
    rate = PointRate(sleep=lambda seconds: pytest.fail("nobody waits"))
    rate.wait(1 << 20)
    rate.wait(1 << 20)
    assert rate.at_once(4096) == 4096
    assert [PointRate(limit).at_once(4096) for limit in (0.1, 700.0, 1e6)] == [1, 700, 4096]


def test_every_point_of_a_push_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float | None, int]] = []
    monkeypatch.setattr(PointRate, "wait", lambda self, points: asked.append((self.per_second, points)))
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        done = world.push(world.set("s", *pairs(9)), metrics=["cosine", "chi2"], max_points_per_second=1e6)
    assert {rate for rate, _ in asked} == {1e6}
    assert sum(points for _, points in asked) == done.counts["written"] == 36
