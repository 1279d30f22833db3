"""Kills and damage at random: no live item is ever lost, and pushing again and repairing end where all agree.

A kill is an exception that nothing catches, at a named point, before or after it takes effect. Damage is what something
else does to the collection or to SQL.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, select, update

from alignment.modality import MODALITIES, Modality
from alignment.sets.writer import SetWriter
from connector.errors import MismatchError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AlignmentRow, BatchRow, EncoderRow
from connector.push import batches as pushing
from connector.push import session as push_session
from connector.push.delete import Deletion
from connector.releases import reconcile as reconciling
from connector.releases.points import point_id
from connector.releases.reconcile import ReconcileReport
from connector.releases.reconcile_releases import reconcile_releases, repair_releases
from connector.releases.tombstones import open_set
from connector.requests import ORPHAN_SHARE
from connector.stores.points import Points
from tests.support.slow import slow_unless
from tests.support.sparse_copy import copy_sparse
from tests.support.world import COLLECTION, Calls, World, embedded, latent, opened_world, pairs, rows

Item = tuple[Modality, str]
SETS = ("s", "more")


class KilledError(BaseException):
    """Stands in for a process that ends."""


@pytest.fixture(autouse=True, scope="module")
def small_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for module in (pushing, reconciling):
            patched.setattr(module, "BATCH_POINTS", 4)
        patched.setattr(pushing, "FLUSH_POINTS", 6)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a live release of two embedding sets."""
    home = tmp_path_factory.mktemp("template") / "home"
    with opened_world("edge", home) as opened:
        opened.alignment()
        opened.push(opened.set("s", *pairs(20)))
        opened.push(opened.set("more", *pairs(5, seed=4, prefix="more-")))
    return home


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Iterator[World]:
    with opened_world("edge", copy_sparse(template, tmp_path / "home")) as opened:
        yield opened


def push(world: World, name: str = "s") -> None:
    world.push(open_set(world.provenance, world.home / "sets" / name))


def delete_items(world: World, *keys: str) -> int:
    with world.provenance.runs.start("delete", {}) as run:
        Deletion(COLLECTION, world.store, world.provenance, run).delete(keys=keys)
    return run.counts["deleted"]


def encode(world: World, name: str, keys: Sequence[str], turn: int) -> None:
    """Encode new or changed items into a set, as a run does that supersedes older rows; push nothing."""
    path = world.home / "sets" / name
    card = open_set(world.provenance, path).card
    with SetWriter(path, corpus=card.corpus, encoders=card.encoders) as writer:
        for modality in MODALITIES:
            vectors = embedded(modality, latent(len(keys), seed=100 + turn))
            for shard, identity in list(writer.identities(modality)):
                if old := {row for row, key in enumerate(identity.column("key").to_pylist()) if key in keys}:
                    writer.drop(shard, modality, old)
            writer.append(rows(modality, vectors, keys=keys, payloads=[{"turn": turn}] * len(keys)))
        writer.finish()


def verified(world: World) -> ReconcileReport:
    (report,) = reconcile_releases(world.provenance, world.store, COLLECTION, seed=0)
    return report


def repair(world: World) -> None:
    """As `modalign repair --yes`."""
    report = verified(world)
    few = report.orphans.count <= ORPHAN_SHARE * report.points
    with world.provenance.runs.start("repair", {}) as run:
        repair_releases(world.provenance, world.store, run, orphans=report.orphans.count if few else None)


def live_items(world: World) -> set[Item]:
    """The items of all sets on disk."""
    return {
        (modality, key)
        for name in SETS
        for modality in MODALITIES
        for shard_rows in [open_set(world.provenance, world.home / "sets" / name).load(modality)]
        for key in shard_rows.keys
    }


def stored_ids(world: World) -> set[str]:
    (name,) = world.store.collections()
    return {record.id for page in world.store.scroll(name) for record in page}


def pushed_again(world: World) -> None:
    """Push everything again and repair, until both end well: at most three times."""
    for _ in range(3):
        try:
            for name in SETS:
                push(world, name)
        except MismatchError:
            repair(world)
        else:
            return
    raise AssertionError("pushing and repairing do not end")


def agrees(world: World) -> None:
    """Sets, ledger and collection say the same, down to the last point."""
    report = verified(world)
    assert report.consistent, report
    assert stored_ids(world) == {point_id(*item) for item in live_items(world)}


class TestAnEmptyLedgerMakesNoOrphans:
    def points_go(self, world: World, *keys: str) -> None:
        (name,) = world.store.collections()
        world.store.delete(name, [point_id("image", key) for key in keys])

    @pytest.mark.slow
    def test_points_were_removed_behind_its_back_and_items_deleted_twice(self, world: World) -> None:
        items = live_items(world)
        self.points_go(world, "3", "4", "5")
        assert delete_items(world, "3") == 2  # the caption is there, and the row of the image
        assert delete_items(world, "12") == 2
        assert delete_items(world, "12") == 0
        repair(world)
        agrees(world)
        assert live_items(world) == items - {(m, key) for m in MODALITIES for key in ("3", "12")}

    @pytest.mark.slow
    @pytest.mark.parametrize("sync", range(6))
    def test_a_push_was_killed_at_a_sync(self, world: World, monkeypatch: pytest.MonkeyPatch, sync: int) -> None:
        encode(world, "s", [f"new-{number}" for number in range(12)], 1)
        with monkeypatch.context() as patched:
            Calls(patched, world.store, "flush").fail(sync, KilledError())
            with suppress(KilledError):
                push(world)
        repair(world)
        agrees(world)

    def test_all_entries_are_gone(self, world: World) -> None:
        with world.provenance.database.session() as session:
            session.execute(delete(BatchRow))
        report = verified(world)
        assert (report.orphans.count, report.unrecorded.count) == (0, 14)
        repair(world)
        agrees(world)

    def test_two_deletions_at_once(self, world: World) -> None:
        """The second one comes when the first one has asked, and before it has done anything."""
        with world.provenance.runs.start("delete", {}) as run:
            first = Deletion(COLLECTION, world.store, world.provenance, run)
            assert first.delete(keys=["1", "2"], confirm=lambda _: delete_items(world, "2", "3") == 4)
        agrees(world)
        assert not {(m, key) for m in MODALITIES for key in "123"} & live_items(world)

    def test_a_deletion_that_begins_while_another_rewrites_the_sets_waits(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        original, seconds = SetWriter.drop, list[Thread]()

        def drop(*args: Any) -> None:
            if not seconds:
                seconds.append(Thread(target=delete_items, args=(world, "2", "3")))
                seconds[0].start()
                while seconds[0].is_alive() and "waiting for it" not in caplog.text:
                    time.sleep(0.01)
            original(*args)

        monkeypatch.setattr(SetWriter, "drop", drop)
        assert delete_items(world, "1", "2") == 4
        (second,) = seconds
        second.join()
        agrees(world)
        assert not {(m, key) for m in MODALITIES for key in "123"} & live_items(world)


class TestAnItemThatIsAddedAgainWhileARepairDeletesOrphans:
    """It stays, whether it comes before or after the repair has looked who writes."""

    @pytest.fixture
    def orphans(self, world: World) -> int:
        """Rows that something else took from the set, and that nobody deleted: their points are orphans."""
        path = world.home / "sets" / "s"
        card = open_set(world.provenance, path).card
        with SetWriter(path, corpus=card.corpus, encoders=card.encoders) as writer:
            for modality in MODALITIES:
                ((shard, _),) = writer.identities(modality)
                writer.drop(shard, modality, {1, 2})
            writer.finish()
        return 4

    def add_again(self, world: World, name: str) -> None:
        if name == "s":
            encode(world, "s", ["1"], 1)
            push(world)
        else:
            world.push(world.set(name, *(part.take([1]) for part in pairs(2))))

    @pytest.mark.parametrize("name", ["s", "of its own"])
    def test_by_a_push_that_began_and_ended_meanwhile(
        self, world: World, monkeypatch: pytest.MonkeyPatch, orphans: int, name: str
    ) -> None:
        original, calls = world.store.ready, count()

        def ready(collection: str) -> Any:
            if not next(calls):  # all points were compared, and none of the orphans is deleted yet
                with suppress(MismatchError):  # the other orphan is there too
                    self.add_again(world, name)
            return original(collection)

        monkeypatch.setattr(world.store, "ready", ready)
        monkeypatch.setattr(push_session, "SETTLING_SECONDS", 0.0)  # the repair, which is at work, waits for the push
        with world.provenance.runs.start("repair", {}) as run:
            repair_releases(world.provenance, world.store, run, orphans=orphans)
        assert run.counts["orphans_deleted"] == orphans - 2
        present = stored_ids(world)
        assert {point_id(m, "1") for m in MODALITIES} <= present
        assert not {point_id(m, "2") for m in MODALITIES} & present
        assert verified(world).consistent

    def test_by_a_push_that_begins_while_they_are_deleted(
        self, world: World, monkeypatch: pytest.MonkeyPatch, orphans: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        original, pushes = world.store.delete, list[Thread]()

        def delete(collection: str, ids: Sequence[str]) -> None:
            if not pushes:
                pushes.append(Thread(target=self.add_again, args=(world, "s")))
                pushes[0].start()
                while pushes[0].is_alive() and "waiting for it" not in caplog.text:
                    time.sleep(0.01)
            original(collection, ids)

        monkeypatch.setattr(world.store, "delete", delete)
        with world.provenance.runs.start("repair", {}) as run:
            repair_releases(world.provenance, world.store, run, orphans=orphans)
        (of_push,) = pushes
        of_push.join()
        assert {point_id(m, "1") for m in MODALITIES} <= stored_ids(world)
        agrees(world)


class TestAKilledDeletionIsRepeated:
    """The ledger adds up afterwards: nothing is counted out twice, and nothing is forgotten."""

    KILLS = (
        ("ledger", "count_out"),
        ("store", "delete"),
        ("store", "flush"),
        ("ledger", "remove_tombstones"),
        ("ledger", "add_tombstones"),
        ("set", "drop"),
        ("set", "finish"),
    )

    @pytest.mark.slow
    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize(("place", "method"), KILLS)
    def test_it_ends_where_an_undisturbed_one_does(
        self, world: World, monkeypatch: pytest.MonkeyPatch, place: str, method: str, after: bool
    ) -> None:
        with monkeypatch.context() as patched:
            arm(patched, owner(world, place), method, 0, after=after)
            with pytest.raises(KilledError):
                delete_items(world, "1", "2")
        delete_items(world, "1", "2")
        agrees(world)
        assert not {(m, key) for m in MODALITIES for key in "12"} & live_items(world)


class TestADeletionAfterAnEncodeThatIsNotPushed:
    @pytest.mark.slow
    @pytest.mark.parametrize("keys", [["0"], ["2"], ["new"], ["0", "1", "2", "3", "new", "more-1"]])
    def test_it_ends_well_and_publishes_nothing(self, world: World, keys: list[str]) -> None:
        (name,) = world.store.collections()
        encode(world, "s", ["2", "3", "new"], 1)
        before = stored_ids(world)
        delete_items(world, *keys)
        assert stored_ids(world) == before - {point_id(m, key) for m in MODALITIES for key in keys}
        (row,) = world.provenance.releases.find()
        assert world.provenance.ledger.points(row.id) == world.store.count(name) == row.points
        old = {r.payload["key"]: r.payload for page in world.store.scroll(name) for r in page}
        assert all("turn" not in payload for payload in old.values())
        push(world)
        agrees(world)


class TestWhatAnUpsertReplacesIsReadBack:
    @pytest.fixture
    def losing(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str]], None]:
        """Have the store acknowledge the next writes of these points without doing them."""
        original = world.store.upsert

        def lose(ids: set[str]) -> None:
            def upsert(name: str, points: Points) -> None:
                if kept := [row for row, id_ in enumerate(points.ids) if id_ not in ids]:
                    original(name, points.take(kept))

            monkeypatch.setattr(world.store, "upsert", upsert)

        return lose

    @pytest.mark.parametrize("keys", [["2"], ["2", "3", "7", "11"], ["19"]])
    def test_a_lost_write_is_an_error_and_the_next_push_mends_it(
        self, world: World, losing: Callable[[set[str]], None], keys: list[str]
    ) -> None:
        encode(world, "s", [str(number) for number in range(20)], 1)
        losing({point_id("text", key) for key in keys})
        with pytest.raises(Exception, match="text:") as caught:
            push(world)
        assert caught.type.__name__ == "StoreError"
        losing(set())
        push(world)
        agrees(world)


class TestAnAlignmentThatSqlLinksOtherwise:
    """A push refuses it as a search does, and writes nothing."""

    def refused(self, world: World) -> None:
        before = world.snapshot()
        encode(world, "s", ["new"], 1)
        with pytest.raises(MismatchError):
            push(world)
        assert world.snapshot() == before

    def test_a_release_of_another_alignment(self, world: World) -> None:
        other = world.push(open_set(world.provenance, world.home / "sets" / "s"), world.alignment("b", turn=1))
        (row, shadow) = world.provenance.releases.find()
        assert shadow.physical_name == other.releases[0].name
        world.provenance.releases.change(row, alignment_id=shadow.alignment_id)
        self.refused(world)

    def test_an_alignment_of_another_encoder(self, world: World) -> None:
        with world.provenance.database.session() as session:
            encoder = EncoderRow(modality="image", spec="other", fingerprint="0" * 64, dim=7)
            session.add(encoder)
            session.flush()
            session.execute(update(AlignmentRow).values(image_encoder_id=encoder.id))
        self.refused(world)


def take_points(world: World, rng: np.random.Generator) -> None:
    (name,) = world.store.collections()
    ids = sorted(stored_ids(world))
    world.store.delete(name, list(rng.choice(ids, min(3, len(ids)), replace=False)))


def change_point(world: World, rng: np.random.Generator) -> None:
    (name,) = world.store.collections()
    modality = MODALITIES[rng.integers(2)]
    records = [r for page in world.store.scroll(name, vector_name=modality) for r in page if r.vector is not None]
    if records:
        record = records[rng.integers(len(records))]
        turned = np.roll(np.asarray(record.vector), 1)[None]
        world.store.upsert(name, Points(modality, [record.id], turned, [{**record.payload, "group": "x"}]))


def forget_entries(world: World, rng: np.random.Generator) -> None:
    with world.provenance.database.session() as session:
        numbers = list(session.scalars(select(BatchRow.id)))
        share = rng.choice([0.2, 1.0])
        session.execute(delete(BatchRow).where(BatchRow.id.in_([n for n in numbers if rng.random() < share])))


DAMAGE = (take_points, change_point, forget_entries)
# Where a process may end: owner, method, how often it is called in one command at most.
KILLS: Sequence[tuple[str, str, int]] = [
    ("store", "upsert", 5),
    ("store", "delete", 3),
    ("store", "flush", 4),
    ("store", "ready", 1),
    ("ledger", "write", 4),
    ("ledger", "add_tombstones", 3),
    ("ledger", "count_out", 2),
    ("ledger", "remove_tombstones", 2),
    ("releases", "begin_write", 2),
    ("releases", "change", 2),
    ("artifacts", "record_set", 2),
    ("set", "drop", 3),
    ("set", "finish", 1),
]


def owner(world: World, name: str) -> Any:
    provenance: Provenance = world.provenance
    return {
        "store": world.store,
        "ledger": provenance.ledger,
        "releases": provenance.releases,
        "artifacts": provenance.artifacts,
        "set": SetWriter,
    }[name]


def arm(patched: pytest.MonkeyPatch, place: Any, method: str, number: int, *, after: bool) -> None:
    """Let call `number`, from 0, of a method be the last thing that the process does, before or after its effect."""
    original, calls = getattr(place, method), count()

    def armed(*args: Any, **options: Any) -> Any:
        due = next(calls) == number
        if due and not after:
            raise KilledError
        result = original(*args, **options)
        if due:
            raise KilledError
        return result

    patched.setattr(place, method, armed)


def run(world: World, command: int, name: str, keys: Sequence[str]) -> None:
    match command:
        case 0:
            push(world, name)
        case 1:
            repair(world)
        case 2:
            delete_items(world, *keys)


@pytest.mark.parametrize("seed", slow_unless({2, 4, 6, 11}.__contains__, range(12)))
def test_no_live_item_is_lost_whatever_is_killed_and_damaged(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    requested: set[Item] = set()  # to be deleted
    history: list[str] = []
    for turn in range(8):
        if rng.random() < 0.5:
            damage = DAMAGE[rng.integers(len(DAMAGE))]
            history.append(damage.__name__)
            damage(world, rng)
        if rng.random() < 0.4:
            keys = [str(number) for number in rng.choice(20, 3, replace=False)] + [f"new-{turn}"]
            keys = [key for key in keys if ("image", key) not in requested]
            history.append(f"encode {keys}")
            encode(world, "s", keys, turn)
        items, points = live_items(world), stored_ids(world)
        command, name = int(rng.integers(3)), SETS[int(rng.integers(2))]
        doomed = [str(number) for number in rng.choice(20, 2, replace=False)]
        if command == 2:
            requested |= {(m, key) for m in MODALITIES for key in doomed}
        place, method, calls = KILLS[int(rng.integers(len(KILLS)))]
        number, after = int(rng.integers(calls)), bool(rng.random() < 0.5)
        history.append(f"{('push', 'repair', 'delete')[command]} {name} {doomed}, killed at {place}.{method}:{number}")
        with monkeypatch.context() as patched:
            arm(patched, owner(world, place), method, number, after=after)
            with suppress(KilledError, MismatchError):
                run(world, command, name, doomed)
        kept = items - requested
        assert kept <= live_items(world), history
        assert {point_id(*item) for item in kept} & points <= stored_ids(world), history
    items = live_items(world)
    pushed_again(world)
    repair(world)
    agrees(world)
    assert live_items(world) == items, history
