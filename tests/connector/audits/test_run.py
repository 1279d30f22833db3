"""Audits verify a release before they measure it, and one run audits all that a promotion would switch."""

import re
from typing import Any

import numpy as np
import pytest

from connector import progress as progressing
from connector.errors import CollectionNotFoundError, GateError, RequirementError
from connector.releases import verify as verifying
from connector.releases.points import point_id
from connector.releases.promotion import Lifecycle
from connector.requests import AuditRequest
from connector.stores.points import Points
from tests.support.audits import audited
from tests.support.errors import raises
from tests.support.world import COLLECTION, World, opened, pairs, the_set


@pytest.fixture
def world(world: World) -> World:
    world.push(world.set("s", *pairs(8)))
    return world


# Of both guarantees.
CHI2 = "chi2(map=split)"
SEVERAL = ("cosine", "euclid", CHI2)


def asked(**options: Any) -> AuditRequest:
    return AuditRequest(collection=COLLECTION, pairs="s", queries="all", gallery="all", **options)


@pytest.mark.slow
def test_audits_of_one_seed_verify_other_points_each_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "ROWS", 3)
    name, id_ = opened(world).name, point_id("image", "5")
    (record,) = world.store.retrieve(name, [id_], vector_name="image")
    assert record.vector is not None
    world.store.upsert(name, Points("image", [id_], np.roll(record.vector, 1)[None], [record.payload]))
    verdicts = [audit.verdict for _ in range(12) for audit in audited(world, asked(seed=3))]
    assert set(verdicts) == {"measured", "broken"}


@pytest.mark.slow
def test_what_may_take_minutes_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading all points comes before the first query; the gap and the comparison come after the last one."""
    monkeypatch.setattr(progressing, "SECONDS_BETWEEN_LINES", 0.0)
    name = opened(world).name
    audited(world, asked())
    caplog.set_level("INFO")
    audited(world, asked(baseline="last"))
    lines = capsys.readouterr().err.splitlines()
    first_query = next(number for number, line in enumerate(lines) if re.match(f"audit {name}: [1-9]", line))
    assert [line for line in lines[:first_query] if line.startswith(f"read {name}: 8 points, ")]
    assert caplog.messages[-2:] == [
        f"audit {name}: measuring the modality gap",
        f"audit {name}: comparing with audit 1",
    ]


def promoted(world: World) -> dict[str, int | None]:
    """Promote, and return by metric the audit that allowed it."""
    with world.provenance.runs.start("promote", {}) as run:
        switched = Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id)
    return {each.row.metric: each.promotion.audit_id for each in switched}


class TestAllThatOnePromotionWouldSwitch:
    """Whoever audits `ready` and then promotes is not refused for a metric that was not audited."""

    @pytest.fixture
    def beside(self, world: World) -> World:
        """A live release and a shadow under each of several metrics; an older shadow under one of them."""
        world.push(the_set(world), metrics=SEVERAL)
        world.push(the_set(world), world.alignment("older", turn=1), metrics=[CHI2])
        world.push(the_set(world), world.alignment("newer", turn=2), metrics=SEVERAL)
        return world

    @pytest.mark.slow
    def test_every_metric_is_audited_then_all_are_promoted(self, beside: World) -> None:
        with raises(GateError, COLLECTION, code="gate"):
            promoted(beside)
        audits = audited(beside, asked(release="ready", require=["recall@1>=0"]))
        assert sorted(audit.row.metric for audit in audits) == sorted(SEVERAL)
        assert {beside.provenance.artifacts.alignment(audit.row.alignment_id).name for audit in audits} == {"newer"}
        rows = [beside.provenance.audits.get(audit.number) for audit in audits]
        assert [row.release_id for row in rows] == [audit.row.id for audit in audits]
        assert len({row.run_id for row in rows}) == 1
        assert promoted(beside) == {audit.row.metric: audit.number for audit in audits}

    @pytest.mark.slow
    def test_requirements_hold_for_each_metric(self, beside: World) -> None:
        audits = audited(beside, asked(release="ready", require=["recall@1>=0", "recall@1<=0"]))
        assert {audit.row.metric: audit.verdict for audit in audits} == dict.fromkeys(SEVERAL, "failed")
        assert {f.requirement.text for audit in audits for f in audit.failures} == {"recall@1<=0"}
        with raises(GateError, *(audit.row.physical_name for audit in audits), "recall@1<=0", code="gate"):
            promoted(beside)

    @pytest.mark.slow
    def test_a_broken_release_does_not_keep_the_others_from_being_audited(self, beside: World) -> None:
        shadow = next(r for r in beside.provenance.releases.find(metric="cosine", state="ready"))
        beside.store.delete(shadow.physical_name, [point_id("image", "5")])
        audits = audited(beside, asked(release="ready", require=["recall@1>=0"]))
        verdicts = {audit.row.metric: audit.verdict for audit in audits}
        assert verdicts == {"cosine": "broken", "euclid": "passed", CHI2: "passed"}

    @pytest.mark.slow
    def test_a_metric_that_is_named_is_audited_alone(self, beside: World) -> None:
        (audit,) = audited(beside, asked(release="ready", metric=CHI2))
        assert (audit.row.metric, audit.row.state) == (CHI2, "ready")
        assert [audit.row.metric for audit in audited(beside, asked())] == ["cosine"]

    @pytest.mark.slow
    def test_a_requirement_that_one_metric_does_not_have_names_its_release(self, beside: World) -> None:
        with raises(RequirementError, "rescoring:recall@1>=0", "cosine"):
            audited(beside, asked(release="ready", require=["rescoring:recall@1>=0"]))

    def test_one_that_is_not_worse_than_the_live_one_or_cannot_be_compared_says_so(self, world: World) -> None:
        world.push(the_set(world))
        world.push(the_set(world), world.alignment("newer", turn=2))  # the same scores, but for rounding
        (alone,) = audited(world, asked(release="ready"))
        audited(world, asked())
        (beside,) = audited(world, asked(release="ready"))
        said = [[s for s in audit.findings if "the live release" in s] for audit in (alone, beside)]
        assert [len(sentences) for sentences in said] == [1, 1]
        assert said[0][0].startswith("Not compared with the live release")
        assert said[1][0].startswith("No recall is significantly below that of the live release, over ")

    def test_without_a_shadow_nothing_is_audited(self, world: World) -> None:
        with raises(CollectionNotFoundError, COLLECTION, "ready"):
            audited(world, asked(release="ready"))
