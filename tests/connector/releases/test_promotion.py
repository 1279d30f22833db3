"""Promoting, rolling back and dropping releases: gated, recorded, and finished by the same command after any crash."""

import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from alignment.errors import EmbeddingSetError, ModalignError
from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import CollectionNotFoundError, GateError, MismatchError, SettingsError
from connector.provenance.tables import BatchRow, PromotionRow, ReleaseRow, now
from connector.releases import dropping
from connector.releases.chain import search_settings
from connector.releases.points import point_id
from connector.releases.promotion import AliasSwitch, Lifecycle, PromotionOverride
from connector.releases.reconcile_releases import repair_releases
from connector.releases.release import Release, open_release
from connector.releases.status import pending
from connector.stores.points import Points
from tests.support.errors import raises
from tests.support.slow import slow_unless
from tests.support.world import COLLECTION, ON_SERVERS, Calls, World, alignment, pairs

FORCED = PromotionOverride("someone@somewhere", "the live one is broken")


@pytest.fixture
def world(world: World) -> World:
    world.alignment("b", turn=1)
    return world


def shadowed(world: World, *metrics: str) -> tuple[list[Release], list[Release]]:
    """Live releases and the shadows of another alignment beside them."""
    embedding_set = world.set("s", *pairs(6))
    options: dict[str, Any] = {"metrics": metrics or ("cosine",)}
    return world.push(embedding_set, **options).releases, world.push(embedding_set, "b", **options).releases


def row_of(world: World, release: Release) -> ReleaseRow:
    (row,) = world.provenance.releases.find(physical_name=release.name)
    return row


def audited(world: World, *releases: Release, verdict: str = "passed", **changes: Any) -> None:
    """Record an audit as `connector.audits.recording.record` does."""
    for release in releases:
        row = row_of(world, release)
        settings = {
            "points": row.points,
            "served_with": search_settings(row),
            "revision": row.revision,
            "failed_requirements": ["recall@1>1"],
        }
        (embedding_set,) = world.provenance.ledger.sets_in([row.id])
        with world.provenance.runs.start("audit", {}) as run:
            world.provenance.audits.record(
                run_id=run.id,
                release_id=row.id,
                set_id=embedding_set.id,
                verdict=verdict,
                settings={**settings, **changes},
                measures=[],
                per_query={},
            )


def promote(world: World, **options: Any) -> list[AliasSwitch]:
    with world.provenance.runs.start("promote", {}) as run:
        return Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, **options)


def rollback(world: World, **options: Any) -> list[AliasSwitch]:
    with world.provenance.runs.start("rollback", {}) as run:
        return Lifecycle(world.provenance, world.store, COLLECTION).rollback(run.id, **options)


def drop(world: World, **options: Any) -> None:
    lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)
    dropping.drop(lifecycle, dropping.droppable(lifecycle, **options))


def states(world: World, *releases: Release) -> list[str]:
    return [row_of(world, release).state for release in releases]


def promotions(world: World) -> list[tuple[str, str, str | None, int | None, str | None, str | None, bool]]:
    names = {row.id: row.physical_name for row in world.provenance.releases.find()}
    return [
        (
            p.kind,
            names[p.release_id],
            names.get(p.previous_id or 0),
            p.audit_id,
            p.forced_by,
            p.reason,
            p.finished_at is not None,
        )
        for p in world.provenance.releases.promotions()
    ]


@ON_SERVERS
class TestPromote:
    def test_all_metrics_are_switched_at_one_moment_and_recorded(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live, shadows = shadowed(world, "cosine", "dot")
        audited(world, *shadows)
        switches = Calls(monkeypatch, world.store, "set_aliases")
        switched = promote(world)
        aliases = {f"{COLLECTION}.cosine": shadows[0].name, f"{COLLECTION}.dot": shadows[1].name}
        assert [arguments for (arguments,) in switches.arguments] == [aliases]
        assert world.store.aliases() == aliases
        assert states(world, *live, *shadows) == ["retired", "retired", "live", "live"]
        assert promotions(world) == [
            ("promote", new.name, old.name, number + 1, None, None, True)
            for number, (old, new) in enumerate(zip(live, shadows, strict=True))
        ]
        assert [(s.row.physical_name, s.row.state, s.refused, s.lacks) for s in switched] == [
            (shadow.name, "live", None, []) for shadow in shadows
        ]
        (first, _) = world.provenance.releases.promotions()
        assert first.finished_at is not None
        assert first.started_at <= first.finished_at <= now()
        assert world.provenance.runs.newest(1)[0].id == first.run_id
        assert open_release(world.provenance, world.store, COLLECTION, "cosine").name == shadows[0].name

    def test_again_changes_nothing(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        _, shadows = shadowed(world)
        audited(world, *shadows)
        promote(world)
        before, switches = world.snapshot(), Calls(monkeypatch, world.store, "set_aliases")
        assert promote(world) == promote(world, names=[shadows[0].name]) == promote(world, metrics=["cosine"]) == []
        assert (world.snapshot(), len(switches), len(promotions(world))) == (before, 0, 1)

    def test_one_metric_of_several(self, world: World) -> None:
        live, shadows = shadowed(world, "cosine", "dot")
        audited(world, *shadows)
        promote(world, metrics=["dot"])
        assert states(world, *live, *shadows) == ["live", "retired", "ready", "live"]

    def test_of_several_alignments_the_newest_or_the_named(self, world: World) -> None:
        live, older = shadowed(world)
        world.alignment("c", turn=2)
        newer = world.push(world.set("s", *pairs(6)), "c").releases
        audited(world, *older, *newer)
        promote(world)
        assert states(world, *live, *older, *newer) == ["retired", "ready", "live"]
        promote(world, names=[older[0].name])
        assert states(world, *live, *older, *newer) == ["retired", "live", "retired"]

    def test_what_is_not_there(self, world: World) -> None:
        with raises(CollectionNotFoundError, "'things'", world.store.url):
            promote(world)
        live, _ = shadowed(world)
        with raises(CollectionNotFoundError, "'nothing'", "'things'", "things.cosine"):
            promote(world, names=["nothing"])
        with raises(CollectionNotFoundError, "`modalign status things`"):
            promote(world, metrics=["dot"])
        drop_state(world, live[0], "building")
        with raises(CollectionNotFoundError, "building", "ready"):
            promote(world, names=[live[0].name])

    def test_a_push_after_it_goes_to_the_new_one_alone(self, world: World) -> None:
        live, shadows = shadowed(world)
        audited(world, *shadows)
        promote(world)
        world.push(world.set("more", *pairs(3, seed=4, prefix="more-")), "b")
        assert (world.store.count(live[0].name), world.store.count(shadows[0].name)) == (12, 18)


def drop_state(world: World, release: Release, state: str) -> None:
    row = row_of(world, release)
    row.state = state
    world.provenance.releases.save(row)


def written_since(world: World, release: Release) -> None:
    """As a host writes whose clock is an hour slow."""
    (embedding_set,) = world.provenance.ledger.sets_in([release.row.id])
    with world.provenance.runs.start("push", {}) as run:
        entries = world.provenance.ledger.entries(release.row.id, embedding_set.id)
        world.provenance.ledger.write(release.row.id, embedding_set.id, run.id, entries)
    with world.provenance.database.session() as session:
        for line in session.query(BatchRow).filter_by(release_id=release.row.id):
            line.written_at = now() - timedelta(hours=1)


def repaired_since(world: World, release: Release) -> None:
    foreign_point(world, release)
    with world.provenance.runs.start("repair", {}) as run:
        repair_releases(world.provenance, world.store, run, orphans=1)


def being_written(world: World, release: Release) -> None:
    """A push was killed before it recorded what it wrote; an audit came after it had begun."""
    (embedding_set,) = world.provenance.ledger.sets_in([release.row.id])
    world.provenance.releases.begin_write(release.row, embedding_set.id)
    audited(world, release)


def rolled_back_since(world: World, release: Release) -> None:
    promote(world)
    rollback(world)
    world.push(world.set("s", *pairs(6)), "b")


class TestGate:
    REFUSED: Sequence[tuple[dict[str, Any] | None, Callable[[World, Release], object] | None, str]] = [
        (None, None, "was never audited"),
        ({"verdict": "failed"}, None, r"its newest audit, of run 3, has failed: recall@1>1"),
        ({"verdict": "measured"}, None, "required nothing"),
        ({"verdict": "waived"}, None, "'waived'"),
        ({}, written_since, r"saw revision \d+ of the release, written to"),
        ({}, repaired_since, r"saw revision \d+ of the release, written to"),
        ({}, being_written, "a push into the release was not finished"),
        ({"points": 11}, None, "saw 11 points, it holds 12"),
        ({"served_with": {"hnsw_ef": 64}}, None, "searched with {'hnsw_ef': 64}, production would with {"),
        ({}, rolled_back_since, r"saw revision \d+ of the release, written to or rolled back since"),
    ]

    @pytest.mark.parametrize(("audit", "after", "message"), REFUSED)
    def test_refused_unless_forced(
        self,
        world: World,
        audit: dict[str, Any] | None,
        after: Callable[[World, Release], object] | None,
        message: str,
    ) -> None:
        live, shadows = shadowed(world)
        if audit is not None:
            audited(world, *shadows, **audit)
        if after:
            after(world, shadows[0])
        before = world.snapshot(), promotions(world)
        with pytest.raises(GateError, match=message) as caught:
            promote(world)
        assert shadows[0].name in str(caught.value)
        assert "--force --reason" in str(caught.value)
        assert (world.snapshot(), promotions(world)) == before
        (switched,) = promote(world, forced=FORCED)
        assert switched.refused
        assert switched.refused in str(caught.value)
        assert promotions(world)[-1] == (
            "promote",
            shadows[0].name,
            live[0].name,
            None,
            FORCED.by,
            FORCED.reason,
            True,
        )
        assert states(world, *live, *shadows) == ["retired", "live"]

    def test_the_newest_audit_counts(self, world: World) -> None:
        _, shadows = shadowed(world)
        audited(world, *shadows)
        audited(world, *shadows, verdict="failed")
        with raises(GateError, "failed"):
            promote(world)
        audited(world, *shadows)
        promote(world, forced=FORCED)  # which was not needed
        assert promotions(world)[0][3:6] == (3, None, None)

    def test_one_that_is_refused_holds_all_back(self, world: World) -> None:
        live, shadows = shadowed(world, "cosine", "dot")
        audited(world, shadows[0])
        with raises(GateError, shadows[1].name):
            promote(world)
        assert states(world, *live, *shadows) == ["live", "live", "ready", "ready"]


def another_vector(world: World, release: Release) -> None:
    (record,) = world.store.retrieve(release.name, [point_id("image", "3")], vector_name="image")
    turned = np.roll(np.asarray(record.vector), 1)[None]
    world.store.upsert(release.name, Points("image", [record.id], turned, [record.payload]))


def another_payload(world: World, release: Release) -> None:
    (record,) = world.store.retrieve(release.name, [point_id("text", "2")], vector_name="text")
    vector = np.asarray(record.vector)[None]
    world.store.upsert(release.name, Points("text", [record.id], vector, [{**record.payload, "content_sha256": "0"}]))


def foreign_point(world: World, release: Release) -> None:
    world.store.upsert(release.name, Points("image", [point_id("image", "x")], np.ones((1, 6), np.float32), [{}]))


def set_of_live_alone(world: World, release: Release) -> None:
    drop_state(world, release, "retired")
    world.push(world.set("more", *pairs(2, seed=4, prefix="more-")))
    drop_state(world, release, "ready")


def no_set(world: World, release: Release) -> None:
    shutil.rmtree(world.home / "sets" / "s")


def another_set(world: World, release: Release) -> None:
    world.set("s", *pairs(6, seed=9))


def another_alignment(world: World, release: Release) -> None:
    shutil.rmtree(world.home / "alignments" / "b")
    world.alignment("b", turn=5)


Breaking = Callable[[World, Release], object]
# What breaks a release, the error of verifying it, and values that its message names.
BROKEN: Sequence[tuple[Breaking, type[ModalignError], Sequence[object]]] = [
    (another_vector, MismatchError, ["image:3", "sets/s"]),
    (another_payload, MismatchError, ["text:2", "sets/s"]),
    (foreign_point, MismatchError, [13, 12]),
    (no_set, EmbeddingSetError, ["sets/s"]),
    (another_set, MismatchError, [COLLECTION]),
    (another_alignment, MismatchError, ["alignment b", *(alignment(turn=turn).fingerprint[:12] for turn in (1, 5))]),
]


@ON_SERVERS
class TestVerification:
    """What no audit and no force can make up for."""

    @pytest.mark.parametrize(
        ("broken", "kind", "values"),
        [
            *BROKEN,
            (
                set_of_live_alone,
                MismatchError,
                [4, "modalign push more --into things --alignment b --metric 'cosine'"],
            ),
        ],
    )
    def test_a_promotion_is_refused(
        self,
        world: World,
        broken: Callable[[World, Release], object],
        kind: type[ModalignError],
        values: Sequence[object],
    ) -> None:
        live, shadows = shadowed(world)
        broken(world, shadows[0])
        audited(world, *shadows)
        with raises(kind, *values):
            promote(world, forced=FORCED)
        assert states(world, *live, *shadows) == ["live", "ready"]
        assert promotions(world) == []

    @pytest.mark.parametrize(("broken", "kind", "values"), BROKEN[:3])
    def test_a_rollback_is_refused(
        self,
        world: World,
        broken: Callable[[World, Release], object],
        kind: type[ModalignError],
        values: Sequence[object],
    ) -> None:
        live, shadows = shadowed(world)
        promote(world, forced=FORCED)
        broken(world, live[0])
        with raises(kind, *values):
            rollback(world)
        assert states(world, *live, *shadows) == ["retired", "live"]


def promoted_twice(world: World) -> tuple[Release, Release, Release]:
    """Releases of three alignments, of which the last one is live."""
    (first,), (second,) = shadowed(world)
    promote(world, forced=FORCED)
    world.alignment("c", turn=2)
    (third,) = world.push(EmbeddingSet.open(world.home / "sets" / "s"), "c", metrics=["cosine"]).releases
    promote(world, forced=FORCED)
    return first, second, third


class TestNamedRequests:
    """What is recorded under a name is finished, and never done twice, whatever came between."""

    def test_a_rollback(self, world: World) -> None:
        first, second, third = promoted_twice(world)
        rollback(world, request="r1")
        rollback(world, to=[third.name])
        assert rollback(world, request="r1") == []
        assert states(world, first, second, third) == ["retired", "retired", "live"]

    def test_a_promotion(self, world: World) -> None:
        _, shadows = shadowed(world)
        promote(world, forced=FORCED, request="p1")
        world.alignment("c", turn=2)
        (newer,) = world.push(EmbeddingSet.open(world.home / "sets" / "s"), "c", metrics=["cosine"]).releases
        assert promote(world, forced=FORCED, request="p1") == []
        assert states(world, *shadows, newer) == ["live", "ready"]

    def test_of_another_kind(self, world: World) -> None:
        shadowed(world)
        promote(world, forced=FORCED, request="x")
        with raises(SettingsError, "'x'"):
            rollback(world, request="x")

    @pytest.mark.slow
    @pytest.mark.parametrize("step", [2, 3, 4, 5])
    def test_one_that_was_killed_is_finished(self, world: World, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        first, second, third = promoted_twice(world)
        killed(world, monkeypatch, STEPS[step], lambda: rollback(world, request="r1"))
        rollback(world, request="r1")
        assert states(world, first, second, third) == ["retired", "live", "retired"]
        assert [p.request for p in world.provenance.releases.promotions(kind="rollback")] == ["r1"]


@ON_SERVERS
class TestRollback:
    @pytest.mark.slow
    def test_the_previous_releases_come_back(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        live, shadows = shadowed(world, "cosine", "dot")
        before = world.snapshot()
        promote(world, forced=FORCED)
        switches = Calls(monkeypatch, world.store, "set_aliases")
        rollback(world)
        assert len(switches) == 1
        assert world.store.aliases() == before["aliases"]
        assert states(world, *live, *shadows) == ["live", "live", "retired", "retired"]
        assert [line[:3] for line in promotions(world)[2:]] == [
            ("rollback", old.name, new.name) for old, new in zip(live, shadows, strict=True)
        ]
        assert rollback(world) == []  # it is undone
        assert world.store.aliases() == before["aliases"]

    def test_nothing_was_promoted(self, world: World) -> None:
        shadowed(world)
        with raises(CollectionNotFoundError, COLLECTION):
            rollback(world)
        with raises(CollectionNotFoundError, "dot"):
            rollback(world, metrics=["dot"])

    def test_one_metric_and_then_the_rest(self, world: World) -> None:
        live, shadows = shadowed(world, "cosine", "dot")
        promote(world, forced=FORCED)
        rollback(world, metrics=["dot"])
        assert states(world, *live, *shadows) == ["retired", "live", "live", "retired"]
        assert rollback(world, metrics=["dot"]) == []
        rollback(world)
        assert states(world, *live, *shadows) == ["live", "live", "retired", "retired"]

    def test_repeated_it_goes_back_once_and_further_to_a_name(self, world: World) -> None:
        live, second, third = promoted_twice(world)
        for _ in range(3):
            rollback(world)
            assert states(world, live, second, third) == ["retired", "live", "retired"]
        for _ in range(2):
            rollback(world, to=[live.name])
            assert states(world, live, second, third) == ["live", "retired", "retired"]
        rollback(world, to=[third.name])  # forward again
        assert states(world, live, second, third) == ["retired", "retired", "live"]

    def test_only_to_what_was_live(self, world: World) -> None:
        _, shadows = shadowed(world)
        with raises(CollectionNotFoundError, shadows[0].name):
            rollback(world, to=[shadows[0].name])
        with raises(CollectionNotFoundError, "things.cosine.0"):
            rollback(world, to=["things.cosine.0"])

    def test_to_two_releases_of_one_metric(self, world: World) -> None:
        live, second, _ = promoted_twice(world)
        with raises(SettingsError, live.name, second.name):
            rollback(world, to=[live.name, second.name])

    def test_what_arrived_since_is_named(self, world: World) -> None:
        live, _ = shadowed(world)
        promote(world, forced=FORCED)
        world.push(world.set("more", *pairs(2, seed=4, prefix="more-")), "b")
        (switched,) = rollback(world)
        (lack,) = switched.lacks
        assert lack.startswith(f"release {live[0].name} lacks 4 points of embedding set more that ")
        assert lack.endswith("run `modalign push more --into things --alignment a --metric 'cosine'`")
        world.push(world.set("more", *pairs(2, seed=4, prefix="more-")))
        assert world.states()[live[0].name] == ("live", 16)

    def test_what_was_dropped_does_not_come_back(self, world: World) -> None:
        _, shadows = shadowed(world)
        promote(world, forced=FORCED)
        drop(world, retired=True)
        with raises(CollectionNotFoundError, shadows[0].name):
            rollback(world)


@ON_SERVERS
class TestDrop:
    def test_retired_ones(self, world: World) -> None:
        live, shadows = shadowed(world, "cosine", "dot")
        promote(world, forced=FORCED)
        drop(world, retired=True)
        assert world.store.collections() == sorted(shadow.name for shadow in shadows)
        assert {name for name, *_ in world.ledger()} == {shadow.name for shadow in shadows}
        assert all(row_of(world, release).dropped_at for release in live)
        assert [line[2] for line in promotions(world)] == [release.name for release in live]  # SQL remembers them
        drop(world, retired=True)  # of which there are none

    def test_ready_and_building_ones_by_name(self, world: World) -> None:
        live, shadows = shadowed(world, "cosine", "dot")
        drop_state(world, shadows[1], "building")
        audited(world, shadows[0])
        drop(world, names=[shadow.name for shadow in shadows])
        assert world.store.collections() == sorted(release.name for release in live)

    def test_never_the_live_one(self, world: World) -> None:
        live, shadows = shadowed(world)
        with raises(MismatchError, live[0].name, "things.cosine"):
            drop(world, names=[shadows[0].name, live[0].name])
        world.store.set_aliases({"someone-elses": shadows[0].name})
        with raises(MismatchError, "someone-elses"):
            drop(world, names=[shadows[0].name])
        assert world.store.collections() == sorted([live[0].name, shadows[0].name])

    @pytest.mark.parametrize("options", [{}, {"names": ["x"], "retired": True}])
    def test_what_cannot_be_meant(self, world: World, options: dict[str, Any]) -> None:
        with raises(SettingsError):
            drop(world, **options)

    def test_what_a_rollback_would_return_to_is_known(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        live, shadows = shadowed(world)
        promote(world, forced=FORCED)
        lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)
        assert dropping.returns_to(lifecycle, row_of(world, live[0]))
        assert not dropping.returns_to(lifecycle, row_of(world, shadows[0]))
        rollback(world)
        caplog.clear()
        assert not any(dropping.returns_to(lifecycle, row_of(world, release)) for release in (*live, *shadows))
        assert caplog.messages == []  # a drop says nothing of rollbacks

    def test_one_that_was_dropped_is_pushed_anew(self, world: World) -> None:
        _, shadows = shadowed(world)
        fresh = {m: world.snapshot()["collections"][shadows[0].name][m] for m in MODALITIES}
        drop(world, names=[shadows[0].name])
        assert world.push(world.set("s", *pairs(6)), "b").counts == {"written": 12, "unchanged": 12}
        assert world.snapshot()["collections"][shadows[0].name] == fresh
        assert (states(world, *shadows), row_of(world, shadows[0]).dropped_at) == (["ready"], None)


class KilledError(Exception):
    """Stands in for a process that ends."""


STEPS = [
    ("releases", "begin_promotions", False),
    ("releases", "begin_promotions", True),
    ("store", "set_aliases", False),
    ("store", "set_aliases", True),
    ("releases", "finish_promotions", False),
    ("releases", "finish_promotions", True),
]
# On a server, those between which its aliases change.
AT_EVERY_STEP = pytest.mark.parametrize(
    ("world", "step"),
    [
        *slow_unless(lambda case: case[1] in STEPS[1::3], [("edge", step) for step in STEPS]),
        *(pytest.param(kind, step, marks=pytest.mark.live) for kind in ("REST", "gRPC") for step in STEPS[2:4]),
    ],
    indirect=["world"],
    ids=str,
)


def killed(world: World, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str, bool], act: Callable[[], Any]) -> None:
    place, method, after = step
    with monkeypatch.context() as patched:
        owner = world.store if place == "store" else world.provenance.releases
        Calls(patched, owner, method).fail(0, KilledError(), after=after)
        with pytest.raises(KilledError):
            act()


class TestCrashes:
    """Between every two steps: the aliases name what is whole, `status` names what to do, and the same command does."""

    def check_pending(self, world: World, kind: str, releases: Sequence[Release], step: tuple[str, str, bool]) -> None:
        begun = step not in (STEPS[0], STEPS[-1])
        for release in releases:
            said = pending(world.provenance, row_of(world, release))
            assert (f"not finished: run `modalign {kind} {COLLECTION}`" in said) == begun

    @pytest.mark.slow
    @AT_EVERY_STEP
    def test_promote(self, world: World, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str, bool]) -> None:
        live, shadows = shadowed(world, "cosine", "dot")
        audited(world, *shadows)
        killed(world, monkeypatch, step, lambda: promote(world))
        self.check_pending(world, "promote", shadows, step)
        assert set(world.store.aliases().values()) in ({r.name for r in live}, {r.name for r in shadows})
        promote(world)
        assert set(world.store.aliases().values()) == {release.name for release in shadows}
        assert states(world, *live, *shadows) == ["retired", "retired", "live", "live"]
        assert [line[:3] for line in promotions(world)] == [
            ("promote", new.name, old.name) for old, new in zip(live, shadows, strict=True)
        ]
        assert all(line[-1] for line in promotions(world))

    @pytest.mark.slow
    @AT_EVERY_STEP
    def test_rollback(self, world: World, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str, bool]) -> None:
        live, shadows = shadowed(world)
        promote(world, forced=FORCED)
        killed(world, monkeypatch, step, lambda: rollback(world))
        self.check_pending(world, "rollback", live, step)
        rollback(world)
        assert world.store.aliases() == {f"{COLLECTION}.cosine": live[0].name}
        assert states(world, *live, *shadows) == ["live", "retired"]
        assert [line[0] for line in promotions(world)] == ["promote", "rollback"]
        assert all(line[-1] for line in promotions(world))

    @pytest.mark.slow
    @AT_EVERY_STEP
    def test_a_rollback_that_is_repeated_goes_back_once(
        self, world: World, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str, bool]
    ) -> None:
        first, second, third = promoted_twice(world)
        killed(world, monkeypatch, step, lambda: rollback(world))
        for _ in range(2):
            rollback(world)
            assert states(world, first, second, third) == ["retired", "live", "retired"]

    @AT_EVERY_STEP
    def test_a_promotion_that_is_repeated_goes_on_to_no_older_shadow(
        self, world: World, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str, bool]
    ) -> None:
        (first,), (second,) = shadowed(world)
        world.alignment("c", turn=2)
        (third,) = world.push(EmbeddingSet.open(world.home / "sets" / "s"), "c", metrics=["cosine"]).releases
        audited(world, second, third)
        killed(world, monkeypatch, step, lambda: promote(world))
        for _ in range(2):
            promote(world)
            assert states(world, first, second, third) == ["retired", "ready", "live"]
        promote(world, names=[second.name])
        assert states(world, first, second, third) == ["retired", "live", "retired"]

    def test_a_promotion_of_named_releases_comes_after_the_one_that_was_begun(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (first,), (second,) = shadowed(world)
        world.alignment("c", turn=2)
        (third,) = world.push(EmbeddingSet.open(world.home / "sets" / "s"), "c", metrics=["cosine"]).releases
        killed(world, monkeypatch, STEPS[2], lambda: promote(world, names=[second.name], forced=FORCED))
        promote(world, names=[third.name], forced=FORCED)
        assert states(world, first, second, third) == ["retired", "retired", "live"]

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize(
        ("place", "method"), [("releases", "begin_drop"), ("store", "drop"), ("releases", "finish_drop")]
    )
    def test_drop(self, world: World, monkeypatch: pytest.MonkeyPatch, place: str, method: str, after: bool) -> None:
        live, shadows = shadowed(world)
        name = shadows[0].name
        killed(world, monkeypatch, (place, method, after), lambda: drop(world, names=[name]))
        row = row_of(world, shadows[0])
        if row.dropped_at is None:
            begun = row.drop_begun_at is not None
            assert (
                pending(world.provenance, row)
                == (f"drop begun, not finished: run `modalign drop {COLLECTION} --release {name}`")
            ) == begun
            drop(world, names=[name])
        assert world.store.collections() == [live[0].name]
        assert {release for release, *_ in world.ledger()} == {live[0].name}
        assert row_of(world, shadows[0]).dropped_at is not None

    def test_a_promotion_that_can_no_longer_be_finished_is_dropped(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live, shadows = shadowed(world)
        killed(world, monkeypatch, STEPS[2], lambda: promote(world, forced=FORCED))
        foreign_point(world, shadows[0])
        with raises(MismatchError, 13):
            promote(world)
        drop(world, names=[shadows[0].name])
        assert promotions(world) == []
        assert promote(world) == []
        assert states(world, *live) == ["live"]

    def test_the_other_command_waits(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        shadowed(world)
        killed(world, monkeypatch, STEPS[3], lambda: promote(world, forced=FORCED))
        with raises(MismatchError, "`modalign promote things`"):
            rollback(world)
        promote(world)
        killed(world, monkeypatch, STEPS[3], lambda: rollback(world))
        with raises(MismatchError, "`modalign rollback things`"):
            promote(world)
        rollback(world)

    def test_a_push_meanwhile_leaves_the_aliases_alone(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        live, shadows = shadowed(world)
        killed(world, monkeypatch, STEPS[3], lambda: promote(world, forced=FORCED))
        world.push(world.set("s", *pairs(6)))
        assert world.store.aliases() == {f"{COLLECTION}.cosine": shadows[0].name}
        promote(world)
        assert states(world, *live, *shadows) == ["retired", "live"]


def test_promotions_refer_to_what_is_recorded(world: World) -> None:
    shadowed(world)
    promote(world, forced=FORCED)
    (promotion,) = world.provenance.releases.promotions()
    assert isinstance(promotion, PromotionRow)
    assert (promotion.collection, promotion.metric) == (COLLECTION, "cosine")
    assert world.provenance.stores.addresses() == {"edge:qdrant": promotion.store_id}
