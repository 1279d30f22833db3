"""What the key of a server has to allow for each command, as tests: `docs/server.md` has the table that they make.

A subclass, or its module, gives two fixtures:

    guarded       a server that takes tokens: `url`, and a key that may do all
    collection    the name of a collection that nobody else has
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select

from connector.cli.reconciled_tables import reconciled_rows
from connector.errors import AccessDeniedError
from connector.home import Home
from connector.provenance.tables import Base
from connector.releases.points import point_id
from connector.releases.reconcile import ReconcileReport
from connector.requests import (
    AuditRequest,
    DeleteRequest,
    DropRequest,
    ExportRequest,
    IngestRequest,
    PromoteRequest,
    PushRequest,
    RepairRequest,
    RollbackRequest,
    SearchRequest,
)
from connector.search import export as exporting
from connector.settings import Settings
from connector.stores import qdrant_readiness
from connector.stores.qdrant import QdrantStore
from tests.support.errors import raises
from tests.support.fakes import fake_pairs, loads_no_encoder, write_manifest
from tests.support.qdrant_servers import token
from tests.support.slow import slow_unless
from tests.support.world import World, pairs

READ, WRITE, MANAGE = "read the releases", "write into the releases", "manage the server"
# The rights that are enough, from the least.
ENOUGH = {READ: ("r", "prw"), WRITE: ("rw", "prw"), MANAGE: ("m",)}
# What a token says that allows so much, for the documentation.
TOKENS = {READ: "`r` on each collection", WRITE: "`rw` or `prw` on each collection", MANAGE: "`m`, or the API key"}
ELSEWHERE = [{"collection": "elsewhere", "access": "rw"}]
UNSAID = {"run", "lease", "reject", "store", "store_address"}  # tables that say who tried, and from where


class Guarded(NamedTuple):
    """A server that takes tokens, the key that it signs them with, which may do all, and a layout for releases."""

    url: str
    key: str
    layout: Mapping[str, int] = {}


@dataclass(frozen=True)
class House:
    """A home beside a guarded server, and what is in both."""

    world: World
    guarded: Guarded
    collection: str

    def home(self, access: Any = "m") -> Home:
        key = token(self.guarded.key, access=access)
        return Home(Settings(self.world.home, self.guarded.url, self.world.url, api_key=key, device="cpu"))

    def names(self) -> list[str]:
        """The physical collections of the collection, without aliases."""
        return [name for name in self.world.store.collections() if name.startswith(f"{self.collection}.")]

    def scoped(self, mode: str, *, but: Sequence[str] = ()) -> list[dict[str, str]]:
        """The access to all of these collections but some."""
        return [{"collection": name, "access": mode} for name in self.names() if name not in but]

    def everything(self) -> dict[str, Any]:
        """All that a refused command must leave as it is: SQL, the collections and aliases, the embedding sets."""
        with self.world.provenance.database.session() as session:
            tables = {
                table.name: sorted(map(str, session.execute(select(table)).all()))
                for table in Base.metadata.sorted_tables
                if table.name not in UNSAID
            }
        files = (path for path in (self.world.home / "sets").rglob("*") if path.is_file() and path.suffix != ".lock")
        sets = {str(path): path.read_bytes() for path in files}
        return {**tables, **self.world.snapshot(), "sets": sets}


@dataclass(frozen=True)
class Command:
    """A command, what it needs, what is done before it, and how what it returns says that it had its effect."""

    needs: str
    run: Callable[[House, Home], Any]
    before: Callable[[House], Any] = lambda house: None
    is_done: Callable[[Any], bool] = lambda returned: True


def push(house: House, home: Home, **changes: Any) -> Any:
    request = PushRequest(
        set="s", into=house.collection, alignment="a", metrics=["cosine"], layout=house.guarded.layout
    )
    return home.push(replace(request, **changes))


def grown(house: House) -> None:
    house.world.provenance.artifacts.record_set(house.world.set("s", *pairs(9)))


def ingest(house: House, home: Home, **changes: Any) -> Any:
    manifest = write_manifest(house.world.home / "m.jsonl", fake_pairs(house.world.home, 4))
    request = IngestRequest(corpus=manifest, into=house.collection, alignment="a", metrics=["cosine"])
    return home.ingest(replace(request, **changes))


def shadow(house: House) -> str:
    """A ready release of another alignment; its physical collection."""
    with house.home() as home:
        (release,) = push(house, home, alignment="b").value
    return str(release.name)


def promote(house: House, home: Home) -> Any:
    return home.promote(PromoteRequest(collection=house.collection, reason="a test"))


def promoted(house: House) -> None:
    shadow(house)
    with house.home() as home:
        promote(house, home)


def live(house: House, state: str = "live") -> str:
    (row,) = house.world.provenance.releases.find(collection=house.collection, state=state)
    return row.physical_name


def lose_a_point(house: House) -> None:
    house.world.store.delete(live(house), [point_id("image", "0")])


def switch_away(house: House) -> None:
    """Point the alias of the live release to another collection, behind modalign's back."""
    with house.home() as home:
        (other,) = push(house, home, into=f"{house.collection}.x", metrics=["dot"]).value
    house.world.store.set_aliases({f"{house.collection}.cosine": other.name})


def delete(house: House, home: Home) -> Any:
    return home.delete(DeleteRequest(collection=house.collection, keys=["1"]))


def repair(house: House, home: Home) -> Any:
    return home.repair(RepairRequest(collection=house.collection))


def search(house: House, home: Home) -> Any:
    return home.search(SearchRequest(collection=house.collection, query="crimson crimson"))


def audit(house: House, home: Home) -> Any:
    return home.audit(AuditRequest(collection=house.collection, pairs="s", queries="all", gallery="all"))


def export(house: House, home: Home) -> Any:
    directory = house.world.home / f"export-{len(list(house.world.home.iterdir()))}"
    return home.export(ExportRequest(alignment="a", metric="cosine", to=directory, collection=house.collection))


def drop(house: House, home: Home) -> Any:
    return home.drop(DropRequest(collection=house.collection, releases=[live(house, "ready")]))


def all_consistent(reports: Sequence[ReconcileReport]) -> bool:
    return len(reports) > 0 and all(report.consistent for report in reports)


COMMANDS: Mapping[str, Command] = {
    "`search`": Command(READ, search),
    "`audit`": Command(READ, audit),
    "`verify`": Command(READ, lambda house, home: home.verify(house.collection), is_done=all_consistent),
    "`export --collection`": Command(READ, export),
    "`push`, `ingest` into live releases": Command(WRITE, push, grown, lambda result: result.counts["written"] == 6),
    "`repair`": Command(WRITE, repair, lose_a_point, lambda result: all_consistent(result.value)),
    "`delete`": Command(WRITE, delete, is_done=lambda result: result.counts["deleted"] == 2),
    "`push`, `ingest` that make a release": Command(
        MANAGE, lambda house, home: push(house, home, metrics=["cosine", "dot"])
    ),
    "`promote`": Command(MANAGE, promote, shadow),
    "`rollback`": Command(
        MANAGE, lambda house, home: home.rollback(RollbackRequest(collection=house.collection)), promoted
    ),
    "`drop`": Command(MANAGE, drop, shadow),
}


def table() -> str:
    """The table of the documentation."""
    rows = [("command", "has to", "a token with"), ("---", "---", "---")]
    rows += [(name, command.needs, TOKENS[command.needs]) for name, command in COMMANDS.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class RightsContract:
    """The tests."""

    @pytest.fixture
    def house(
        self, guarded: Guarded, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[House]:
        """A live release of six pairs, a second alignment, stores that poll fast, and exports without graphs."""
        monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.02)
        monkeypatch.setattr(exporting, "export", lambda alignment, metric: [])  # no server is asked for them
        with QdrantStore.connect(guarded.url, api_key=guarded.key) as store:
            world = World(tmp_path / "home", store)
            with world.provenance:
                house = House(world, guarded, collection)
                world.alignment()
                world.alignment("b", turn=1)
                world.set("s", *pairs(6))
                with house.home() as home:
                    push(house, home)
                yield house
            for name in house.names():
                store.drop(name)

    @pytest.mark.parametrize(
        ("name", "mode"),
        slow_unless(
            lambda case: case == ("`verify`", "prw") or case[1] == ENOUGH[COMMANDS[case[0]].needs][0],
            [(name, mode) for name, command in COMMANDS.items() for mode in ENOUGH[command.needs]],
        ),
    )
    def test_a_command_needs_the_right_of_the_table_and_no_more(self, house: House, name: str, mode: str) -> None:
        """With less it is refused, names the key, and changes nothing at all; with enough it does all that it does."""
        command = COMMANDS[name]
        command.before(house)
        less = {READ: [], WRITE: [house.scoped("r"), "r"], MANAGE: [*map(house.scoped, ("r", "rw", "prw")), "r"]}
        before = house.everything()
        for access in [ELSEWHERE, *less[command.needs]]:
            with house.home(access) as home, raises(AccessDeniedError, "MODALIGN_QDRANT_API_KEY", code="access-denied"):
                command.run(house, home)
            assert house.everything() == before
        with house.home(mode if mode == "m" else house.scoped(mode)) as home:
            returned = command.run(house, home)
        assert command.is_done(returned)
        assert command.needs == READ or house.everything() != before

    @pytest.mark.parametrize("access", ["r", "rw"])
    def test_a_first_push_that_is_refused_leaves_nothing(self, house: House, access: str) -> None:
        before = house.everything()
        with house.home(house.scoped(access)) as home:
            with raises(AccessDeniedError, "new.cosine", "manage"):
                push(house, home, into="new")
            with raises(AccessDeniedError, "new.cosine", "manage"), loads_no_encoder():
                ingest(house, home, into="new")
        assert house.everything() == before

    def test_the_run_of_a_refused_command_ends_with_the_reason(self, house: House) -> None:
        shadow(house)
        with house.home(house.scoped("rw")) as home:
            for refused in (promote, drop):
                with raises(AccessDeniedError, "manage"):
                    refused(house, home)
                (run,) = home.status(runs=1).runs
                assert (run.outcome, "manage" in (run.error or "")) == ("failed", True)
            (ready,) = [release for release in home.status().releases if release.row.state == "ready"]
            assert ready.pending.startswith("a shadow")

    def test_a_search_without_the_right_says_which_one_it_takes(self, house: House) -> None:
        with house.home(ELSEWHERE) as home, raises(AccessDeniedError, live(house), "the right `r`"):
            search(house, home)

    def test_a_push_into_a_live_release_needs_no_right_to_its_alias(self, house: House) -> None:
        """The key does not show the alias, or shows that it is right already."""
        alias = f"{house.collection}.cosine"
        for number, more in enumerate(([], [{"collection": alias, "access": "r"}])):
            house.world.set("s", *pairs(7 + number))
            with house.home([*house.scoped("rw"), *more]) as home:
                assert push(house, home).counts["written"] == 2  # the pair that is new
            assert house.world.store.aliases()[alias] == live(house)

    def test_a_further_index_takes_the_right_to_write_and_not_to_points_alone(self, house: House) -> None:
        layout = {**house.guarded.layout, "payload_indexes": {"number": "integer"}}
        before = house.everything()
        with house.home(house.scoped("prw")) as home, raises(AccessDeniedError, code="access-denied"):
            push(house, home, layout=layout)
        assert house.everything() == before
        with house.home(house.scoped("rw")) as home:
            (release,) = push(house, home, layout=layout).value
        assert release.indexes["number"] == "integer"

    @pytest.mark.parametrize("shown", [False, True])
    def test_that_the_alias_was_not_compared_is_said_by_every_command_that_compares(
        self, house: House, shown: bool
    ) -> None:
        alias = f"{house.collection}.cosine"
        access = house.scoped("r") + [{"collection": alias, "access": "r"}] * shown
        request = AuditRequest(collection=house.collection, pairs="s", queries="all", gallery="all")
        with house.home(access) as home:
            (report,) = home.verify(house.collection)
            (stored,) = (home.stored(house.collection) or {}).values()
            (found,) = home.audit(request).value
            findings = found.findings
        assert report.consistent
        for sentences in (report.not_compared, stored.not_compared, findings):
            assert any(f"{alias} was not compared" in sentence for sentence in sentences) is not shown
        assert reconciled_rows([report])[0]["not_compared"] == report.not_compared

    def test_points_that_the_key_does_not_show_are_said_to_be_uncounted(self, house: House) -> None:
        other, first = shadow(house), live(house)
        with house.home(house.scoped("r", but=[other])) as home:
            stored = home.stored(house.collection)
        assert stored is not None
        by_name = {row.physical_name: row.id for row in house.world.provenance.releases.find()}
        assert stored[by_name[first]].points == 12
        assert stored[by_name[other]].points is None
        assert "not counted" in stored[by_name[other]].not_compared[0]

    def test_a_push_that_would_have_to_restore_the_alias_is_refused_before_it_writes(self, house: House) -> None:
        switch_away(house)
        grown(house)
        before = house.everything()
        alias = {"collection": f"{house.collection}.cosine", "access": "r"}
        with house.home([*house.scoped("rw"), alias]) as home, raises(AccessDeniedError, live(house), "manage"):
            push(house, home)
        assert house.everything() == before
        with house.home() as home:
            push(house, home)
        assert house.world.store.aliases()[f"{house.collection}.cosine"] == live(house)

    def test_an_audit_of_a_shadow_needs_to_see_the_live_release_too(self, house: House) -> None:
        """It is compared with that one at the end, so the audit is refused before it measures anything."""
        other, first = shadow(house), live(house)
        request = AuditRequest(collection=house.collection, pairs="s", release=other, queries="all", gallery="all")
        before = house.everything()
        with house.home(house.scoped("r", but=[first])) as home, raises(AccessDeniedError, first):
            home.audit(request)
        assert house.everything() == before
        with house.home(house.scoped("r")) as home:
            home.audit(request)

    @pytest.mark.parametrize("name", ["`delete`", "`push`, `ingest` into live releases", "`repair`", "`verify`"])
    def test_a_release_of_the_collection_that_the_key_does_not_show_is_named(self, house: House, name: str) -> None:
        other = shadow(house)
        before = house.everything()
        with house.home(house.scoped("rw", but=[other])) as home, raises(AccessDeniedError, other):
            COMMANDS[name].run(house, home)
        assert house.everything() == before

    def test_a_deletion_names_what_the_key_does_not_show_of_other_collections(self, house: House) -> None:
        """They share the embedding set, whose rows would be gone while their points stay."""
        with house.home() as home:
            names = [push(house, home, into=f"{house.collection}-{n}").value[0].name for n in range(2)]
        before = house.everything()
        with house.home(house.scoped("rw")) as home, raises(AccessDeniedError, *names):
            delete(house, home)
        assert house.everything() == before
        for name in names:
            house.world.store.drop(name)
