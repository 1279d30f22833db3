"""Workers scan a release slice by slice, and find what one process finds."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from connector.audits import point_scan, subject
from connector.audits.point_scan import SliceScanner, open_scanner
from connector.errors import ExecutorError, SettingsError, StrangePointError
from connector.requests import AuditRequest
from connector.settings import Settings
from connector.stores.points import id_ranges
from connector.stores.qdrant import QdrantStore
from tests.support.errors import raises
from tests.support.faulty_server import FaultyServer, running
from tests.support.shuffling import Shuffling
from tests.support.world import COLLECTION, SOME, World, audit, opened, several, steady, the_set

N = 30
SLICE = 12  # points
SLICES = 3 * N // SLICE + 1


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    with running(FaultyServer()) as server:
        yield server


@pytest.fixture(scope="module")
def served(server: FaultyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with releases under every metric, in a store that several processes may read."""
    with QdrantStore.connect(server.url) as store:
        world = World(tmp_path_factory.mktemp("world"), store)
        with world.provenance:
            world.alignment()
            world.push(world.set("s", *several(N)), metrics=SOME)
            yield world


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_scan, "SLICE_POINTS", SLICE)


class TestEqualsOneProcess:
    @pytest.mark.slow
    @pytest.mark.parametrize("metric", SOME)
    def test_every_measure(self, served: World, metric: str) -> None:
        release, executor = opened(served, metric), Shuffling(len(metric))
        alone = audit(release, served.store, the_set(served), ks=(1, 5), queries="all")
        workers = SliceScanner(executor, served.store.url)
        found = audit(release, served.store, the_set(served), ks=(1, 5), queries="all", workers=workers)
        assert steady(found) == steady(alone)
        assert (found.gallery, found.findings) == (alone.gallery, alone.findings)
        for direction, result in found.directions.items():
            other = alone.directions[direction]
            assert (result.curve, result.worst) == (other.curve, other.worst)
            assert result.seen_unseen is not None
            assert other.seen_unseen is not None
            assert result.seen_unseen.points == other.seen_unseen.points
        # In both directions: the audit's own queries; those about new and known items, ranked and without the offset.
        times = Counter(executor.worked)
        assert times.keys() == {str(ids) for ids in id_ranges(SLICES)}
        assert set(times.values()) == {6}

    def test_more_groups_than_a_filter_names(self, served: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Relevant points are then found by the workers, too."""
        release = opened(served)
        alone = audit(release, served.store, the_set(served), ks=(1, 5), queries="all")
        monkeypatch.setattr(subject, "FILTERED_GROUPS", 1)
        workers = SliceScanner(executor := Shuffling(), served.store.url)
        found = audit(release, served.store, the_set(served), ks=(1, 5), queries="all", workers=workers)
        assert steady(found) == steady(alone)
        assert set(Counter(executor.worked).values()) == {10}


class TestFails:
    def test_a_slice_that_cannot_be_read_ends_the_audit(self, served: World) -> None:
        lost = str(id_ranges(SLICES)[3])
        workers = SliceScanner(Shuffling(fails=(lost,)), served.store.url)
        with raises(ExecutorError, lost, "disk", code="slice-failed"):
            audit(opened(served), served.store, the_set(served), queries="all", workers=workers)

    def test_a_point_that_modalign_did_not_write_is_named(self, tmp_path: Path) -> None:
        with running(FaultyServer()) as server, QdrantStore.connect(server.url) as store:
            world = World(tmp_path, store)
            with world.provenance:
                world.alignment()
                (release,) = world.push(world.set("s", *several(N))).releases
                point = next(iter(store.scroll(release.name)))[0].id
                server.data.delete_payload(release.name, ["group"], points=[point])
                for workers in (None, SliceScanner(Shuffling(), server.url)):
                    with raises(StrangePointError, point):
                        audit(opened(world), store, the_set(world), queries="all", workers=workers)

    def test_an_embedded_store_is_not_read_by_workers(self, tmp_path: Path) -> None:
        request = AuditRequest(collection=COLLECTION, pairs="s", on="local:2")
        with (
            raises(SettingsError, "local:2", str(tmp_path / "qdrant"), "--qdrant-url", code="on"),
            open_scanner(request, Settings.load(home=tmp_path)),
        ):
            pass

    def test_workers_keep_no_limit_of_queries_a_second(self, tmp_path: Path) -> None:
        request = AuditRequest(collection=COLLECTION, pairs="s", on="local:2", max_qps=5)
        settings = Settings.load(home=tmp_path, qdrant_url="http://127.0.0.1:1")
        with raises(SettingsError, "--max-qps 5", code="max-qps"), open_scanner(request, settings):
            pass
