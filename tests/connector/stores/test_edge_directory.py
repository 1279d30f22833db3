"""The directory of an embedded store: nothing is lost by crashes and damage, and nothing is deleted without proof."""

import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from alignment.durable import write_durably
from connector.errors import CollectionNotFoundError, StoreBusyError, StoreError
from connector.stores import edge_directory
from connector.stores.edge import EdgeStore
from connector.stores.points import Points
from tests.support.edge_stores import DIM, LAYOUT, N, batch, died, exit_code, ids, kill_me, registry, tree
from tests.support.errors import raises

READS: dict[str, Callable[[EdgeStore], object]] = {
    "open": lambda store: None,
    "collections": lambda store: store.collections(),
    "aliases": lambda store: store.aliases(),
    "describe": lambda store: store.describe("c"),
    "count": lambda store: store.count("live"),
    "search": lambda store: store.search("c", "v", np.ones((1, DIM), np.float32), 3),
    "scroll": lambda store: list(store.scroll("c")),
    "retrieve": lambda store: store.retrieve("c", ids(3)),
    "flush": lambda store: store.flush("c"),
}


def full_store(path: Path) -> None:
    """A store of the collection `c`, with points and the alias `live`."""
    with EdgeStore(path) as store:
        store.create("c", LAYOUT)
        store.set_aliases({"live": "c"})
        store.upsert("c", batch())


def state(path: Path, name: str) -> Any:
    return json.loads((path / "collections" / name / "modalign.json").read_text(encoding="utf-8"))


def set_state(path: Path, name: str, **changes: str) -> None:
    raw = state(path, name) | changes
    (path / "collections" / name / "modalign.json").write_text(json.dumps(raw), encoding="utf-8")


def unnamed(path: Path, name: str) -> None:
    """Let the registry forget a collection, as an older one does."""
    raw = registry(path)
    del raw["collections"][name]
    (path / "registry.json").write_text(json.dumps(raw), encoding="utf-8")


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in (path / "collections").iterdir())


class TestReadingChangesNothing:
    @pytest.mark.parametrize("read", READS)
    def test_no_store_is_made(self, tmp_path: Path, read: str) -> None:
        (tmp_path / "empty").mkdir()
        for place in (tmp_path / "missing" / "store", tmp_path / "empty"):
            with EdgeStore(place) as store:
                try:
                    assert not READS[read](store)
                except CollectionNotFoundError:
                    assert read not in ("open", "collections", "aliases")
        assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]

    @pytest.mark.slow
    @pytest.mark.parametrize("read", READS)
    def test_nothing_is_removed_or_added(self, tmp_path: Path, read: str) -> None:
        """Neither what is unknown, nor what a crash left, nor what a killed optimisation left."""
        full_store(tmp_path)
        with EdgeStore(tmp_path) as store:
            for name in ("creating", "dropping", "unknown"):
                store.create(name, LAYOUT)
        for name in ("creating", "dropping", "unknown"):
            unnamed(tmp_path, name)
        set_state(tmp_path, "creating", step="creating")
        set_state(tmp_path, "dropping", step="dropping")
        set_state(tmp_path, "c", step="open")
        (tmp_path / "collections" / "c" / "temp_segments" / "orphan").mkdir(parents=True)
        (tmp_path / "collections" / "stray").write_text("x")
        with EdgeStore(tmp_path) as store:
            READS[read](store)  # the engine may tidy up its own files
        before = tree(tmp_path)
        with EdgeStore(tmp_path) as store:
            READS[read](store)
        after = tree(tmp_path)
        assert after.keys() == before.keys()
        changed = {place for place in before if before[place] != after[place]}
        engines_own = ("collections/c/edge_config.json", "collections/c/segments/", "collections/c/wal/")
        assert [place for place in changed if not place.startswith(engines_own)] == []


class TestNoStore:
    def foreign(self, path: Path) -> None:
        (path / "collections" / "holiday" / "segments").mkdir(parents=True)
        (path / "collections" / "holiday" / "segments" / "photo").write_text("x")
        (path / "notes").write_text("x")

    def test_a_directory_of_somebody_else_is_refused_and_left(self, tmp_path: Path) -> None:
        self.foreign(tmp_path)
        before = tree(tmp_path)
        for _ in range(2):
            with raises(StoreError, tmp_path, "registry.json", "'collections', 'notes'", "MODALIGN_QDRANT_URL"):
                EdgeStore(tmp_path)
        assert tree(tmp_path) == before

    def test_a_store_that_lost_its_registry_is_refused_and_left(self, tmp_path: Path) -> None:
        full_store(tmp_path)
        (tmp_path / "registry.json").rename(tmp_path.parent / "backup.json")
        before = tree(tmp_path)
        with raises(StoreError, tmp_path, "registry.json", "backup"):
            EdgeStore(tmp_path)
        assert tree(tmp_path) == before
        (tmp_path.parent / "backup.json").rename(tmp_path / "registry.json")
        with EdgeStore(tmp_path) as store:
            assert store.count("live") == N

    def test_what_appears_before_the_first_write_is_refused_and_left(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            self.foreign(tmp_path)
            before = tree(tmp_path)
            with raises(StoreError, "'collections', 'notes'"):
                store.create("c", LAYOUT)
        assert {place: content for place, content in tree(tmp_path).items() if place != ".lock"} == before

    def test_a_store_that_appears_before_the_first_write_is_joined(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as early:
            full_store(tmp_path)
            early.create("d", LAYOUT)
            assert early.collections() == ["c", "d"]
        with EdgeStore(tmp_path) as store:
            assert store.count("live") == N

    def test_two_that_make_one_store_do_not_both_have_it(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path / "s") as first, EdgeStore(tmp_path / "s") as second:
            first.create("c", LAYOUT)
            with raises(StoreBusyError, "MODALIGN_QDRANT_URL"):
                second.create("d", LAYOUT)

    @pytest.mark.parametrize("place", ["file", "file/below", "\0", "x" * 300])
    def test_a_place_that_cannot_be_a_directory(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_text("x")
        with raises(StoreError, "cannot be used as a store"), EdgeStore(tmp_path / place) as store:
            store.create("c", LAYOUT)


class TestUnknown:
    def test_what_an_older_registry_does_not_name_is_named_and_left(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        full_store(tmp_path)
        older = (tmp_path / "registry.json").read_bytes()
        with EdgeStore(tmp_path) as store:
            store.create("newer", LAYOUT)
            store.upsert("newer", batch())
        newest = (tmp_path / "registry.json").read_bytes()
        (tmp_path / "registry.json").write_bytes(older)
        with caplog.at_level(logging.WARNING), EdgeStore(tmp_path) as store:
            assert store.collections() == ["c"]
            store.upsert("c", batch())
            store.create("other", LAYOUT)
            store.drop("other")
            with raises(StoreError, tmp_path / "collections" / "newer", "move it away"):
                store.create("newer", LAYOUT)
            store.drop("newer")
        assert "'newer'" in caplog.text
        (tmp_path / "registry.json").write_bytes(newest)
        with EdgeStore(tmp_path) as store:
            assert (store.count("c"), store.count("newer")) == (N, N)

    def test_stray_files_directories_and_links_block_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        full_store(tmp_path)
        elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
        (elsewhere / "precious").mkdir(parents=True)
        home = tmp_path / "collections"
        (home / ".DS_Store").write_text("x")
        (home / "line\nfeed").write_text("x")
        (home / "directory" / "segments").mkdir(parents=True)
        (home / "link").symlink_to(elsewhere)
        (home / "dangling").symlink_to("nowhere")
        (home / "c" / "temp_segments").symlink_to(elsewhere)
        for place in ("note", "c/note", "c/segments/note", "c/segments/.hidden"):
            (tmp_path / "collections" / place).write_text("x")
        (tmp_path / "note").write_text("x")
        set_state(tmp_path, "c", step="open")
        with caplog.at_level(logging.WARNING), EdgeStore(tmp_path) as store:
            assert store.collections() == ["c"]
            store.upsert("live", batch())
            assert store.count("c") == N
        for name in ("'.DS_Store'", "'dangling'", "'directory'", "'line\\nfeed'", "'link'", "1 more"):
            assert name in caplog.text
        assert "line\nfeed" not in caplog.text
        assert (elsewhere / "precious").exists()
        assert entries(tmp_path) == [".DS_Store", "c", "dangling", "directory", "line\nfeed", "link", "note"]

    @pytest.mark.parametrize(
        "proof",
        [
            "",
            "[]",
            '{"store": 1}',
            "\0",
            "another store",
            "no store",
            "open",
            "closed",
            "unknown step",
            "named by a link",
        ],
    )
    def test_without_proof_nothing_is_removed(self, tmp_path: Path, proof: str) -> None:
        full_store(tmp_path)
        with EdgeStore(tmp_path) as store:
            store.create("d", LAYOUT)
        unnamed(tmp_path, "d")
        (file,) = (tmp_path / "collections" / "d").glob("modalign.json")
        match proof:
            case "another store":
                set_state(tmp_path, "d", step="dropping", store="0" * 32)
            case "no store":  # a registry of an older modalign has no id
                set_state(tmp_path, "d", step="dropping", store="")
                raw = registry(tmp_path)
                del raw["id"]
                (tmp_path / "registry.json").write_text(json.dumps(raw), encoding="utf-8")
            case "open" | "closed":
                set_state(tmp_path, "d", step=proof)
            case "unknown step":
                set_state(tmp_path, "d", step="removing")
            case "named by a link":
                set_state(tmp_path, "d", step="dropping")
                (tmp_path / "collections" / "d").rename(tmp_path / "moved")
                (tmp_path / "collections" / "d").symlink_to(tmp_path / "moved")
            case _:
                file.write_text(proof)
        before = sorted((tmp_path / "collections" / "d").rglob("*"))
        with EdgeStore(tmp_path) as store:
            store.upsert("c", batch())
        assert sorted((tmp_path / "collections" / "d").rglob("*")) == before

    def test_a_collection_whose_directory_is_missing_is_named_and_can_be_created_anew(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        full_store(tmp_path)
        with EdgeStore(tmp_path) as store:
            store.create("d", LAYOUT)
        (tmp_path / "collections" / "c").rename(tmp_path / "away")
        with caplog.at_level(logging.WARNING), EdgeStore(tmp_path) as store:
            assert store.collections() == ["d"]
            store.upsert("d", batch())
            for name in ("c", "live"):
                with raises(CollectionNotFoundError, tmp_path / "collections" / "c", "backup"):
                    store.count(name)
        assert "'c'" in caplog.text
        (tmp_path / "away").rename(tmp_path / "collections" / "c")
        with EdgeStore(tmp_path) as store:
            assert store.count("live") == N
        shutil.rmtree(tmp_path / "collections" / "c")
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch(3))
            assert store.count("live") == 3


class TestRegistry:
    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{",
            "[]",
            "null",
            "{}",
            '{"collections": {}}',
            '{"collections": {"c": {}}, "aliases": {}}',
            '{"collections": {"../c": {"vectors": {}}}, "aliases": {}}',
            '{"collections": {}, "aliases": {}, "id": 3}',
            "[" * 100_000,
            "\x00",
        ],
    )
    def test_a_damaged_one_is_named_and_nothing_is_removed(self, tmp_path: Path, content: str) -> None:
        full_store(tmp_path)
        good = (tmp_path / "registry.json").read_bytes()
        (tmp_path / "registry.json").write_text(content)
        for _ in range(2):  # the lock is free again after the first
            with raises(StoreError, "registry.json"):
                EdgeStore(tmp_path)
        (tmp_path / "registry.json").write_bytes(good)
        with EdgeStore(tmp_path) as store:
            assert store.count("c") == N

    @pytest.mark.parametrize("content", ['{"collections": {}, "aliases": {}, "version": 3}', "{", '{"npm": true}'])
    def test_one_of_another_program_is_refused_and_its_directory_stays_as_it_is(
        self, tmp_path: Path, content: str
    ) -> None:
        (tmp_path / "collections" / "precious").mkdir(parents=True)
        (tmp_path / "registry.json").write_text(content)
        before = tree(tmp_path)
        with raises(StoreError, "registry.json"):
            EdgeStore(tmp_path)
        assert tree(tmp_path) == before

    def test_an_unknown_distance_is_damage(self, tmp_path: Path) -> None:
        full_store(tmp_path)
        text = (tmp_path / "registry.json").read_text(encoding="utf-8")
        (tmp_path / "registry.json").write_text(text.replace("Euclid", "Hamming"), encoding="utf-8")
        with raises(StoreError, "Hamming"):
            EdgeStore(tmp_path)

    def test_one_of_before_stores_had_ids_opens_and_gets_one(self, tmp_path: Path) -> None:
        full_store(tmp_path)
        raw = registry(tmp_path)
        del raw["id"]
        (tmp_path / "registry.json").write_text(json.dumps(raw), encoding="utf-8")
        (tmp_path / "collections" / "c" / "modalign.json").unlink()
        with EdgeStore(tmp_path) as store:
            assert store.count("live") == N
        assert "id" not in registry(tmp_path)
        with EdgeStore(tmp_path) as store:
            store.upsert("c", batch())
        assert state(tmp_path, "c")["store"] == registry(tmp_path)["id"]

    def test_it_is_replaced_and_never_half_written(self, tmp_path: Path) -> None:
        """A reader that has the old file open goes on seeing the old content, whole."""
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            before = (tmp_path / "registry.json").stat().st_ino
            with (tmp_path / "registry.json").open(encoding="utf-8") as reader:
                store.set_aliases({"live": "c"})
                assert json.load(reader)["aliases"] == {}
            assert registry(tmp_path)["aliases"] == {"live": "c"}
            assert (tmp_path / "registry.json").stat().st_ino != before
            assert not list(tmp_path.glob("*.tmp"))

    def test_a_write_that_fails_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path, content: Any) -> None:
            if path.name == "registry.json":
                raise OSError(28, "No space left on device")
            write_durably(path, content)

        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            monkeypatch.setattr(edge_directory, "write_durably", full)
            with raises(StoreError, "No space left"):
                store.set_aliases({"live": "c"})
            with raises(StoreError, "No space left"):
                store.create("d", LAYOUT)
            with raises(StoreError, "No space left"):
                store.drop("c")
            assert (store.collections(), store.aliases(), entries(tmp_path)) == (["c"], {}, ["c"])
            monkeypatch.undo()
            store.create("d", LAYOUT)
            store.upsert("d", batch())
            store.upsert("c", batch())
            assert (store.count("c"), store.count("d")) == (N, N)


def die_at(target: str, *, after: bool = False, call: int = 1) -> None:
    """Let this process die before the function `target` is called for the `call`th time, or after."""
    module, _, name = target.rpartition(".")
    owner: Any = {"edge_directory": edge_directory, "shutil": shutil, "Path": Path}[module]
    original, left = getattr(owner, name), [call]

    def dying(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0] and not after:
            kill_me()
        result = original(*arguments, **options)
        if not left[0]:
            kill_me()
        return result

    patch.object(owner, name, dying).start()


def die_creating(path: Path, target: str, after: bool, call: int) -> None:
    store = EdgeStore(path)
    store.create("kept", LAYOUT)
    if target == "index":
        patch("qdrant_edge.UpdateOperation.create_field_index", kill_me).start()
    else:
        die_at(target, after=after, call=call)
    store.create("c", LAYOUT)


def die_creating_anew(path: Path, target: str, call: int) -> None:
    store = EdgeStore(path)
    for name in ("kept", "c"):
        store.create(name, LAYOUT)
    store.set_aliases({"live": "c"})
    store.close()
    shutil.rmtree(path / "collections" / "c")
    store = EdgeStore(path)
    if target == "index":
        patch("qdrant_edge.UpdateOperation.create_field_index", kill_me).start()
    else:
        die_at(target, after=True, call=call)
    store.create("c", LAYOUT)


def die_dropping(path: Path, target: str, after: bool, call: int) -> None:
    store = EdgeStore(path)
    for name in ("kept", "c"):
        store.create(name, LAYOUT)
    store.set_aliases({"live": "c"})
    die_at(target, after=after, call=call)
    store.drop("c")


def die_switching(path: Path) -> None:
    store = EdgeStore(path)
    for name in ("old", "new"):
        store.create(name, LAYOUT)
    store.set_aliases({"a": "old", "b": "old"})
    die_at("Path.replace")
    store.set_aliases({"a": "new", "b": "new"})


def die_making_a_store(path: Path, target: str) -> None:
    store = EdgeStore(path)
    die_at(target)
    store.create("c", LAYOUT)


class TestKilledAtNamedPoints:
    """A creation writes durably 1 the proof, 2 the registry, 3 the state; a drop 1 the proof, 2 the registry."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("target", "after", "call", "there"),
        [
            ("Path.mkdir", True, 1, False),
            ("edge_directory.write_durably", False, 1, False),
            ("Path.replace", False, 1, False),  # the proof is written, and not yet in its place
            ("edge_directory.write_durably", True, 1, False),
            ("index", False, 1, False),
            ("edge_directory.write_durably", False, 2, False),
            ("edge_directory.write_durably", True, 2, True),
            ("edge_directory.write_durably", True, 3, True),
        ],
    )
    def test_while_a_collection_is_created(
        self, processes: ForkServerContext, tmp_path: Path, target: str, after: bool, call: int, there: bool
    ) -> None:
        died(processes, die_creating, tmp_path, target, after, call)
        assert (tmp_path / "collections" / "c").exists()
        with EdgeStore(tmp_path) as store:
            assert store.collections() == (["c", "kept"] if there else ["kept"])
            if not there:
                store.create("c", LAYOUT)
            store.upsert("c", batch())
            assert store.count("c") == N
        assert entries(tmp_path) == ["c", "kept"]

    @pytest.mark.parametrize(
        ("target", "call", "there"),
        [
            ("edge_directory.write_durably", 1, False),
            ("edge_directory.write_durably", 2, False),
            ("index", 1, False),
            ("edge_directory.write_durably", 3, True),
            ("edge_directory.write_durably", 4, True),
        ],
    )
    def test_while_a_lost_collection_is_created_anew(
        self, processes: ForkServerContext, tmp_path: Path, target: str, call: int, there: bool
    ) -> None:
        died(processes, die_creating_anew, tmp_path, target, call)
        with EdgeStore(tmp_path) as store:
            assert store.collections() == (["c", "kept"] if there else ["kept"])
            if not there:
                store.create("c", LAYOUT)
            store.upsert("c", batch())
            assert store.count("live") == N
        assert entries(tmp_path) == ["c", "kept"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("target", "after", "call", "there"),
        [
            ("edge_directory.write_durably", False, 1, True),
            ("edge_directory.write_durably", True, 1, True),
            ("edge_directory.write_durably", False, 2, True),
            ("edge_directory.write_durably", True, 2, False),
            ("shutil.rmtree", False, 1, False),
            ("shutil.rmtree", True, 1, False),
            ("Path.unlink", False, 1, False),
        ],
    )
    def test_while_a_collection_is_dropped(
        self, processes: ForkServerContext, tmp_path: Path, target: str, after: bool, call: int, there: bool
    ) -> None:
        died(processes, die_dropping, tmp_path, target, after, call)
        assert (tmp_path / "collections" / "c").exists()
        with EdgeStore(tmp_path) as store:
            assert (store.collections(), store.aliases()) == (
                (["c", "kept"], {"live": "c"}) if there else (["kept"], {})
            )
            store.upsert("kept", batch())
            assert entries(tmp_path) == (["c", "kept"] if there else ["kept"])
            if there:
                store.upsert("c", batch())
                assert store.count("live") == N
        assert {state(tmp_path, name)["step"] for name in entries(tmp_path)} == {"closed"}

    def test_a_drop_that_did_not_take_effect_is_no_proof_later(
        self, processes: ForkServerContext, tmp_path: Path
    ) -> None:
        died(processes, die_dropping, tmp_path, "edge_directory.write_durably", True, 1)
        with EdgeStore(tmp_path) as store:
            store.upsert("kept", batch())
        unnamed(tmp_path, "c")
        with EdgeStore(tmp_path) as store:
            store.upsert("kept", batch())
        assert entries(tmp_path) == ["c", "kept"]

    @pytest.mark.parametrize("target", ["Path.replace", "edge_directory.write_durably"])
    def test_while_the_store_is_made(self, processes: ForkServerContext, tmp_path: Path, target: str) -> None:
        died(processes, die_making_a_store, tmp_path / "s", target)
        with EdgeStore(tmp_path / "s") as store:
            assert store.collections() == []
            store.create("c", LAYOUT)
            assert store.collections() == ["c"]

    def test_while_aliases_are_switched(self, processes: ForkServerContext, tmp_path: Path) -> None:
        died(processes, die_switching, tmp_path)
        with EdgeStore(tmp_path) as store:
            assert store.aliases() == {"a": "old", "b": "old"}
            store.set_aliases({"a": "new", "b": "new"})
            assert store.aliases() == {"a": "new", "b": "new"}

    def test_orphans_of_a_killed_optimisation_are_removed_before_the_next_write(self, tmp_path: Path) -> None:
        full_store(tmp_path)
        orphan = tmp_path / "collections" / "c" / "temp_segments" / "segment"
        orphan.mkdir(parents=True)
        set_state(tmp_path, "c", step="open")
        with EdgeStore(tmp_path) as store:
            assert store.count("c") == N
            assert orphan.exists()
            store.upsert("c", batch())
            assert not orphan.exists()
            assert store.count("c") == N


def work_until_killed(path: Path, journal: Path, seed: int, events: int) -> None:
    """Create, write and drop collections at random; write into `journal` what begins and what is done.

    The process dies at the given number of calls and returns of functions, those of C included.
    """
    draw, left = random.Random(seed), events

    def watch(frame: object, event: str, argument: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            kill_me()

    file = os.open(journal, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    sys.setprofile(watch)
    with EdgeStore(path) as store:
        for _ in range(8):
            name = draw.choice("ab")
            if name not in store.collections():
                os.write(file, f"creating {name} 0\n".encode())
                store.create(name, LAYOUT)
                os.write(file, f"created {name} 0\n".encode())
            elif draw.random() < 0.4:
                os.write(file, f"dropping {name} 0\n".encode())
                store.drop(name)
                os.write(file, f"dropped {name} 0\n".encode())
            else:
                points = draw.randrange(1, 60)
                store.upsert(name, batch(points))
                os.write(file, f"written {name} {points}\n".encode())
    sys.setprofile(None)


def journal_of(path: Path) -> dict[str, tuple[str, int]]:
    """Return by collection what was last begun or done, and how many points it must hold at least."""
    last: dict[str, tuple[str, int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        what, name, points = line.split()
        last[name] = (what, max(int(points), last.get(name, ("", 0))[1]) if what == "written" else 0)
    return last


def damage(draw: random.Random, path: Path, older: bytes) -> tuple[str, Callable[[], None]]:
    """Damage the store as a seed says; return the name of the damage, and what takes it back."""
    file = path / "registry.json"
    states = [place for place in path.glob("collections/[ab]/modalign.json") if not place.is_symlink()]
    good = {place: place.read_bytes() for place in (file, *sorted(states))}

    def restore() -> None:
        for place, content in good.items():
            if place.parent.exists():
                place.write_bytes(content)

    kind = draw.choice(["none", "registry missing", "registry older", "registry cut", "states", "strangers"])
    if kind == "registry missing":
        file.unlink()
    elif kind == "registry older":
        file.write_bytes(older)
    elif kind == "registry cut":
        file.write_bytes(good[file][: draw.randrange(len(good[file]) - 1)])
    elif kind == "states":
        for place in states:
            place.write_bytes(good[place][: draw.randrange(len(good[place]))])
    elif kind == "strangers":
        for number in range(3):
            stranger = path / "collections" / draw.choice("cde") / f"segments-{number}"
            stranger.mkdir(parents=True, exist_ok=True)
            (stranger / "file").write_text("x")
    return kind, restore


class TestKilledAndDamagedAtRandom:
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(16))
    def test_what_was_done_is_there_and_nothing_is_deleted_without_proof(
        self, processes: ForkServerContext, tmp_path: Path, seed: int
    ) -> None:
        draw = random.Random(seed)
        path, journal = tmp_path / "store", tmp_path / "journal"
        with EdgeStore(path) as store:
            store.create("bystander", LAYOUT)
            store.upsert("bystander", batch())
        older = (path / "registry.json").read_bytes()
        for step in range(2):
            code = exit_code(processes, work_until_killed, path, journal, 100 * seed + step, draw.randrange(50, 15_000))
            assert code in (0, -9)
            last = journal_of(journal)
            unfinished = {name for name, (what, _) in last.items() if what in ("creating", "dropping")}
            before = set(entries(path))
            kind, restore = damage(draw, path, older)
            before |= set(entries(path))
            whole = tree(path)
            refused = kind in ("registry missing", "registry cut")
            try:
                with EdgeStore(path) as store:
                    assert not refused
                    assert store.collections()
                    assert tree(path) == whole
                    store.upsert("bystander", batch())
            except StoreError:
                assert refused
                assert tree(path) == whole
            assert before - set(entries(path)) <= unfinished
            restore()
            with EdgeStore(path) as store:
                for name, (what, points) in last.items():
                    if what in ("created", "written"):
                        assert store.count(name) >= points
                    elif what == "dropped":
                        assert name not in store.collections()
                assert store.count("bystander") == N
                for name in ("a", "b"):
                    if name not in store.collections():
                        store.create(name, LAYOUT)
                        store.upsert(name, Points("v", ids(1), np.ones((1, DIM), np.float32), [{}]))
                        store.drop(name)
