"""One server by many addresses is one store in SQL; what is not this database's is refused; legacy rows are merged."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient
from sqlalchemy import select, update

from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import (
    AccessDeniedError,
    CollectionNotFoundError,
    MismatchError,
    SettingsError,
    StoreUnavailableError,
)
from connector.provenance.tables import LeaseRow, StoreRow
from connector.push.delete import Deletion
from connector.releases.dropping import drop, forget, taken_over
from connector.releases.merge import find_merge, merge
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.releases.reconcile_releases import reconcile_releases, repair_releases
from connector.releases.status import read_stored
from connector.releases.store_identity import FOREIGN, OWNER, TWICE, here
from connector.stores.contract import Store
from connector.stores.edge import EdgeStore
from connector.stores.qdrant_connection import Connection
from tests.support.errors import raises
from tests.support.world import COLLECTION, LocalModeStore, World, opened, pairs

FIRST = "http://host:6333"
OTHERS = (
    "grpc://host:6334",
    "http://host:6333/",
    "HTTP://Host:6333",
    "http://host",
    "https://proxy.example/qdrant",
    "http://another-node:6333",
    "http://token@host:6333",
)
FORCED = PromotionOverride("me", "a test")
At = Callable[[str], Store]

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")


@pytest.fixture
def client() -> QdrantClient:
    """One server."""
    return QdrantClient(":memory:")


@pytest.fixture
def at(client: QdrantClient) -> At:
    """The server, by any address."""
    return lambda url: LocalModeStore(Connection(client, url), uploads=1)


@pytest.fixture
def world(tmp_path: Path, at: At) -> Iterator[World]:
    world = World(tmp_path / "home", at(FIRST))
    world.alignment()
    with world.provenance:
        yield world


@pytest.fixture
def embedding_set(world: World) -> EmbeddingSet:
    return world.set("s", *pairs(6))


def live(world: World) -> list[tuple[str, str]]:
    """State and physical name of each release."""
    return [(row.state, row.physical_name) for row in world.provenance.releases.find()]


def consistent(world: World, store: Store) -> list[bool]:
    """Whether each live or ready release holds what is recorded."""
    return [report.consistent for report in reconcile_releases(world.provenance, store, seed=0)]


def forget_owners(world: World) -> None:
    """Leave the home and the store as the version before migration 0007 did: collections do not say whose they are."""
    for name in world.store.collections():
        world.store.add_metadata(name, {OWNER: None})
    with world.provenance.database.session() as session:
        session.execute(update(StoreRow).values(claimed=False))


def reached_second(connection: Connection) -> Store:
    """A store that was named after the first address, which does not answer."""

    class Second(LocalModeStore):
        @property
        def addresses(self) -> list[str]:
            return [FIRST, self.url]

    return Second(connection, uploads=1)


class TestAddresses:
    @pytest.mark.parametrize("url", OTHERS)
    def test_one_server_is_one_store_by_whatever_address(
        self, world: World, embedding_set: EmbeddingSet, at: At, url: str
    ) -> None:
        (release,) = world.push(embedding_set).releases
        world.store = at(url)
        assert opened(world).row.id == release.row.id
        assert world.push(embedding_set).counts == {"unchanged": 12}
        assert live(world) == [("live", release.name)]
        assert consistent(world, world.store) == [True]
        assert set(world.provenance.stores.addresses().values()) == {release.row.store_id}

    def test_a_promotion_by_one_address_is_seen_by_the_other(
        self, world: World, embedding_set: EmbeddingSet, at: At
    ) -> None:
        world.push(embedding_set)
        world.alignment("b", turn=1)
        (shadow,) = world.push(embedding_set, "b").releases
        world.store = at(OTHERS[0])
        with world.provenance.runs.start("promote", {}) as run:
            Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, forced=FORCED)
        for url in (FIRST, *OTHERS):
            world.store = at(url)
            assert opened(world).name == shadow.name

    def test_a_deletion_by_one_address_leaves_no_other_broken(
        self, world: World, embedding_set: EmbeddingSet, at: At
    ) -> None:
        world.push(embedding_set)
        with world.provenance.runs.start("delete", {}) as run:
            Deletion(COLLECTION, at(OTHERS[0]), world.provenance, run).delete(keys=["1"])
        for url in (FIRST, *OTHERS):
            assert consistent(world, at(url)) == [True]

    def test_locks_are_of_the_store_and_not_of_the_address(
        self, world: World, embedding_set: EmbeddingSet, at: At
    ) -> None:
        world.push(embedding_set)
        held: list[str] = []
        for url in (FIRST, *OTHERS):
            with (
                world.provenance.runs.start("promote", {}) as run,
                Lifecycle(world.provenance, at(url), COLLECTION).exclusive(run.id),
                world.provenance.database.session() as session,
            ):
                held += session.scalars(select(LeaseRow.job)).all()
        assert len(held) == 1 + len(OTHERS)
        assert len(set(held)) == 1

    @pytest.mark.parametrize("url", [FIRST, OTHERS[0]])
    @pytest.mark.parametrize("claimed", [True, False])
    def test_a_collection_that_cannot_be_read_now_keeps_no_other_from_being_found(
        self, world: World, embedding_set: EmbeddingSet, client: QdrantClient, url: str, claimed: bool
    ) -> None:
        """As one copy of a collection on a node that is away."""
        (lost,) = world.push(embedding_set, collection="a").releases
        world.push(embedding_set)
        if not claimed:
            forget_owners(world)

        class OneAway(LocalModeStore):
            def metadata(self, name: str, *, retry: bool = True) -> Mapping[str, Any]:
                if name == lost.name:
                    raise StoreUnavailableError("its node is away")
                return super().metadata(name, retry=retry)

        world.store = OneAway(Connection(client, url), uploads=1)
        if claimed or url == FIRST:
            assert here(world.provenance, world.store) == lost.row.store_id
            opened(world)
        else:
            with raises(StoreUnavailableError):
                opened(world)

    def test_reading_records_nothing(self, world: World, embedding_set: EmbeddingSet, at: At) -> None:
        world.push(embedding_set)
        world.store = at("http://new-name:6333")
        opened(world)
        assert list(world.provenance.stores.addresses()) == [FIRST]

    def test_an_address_may_become_another_server_s(self, world: World, embedding_set: EmbeddingSet, at: At) -> None:
        """As of a forwarded port."""
        first = world.push(embedding_set).releases[0].row
        client = QdrantClient(":memory:")
        world.store = LocalModeStore(Connection(client, "http://second:6333"), uploads=1)
        second = world.push(embedding_set).releases[0].row
        assert second.store_id != first.store_id
        world.store = LocalModeStore(Connection(client, FIRST), uploads=1)
        assert opened(world).row.id == second.id
        world.push(embedding_set)
        assert world.provenance.stores.at([FIRST]) == [second.store_id]
        world.store = at("http://first-again:6333")
        assert opened(world).row.id == first.id

    @pytest.mark.parametrize("how", ["moved", "linked"])
    def test_a_directory_is_the_same_store_wherever_it_is(self, tmp_path: Path, how: str) -> None:
        before, after = tmp_path / "before", tmp_path / "after"
        with EdgeStore(before) as store:
            world = World(tmp_path / "home", store)
            world.alignment()
            embedding_set = world.set("s", *pairs(6))
            world.push(embedding_set)
        if how == "moved":
            before.rename(after)
        else:
            after.symlink_to(before)
        with world.provenance, EdgeStore(after) as world.store:
            opened(world)
            assert world.push(embedding_set).counts == {"unchanged": 12}
            assert len(live(world)) == 1

    def test_of_two_first_pushes_by_two_addresses_one_is_refused_and_leaves_nothing(
        self, world: World, embedding_set: EmbeddingSet, at: At, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither finds the other's collection when it begins, so each takes the server for a store of its own."""
        other = World(world.home, at(OTHERS[0]))
        create, waiting = LocalModeStore.create, [embedding_set]

        def created_first(store: Any, *arguments: Any) -> None:
            if waiting:
                other.push(waiting.pop())
            create(store, *arguments)

        monkeypatch.setattr(LocalModeStore, "create", created_first)
        with other.provenance, raises(MismatchError, FIRST, OTHERS[0], code=TWICE):
            world.push(embedding_set)
        assert [state for state, _ in live(world)] == ["live"]
        world.store = at(FIRST)
        assert world.push(embedding_set).counts == {"unchanged": 12}
        assert consistent(world, world.store) == [True]


class TestSeveralAddresses:
    """Which cluster an address is of can be compared only with one that answers."""

    def test_a_stranger_that_answers_alone_is_not_taken_for_the_store(
        self, world: World, embedding_set: EmbeddingSet
    ) -> None:
        (release,) = world.push(embedding_set).releases
        sound, before = world.store, live(world)
        world.store = reached_second(Connection(QdrantClient(":memory:"), "http://stranger:6333"))
        with raises(MismatchError, "http://stranger:6333", FIRST, release.name, code="address-of-another-store"):
            world.push(embedding_set)
        assert world.store.collections() == []
        assert live(world) == before
        world.store = sound
        assert world.push(embedding_set).counts == {"unchanged": 12}

    def test_a_node_of_the_cluster_is(self, world: World, embedding_set: EmbeddingSet, client: QdrantClient) -> None:
        world.push(embedding_set)
        world.store = reached_second(Connection(client, "http://another-node:6333"))
        assert world.push(embedding_set).counts == {"unchanged": 12}

    def test_a_server_that_lost_its_collections_is_named_alone(
        self, world: World, embedding_set: EmbeddingSet, at: At
    ) -> None:
        (release,) = world.push(embedding_set).releases
        world.store.drop(release.name)
        world.store = at(FIRST)
        assert world.push(embedding_set).counts == {"written": 12}


class TestAnotherDatabase:
    @pytest.fixture
    def other(self, world: World, embedding_set: EmbeddingSet, tmp_path: Path) -> Iterator[World]:
        """A home with a database of its own, over the store into which the first one has pushed."""
        world.push(embedding_set)
        other = World(tmp_path / "other", world.store)
        other.alignment()
        with other.provenance:
            yield other

    def test_it_is_refused_before_anything_changes(self, world: World, other: World) -> None:
        (name,) = world.store.collections()
        with raises(MismatchError, name, world.store.url, "--take-over", code=FOREIGN):
            other.push(other.set("s", *pairs(6)))
        assert live(other) == []
        opened(world)

    def test_a_claim_that_is_gone_is_missed_and_restored_and_opens_no_door(
        self, world: World, other: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (name,) = world.store.collections()
        world.store.add_metadata(name, {OWNER: None})
        with raises(MismatchError, name, 12, "--take-over", code=FOREIGN):
            other.push(other.set("s", *pairs(6)))
        assert world.store.metadata(name).get(OWNER) is None
        assert consistent(world, world.store) == [False]

        def refused(*_: Any) -> None:
            raise AccessDeniedError("403")

        for key_allows, restored in ((False, 0), (True, 1)):
            with monkeypatch.context() as patched, world.provenance.runs.start("repair", {}) as run:
                if not key_allows:
                    patched.setattr(LocalModeStore, "add_metadata", refused)
                repair_releases(world.provenance, world.store, run, COLLECTION)
            assert run.counts["restored"] == restored
        assert world.store.metadata(name)[OWNER]["release"] == world.provenance.releases.find()[0].id
        assert consistent(world, world.store) == [True]

    def test_its_alias_is_not_switched_even_by_force(self, world: World, other: World) -> None:
        aliases = world.store.aliases()
        other.alignment("b", turn=1)
        (ready,) = other.push(other.set("s", *pairs(6)), "b").releases
        lifecycle = Lifecycle(other.provenance, other.store, COLLECTION)
        with (
            other.provenance.runs.start("promote", {}) as run,
            raises(MismatchError, *aliases, *aliases.values(), code=FOREIGN),
        ):
            lifecycle.promote(run.id, forced=FORCED)
        assert world.store.aliases() == aliases
        assert live(other) == [("ready", ready.name)]
        assert consistent(world, world.store) == [True]

    def test_it_takes_over_by_an_explicit_word_and_the_first_is_refused(self, world: World, other: World) -> None:
        (name,) = world.store.collections()
        other.push(other.set("s", *pairs(6)), take_over=True)
        assert live(other) == [("live", name)]
        assert consistent(other, other.store) == [True]
        other.push(other.set("s", *pairs(6)))
        lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)
        for refused in (
            lambda run: opened(world),
            lambda run: world.push(world.set("s", *pairs(7))),
            lambda run: Deletion(COLLECTION, world.store, world.provenance, run).delete(keys=["1"]),
            lambda run: drop(lifecycle, lifecycle.rows()),
        ):
            with world.provenance.runs.start("test", {}) as run, raises(MismatchError, name, code=FOREIGN):
                refused(run)
        (stored,) = read_stored(world.provenance, world.store, world.provenance.releases.find()).values()
        assert "another modalign database" in stored.faults[0]
        assert world.store.count(name) == 12
        assert "1" in EmbeddingSet.open(world.home / "sets" / "s").load("image").keys

    def test_what_it_took_over_keeps_nothing_from_being_deleted_once_sql_forgets_it(
        self, world: World, other: World
    ) -> None:
        (name,) = world.store.collections()
        world.push(world.set("s", *pairs(6)), collection="sharing")
        other.push(other.set("s", *pairs(6)), take_over=True)

        def delete(key: str, collection: str) -> None:
            with world.provenance.runs.start("delete", {}) as run:
                Deletion(collection, world.store, world.provenance, run).delete(keys=[key])

        for collection in ("sharing", COLLECTION):
            with raises(MismatchError, name, f"modalign drop {COLLECTION} --taken-over", code=FOREIGN):
                delete("1", collection)
        assert taken_over(Lifecycle(world.provenance, world.store, "sharing")) == []
        lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)
        assert [row.physical_name for row in taken_over(lifecycle)] == [name]
        assert forget(lifecycle, []) == []
        assert [row.physical_name for row in forget(lifecycle, [name])] == [name]
        points = world.store.count(name)
        delete("1", "sharing")
        assert world.store.count(name) == points
        assert consistent(world, world.store) == [True]
        assert consistent(other, other.store) == [True]
        opened(other)

    def test_nothing_of_ones_own_is_forgotten(self, world: World, embedding_set: EmbeddingSet) -> None:
        (release,) = world.push(embedding_set).releases
        lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)
        assert forget(lifecycle, [release.name]) == taken_over(lifecycle) == []
        opened(world)

    def test_its_other_collections_are_its_own(self, world: World, other: World) -> None:
        other.push(other.set("s", *pairs(3)), collection="others")
        assert consistent(other, other.store) == [True]
        opened(world)

    @pytest.mark.slow
    @pytest.mark.parametrize("claim", [{"store": 7}, "text", 3, {}, [1]])
    def test_a_claim_that_cannot_be_read_is_another_s(
        self, world: World, embedding_set: EmbeddingSet, claim: object
    ) -> None:
        name = world.push(embedding_set).releases[0].name
        world.store.add_metadata(name, {OWNER: claim})
        with raises(MismatchError, name, code=FOREIGN):
            opened(world)


class TestOlderCollections:
    @pytest.fixture
    def older(self, world: World, embedding_set: EmbeddingSet) -> World:
        """A home whose collection does not say whose it is."""
        world.push(embedding_set)
        forget_owners(world)
        return world

    @pytest.mark.parametrize("url", [FIRST, "http://HOST:6333/", "HTTP://host"])
    def test_they_are_found_by_their_address_however_spelled(self, older: World, at: At, url: str) -> None:
        older.store = at(url)
        opened(older)
        assert OWNER not in older.store.metadata(opened(older).name)

    @pytest.mark.slow
    @pytest.mark.parametrize("writing", ["push", "promote", "delete", "repair"])
    def test_the_next_write_lets_them_say_it(
        self, older: World, embedding_set: EmbeddingSet, at: At, writing: str
    ) -> None:
        row = opened(older).row
        older.alignment("b", turn=1)
        with older.provenance.runs.start(writing, {}) as run:
            match writing:
                case "push":
                    older.push(embedding_set)
                case "promote":
                    older.push(embedding_set, "b")
                    forget_owners(older)
                    Lifecycle(older.provenance, older.store, COLLECTION).promote(run.id, forced=FORCED)
                case "delete":
                    Deletion(COLLECTION, older.store, older.provenance, run).delete(keys=["1"])
                case "repair":
                    repair_releases(older.provenance, older.store, run)
        older.store = at(OTHERS[0])
        assert here(older.provenance, older.store) == row.store_id
        assert opened(older).row.collection == COLLECTION

    def test_by_an_unknown_address_nothing_is_written(self, older: World, embedding_set: EmbeddingSet, at: At) -> None:
        older.store = at(OTHERS[0])
        with raises(CollectionNotFoundError, FIRST, "merge-stores"):
            opened(older)
        with raises(MismatchError, FIRST, "merge-stores", "--take-over", code=TWICE):
            older.push(embedding_set)
        assert len(live(older)) == 1

    def test_a_new_address_is_told_by_a_merge(self, older: World, embedding_set: EmbeddingSet, at: At) -> None:
        older.store = at(OTHERS[0])
        merged(older, FIRST)
        assert older.push(embedding_set).counts == {"unchanged": 12}
        assert len(live(older)) == 1


def merged(world: World, address: str) -> None:
    with world.provenance.runs.start("merge-stores", {}) as run:
        merge(world.provenance, world.store, find_merge(world.provenance, world.store, address), run)


class TestTwoRowsOfOneCollection:
    """What the version before made of two addresses of one server."""

    @pytest.fixture
    def twice(self, world: World, embedding_set: EmbeddingSet, at: At) -> World:
        """The same set was pushed by two addresses; more was pushed by the second, and another release promoted."""
        world.push(embedding_set)
        forget_owners(world)
        world.store = at(OTHERS[0])
        world.push(embedding_set, take_over=True)
        world.push(world.set("more", *pairs(3, prefix="more")))
        world.alignment("b", turn=1)
        for name in ("s", "more"):
            world.push(EmbeddingSet.open(world.home / "sets" / name), "b")
        with world.provenance.runs.start("promote", {}) as run:
            Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, forced=FORCED)
        forget_owners(world)
        assert [state for state, _ in live(world)] == ["live", "retired", "live"]
        return world

    def test_a_write_by_the_first_address_names_the_merge(
        self, twice: World, embedding_set: EmbeddingSet, at: At, caplog: pytest.LogCaptureFixture
    ) -> None:
        twice.store = at(FIRST)
        with raises(MismatchError, 18, 12):  # the ledger of this row lacks what the other address wrote
            twice.push(embedding_set)
        caplog.set_level(logging.WARNING)
        twice.store = at(OTHERS[0])
        here(twice.provenance, twice.store)
        assert any(FIRST in message and "merge-stores" in message for message in caplog.messages)
        with raises(MismatchError, FIRST, OTHERS[0], "merge-stores", code=TWICE):
            twice.push(embedding_set)

    @pytest.mark.parametrize(("by", "other"), [(FIRST, OTHERS[0]), (OTHERS[0], FIRST)])
    def test_a_merge_keeps_everything(
        self, twice: World, embedding_set: EmbeddingSet, at: At, by: str, other: str
    ) -> None:
        served = twice.store.aliases()[f"{COLLECTION}.cosine"]
        promotions = len(twice.provenance.releases.promotions())
        twice.store = at(by)
        merged(twice, other)
        assert sorted(live(twice)) == sorted(
            ("live" if name == served else "retired", name) for name in twice.store.collections()
        )
        assert len(twice.provenance.releases.promotions()) == promotions
        for row in twice.provenance.releases.find():
            assert twice.provenance.ledger.points(row.id) == row.points == 18
            assert {s.name for s in twice.provenance.ledger.sets_in([row.id])} == {"s", "more"}
        for url in (FIRST, *OTHERS):
            twice.store = at(url)
            assert opened(twice).name == served
            assert all(consistent(twice, twice.store))
            assert twice.push(embedding_set).counts == {"unchanged": 24}

    def test_merging_again_changes_nothing(self, twice: World, at: At) -> None:
        twice.store = at(FIRST)
        merged(twice, OTHERS[0])
        before = live(twice)
        merged(twice, OTHERS[0])
        assert live(twice) == before

    def test_two_servers_are_not_merged(self, world: World, embedding_set: EmbeddingSet, at: At) -> None:
        world.push(embedding_set)
        world.store = LocalModeStore(Connection(QdrantClient(":memory:"), "http://second:6333"), uploads=1)
        world.push(embedding_set)
        with raises(MismatchError, FIRST, "http://second:6333"):
            find_merge(world.provenance, world.store, FIRST)
        assert len(live(world)) == 2

    def test_an_address_that_sql_does_not_know(self, world: World, embedding_set: EmbeddingSet) -> None:
        world.push(embedding_set)
        with raises(SettingsError, "http://nobody:6333", FIRST):
            find_merge(world.provenance, world.store, "http://nobody:6333")
