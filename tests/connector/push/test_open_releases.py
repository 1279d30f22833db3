"""Releases are created once, whoever comes first, and no push takes away what another one is about to write."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import update

from alignment.errors import VectorError
from connector.errors import LeaseHeldError, MismatchError, StoreError
from connector.provenance import leases
from connector.provenance.leases import creation_lock
from connector.provenance.tables import ReleaseRow, RunRow
from connector.push.open_releases import ReleaseOpener
from connector.releases.reconcile import reconcile
from connector.releases.recorded_settings import collection_config
from connector.releases.release import open_release
from connector.releases.store_identity import FOREIGN, here
from connector.requests import PushRequest
from connector.stores.contract import Store
from connector.stores.qdrant import QdrantStore
from tests.support.errors import raises
from tests.support.faulty_server import FaultyServer, running
from tests.support.world import COLLECTION, KINDS, LIVE, Pushed, World, pairs, world_over

world = world_over(*KINDS, *LIVE)


def consistent(world: World) -> bool:
    release = open_release(world.provenance, world.store, COLLECTION)
    return reconcile(release, world.store, world.provenance, seed=0).consistent


def before_first(monkeypatch: pytest.MonkeyPatch, method: str, action: Callable[[], object]) -> None:
    """Do something before a store's method is called for the first time."""
    original, waiting = getattr(Store, method), [action]

    def acting(*arguments: Any, **options: Any) -> Any:
        if waiting:
            waiting.pop()()
        return original(*arguments, **options)

    monkeypatch.setattr(Store, method, acting)


def test_a_second_push_into_a_new_collection_does_not_drop_what_the_first_is_about_to_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.set("first", *pairs(8)), world.set("second", *pairs(6, seed=3, prefix="second-"))
    before_first(monkeypatch, "upsert", lambda: world.push(second))
    (release,) = world.push(first).releases
    assert world.store.count(release.name) == 2 * (8 + 6)
    assert consistent(world)


@pytest.mark.slow
def test_a_push_that_is_refused_leaves_what_another_one_is_about_to_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first creates the collection, the second opens it; then the first is refused, then the second writes."""
    first, second = world.set("first", *pairs(8)), world.set("second", *pairs(6, seed=3, prefix="second-"))
    opened, refused = Event(), Event()

    def wait() -> None:
        opened.set()
        assert refused.wait(60)

    with ThreadPoolExecutor(1) as pool:
        pushed: list[Future[Pushed]] = []

        def fail() -> None:
            before_first(monkeypatch, "upsert", wait)
            pushed.append(pool.submit(world.push, second))
            assert opened.wait(60)
            raise VectorError("refused")

        before_first(monkeypatch, "upsert", fail)
        with raises(VectorError, "refused"):
            world.push(first)
        refused.set()
        (release,) = pushed[0].result(60).releases
    assert world.store.count(release.name) == 2 * 6
    world.push(first)  # its set belongs to the release since the first push began to write
    assert world.store.count(release.name) == 2 * (8 + 6)
    assert consistent(world)


def test_what_a_killed_push_created_and_did_not_write_is_created_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    embedding_set = world.set("s", *pairs(8))
    with monkeypatch.context() as patched:
        before_first(patched, "upsert", kill)
        with pytest.raises(Killed):
            world.push(embedding_set)
    world.push(embedding_set, m=7)  # another layout than the empty collection was created with
    assert consistent(world)
    assert open_release(world.provenance, world.store, COLLECTION).row.settings["m"] == 7


@pytest.mark.parametrize("first", ["of another database", "taken for dead"])
def test_a_collection_that_another_process_is_about_to_write_is_never_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The first push has created it; the second cannot know whether the first lives."""
    dropped: list[str] = []
    monkeypatch.setattr(type(world.store), "drop", lambda store, name: dropped.append(name))
    second = world
    if first == "of another database":
        second = World(world.home / "other", world.store)
        second.alignment()
    of_second = second.set("second", *pairs(6, seed=3, prefix="second-"))

    def push_second() -> None:
        with world.provenance.database.session() as session:
            session.execute(update(RunRow).values(outcome="killed"))
        if second is world:
            second.push(of_second)
        else:
            with raises(MismatchError, COLLECTION, code=FOREIGN):
                second.push(of_second)

    before_first(monkeypatch, "upsert", push_second)
    (release,) = world.push(world.set("first", *pairs(8))).releases
    assert dropped == []
    assert world.store.count(release.name) == 2 * (8 + (6 if second is world else 0))
    assert consistent(world)


def test_who_is_at_work_is_named_to_whoever_wants_another_layout(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    second = world.set("second", *pairs(6, seed=3, prefix="second-"))

    def push_second() -> None:
        (first,) = world.provenance.runs.newest(1)
        with raises(MismatchError, COLLECTION, "m 16", f"run {first.id}", "modalign push", first.host):
            world.push(second, m=7)

    before_first(monkeypatch, "upsert", push_second)
    (release,) = world.push(world.set("first", *pairs(8))).releases
    assert world.store.count(release.name) == 2 * 8
    assert consistent(world)


@pytest.mark.parametrize("world", ["edge", *LIVE], indirect=True)  # qdrant-client's local mode has no indexes
@pytest.mark.parametrize(
    ("chosen", "refused"),
    [
        ({}, False),
        ({"m": 16}, False),
        ({"caption_payload": False}, False),
        ({"payload_indexes": {"year": "integer"}}, False),
        ({"payload_indexes": {"year": "keyword"}}, True),
        ({"payload_indexes": {"price": "float"}}, False),
        ({"payload_indexes": {"number": "bool"}}, True),
        ({"m": 7}, True),
    ],
)
def test_a_layout_is_refused_before_anything_is_opened_if_it_would_be_then(
    world: World, chosen: dict[str, Any], refused: bool
) -> None:
    """Somebody has added the index of the field `year`."""
    of_set = world.set("s", *pairs(8))
    (release,) = world.push(of_set).releases
    indexes = {**release.indexes, "year": "integer"}
    settings = {**release.row.settings, "payload_indexes": indexes}
    config = collection_config(settings, release.lowerings["image"], world.store.describe(release.name).metadata)
    world.store.restore_settings(release.name, config)
    before = world.snapshot()
    with world.provenance.runs.start("ingest", {}) as run:
        request = PushRequest(set="s", into=COLLECTION, alignment="a", layout=chosen)
        alignment, id_ = release.alignment, release.row.alignment_id
        opener = ReleaseOpener(alignment, id_, request, world.store, world.provenance, run)
        with raises(MismatchError, release.name) if refused else nullcontext():
            opener.check_layouts([release.metric])
    assert world.snapshot() == before
    with raises(MismatchError, release.name) if refused else nullcontext():
        world.push(of_set, **chosen)


def refuse_creation(monkeypatch: pytest.MonkeyPatch, world: World, metric: str) -> None:
    original = type(world.store).create

    def refusing(store: Any, name: str, config: Any) -> None:
        if f".{metric}." in name:
            raise StoreError(f"{name}: no more collections are allowed")
        original(store, name, config)

    monkeypatch.setattr(type(world.store), "create", refusing)


@pytest.mark.parametrize("metrics", [["dot"], ["cosine", "dot"], ["dot", "cosine"]])
def test_a_first_push_that_the_store_refuses_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, metrics: list[str]
) -> None:
    before = world.store.collections()
    refuse_creation(monkeypatch, world, "dot")
    with raises(StoreError, f"{COLLECTION}.dot"):
        world.push(world.set("s", *pairs(4)), metrics=metrics)
    assert (world.states(), world.store.collections()) == ({}, before)


@pytest.mark.parametrize("state", ["retired", "dropped"])
def test_a_push_that_is_refused_leaves_a_release_in_its_state(
    world: World, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    embedding_set = world.set("s", *pairs(4))
    (release,) = world.push(embedding_set).releases
    world.provenance.releases.change(release.row, state="retired")
    if state == "dropped":
        world.provenance.releases.begin_drop(release.row.id)
        world.store.drop(release.name)
        world.provenance.releases.finish_drop(release.row.id)
        refuse_creation(monkeypatch, world, "cosine")
    world.provenance.releases.refresh(release.row)
    before = {column.key: getattr(release.row, column.key) for column in ReleaseRow.__table__.columns}
    with pytest.raises((StoreError, MismatchError), match=release.name):
        world.push(embedding_set, m=7)
    world.provenance.releases.refresh(release.row)
    after = {column.key: getattr(release.row, column.key) for column in ReleaseRow.__table__.columns}
    assert {**after, "updated_at": None} == {**before, "updated_at": None}


@pytest.mark.slow
def test_a_collection_with_points_is_never_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that SQL lost, and that the push which found it was killed at."""

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    embedding_set = world.set("s", *pairs(8))
    (release,) = world.push(embedding_set).releases
    lost = World(world.home / "other", world.store)
    lost.alignment()
    again = lost.set("s", *pairs(8))
    dropped: list[str] = []
    monkeypatch.setattr(type(world.store), "drop", lambda store, name: dropped.append(name))
    for _ in range(2):
        with monkeypatch.context() as patched:
            before_first(patched, "upsert", kill)
            with pytest.raises(Killed):
                lost.push(again, take_over=True)
    lost.push(again, take_over=True)
    assert (dropped, world.store.count(release.name)) == ([], 16)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect in the local Qdrant:UserWarning",
    "ignore:Local mode performs exact:UserWarning",
)
@pytest.mark.parametrize("pushes", [2, 5])
def test_pushes_at_once_into_a_new_collection_of_a_server_all_succeed(tmp_path: Path, pushes: int) -> None:
    with running(FaultyServer()) as server, QdrantStore.connect(server.url) as store:
        world = World(tmp_path, store)
        world.alignment()
        sets = [world.set(f"s{n}", *pairs(4, seed=n, prefix=f"{n}-")) for n in range(pushes)]
        with ThreadPoolExecutor(pushes) as pool:
            names = {of_push.releases[0].name for of_push in pool.map(world.push, sets)}
        assert len(names) == 1
        assert store.count(names.pop()) == 2 * 4 * pushes
        assert consistent(world)


def test_whoever_creates_a_collection_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LOCK_TIMEOUT_SECONDS", 0.0)
    embedding_set = world.set("s", *pairs(4))
    name = world.push(embedding_set).releases[0].name
    with (
        world.provenance.runs.start("push", {}) as run,
        creation_lock(world.provenance.database, here(world.provenance, world.store), name, run.id),
        raises(LeaseHeldError, run.id, name),
    ):
        world.push(embedding_set)
    world.push(embedding_set)
